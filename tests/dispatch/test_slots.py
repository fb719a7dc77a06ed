"""Slots that are mixtures of tokens; values: tests/routers/test_soft.py."""

from tests.methods import Row

ROWS = (Row('slots()', '2308.00951', slots=True),)
