"""What is trained on: one file a kind of problem; the contract is `base`."""
