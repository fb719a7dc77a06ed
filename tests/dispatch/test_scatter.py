"""Padded buffers."""

from tests.methods import Row

ROWS = (Row('scatter()', '2006.16668'),)
