"""Repetition: a loop over neighbours, Mixtral's chance, planted locality."""

import numpy as np
import pytest

from tests.analysis import synthetic


def test_a_loop_over_neighbours(tmp_path):
  fields = synthetic.small(K=3)
  found = synthetic.measured(
    synthetic.write(tmp_path, **fields), 'repetition()'
  )
  expert, document = fields['expert'], fields['document']
  n = len(document)
  inner = [t for t in range(1, n) if document[t] == document[t - 1]]
  for m in range(2):
    top = [{*expert[t, m, :2]} - {-1} for t in range(n)]
    first = expert[:, m, 0]
    expected = {
      'first_value': np.mean([first[t] == first[t - 1] for t in inner]),
      'any_value': np.mean([bool(top[t] & top[t - 1]) for t in inner]),
      'first_null': np.mean([[x == y for y in first] for x in first]),
      'any_null': np.mean([[bool(x & y) for y in top] for x in top]),
    }
    for k, v in expected.items():
      assert found[k][m] == pytest.approx(v), k
    for d in range(3):
      own = [first[t] == first[t - 1] for t in inner if document[t] // 4 == d]
      assert found['first_by_domain'][m][d] == pytest.approx(np.mean(own))


def test_tokens_with_one_choice(tmp_path):
  fields = dict(synthetic.small())
  expert = fields['expert'] = fields['expert'].copy()
  expert[::2, :, 1] = -1
  found = synthetic.measured(
    synthetic.write(tmp_path, **fields), 'repetition()'
  )
  top = [{*e} - {-1} for e in expert[:, 0]]
  expected = np.mean([[bool(x & y) for y in top] for x in top])
  assert found['any_null'][0] == pytest.approx(expected)


def test_mixtrals_chance(tmp_path):
  """Two of eight at even loads: 12.5 %, and 1 - 6 * 5 / (8 * 7)."""
  pairs = [(i, j) for i in range(8) for j in range(8) if i != j]
  record = synthetic.write(tmp_path, np.array(pairs)[:, None])
  found = synthetic.measured(record, 'repetition()')
  assert found['first_null'] == pytest.approx(1 / 8)
  assert found['any_null'] == pytest.approx(1 - 6 * 5 / (8 * 7))


def test_planted_locality_is_measured_and_none_is_found_at_random(tmp_path):
  """Of 40 random routers 95 % of the intervals hold the null."""
  rng = np.random.default_rng(0)
  n, M = 4000, 40
  p_E = np.array([0.4, 0.2, 0.2, 0.1, 0.1])
  expert = rng.choice(5, (n, M + 1, 1), p=p_E)
  stay = rng.random(n) < 0.3  # the last layer: as before, or drawn anew
  for t in range(1, n):
    expert[t, M] = expert[t - 1, M] if stay[t] else expert[t, M]
  record = synthetic.write(tmp_path, expert, document=np.arange(n) // 40)
  found = synthetic.measured(record, 'repetition()')
  np.testing.assert_allclose(found['first_null'], np.sum(p_E**2), atol=0.03)
  assert found['first_excess'][M] == pytest.approx(0.3, abs=0.04)
  inside = found['first_low'] <= found['first_null']
  inside &= found['first_null'] <= found['first_high']
  assert inside[:M].sum() >= 34
  assert not inside[M]


def test_what_a_domain_repeats_is_told_apart(tmp_path):
  """Experts by domain alone: all of the repetition is the domain's."""
  rng = np.random.default_rng(0)
  n = 4000
  domain = np.arange(n) // 1000
  expert = 2 * domain + rng.integers(0, 2, n)
  fields = {'document': np.arange(n) // 50, 'domain': domain}
  record = synthetic.write(tmp_path, expert[:, None, None], **fields)
  found = synthetic.measured(record, 'repetition()')
  assert found['first_null'] == pytest.approx(1 / 8, abs=0.01)
  assert found['first_domain_null'] == pytest.approx(1 / 2, abs=0.01)
  assert found['first_value'] == pytest.approx(1 / 2, abs=0.03)
