"""One-hot masks, for the record."""

from tests.methods import Row

ROWS = (Row('einsum()', '2006.16668'),)
