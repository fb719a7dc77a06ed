"""The router z-loss."""

import math

import numpy as np

from tests import balances
from tests.lazy import jax
from tests.methods import Row
from tests.oracles import real_tokens


def z_loss(choices, masks, *, noisy=True):
  """ST-MoE, equation 5, over the real tokens; of the logits in `choices`."""
  tokens = real_tokens(choices, masks)
  sums = [sum(math.exp(v) for v in c.logits[t]) for c, t in tokens]
  return np.mean([math.log(v) ** 2 for v in sums])


_AT = (math.log(balances.E) ** 2, 30**2)  # (ln E)^2 of zero logits
ROWS = (
  Row('z_loss()', '2202.08906', z_loss, balanced=_AT),
  Row('z_loss(noisy=False)', '2202.08906', z_loss, balanced=_AT),
)


def test_clean_or_noisy_logits():
  """Noisy in most code, clean in st-moe-pytorch."""
  r, choices, mask = balances.uneven()
  clean = np.random.default_rng(1).normal(size=r.logits_TE.shape)
  r = r.replace(terms={'clean_logits': clean.astype(np.float32)})
  others = balances.as_choices(clean, [c.expert for c in choices])
  for row, seen in zip(ROWS, (choices, others)):
    want = balances.expected(row, seen, mask, 2)
    np.testing.assert_allclose(balances.loss(row.spec, r, mask, 2), want, 1e-5)


def test_gradient_is_the_analytic_one():
  """dL/dh = 2 lse p / S."""
  r, choices, mask = balances.uneven(padding=0)
  loss = lambda logits: balances.loss('z_loss()', r.replace(logits_TE=logits))
  logits = np.stack([c.logits for c in choices])
  lse = np.log(np.exp(logits).sum(-1, keepdims=True))
  want = 2 / mask.size * lse * np.stack([c.probs for c in choices])
  np.testing.assert_allclose(jax.grad(loss)(r.logits_TE), want, atol=1e-6)
