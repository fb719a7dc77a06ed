"""Top-k routing: the k most probable, and who of them is used."""

import numpy as np
import pytest

from tests.lazy import routing
from tests.methods import Row
from tests.oracles import Choice, linear, softmax


def top_k(
  x_TD, params, bias_E, seen, *, k=2, renormalize=True, threshold=0.0, **policy
):
  """The k largest probabilities of each token, largest first.

  Later choices whose share of the k is below `threshold` go to nobody, expert
  E with weight 0.
  """
  logits = linear(x_TD, params)
  probs = softmax(logits)
  T, E = probs.shape
  expert, weight = np.zeros((T, k), int), np.zeros((T, k))
  for t in range(T):
    left = list(range(E))
    for j in range(k):
      best = max(left, key=lambda e: (probs[t, e] + bias_E[e], -e))
      left.remove(best)
      expert[t, j], weight[t, j] = best, probs[t, best]
    share = weight[t] / weight[t].sum()
    if renormalize is True:
      weight[t] = share
    for j in range(1, k):
      if share[j] < threshold:
        expert[t, j], weight[t, j] = E, 0
  return Choice(expert, weight, probs, logits, renormalize == 'kept')


KEPT = "top_k(k=2, renormalize='kept')"
THRESHOLD = (
  "top_k(k=3, second_policy='threshold', threshold=0.3, policy_in_eval=True)"
)
ROWS = (
  Row('top_k()', '1701.06538', top_k, always=True, extremes=True),
  Row('top_k(k=1, renormalize=False)', '1701.06538', top_k, always=True),
  Row('top_k(k=3, renormalize=False)', '1701.06538', top_k),
  Row(KEPT, '1701.06538', top_k, always=True, extremes=True),
  Row(THRESHOLD, '2202.08906', top_k),
)
ERRORS = {
  'top_k(k=0)': 'k=0 must be a whole number from 1',
  'top_k(k=1)': 'leaves the router without a gradient',
  "top_k(renormalize='later')": "'later'; valid: False, True, kept",
  "top_k(second_policy='no')": "'no'; valid: all, gshard, random",
  'top_k(threshold=0.0)': 'threshold=0.0; valid: (0, 1]',
}
LOGITS = np.log([0.5, 0.3, 0.15, 0.05])
# ST-MoE, appendix G: share s of the second is 0.375 of the two here, and
# GShard sends with 2 s.
POLICIES = [
  ("second_policy='all'", 1.0, 1.0),
  ("second_policy='threshold', threshold=0.37", 1.0, 1.0),
  ("second_policy='threshold', threshold=0.38", 0.0, 0.0),
  ("second_policy='random', threshold=0.2", 1.0, 1.0),
  ("second_policy='random', threshold=0.5", 0.75, 0.75),
  ("second_policy='random', threshold=1.0", 0.375, 0.375),
  # The seats of those not sent are taken all the same, with weight 0.
  ("second_policy='gshard'", 1.0, 0.75),
  ("second_policy='gshard', renormalize=False", 1.0, 0.75),
]


@pytest.mark.parametrize(('options', 'seats', 'sent'), POLICIES)
def test_second_policies(options, seats, sent):
  expert, weight, _ = routing.many(f'top_k(k=2, {options})', LOGITS)
  assert (expert[:, 0] == 0).all() and (weight[:, 0] > 0).all()
  assert set(expert[:, 1]) <= {1, 4}
  np.testing.assert_allclose((expert[:, 1] == 1).mean(), seats, atol=0.03)
  np.testing.assert_allclose((weight[:, 1] > 0).mean(), sent, atol=0.03)
  # Renormalised before the policy: the first keeps its share (MTF).
  first = 0.5 if 'renormalize=False' in options else 0.625
  np.testing.assert_allclose(weight[:, 0], first, rtol=1e-5)


@pytest.mark.parametrize('renormalize', [True, False])
def test_second_policy_is_off_in_evaluation_unless_asked(renormalize):
  """Trap: Mesh-TensorFlow and st-moe-pytorch draw in evaluation too."""
  spec = (
    f"top_k(renormalize={renormalize}, second_policy='random', threshold=1.0"
  )
  second = lambda rest: routing.many(spec + rest, LOGITS, train=False)[0][:, 1]
  assert (second(')') == 1).all()
  asked = (second(', policy_in_eval=True)') == 1).mean()
  np.testing.assert_allclose(asked, 0.375, atol=0.03)


def test_later_policies_look_at_shares_of_all_k():
  """ST-MoE renormalises over the top n, here three: 0.3 of 0.95, 0.15 of it."""
  spec = "top_k(k=3, second_policy='random', threshold=1.0)"
  expert, _, _ = routing.many(spec, LOGITS)
  np.testing.assert_allclose((expert[:, 1] == 1).mean(), 0.3 / 0.95, atol=0.03)
  np.testing.assert_allclose((expert[:, 2] == 2).mean(), 0.15 / 0.95, atol=0.03)


def test_sampled_second_choice():
  """lingvo's 'sampling': by the softmax of the experts that are left."""
  expert, weight, _ = routing.many("top_k(second_policy='sampled')", LOGITS)
  assert (expert[:, 0] == 0).all()
  share = np.bincount(expert[:, 1], minlength=4) / 4000
  np.testing.assert_allclose(share, [0, 0.6, 0.3, 0.1], atol=0.03)
  p = np.exp(LOGITS)[expert]
  np.testing.assert_allclose(weight, p / p.sum(1, keepdims=True), rtol=1e-5)


def test_softmax_of_the_chosen_logits_is_renormalised_top_k():
  """Mixtral's form equals Shazeer's: lecture notes' equivalence."""
  logits = 2 * np.random.default_rng(0).normal(size=(12, 4))
  r = routing.by_logits('top_k()', logits)
  want = softmax(np.take_along_axis(logits, routing.choices(r), -1))
  np.testing.assert_allclose(routing.weights(r), want, rtol=1e-5)


@pytest.mark.parametrize('sure', [50, 150])
def test_a_token_left_with_an_unlikely_expert(sure):
  """Its weight is 1 whatever the logits: no gradient. (It was NaN.)"""
  logits = [[50, -3, 0, -2], [sure, 0, -1, -2], [sure, 0, -1, -2]]
  weight, _, slope = routing.slopes(KEPT, logits, rows=1)
  # The third finds both its experts full.
  np.testing.assert_allclose(weight, [[1, 0], [0, 1], [0, 0]], atol=1e-12)
  np.testing.assert_allclose(slope, 0, atol=1e-12)


@pytest.mark.parametrize('bias', [-1.5, -120.0])
def test_unlikely_experts_by_the_selection_bias(bias):
  """Of logits 0 and -1: 1 / (1 + 1 / e), and p (1 - p) for its slope."""
  weight, _, slope = routing.slopes(
    'top_k(k=2)', [[50, 0, -1, -2]], [bias, 0.0, 0.0, 0.0]
  )
  p = 1 / (1 + np.exp(-1))
  np.testing.assert_allclose(weight, [[p, 1 - p]], rtol=1e-6)
  want = p * (1 - p) * np.array([0, 1, -1, 0])
  np.testing.assert_allclose(slope[0, 0, 0], want, atol=2e-7)
  np.testing.assert_allclose(slope[0, 1, 0], -want, atol=2e-7)
