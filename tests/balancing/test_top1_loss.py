"""Sigma-MoE-Tiny's loss: a load with a gradient."""

import numpy as np
import pytest

from tests import balances
from tests.balances import E, G, T
from tests.methods import Row
from tests.oracles import real_tokens, softmax


def top1_loss(choices, masks, *, temperature=0.1):
  tokens = real_tokens(choices, masks)
  q_TE = [softmax(c.logits[t] / temperature) for c, t in tokens]
  sure = np.mean([max(q) for q in q_TE])
  return len(q_TE[0]) * sum(f * f for f in np.mean(q_TE, 0)) / sure


ROWS = (Row('top1_loss()', '2512.16248', top1_loss, balanced=(E, 1)),)
ERRORS = {
  'top1_loss(temperature=0.0)': 'temperature=0.0 must be positive',
}


@pytest.mark.parametrize('temperature', [0.02, 0.1, 1.0, 10.0])
def test_it_has_a_floor_that_the_switch_loss_has_not(temperature):
  """1 at least; shrinking the logits fools the Switch loss, not this one."""
  rule, switch = (
    f'top1_loss(temperature={temperature})',
    "switch_loss(scope='global')",
  )
  for seed in range(5):
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(G, T, E)) + np.linspace(0, 2, E)
    first = logits.argmax(-1)[..., None]
    assert balances.loss(rule, balances.routing(logits, first)) >= 1
    flat = balances.routing(logits / 1000, first)
    assert abs(balances.loss(switch, flat) - 1) < 0.01
    assert balances.loss(rule, flat) > 1.5
