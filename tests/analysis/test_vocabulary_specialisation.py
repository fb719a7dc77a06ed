"""Vocabulary specialisation: a loop, what is planted, and what chance gives."""

import numpy as np
import pytest

from moe_jax.analysis import metrics
from moe_jax.errors import UserError
from tests.analysis import synthetic


def test_a_loop_over_tokens(tmp_path):
  fields = synthetic.small()
  record = synthetic.write(tmp_path, **fields)
  spec = 'vocabulary_specialisation(min_count=12)'
  found = synthetic.measured(record, spec)
  for kind in ('token', 'next', 'predicted'):
    for m in range(2):
      tops = []
      for x in range(9):
        chosen = fields['expert'][fields[kind] == x, m]
        if len(chosen) >= 12:
          shares = [(chosen == e).any(-1).mean() for e in range(5)]
          tops.append(max(shares))
      assert 3 < len(tops) < 9 or kind == 'next'
      assert found[f'{kind}_value'][m] == pytest.approx(np.mean(tops))


def test_the_null_is_that_of_choices_shuffled_over_tokens(tmp_path):
  """K of E without replacement, uneven, and unlike choices: all of it kept."""
  rng = np.random.default_rng(0)
  n = 2000
  p_nE = np.broadcast_to([0.5, 0.2, 0.1, 0.1, 0.05, 0.05], (n, 6))
  expert = synthetic.choose(rng, p_nE, 3)[:, None]
  token = synthetic.zipf(rng, n, 60)
  record = synthetic.write(tmp_path, expert, token=token)
  spec = "vocabulary_specialisation(ids=('token',), draws=20)"
  found = synthetic.measured(record, spec)
  shuffled = []
  for _ in range(20):
    chosen = expert[rng.permutation(n), 0]
    tops = [
      np.bincount(chosen[token == x].reshape(-1)).max() / (token == x).sum()
      for x in range(60)
      if (token == x).sum() >= 8
    ]
    shuffled.append(np.mean(tops))
  assert found['token_null'] == pytest.approx(np.mean(shuffled), abs=0.01)
  assert found['token_null_low'] < found['token_value']
  assert found['token_value'] < found['token_null_high']
  # Without the sets, from loads alone, it would be off: all of 3 of 6.
  assert found['token_null'] > 0.8


def test_what_is_planted_is_found_in_the_id_that_decides(tmp_path):
  """Half of the tokens go where the predicted id says, half anywhere."""
  rng = np.random.default_rng(0)
  n, E, V = 40_000, 16, 64
  predicted = rng.integers(0, V, n)
  expert = np.where(rng.random(n) < 0.5, predicted % E, rng.integers(0, E, n))
  fields = {'predicted': predicted, 'token': synthetic.zipf(rng, n, V)}
  record = synthetic.write(tmp_path, expert[:, None, None], **fields)
  found = synthetic.measured(
    record, "vocabulary_specialisation(ids=('token', 'predicted'))"
  )
  assert found['predicted_value'] == pytest.approx(0.5 + 0.5 / E, abs=0.02)
  assert found['predicted_excess'] == pytest.approx(0.5, abs=0.03)
  assert abs(found['token_excess']) < 0.01


def test_a_random_router_is_at_the_null(tmp_path):
  """At the level of 5 %, over 40 routers."""
  rng = np.random.default_rng(0)
  expert = rng.integers(0, 8, (1500, 40, 1))
  token = synthetic.zipf(rng, 1500, 50)
  record = synthetic.write(tmp_path, expert, token=token)
  specs = [
    f"{name}(ids=('token',), draws=8)"
    for name in ('vocabulary_specialisation', 'mutual_information')
  ]
  found = metrics.measure(record, specs)
  for spec in specs:
    name = spec.partition('(')[0]
    value, low, high = (
      np.array(found[f'{name}/token_{k}'])
      for k in ('value', 'null_low', 'null_high')
    )
    assert ((low <= value) & (value <= high)).sum() >= 34


def test_chance_is_far_above_the_naive_one(tmp_path):
  """600,000 tokens of a Zipf vocabulary, 64 experts: 0.08, 0.21 nats."""
  rng = np.random.default_rng(0)
  n, V, E = 600_000, 4096, 64
  expert = rng.integers(0, E, (n, 1, 1))
  token = synthetic.zipf(rng, n, V)
  record = synthetic.write(tmp_path, expert, token=token)
  found = metrics.measure(
    record,
    (
      "vocabulary_specialisation(ids=('token',), draws=3)",
      "mutual_information(ids=('token',), draws=3)",
    ),
  )
  specialisation = found['vocabulary_specialisation/token_value'][0]
  assert specialisation == pytest.approx(0.08, abs=0.005)
  assert specialisation > 5 / E
  nats = found['mutual_information/token_value'][0]
  assert nats == pytest.approx((V - 1) * (E - 1) / 2 / n, rel=0.02)
  assert nats == pytest.approx(0.21, abs=0.005)
  assert abs(found['vocabulary_specialisation/token_excess'][0]) < 0.002
  assert abs(found['mutual_information/token_excess'][0]) < 0.001


def test_what_is_refused(tmp_path):
  record = synthetic.write(tmp_path, **synthetic.small())
  with pytest.raises(UserError, match='min_count=0; 1 or more'):
    metrics.measure(record, ('vocabulary_specialisation(min_count=0)',))
  with pytest.raises(UserError, match='draws=1; 2 or more'):
    metrics.measure(record, ('mutual_information(draws=1)',))


def test_ids_too_rare_are_no_number(tmp_path):
  record = synthetic.write(tmp_path, **synthetic.small())
  spec = 'vocabulary_specialisation(min_count=1000)'
  found = synthetic.measured(record, spec)
  assert np.isnan(found['token_value']).all()
