"""State, step, loop, optimizers, checkpoints and writers."""
