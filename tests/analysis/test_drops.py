"""Drops: as recorded, and at other capacities."""

import numpy as np
import pytest
from scipy import stats

from moe_jax.analysis import metrics, records
from moe_jax.analysis.metrics import drops_at
from tests.analysis import synthetic

CAUSE = {name: i for i, name in enumerate(records.CAUSES)}


def some(rng, lengths, domain_of_document, lost):
  """Choices with causes: lost by chance lost(document, position)."""
  n = sum(lengths)
  document = np.repeat(np.arange(len(lengths)), lengths)
  position = np.concatenate([np.arange(length) for length in lengths])
  expert = rng.integers(0, 4, (n, 2, 2))
  dropped = rng.random((n, 2, 2)) < lost(document, position)[:, None, None]
  cause = np.where(dropped, CAUSE['capacity'], CAUSE['kept'])
  return expert, {
    'document': document,
    'position': position,
    'domain': np.asarray(domain_of_document)[document],
    'cause': cause,
  }


def test_recorded_drops_are_those_of_a_loop(tmp_path):
  rng = np.random.default_rng(0)
  lengths, domain = [60, 140, 100, 30, 110, 160], [0, 0, 1, 1, 1, 2]
  lost = lambda d, p: 0.1 + 0.002 * p + 0.05 * d
  expert, fields = some(rng, lengths, domain, lost)
  fields['cause'][::7] = CAUSE['receiver']
  fields['cause'][::11, 1] = CAUSE['local']
  fields['cause'][::5, 0, 1] = CAUSE['unsent']
  made = synthetic.write(tmp_path, expert, **fields)
  found = synthetic.measured(made, 'drops(edges=(0, 10, 50), row=60, draws=9)')
  for m in range(2):
    lost, sent = np.zeros((3, 6)), np.zeros((3, 6))
    of = fields['cause'][:, m], fields['position'], fields['document']
    for c, p, d in zip(*of, strict=True):
      bin_ = sum(p % 60 >= e for e in (0, 10, 50)) - 1
      for cause in c:
        hit = cause in (CAUSE['capacity'], CAUSE['receiver'])
        lost[bin_, d] += hit
        sent[bin_, d] += hit or cause in (CAUSE['kept'], CAUSE['local'])
    close = np.testing.assert_allclose
    close(found['value'][m], lost.sum() / sent.sum())
    close(found['by_position_value'][m], lost.sum(1) / sent.sum(1))
    own = lost.sum(0) / sent.sum(0)
    close(found['by_position_null'][m], (sent * own).sum(1) / sent.sum(1))
    for k, docs in enumerate(([0, 1], [2, 3, 4], [5])):
      share = lost[:, docs].sum() / sent[:, docs].sum()
      close(found['by_domain_value'][m, k], share)
    by_cause = np.bincount(fields['cause'][:, m].reshape(-1), minlength=6)
    close(found['by_cause'][m], by_cause / by_cause.sum())


def test_late_positions_and_a_dropped_domain_stand_out(tmp_path):
  rng = np.random.default_rng(1)
  domain = [0] * 20 + [1] * 20
  lost = lambda d, p: 0.05 + 0.1 * (p >= 64) + 0.1 * (d >= 20)
  expert, fields = some(rng, [100] * 40, domain, lost)
  made = synthetic.write(tmp_path, expert, **fields)
  found = synthetic.measured(made, 'drops()')
  assert (
    found['by_position_low'][:, 2] > found['by_position_null'][:, 2]
  ).all()
  assert (found['by_domain_value'] > found['by_domain_null_high'])[:, 1].all()
  assert np.isnan(found['by_position_value'][:, 4:]).all()


def test_drops_without_a_reason_are_as_their_nulls(tmp_path):
  rng = np.random.default_rng(2)
  # Documents differ, domains do not.
  own = rng.random(60) * 0.4
  lengths, domain = [60, 140] * 30, [0] * 30 + [1] * 30
  expert, fields = some(rng, lengths, domain, lambda d, p: own[d])
  made = synthetic.write(tmp_path, expert, **fields)
  found = synthetic.measured(made, 'drops()')
  inside = (found['by_domain_null_low'] <= found['by_domain_value']) & (
    found['by_domain_value'] <= found['by_domain_null_high']
  )
  assert inside.all()
  near = found['by_position_value'] - found['by_position_null']
  assert np.nanmax(abs(near)) < 0.02
  # Chance among tokens would be 0.007 wide.
  assert (found['by_domain_high'] - found['by_domain_low'] > 0.05).all()


def test_independent_draws_are_dropped_as_in_closed_form(tmp_path):
  rng = np.random.default_rng(3)
  n, T, E = 64_000, 32, 4
  load = np.array([0.4, 0.3, 0.2, 0.1])
  expert = rng.choice(E, (n, 1, 1), p=load)
  schema = {'group_size': T, 'experts': (E,)}
  made = synthetic.write(tmp_path, expert, schema)
  found = synthetic.measured(made, 'drops_at(factors=(1.0, 1.5), bins=32)')
  for f, C in enumerate((8, 12)):
    late = [
      sum(p * stats.binom.sf(C - 1, t, p) for p in load) for t in range(T)
    ]
    # 2,000 groups: a standard error of at most 0.011.
    for name in ('value', 'null'):
      got = found[f'by_place_{name}'][0, f]
      np.testing.assert_allclose(got, late, atol=0.04)
    np.testing.assert_allclose(found['value'][0, f], np.mean(late), atol=0.005)
    assert (found['by_place_value'][0, f, :C] == 0).all()


@pytest.mark.parametrize('order', ['rank_major()', 'token_major()'])
def test_seating_is_that_of_a_loop(tmp_path, order, monkeypatch):
  monkeypatch.setattr(drops_at, 'BLOCK', 32)  # of the 70 tokens
  rng = np.random.default_rng(4)
  n, T, K = 70, 16, 2
  expert = np.stack(
    [
      synthetic.choose(rng, np.ones((n, 5)), K),
      synthetic.choose(rng, np.ones((n, 3)), K),
    ],
    1,
  )
  expert[::6, 0, 1] = -1
  schema = {'group_size': T, 'experts': (5, 3), 'local': (2, 0)}
  document = np.arange(n) // 20
  made = synthetic.write(
    tmp_path, expert, schema, document=document, domain=document // 2
  )
  spec = f"drops_at(factors=(0.5, 1.0), bins=4, seating='{order}')"
  found = synthetic.measured(made, spec)
  for m, (E, Z) in enumerate(((5, 2), (3, 0))):
    for f, factor in enumerate((0.5, 1.0)):
      C = int(np.ceil(factor * T * K / E))
      lost, wanted = np.zeros((2, 4)), np.zeros((2, 4))
      for start in range(0, n, T):
        group = range(start, min(start + T, n))
        edges = [(t, k) for k in range(K) for t in group]
        edges = edges if 'rank' in order else sorted(edges)
        taken = np.zeros(E)
        for t, k in edges:
          e = expert[t, m, k]
          if e < 0:
            continue
          cell = document[t] // 2, (t - start) * 4 // T
          wanted[cell] += 1
          lost[cell] += taken[e] >= C and e < E - Z
          taken[e] += 1
      close = np.testing.assert_allclose
      close(found['value'][m, f], lost.sum() / wanted.sum())
      close(found['by_place_value'][m, f], lost.sum(0) / wanted.sum(0))
      close(found['by_domain_value'][m, f], lost.sum(1) / wanted.sum(1))


def test_neighbours_that_want_the_same_expert_are_dropped_more(tmp_path):
  rng = np.random.default_rng(5)
  expert = np.repeat(rng.integers(0, 4, 500), 16)[:, None, None]
  made = synthetic.write(tmp_path, expert, {'group_size': 64})
  found = synthetic.measured(made, 'drops_at(factors=(1.0,))')
  assert found['value'] > 0.25 > 0.15 > found['null']
  assert metrics.measure(made, ('drops_at()',))['drops_at/factors'] == [
    *(1.0, 1.25, 1.5, 2.0)
  ]
