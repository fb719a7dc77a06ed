"""Tables of experts' tokens."""

import numpy as np

from moe_jax.analysis import metrics
from tests.analysis import synthetic


def record(tmp_path, expert, token, **schema):
  return synthetic.write(tmp_path, expert, schema, token=token)


def test_rows_are_those_of_a_loop(tmp_path):
  rng = np.random.default_rng(0)
  n, V, E, K = 900, 12, 4, 2
  token = synthetic.zipf(rng, n, V)
  share = rng.dirichlet(np.ones(E), V)
  expert = synthetic.choose(rng, share[token], K)[:, None]
  made = record(tmp_path, expert, token)
  found = metrics.measure(made, ('top_tokens(count=3, min_count=20)',))
  for e in range(E):
    rows = []
    has = [e in expert[i, 0] for i in range(n)]
    for x in set(token.tolist()):
      mine = [has[i] for i in range(n) if token[i] == x]
      lift = (sum(mine) / len(mine)) / (sum(has) / n)
      rows.append((x, sum(mine), len(mine), lift))
    by_count = sorted(rows, key=lambda r: -r[1])[:3]
    often = [r for r in rows if r[2] >= 20]
    by_lift = sorted(often, key=lambda r: -r[3])[:3]
    for name, wanted in (('by_count', by_count), ('by_lift', by_lift)):
      table = found[f'top_tokens/{name}'][0][e]
      assert [(r['id'], r['count']) for r in table] == [r[:2] for r in wanted]
      for row, (x, count, all_, lift) in zip(table, wanted, strict=True):
        assert row['text'] == str(x)
        np.testing.assert_allclose(row['share'], count / all_)
        np.testing.assert_allclose(row['lift'], lift)
    np.testing.assert_allclose(found['top_tokens/value'][0][e], by_lift[0][3])


def test_an_own_token_stands_out_of_chance_and_reads(tmp_path):
  rng = np.random.default_rng(1)
  n, E = 4_000, 4
  token = 3 + ord('a') + synthetic.zipf(rng, n, 26)
  token[::40] = 3 + ord('\n')
  expert = rng.integers(0, E, (n, 1, 1))
  expert[::40] = 2
  made = record(tmp_path, expert, token, tokenizer='bytes()', vocab=384)
  found = metrics.measure(made, ('top_tokens()',))
  best = found['top_tokens/by_lift'][0]
  assert best[2][0]['text'] == r'\n'
  assert best[2][0]['count'] == 100
  value, high = found['top_tokens/value'][0], found['top_tokens/null_high'][0]
  assert value[2] > 1.5 * high[2]
  # The largest of some 25 lifts is far above 1 for experts without any own.
  assert all(1.1 < high[e] and value[e] < 1.5 * high[e] for e in (0, 1, 3))


def test_an_expert_without_tokens_has_an_empty_table(tmp_path):
  made = record(tmp_path, np.zeros((50, 1, 1), int), np.zeros(50), experts=(2,))
  found = metrics.measure(made, ('top_tokens()',))
  assert found['top_tokens/by_lift'][0][1] == []
  assert found['top_tokens/value'][0] == [1.0, None]
