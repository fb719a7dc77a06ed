"""Studies: arms times seeds, run once, and a verdict on each claim."""
