"""Parameters to parameters: other codebases' checkpoints in and out."""
