"""The loss of a smooth load."""

import pytest

from tests import balances
from tests.methods import Row
from tests.oracles import squared_cv


def load_loss(choices, masks):
  """V-MoE's: of the smooth loads that a router with noise gives."""
  loads = [c.smooth_load[m].sum(0) for c, m in zip(choices, masks)]
  return squared_cv(sum(loads))


ROWS = (
  Row("load_loss(scope='global')", '2106.05974', load_loss, balanced=(0, 0)),
)


def test_it_needs_a_smooth_load():
  r, _, mask = balances.uneven()
  with pytest.raises(ValueError, match='a router that draws Gaussian noise'):
    balances.loss('load_loss()', r.replace(terms={}), mask)
