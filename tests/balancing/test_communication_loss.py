"""DeepSeek-V2's loss of what groups of experts receive."""

import numpy as np

from tests import balances
from tests.balances import E, K
from tests.methods import Row
from tests.oracles import real_tokens


def communication_loss(choices, masks, *, devices, limit):
  """Equations 29 to 31."""
  tokens = real_tokens(choices, masks)
  size = choices[0].probs.shape[-1] // devices
  loss = 0.0
  for d in range(devices):
    mine = range(d * size, (d + 1) * size)
    sent = sum(any(e in mine for e in c.expert[t]) for c, t in tokens)
    P = sum(c.probs[t][i] for c, t in tokens for i in mine) / len(tokens)
    loss += devices / (limit * len(tokens)) * sent * P
  return loss


_SPEC = 'communication_loss(devices=2, limit=2)'
ROWS = (Row(_SPEC, '2405.04434', communication_loss),)
ERRORS = {
  'communication_loss(devices=0, limit=0)': 'limit=0; valid: 1 to device',
  'communication_loss(devices=4)': 'devices=4 does not divide num_experts=6; ',
  'communication_loss(devices=3, limit=4)': 'limit=4; valid: 1 to device',
}


def test_between_its_limits():
  """A token counts once a device; a group an expert is the expert loss."""
  r, _, mask = balances.uneven()
  expert = balances.loss("switch_loss(count='all', scope='global')", r, mask)
  each = f"communication_loss(devices={E}, limit={K}, scope='global')"
  np.testing.assert_allclose(balances.loss(each, r, mask), expert, rtol=1e-6)
  logits = 30.0 * np.array([1.0, 1, 1, 0, 0, 0]) + np.zeros((2, 4, 1))
  one = balances.routing(logits, np.zeros((2, 4, 1), int) + [0, 2])
  for limit, want in ((1, 2.0), (2, 1.0)):
    spec = f'communication_loss(devices=2, limit={limit})'
    np.testing.assert_allclose(balances.loss(spec, one), want, rtol=1e-6)
