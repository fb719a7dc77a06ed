"""Models to a model: one file a method; the contract is `base`."""
