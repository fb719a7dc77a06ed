"""Random routing: drawn without replacement, by place in evaluation."""

import numpy as np

from tests.lazy import jax, routing
from tests.methods import Row
from tests.oracles import Choice, largest


def random(x_TD, params, bias_E, seen, *, k=1, seed=0, layer=1):
  """Evaluation's draw, a token at a time; the generator is JAX's."""
  key = jax.random.fold_in(jax.random.key(seed), layer)
  expert = []
  for t in range(len(x_TD)):
    level = jax.random.uniform(jax.random.fold_in(key, t), (len(bias_E),))
    expert.append(largest(np.asarray(level), k))
  return Choice(np.array(expert), np.full((len(x_TD), k), 1 / k))


ROWS = (
  Row(
    'random(k=2)',
    '2110.04260',
    random,
    always=True,
    context=True,
    permutes=False,
  ),
)
ERRORS = {'random(k=9)': 'random: k=9 exceeds num_experts=8'}


def draw(T=32, options='k=2', E=4, train=True, **known):
  spec, x = f'random({options})', np.zeros((T, 2))
  return routing.choices(routing.route(spec, x, E=E, train=train, **known))


def test_uniform_without_replacement():
  expert = draw(4000, E=5)
  assert (expert[:, 0] != expert[:, 1]).all()
  pair = np.zeros((5, 5))
  np.add.at(pair, tuple(expert.T), 1)
  # 20 ordered pairs; three deviations of a count of 200 are 41.
  off = ~np.eye(5, dtype=bool)
  assert np.abs(pair[off] - 200).max() < 55


def test_by_group_and_in_evaluation_by_place_and_layer():
  same = np.array_equal
  assert not same(draw(), draw(key=jax.random.key(7)))
  quiet = {'train': False, 'key': None}
  assert same(draw(**quiet), draw(train=False))
  assert not same(draw(**quiet), draw(**quiet, layer=1))
  assert same(draw(**quiet)[:5], draw(5, **quiet))
  assert not same(draw(**quiet), draw(options='k=2, seed=1', **quiet))
