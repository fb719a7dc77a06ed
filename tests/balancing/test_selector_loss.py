"""The entropy of smooth selectors."""

import numpy as np
import pytest

from tests import balances
from tests.methods import Row

ROWS = (Row('selector_loss()', '2106.03760'),)
ERRORS = {'selector_loss(reach=-1)': 'reach=-1 is negative'}


def test_it_needs_selectors():
  """Both terms of DSelect-k's; COMET's have no reach."""
  entropy, reach = np.random.default_rng(0).uniform(size=(2, 1, 4))
  both = {'selector_entropy': entropy, 'selector_reach': reach}
  make = lambda **terms: balances.routing(
    np.zeros((1, 4, 3)), np.zeros((1, 4, 1), int), **terms
  )
  with pytest.raises(ValueError, match='no selector_reach; it goes with dsel'):
    balances.loss('selector_loss(reach=0.1)', make(selector_entropy=entropy))
  got = balances.loss('selector_loss(reach=0.1)', make(**both))
  np.testing.assert_allclose(got, np.mean(entropy + 0.1 * reach), rtol=1e-5)
  got = balances.loss('selector_loss()', make(**both))
  np.testing.assert_allclose(got, np.mean(entropy), rtol=1e-5)
