"""Programs, run from the repository's root: `python -m experiments.<name>`."""
