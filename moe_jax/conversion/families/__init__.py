"""Families of open models, a file each: their configs and their tensors."""
