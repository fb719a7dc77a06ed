"""The importance loss."""

import numpy as np

from tests import balances
from tests.methods import Row
from tests.oracles import squared_cv


def importance_loss(choices, masks):
  """Shazeer et al. 2017, equations 6 and 7, with V-MoE's softmax."""
  return squared_cv(sum(c.probs[m].sum(0) for c, m in zip(choices, masks)))


ROWS = (
  Row('importance_loss()', '1701.06538', importance_loss, balanced=(0, 0)),
)


def test_it_sees_clean_logits():
  r, choices, mask = balances.uneven()
  clean = np.random.default_rng(1).normal(size=r.logits_TE.shape)
  r = r.replace(terms={'clean_logits': clean.astype(np.float32)})
  others = balances.as_choices(clean, [c.expert for c in choices])
  got = balances.loss("importance_loss(scope='global')", r, mask)
  np.testing.assert_allclose(got, importance_loss(others, mask), rtol=1e-5)
