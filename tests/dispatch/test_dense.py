"""The oracle of the dispatches, itself held by loops over whole layers."""

from tests.methods import Row

ROWS = (Row('dense()'),)
