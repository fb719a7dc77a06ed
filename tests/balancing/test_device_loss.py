"""DeepSeekMoE's loss of groups of experts."""

import numpy as np

from tests import balances
from tests.balances import E
from tests.methods import Row
from tests.oracles import real_tokens


def device_loss(choices, masks, *, devices):
  """Equations 15 to 17."""
  tokens = real_tokens(choices, masks)
  E, K = choices[0].probs.shape[-1], choices[0].expert.shape[-1]
  size, loss = E // devices, 0.0
  for d in range(devices):
    mine = range(d * size, (d + 1) * size)
    f = P = 0.0
    for i in mine:
      count = sum(i in choice.expert[t] for choice, t in tokens)
      f += E / (K * len(tokens)) * count / size
      P += sum(choice.probs[t][i] for choice, t in tokens) / len(tokens)
    loss += f * P
  return loss


# Of one device it is the sum of the affinities, which is 1 for all.
_ONE = "device_loss(devices=1, scope='group')"
ROWS = (
  Row('device_loss(devices=2)', '2401.06066', device_loss),
  Row(_ONE, '2401.06066', device_loss, flat=True),
)
ERRORS = {
  'device_loss(devices=4)': 'devices=4 does not divide num_experts=6; ',
}


def test_between_its_limits():
  """A group an expert is the expert loss; all on one device of two count 2."""
  r, _, mask = balances.uneven()
  expert = balances.loss("switch_loss(count='all', scope='global')", r, mask)
  each = balances.loss(f"device_loss(devices={E}, scope='global')", r, mask)
  np.testing.assert_allclose(each, expert, rtol=1e-6)
  logits = 30.0 * np.array([1.0, 1, 1, 0, 0, 0]) + np.zeros((2, 4, 1))
  one = balances.routing(logits, np.zeros((2, 4, 1), int) + [0, 2])
  got = balances.loss('device_loss(devices=2)', one)
  np.testing.assert_allclose(got, 2.0, rtol=1e-6)
