"""Flax Linen layers: a thin shell over the functional core."""
