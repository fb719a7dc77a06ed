"""Gathered tokens, local experts, reduced sums."""

from tests.methods import Row

ROWS = (Row('gather_reduce()', '2211.15841'),)
