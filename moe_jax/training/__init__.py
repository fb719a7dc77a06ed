"""State, step, loop, optimizers and evaluation."""
