"""No-token-left-behind: the first of k choices that has a seat."""

from tests.methods import Row
from tests.oracles import linear, most_probable


def no_token_left_behind(x_TD, params, bias_E, seen, *, k):
  choice = most_probable(linear(x_TD, params), bias_E, k)
  choice.first_fit = True
  return choice


ROWS = (
  Row(
    'no_token_left_behind(k=3)',
    '2101.03961',
    no_token_left_behind,
    always=True,
  ),
)
ERRORS = {'no_token_left_behind(k=0)': 'k=0 must be a whole number from 1'}
