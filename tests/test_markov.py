"""Markov chains: their entropy, their rows, and the problem that has them."""

import numpy as np
import pytest

from moe_jax.data import markov
from moe_jax.problems import base
from moe_jax.training import loop
from tests import tiny


def test_entropy_in_closed_form_of_two_states():
  made = markov.Chains(1, 2, 1.0, seed=0)
  (_, a), (b, _) = made.step_CSS[0]
  h = lambda p: -p * np.log(p) - (1 - p) * np.log(1 - p)
  pi = np.array([b, a]) / (a + b)
  np.testing.assert_allclose(made.start_CS[0], pi, rtol=1e-9)
  want = (h(pi[0]) + 9 * (pi[0] * h(a) + pi[1] * h(b))) / 10
  np.testing.assert_allclose(made.entropy(10), want, rtol=1e-9)


def test_the_entropy_is_the_surprise_of_what_is_drawn():
  made = markov.Chains(1, 5, 0.3, seed=1)
  x_N = made.draw(np.random.default_rng(0), 0, 200_000)
  surprise = -np.log(made.step_CSS[0][x_N[:-1], x_N[1:]]).mean()
  np.testing.assert_allclose(made.entropy(200_000), surprise, atol=0.01)


def test_rows_of_a_problem():
  problem = base.of(
    tiny.config(**{'data.problem': 'markov_chains(chains=3, states=4)'})
  )
  data = problem.open(cache_dir='')
  row = data.train_row(0, 5)
  assert row['inputs'][0] >= 4 and row['targets'].max() < 4
  np.testing.assert_array_equal(row['inputs'][1:], row['targets'][:-1])
  np.testing.assert_array_equal(row['targets'], data.train_row(0, 5)['targets'])
  assert (data.train_row(0, 6)['targets'] != row['targets']).any()
  # Held-out rows are no training rows of the seed 0, nor of any.
  assert (data.validation_row(5)['targets'] != row['targets']).any()
  assert data.validation_row(problem.rows)['segments'].sum() == 0
  assert problem.vocabulary(None) == 7
  nats = problem.floor(data)['eval/entropy']
  assert nats == data.chains.entropy(16)


def test_a_run_has_the_entropy_beside_its_score(tmp_path):
  fields = {'train.steps': 2, 'train.checkpoint_every': 0, 'moe.layers': 'none'}
  fields |= {'model.num_layers': 1, 'eval.batch_size': 16}
  fields |= {'data.problem': 'markov_chains(chains=2, states=3, rows=20)'}
  summary = loop.train(tiny.config(**fields), str(tmp_path))
  found = summary['eval/nats_per_token']
  assert summary['eval/nats_per_token_low'] < found
  assert summary['eval/bits_per_token'] == pytest.approx(found / np.log(2))
  assert summary['eval/entropy'] == markov.Chains(2, 3, 0.1, 0).entropy(16)
  assert found > summary['eval/entropy']
  config = tiny.config(**fields | {'moe.layers': 'all'})
  with pytest.raises(ValueError, match='generation needs text; the problem M'):
    base.of(config).tokenizer()


def test_wrong_sizes():
  with pytest.raises(ValueError, match='states=1: expected a whole number'):
    markov.Chains(2, 1, 1.0, 0)
