"""Top-k with a k of each layer that is lowered late in training."""

import numpy as np
import pytest

from tests.lazy import routing
from tests.methods import Row
from tests.oracles import linear, most_probable


def scheduled_top_k(
  x_TD, params, bias_E, seen, *, k, first, until, layer=1, step=3
):
  """All places, of which a layer uses some; here in its training."""
  used = first[layer] if step < until else k
  choice = most_probable(linear(x_TD, params), bias_E, max(k, *first))
  choice.expert[:, used:], choice.weight[:, used:] = len(bias_E), 0
  return choice


SPEC = 'scheduled_top_k(k=1, first=(4, 3), until=10)'
ROWS = (
  Row(
    SPEC, '2512.16248', scheduled_top_k, always=True, context=True, train=True
  ),
)
ERRORS = {
  'scheduled_top_k()': 'until=0 must be a step from 1',
  'scheduled_top_k(first=(9,), until=9)': 'k=9 exceeds num_experts=8',
}
X = np.random.default_rng(0).normal(size=(32, 6))


@pytest.mark.parametrize(
  ('layer', 'step', 'used'),
  [(0, 0, 3), (1, 0, 2), (2, 0, 1), (9, 0, 1), (0, 7, 3), (0, 8, 1), (1, 8, 1)],
)
def test_choices_by_layer_and_step(layer, step, used):
  spec = 'scheduled_top_k(k=1, first=(3, 2), until=8)'
  r = routing.route(spec, X, E=4, train=True, layer=layer, step=step)
  want = routing.route(f'top_k(k={used}, renormalize=False)', X, E=4)
  expert, weight = routing.choices(r), routing.weights(r)
  assert expert.shape == (32, 3)
  np.testing.assert_array_equal(expert[:, :used], routing.choices(want))
  np.testing.assert_allclose(weight[:, :used], routing.weights(want), rtol=1e-6)
  assert (expert[:, used:] == 4).all() and (weight[:, used:] == 0).all()


def test_evaluation_has_no_schedule_and_training_needs_the_step():
  spec = 'scheduled_top_k(k=1, first=(3, 2), until=8)'
  quiet = routing.choices(routing.route(spec, X, E=4))
  assert ((quiet < 4).sum(1) == 1).all()
  with pytest.raises(ValueError, match='needs step, which is not known'):
    routing.route(spec, X, E=4, train=True)
