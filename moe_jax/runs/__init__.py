"""Run folders: workdir, config, checkpoints, what is written, progress."""
