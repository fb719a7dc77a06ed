"""DeepSeek-V3's loss: of affinities alone."""

import numpy as np

from tests import balances
from tests.balances import B, E, G, T
from tests.methods import Row
from tests.oracles import real_tokens, sigmoid


def sequence_loss(choices, masks):
  """Equations 17 to 20."""
  tokens = real_tokens(choices, masks)
  E, K = choices[0].probs.shape[-1], choices[0].expert.shape[-1]
  loss = 0.0
  for i in range(E):
    f = P = 0.0
    for choice, t in tokens:
      s = choice.probs[t]
      better = sum(s[j] > s[i] for j in range(E))
      f += E / (K * len(tokens)) * (better < K)
      P += s[i] / sum(s) / len(tokens)
    loss += f * P
  return loss


ROWS = (
  Row('sequence_loss()', '2412.19437', sequence_loss),
  Row("sequence_loss(scope='global')", '2412.19437', sequence_loss),
)


def test_it_is_of_affinities_alone():
  """f counts the largest affinities, not the biased choices; P is relative."""
  rng = np.random.default_rng(1)
  logits = rng.normal(size=(G, T, E))
  gates = sigmoid(logits)
  biased = balances.largest(gates + rng.normal(size=E))
  r = balances.routing(logits, biased, gates)
  choices = balances.as_choices(logits, biased, gates)
  loss = lambda r, n=B: balances.loss('sequence_loss()', r, None, n)
  for sequences in (B, 2 * G):  # of two groups, and of half a group
    number = np.arange(G * T).reshape(G, T) // (G * T // sequences)
    parts = [number == i for i in range(sequences)]
    want = np.mean([sequence_loss(choices, mask) for mask in parts])
    np.testing.assert_allclose(loss(r, sequences), want, rtol=1e-6)
  assert loss(r) == loss(r.replace(expert_N=(r.expert_N + 1) % E))
  relative = r.probs_TE / r.probs_TE.sum(-1, keepdims=True)
  np.testing.assert_allclose(loss(r), loss(r.replace(probs_TE=relative)), 1e-6)


def test_softmax_without_a_bias_is_the_switch_loss():
  logits = np.random.default_rng(2).normal(size=(G, T, E))
  r = balances.routing(logits, balances.largest(logits))
  switch = "switch_loss(count='all', scope='sequence')"
  got, want = (
    balances.loss(s, r, None, B) for s in ('sequence_loss()', switch)
  )
  np.testing.assert_allclose(got, want, rtol=1e-6)
