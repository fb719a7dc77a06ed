"""Co-activation: a loop, the paper's sums, planted pairs, chance."""

import numpy as np
import pytest

from moe_jax.analysis import distinct, metrics
from moe_jax.errors import UserError
from tests.analysis import synthetic


@pytest.mark.parametrize('pairs', ['all', 'adjacent'])
def test_a_loop_over_tokens(pairs, tmp_path):
  fields = synthetic.small(K=4)
  spec = f'coactivation(pairs={pairs!r})'
  found = synthetic.measured(synthetic.write(tmp_path, **fields), spec)
  for m in range(2):
    both, own = np.zeros((5, 5)), np.zeros(5)
    for chosen in fields['expert'][:, m]:
      used = [e for e in chosen if e >= 0]
      own[used] += 1
      for a, i in enumerate(used):
        for b, j in enumerate(used):
          if a != b and (pairs == 'all' or abs(a - b) == 1):
            both[i, j] += 1
    np.testing.assert_allclose(found['matrix'][m], both / own[:, None])
    expected = both.max(-1).sum() / own.sum()
    assert found['value'][m] == pytest.approx(expected)
    # The null has as many pairs, of the same experts.
    counts = found['null_matrix'][m] * own[:, None]
    np.testing.assert_allclose(counts, counts.T)
    if pairs == 'all':
      np.testing.assert_allclose(counts.sum(-1), both.sum(-1), atol=1e-5)
    else:
      assert counts.sum() == pytest.approx(both.sum())


@pytest.mark.parametrize(('pairs', 'total'), [('all', 3), ('adjacent', 1.5)])
def test_rows_sum_to_what_the_paper_and_its_code_have(pairs, total, tmp_path):
  rng = np.random.default_rng(0)
  expert = np.stack([rng.permutation(8)[:4] for _ in range(4000)])[:, None]
  record = synthetic.write(tmp_path, expert)
  found = synthetic.measured(record, f'coactivation(pairs={pairs!r})')
  sums = found['matrix'][0].sum(-1)
  if pairs == 'all':
    np.testing.assert_allclose(sums, total)
  np.testing.assert_allclose(sums, total, rtol=0.05)
  np.testing.assert_allclose(found['null_matrix'][0].sum(-1), total, rtol=0.05)


@pytest.mark.parametrize('pairs', ['all', 'adjacent'])
def test_choices_by_chance_are_at_the_null(pairs, tmp_path):
  """Uneven loads, K of E without replacement: 95 % of 40 routers."""
  rng = np.random.default_rng(0)
  w, T = distinct.weights([9, 6, 3, 3, 2, 1], 3), 1000
  expert = []
  for _ in range(40):
    taken = distinct.draw(w, 3, T, rng)
    expert.append(rng.permuted(np.nonzero(taken)[1].reshape(T, 3), axis=1))
  record = synthetic.write(tmp_path, np.stack(expert, 1))
  spec = f'coactivation(pairs={pairs!r}, draws=8)'
  found = synthetic.measured(record, spec)
  inside = found['null_low'] <= found['value']
  inside &= found['value'] <= found['null_high']
  assert inside.sum() >= 34
  assert abs(found['excess'].mean()) < 0.005


def test_planted_pairs_are_found_and_measured(tmp_path):
  """With probability 0.6 the second choice is the first's partner."""
  rng = np.random.default_rng(0)
  n, E = 8000, 16
  first = rng.integers(0, E, n)
  other = (first + rng.integers(1, E, n)) % E
  second = np.where(rng.random(n) < 0.6, first ^ 1, other)
  expert = np.stack([first, second], -1)[:, None]
  found = synthetic.measured(
    synthetic.write(tmp_path, expert), 'coactivation()'
  )
  assert found['value'] == pytest.approx(0.6 + 0.4 / 15, abs=0.02)
  assert found['excess'] == pytest.approx(0.6, abs=0.03)
  assert (found['matrix'][0].argmax(-1) == np.arange(E) ^ 1).all()


def test_what_has_no_meaning_or_too_many_numbers(tmp_path):
  one = synthetic.write(tmp_path / 'one', **synthetic.small(K=1))
  found = synthetic.measured(one, 'coactivation()')
  assert found == {'undefined': 'one choice of a token'}
  two = synthetic.write(tmp_path / 'two', **synthetic.small())
  assert 'matrix' not in synthetic.measured(two, 'coactivation(largest=4)')
  with pytest.raises(UserError, match="pairs='some'; valid: all, adjacent"):
    metrics.measure(two, ("coactivation(pairs='some')",))
