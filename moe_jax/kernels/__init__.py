"""Permutations and grouped matrix products, chosen by platform."""
