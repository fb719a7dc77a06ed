"""Context independence: a loop over edges, plants, random routers, memory."""

import collections

import numpy as np
import pytest

from moe_jax.analysis import backoff, metrics
from moe_jax.errors import UserError
from tests.analysis import synthetic


def loop(fields, m, E):
  """Values by half, from dictionaries of counts, edge by edge."""
  edges = []
  for t, chosen in enumerate(fields['expert'][:, m]):
    document = fields['document'][t]
    follows = t and fields['document'][t - 1] == document
    previous = fields['token'][t - 1] if follows else None
    x = fields['token'][t]
    edges += [(document % 2, x, (previous, x), e) for e in chosen if e >= 0]
  all_counts = collections.Counter(e for *_, e in edges)
  share = [all_counts[e] / len(edges) for e in range(E)]
  entropy = -sum(p * np.log(p) for p in share if p)

  def entropies(look, s, s_pair):
    count, total = collections.Counter(), collections.Counter()
    for half, x, pair, e in edges:
      if half != look:
        for row in ((), x, pair):
          count[row, e] += 1
          total[row] += 1
    sums, n = np.zeros(3), 0
    for half, x, pair, e in edges:
      if half == look:
        p = (count[(), e] + 0.5) / (total[()] + E / 2)
        by_id = (count[x, e] + s * p) / (total[x] + s)
        by_pair = (count[pair, e] + s_pair * by_id) / (total[pair] + s_pair)
        sums -= np.log([p, by_id, by_pair])
        n += 1
    return sums / n

  found, grid = {}, backoff.STRENGTHS
  best = [min(grid, key=lambda s: entropies(h, s, 1)[1]) for h in (0, 1)][::-1]
  best_pair = [
    min(grid, key=lambda s: entropies(h, best[h], s)[2]) for h in (0, 1)
  ][::-1]
  ce = [entropies(h, best[h], best_pair[h]) for h in (0, 1)]
  found['id_halves'] = [(c[0] - c[1]) / entropy for c in ce]
  found['context_halves'] = [(c[1] - c[2]) / entropy for c in ce]
  return found


def test_a_loop_over_edges(tmp_path):
  fields = dict(synthetic.small())
  token = fields['token'] = fields['token'] % 4
  fields['expert'] = expert = fields['expert'].copy()
  expert[:, 0, 0] = np.where(np.arange(240) % 3 == 0, expert[:, 0, 0], token)
  record = synthetic.write(tmp_path, **fields)
  found = synthetic.measured(record, 'context_independence()')
  for m in range(2):
    for k, v in loop(fields, m, 5).items():
      np.testing.assert_allclose(found[k][m], v, atol=1e-9, err_msg=k)


def planted(n, E, layers, seed=0, V=12):
  rng = np.random.default_rng(seed)
  token = rng.integers(0, V, n)
  previous = np.append(0, token[:-1])
  rules = {
    'id': token % E,
    'context': (token + previous) % E,
    'none': rng.integers(0, E, n),
  }
  rules['half'] = np.where(rng.random(n) < 0.5, rules['id'], rules['none'])
  fields = {'token': token, 'document': np.arange(n) // 100}
  return np.stack([rules[k] for k in layers], -1)[..., None], fields


def test_plants_are_told_apart(tmp_path):
  """The id alone, id and neighbour (a sum mod E), half of the first, none."""
  layers = 'id', 'context', 'half', 'none'
  expert, fields = planted(12_000, 4, layers)
  record = synthetic.write(tmp_path, expert, **fields)
  found = synthetic.measured(record, 'context_independence()')
  # H of half: 5/8 of one expert, 1/8 of each other.
  half = -(5 / 8 * np.log(5 / 8) + 3 / 8 * np.log(1 / 8))
  half = 1 - half / np.log(4)
  np.testing.assert_allclose(found['id_value'], [1, 0, half, 0], atol=0.01)
  # The first tokens of documents, of which there are 1 %, have no neighbour.
  np.testing.assert_allclose(
    found['context_value'], [0, 0.99, 0, 0], atol=0.012
  )
  np.testing.assert_allclose(found['id_null'], 0, atol=0.002)
  np.testing.assert_allclose(found['context_null'], 0, atol=0.002)
  np.testing.assert_allclose(found['known'], 1)


def test_a_random_router_explains_nothing(tmp_path):
  """Where the plug-in information of rare ids is 0.15 of the entropy."""
  rng = np.random.default_rng(0)
  n, V = 4000, 400
  fields = {'token': synthetic.zipf(rng, n, V), 'document': np.arange(n) // 50}
  expert = rng.integers(0, 8, (n, 20, 1))
  record = synthetic.write(tmp_path, expert, **fields)
  specs = 'context_independence()', "mutual_information(ids=('token',))"
  found = metrics.measure(record, specs)
  of = lambda k: np.array(found[k])
  plug_in = of('mutual_information/token_value') / np.log(8)
  assert (plug_in > 0.14).all()
  for k in ('id', 'context'):
    value = of(f'context_independence/{k}_value')
    null = of(f'context_independence/{k}_null')
    assert abs(value).max() < 0.004
    assert abs((value - null).mean()) < 0.0005


def test_context_is_underestimated_where_rows_are_few(tmp_path):
  """And never wrong: a pair whose row another has counts as unknown."""
  expert, fields = planted(6000, 4, ('id', 'context'), V=40)
  record = synthetic.write(tmp_path, expert, **fields)
  known, context = [], []
  for cells in (1 << 24, 8 * 400):
    spec = f'context_independence(cells={cells})'
    found = synthetic.measured(record, spec)
    known.append(found['known'][0])
    context.append(found['context_value'][1])
    assert abs(found['context_value'][0]) < 0.001
    assert found['id_value'][0] > 0.98
  # Of pairs that come about twice in a half, the other has 1 - 1 / e^2.
  assert known[0] > 0.8 > 0.4 > known[1] > 0.15
  assert context[0] > 0.5 > 0.4 > context[1] > 0.1


def test_rows_go_to_who_asks_first():
  pairs = np.random.default_rng(0).integers(0, 50, 200)
  one, all_of_them = np.full(8, -1), np.full(8, -1)
  single = [backoff.claim(one, pairs[[t]])[0] for t in range(200)]
  assert backoff.claim(all_of_them, pairs).tolist() == single
  assert sorted({r for r in single if r >= 0}) == list(range(8))
  assert len({(r, p) for r, p in zip(single, pairs) if r >= 0}) == 8


def test_nulls_keep_edges_and_what_they_are_drawn_by():
  """Tables whose pairs are some of the edges: 900 of 4,000 of each id."""
  rng = np.random.default_rng(0)
  p_VE = np.array([[0.7, 0.2, 0.1], [0.1, 0.1, 0.8]])
  pair = rng.multinomial([[900, 0], [300, 600]], p_VE[[0, 1]])
  count = rng.multinomial([3000, 1000], p_VE) + pair
  tables = backoff.Tables(count, pair, np.array([0, 1]))
  by_id, by_load = tables.by_id(0.25, rng), tables.by_load(rng)
  for drawn in (by_id, by_load):
    assert np.array_equal(drawn.id.sum(-1), count.sum(-1))
  assert np.array_equal(by_id.pair.sum(-1), pair.sum(-1))
  assert (by_id.pair <= by_id.id).all()
  both_VE = count.sum(0)
  share = lambda c: c / c.sum(-1, keepdims=True)
  np.testing.assert_allclose(share(by_id.id.sum(0)), share(both_VE), atol=0.03)
  rest = by_id.id - by_id.pair
  np.testing.assert_allclose(share(rest.sum(0)), share(both_VE), atol=0.03)
  load = np.tile(share(both_VE.sum(0)), (2, 1))
  np.testing.assert_allclose(share(by_load.id.sum(0)), load, atol=0.03)


def test_one_half_without_a_token(tmp_path):
  record = synthetic.write(tmp_path, np.zeros((9, 1, 1), int))
  found = synthetic.measured(record, 'context_independence()')
  assert found == {'undefined': 'one half of the text has no choice'}
  with pytest.raises(UserError, match='cells=1; 2 or more are wanted here'):
    two = synthetic.write(tmp_path / 'two', np.ones((9, 1, 1), int))
    metrics.measure(two, ('context_independence(cells=1)',))
