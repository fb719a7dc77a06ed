"""Dynamic top-p: the shortest prefix that holds p, an expert at a time."""

import numpy as np
import pytest

from moe_jax import registry
from tests.lazy import routing
from tests.methods import Row
from tests.oracles import Choice, largest, linear, softmax


def top_p(x_TD, params, bias_E, seen, *, p=0.4, max_choices=0, strict=False):
  logits = linear(x_TD, params)
  probs = softmax(logits)
  T, E = probs.shape
  K = max_choices or E
  expert, weight = np.full((T, K), E), np.zeros((T, K))
  for t in range(T):
    held = 0.0
    for j, e in enumerate(largest(probs[t] + bias_E, K)):
      expert[t, j], weight[t, j] = e, probs[t, e]
      held += probs[t, e]
      if held > p or (held == p and not strict):
        break
  return Choice(expert, weight, probs, logits)


ROWS = (
  Row('top_p()', '2403.07652', top_p),
  Row('top_p(p=0.95, max_choices=3, strict=True)', '2403.07652', top_p),
)
ERRORS = {
  'top_p(p=0)': 'p=0; valid: above 0, at most 1',
  'top_p(p=1.1)': 'p=1.1; valid: above 0, at most 1',
  'top_p(max_choices=9)': 'k=9 exceeds num_experts=8',
}
used = lambda r: (np.asarray(r.expert_N) < r.num_experts).sum()


@pytest.mark.parametrize(
  ('strict', 'counts'), [(True, (1, 2, 3, 4)), (False, (1, 1, 2, 4))]
)
def test_at_and_above_the_mass(strict, counts):
  """Exact halves, where the paper's >= and the code's > differ."""
  logits = np.log([[0.5, 0.25, 0.125, 0.125]])
  for p, count in zip((0.4, 0.5, 0.75, 0.9), counts, strict=True):
    r = routing.by_logits(f'top_p(p={p}, strict={strict})', logits)
    assert used(r) == count


def test_a_uniform_softmax():
  r = routing.by_logits('top_p()', np.zeros((3, 16)))
  assert used(r) == 3 * 7
  np.testing.assert_allclose(r.weight_N.sum(), 3 * 7 / 16, rtol=1e-6)


@pytest.mark.parametrize(
  ('options', 'E', 'mean'),
  [
    ('', 16, 7),
    ('p=1', 16, 16),
    ('p=0.55', 20, 11),  # in floats 0.55 * 20 is above 11
    ('p=0.5, strict=True', 20, 11),
  ],
)
def test_experts_of_a_uniform_softmax(options, E, mean):
  router = registry.build('routers', f'top_p({options})')
  assert router.experts_per_token(E) == mean


def test_at_one_it_is_the_dense_mixture():
  logits = np.random.default_rng(0).normal(size=(5, 6))
  r = routing.by_logits('top_p(p=1)', logits)
  assert used(r) == 5 * 6
  np.testing.assert_allclose(routing.weights(r).sum(1), 1, rtol=1e-6)
