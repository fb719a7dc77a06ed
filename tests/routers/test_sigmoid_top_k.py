"""DeepSeek-V2 and V3: the best groups, then top-k of sigmoids or a softmax."""

import numpy as np
import pytest

from tests.lazy import jax, routing
from tests.methods import Row
from tests.oracles import Choice, largest, linear, sigmoid, softmax

SCORES = {
  'sigmoid': sigmoid,
  'softmax': softmax,
  'sqrt_softplus': lambda z: np.sqrt(np.log1p(np.exp(z))),
}


def sigmoid_top_k(
  x_TD,
  params,
  bias_E,
  seen,
  *,
  k,
  groups=1,
  kept_groups=1,
  group_score='top_2',
  score='sigmoid',
  scaling=2.5,
  renormalize=True,
):
  logits = linear(x_TD, params)
  s = SCORES[score](logits)
  T, E = s.shape
  size = E // groups
  expert, weight = np.zeros((T, k), int), np.zeros((T, k))
  for t in range(T):
    q = s[t] + bias_E
    of_group = []
    for g in range(groups):
      inside = sorted(q[g * size : (g + 1) * size], reverse=True)
      of_group.append(inside[0] + (inside[1] if group_score == 'top_2' else 0))
    allowed = largest(np.array(of_group), kept_groups)
    q = np.where(np.isin(np.arange(E) // size, allowed), q, -np.inf)
    expert[t] = largest(q, k)
    weight[t] = s[t, expert[t]]
    if renormalize:
      weight[t] /= weight[t].sum()
  return Choice(expert, scaling * weight, s / s.sum(-1, keepdims=True), logits)


ROWS = (
  Row('sigmoid_top_k(k=2)', '2412.19437', sigmoid_top_k, extremes=True),
  Row(
    'sigmoid_top_k(k=2, groups=2, kept_groups=1)', '2412.19437', sigmoid_top_k
  ),
  Row(
    "sigmoid_top_k(k=2, score='softmax', groups=4, kept_groups=2, "
    "group_score='max', renormalize=False, scaling=16.0)",
    '2405.04434',
    sigmoid_top_k,
  ),
)
ERRORS = {
  "sigmoid_top_k(score='relu')": (
    "score='relu'; valid: sigmoid, softmax, sqrt_s"
  ),
  "sigmoid_top_k(group_score='sum')": "'sum'; valid: top_2, max",
  'sigmoid_top_k(k=1)': 'k=1 needs renormalize=False',
  'sigmoid_top_k(kept_groups=2)': 'kept_groups=2; valid: 1 to groups=1',
  'sigmoid_top_k(groups=3)': 'groups=3 must divide num_experts=8',
  'sigmoid_top_k(groups=8)': 'into groups of at least 2',
  'sigmoid_top_k(k=3, groups=4)': 'k=3 exceeds num_experts=2',
}
E, D, T = 8, 6, 64
X = np.random.default_rng(0).normal(size=(T, D))
PARAMS = {'kernel': np.float32(np.random.default_rng(1).normal(size=(D, E)))}
V3 = 'sigmoid_top_k(k=3, groups=4, kept_groups=2)'


def route(spec, **known):
  return routing.route(spec, X, PARAMS, **known)


def test_weights_sum_to_the_scaling():
  r = route('sigmoid_top_k(k=3, scaling=1.5)')
  np.testing.assert_allclose(routing.weights(r).sum(1), 1.5, rtol=1e-5)
  np.testing.assert_allclose(r.probs_TE.sum(1), 1.0, rtol=1e-5)


def test_root_of_softplus_weights():
  options = {'k': 3, 'score': 'sqrt_softplus', 'scaling': 1.0}
  spec = "sigmoid_top_k(k=3, score='sqrt_softplus', scaling=1.0)"
  bias_E = np.linspace(-0.2, 0.2, E)
  r = route(spec, selection_bias_E=bias_E)
  want = sigmoid_top_k(X, PARAMS, bias_E, {}, **options)
  np.testing.assert_array_equal(routing.choices(r), want.expert)
  np.testing.assert_allclose(routing.weights(r), want.weight, rtol=1e-4)
  # No NaN where the softplus is 0.
  loss = lambda p: routing.route(spec, X, p).weight_N[:T].sum()
  far = {'kernel': 1e4 * PARAMS['kernel']}
  assert np.isfinite(jax.grad(loss)(far)['kernel']).all()


def test_a_token_stays_in_its_groups():
  """Node-limited: at most two of the four groups, and not always the same."""
  groups = routing.choices(route(V3)) // 2
  used = [frozenset(g) for g in groups.tolist()]
  assert max(map(len, used)) == 2 and len(set(used)) > 3
  free = routing.choices(route(V3.replace('=2', '=4')))
  assert max(len(set(g)) for g in (free // 2).tolist()) == 3


@pytest.mark.parametrize('shift', [0.5, -5.0])
def test_equal_biases_change_nothing(shift):
  """Trap: with other groups masked by 0, negative scores choose from them."""
  plain, moved = (
    route(V3, selection_bias_E=np.full(E, b)) for b in (0.0, shift)
  )
  np.testing.assert_array_equal(plain.expert_N, moved.expert_N)
  np.testing.assert_array_equal(plain.weight_N, moved.weight_N)


def test_one_group_is_no_limit():
  a = route("sigmoid_top_k(k=2, score='softmax', scaling=1.0)")
  b = route('top_k(k=2)')
  np.testing.assert_array_equal(a.expert_N, b.expert_N)
  np.testing.assert_allclose(a.weight_N, b.weight_N, rtol=1e-5)
