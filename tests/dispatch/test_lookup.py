"""Weights of the experts looked up by each edge."""

from tests.methods import Row

ROWS = (Row('lookup()', '2407.04153'),)
