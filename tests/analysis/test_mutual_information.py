"""Mutual information: a loop over cells, a code that is known, bias."""

import numpy as np
import pytest

from tests.analysis import synthetic


def test_a_loop_over_cells(tmp_path):
  fields = synthetic.small()
  record = synthetic.write(tmp_path, **fields)
  found = synthetic.measured(record, 'mutual_information()')
  for kind in ('token', 'next', 'predicted'):
    for m in range(2):
      joint = np.zeros((9, 5))
      for x, experts in zip(fields[kind], fields['expert'][:, m], strict=True):
        for e in experts[experts >= 0]:
          if x >= 0:
            joint[x, e] += 1
      joint /= joint.sum()
      expected = sum(
        joint[x, e] * np.log(joint[x, e] / joint[x].sum() / joint[:, e].sum())
        for x, e in np.argwhere(joint)
      )
      assert found[f'{kind}_value'][m] == pytest.approx(expected)


def test_what_is_known_is_measured(tmp_path):
  """An id decides with probability q, else chance: in nats, and its share."""
  rng = np.random.default_rng(0)
  n, E, q = 40_000, 4, 0.7
  token = synthetic.zipf(rng, n, 200)
  expert = np.where(rng.random(n) < q, token % E, rng.integers(0, E, n))
  record = synthetic.write(tmp_path, expert[:, None, None], token=token)
  spec = "mutual_information(ids=('token',))"
  found = synthetic.measured(record, spec)
  hit, miss = q + (1 - q) / E, (1 - q) / E
  load = np.bincount(expert) / n
  entropy = -np.sum(load * np.log(load))
  within = -hit * np.log(hit) - (E - 1) * miss * np.log(miss)
  known = entropy - within
  debiased = found['token_value'] - found['token_null']
  # The null is the bias where nothing is known, a little above that here.
  assert debiased == pytest.approx(known, abs=0.015)
  assert found['token_value'] > known
  assert found['token_excess'] == pytest.approx(known / entropy, abs=0.015)


def test_one_where_the_id_decides(tmp_path):
  token = np.arange(3000) % 30
  record = synthetic.write(tmp_path, (token % 5)[:, None, None], token=token)
  found = synthetic.measured(record, "mutual_information(ids=('token',))")
  assert found['token_value'] == pytest.approx(np.log(5))
  assert found['token_excess'] == pytest.approx(1)
