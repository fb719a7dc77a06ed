"""Switch Transformer's loss: what is published of it, its gradient."""

import numpy as np
import pytest

from tests import balances
from tests.lazy import jax
from tests.methods import Row
from tests.oracles import real_tokens


def switch_loss(
  choices, masks, *, count='first', second_weight=0.0, over_padding=False
):
  """Equations 4 to 6, over one segment of tokens."""
  E = choices[0].probs.shape[-1]
  real = real_tokens(choices, masks)
  length = sum(len(m) for m in masks) if over_padding else len(real)

  def form(experts_of, probs_of):
    f, P, edges = np.zeros(E), np.zeros(E), 0
    for choice, t in real:
      for e in experts_of(choice, t):
        if e < E:  # E is nobody
          f[e] += 1
          edges += 1
      P += probs_of(choice, t)
    f /= len(real) if count == 'union' else edges
    P /= len(real)
    share = len(real) / length
    return E * sum(f[i] * share * P[i] * share for i in range(E))

  def without_first(choice, t):
    p = choice.probs[t].copy()
    p[choice.expert[t][0]] = 0
    return p / p.sum()

  every = slice(0, 1) if count == 'first' else slice(None)
  loss = form(lambda c, t: c.expert[t][every], lambda c, t: c.probs[t])
  if second_weight:
    loss += second_weight * form(lambda c, t: c.expert[t][1:2], without_first)
  return loss


_UNION = "switch_loss(count='union')"
_SECOND = 'switch_loss(second_weight=0.5)'
_PADDED = "switch_loss(over_padding=True, scope='sequence')"
ROWS = (
  Row('switch_loss()', '2101.03961', switch_loss),
  Row("switch_loss(scope='global')", '2101.03961', switch_loss),
  Row("switch_loss(scope='sequence')", '2101.03961', switch_loss),
  Row("switch_loss(count='all')", '2101.03961', switch_loss),
  # Conventions that are not normalised: K, and 1 + the second weight.
  Row(_UNION, '2101.03961', switch_loss, balanced=(2, 2)),
  Row(_SECOND, '2101.03961', switch_loss, balanced=(1.5, 1.5)),
  Row(_PADDED, '2101.03961', switch_loss),
)
ERRORS = {"switch_loss(count='top')": "count='top'; valid: first, all"}


def test_numbers_of_hugging_face():
  """Those embedded in transformers' test of its router loss."""
  probs = np.array(
    [
      [0.35490513, 0.60419905],
      [0.4275843, 0.23061597],
      [0.32985854, 0.43953657],
      [0.25099766, 0.27730572],
      [0.7678207, 0.71474564],
    ]
  )
  expert = np.array([[[0], [1], [1], [0], [0]]])
  r = balances.routing(np.log(probs)[None], expert, probs[None])
  got = balances.loss('switch_loss()', r)
  np.testing.assert_allclose(got, 0.874104, atol=1e-6)


def test_one_is_no_lower_bound():
  """51 tokens of (.51, .49) and 49 of (0, 1): f and P anti-correlate."""
  probs = np.repeat([[[0.51, 0.49], [0.0, 1.0]]], [51, 49], axis=1)
  args = (np.zeros_like(probs), probs.argmax(-1)[..., None], probs)
  want = switch_loss(balances.as_choices(*args), np.ones((1, 100), bool))
  np.testing.assert_allclose(want, 0.990404, atol=1e-6)
  got = balances.loss('switch_loss()', balances.routing(*args))
  np.testing.assert_allclose(got, want, rtol=1e-6)


def test_gradient_is_the_analytic_one():
  """dL/dh = (E / S) p (f - sum f p)."""
  r, choices, mask = balances.uneven(padding=0)

  def loss(logits):
    seen = r.replace(logits_TE=logits, probs_TE=jax.nn.softmax(logits))
    return balances.loss("switch_loss(scope='global')", seen, mask)

  p = np.stack([c.probs for c in choices])
  first = np.concatenate([c.expert[:, 0] for c in choices])
  f = np.bincount(first, minlength=p.shape[-1]) / mask.size
  want = p.shape[-1] / mask.size * p * (f - (p * f).sum(-1, keepdims=True))
  np.testing.assert_allclose(jax.grad(loss)(r.logits_TE), want, atol=1e-6)


def test_second_choices_must_be_there():
  one = balances.routing(np.zeros((1, 4, 3)), np.zeros((1, 4, 1), int))
  with pytest.raises(ValueError, match='this router has 1 choices of a token'):
    balances.loss('switch_loss(second_weight=0.5)', one)
