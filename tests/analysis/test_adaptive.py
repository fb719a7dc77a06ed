"""Adaptive compute: experts used by kind, position and loss of a token."""

import numpy as np

from moe_jax.analysis import metrics, records, token_text
from moe_jax.data import tokenizers
from tests.analysis import synthetic

KEPT, CAPACITY, LOCAL = map(records.CAUSES.index, ('kept', 'capacity', 'local'))


def record(tmp_path, rng, chance, loss, length=(50,) * 80, K=3, **fields):
  """Each of K choices is computed with chance [n]; else it is a null's."""
  n = len(chance)
  cause = np.where(rng.random((n, 2, K)) < chance[:, None, None], KEPT, LOCAL)
  cause[:, 1] = KEPT
  made = synthetic.write(
    tmp_path,
    np.tile(np.arange(K), (n, 2, 1)),
    {'tokenizer': 'bytes()', 'vocab': 384},
    cause=cause,
    loss=loss,
    document=np.repeat(np.arange(len(length)), length),
    position=np.concatenate([np.arange(n) for n in length]),
    **fields,
  )
  return made, (cause == KEPT).sum(-1)


def test_means_are_those_of_a_loop(tmp_path):
  rng = np.random.default_rng(0)
  n = 4_000
  token = rng.choice(tokenizers.Bytes().encode(b'ab1;'), n)
  loss = rng.exponential(size=n)
  loss[::20] = np.nan
  made, used = record(tmp_path, rng, rng.random(n), loss, token=token)
  found = metrics.measure(made, ('adaptive(draws=20)',))
  found = {k.partition('/')[2]: v for k, v in found.items()}
  np.testing.assert_allclose(found['value'], used.mean(0))
  shares = np.bincount(used[:, 0], minlength=4) / n
  np.testing.assert_allclose(found['histogram'], [shares, [0, 0, 0, 1]])
  kinds = np.array(token_text.classes('bytes()', 384))[token]
  for c, name in enumerate(found['classes']):
    mean = used[kinds == c, 0].mean() if (kinds == c).any() else None
    assert found['by_class_value'][0][c] == mean or np.isclose(
      found['by_class_value'][0][c], mean
    ), name
  for key, edges, v in (
    ('by_position', found['positions'], np.arange(n) % 50),
    ('by_loss', found['losses'], loss),
  ):
    for i, low in enumerate(edges):
      high = edges[i + 1] if i + 1 < len(edges) else np.inf
      mine = used[(v >= low) & (v < high), 0]
      got = found[f'{key}_value'][0][i]
      assert (got is None) == (len(mine) < 100)
      assert got is None or np.isclose(got, mine.mean())
      if got is not None:
        assert found[f'{key}_low'][0][i] <= got <= found[f'{key}_high'][0][i]


def test_the_correlation_and_its_null_are_those_of_a_loop(tmp_path):
  rng = np.random.default_rng(1)
  length = 30, 40, 20, 50, 10, 40, 30
  n, start = sum(length), np.cumsum((0, *length))
  loss = rng.exponential(size=n)
  loss[::30] = np.nan
  chance = np.clip(0.2 + 0.3 * np.nan_to_num(loss), 0, 1)
  made, used = record(tmp_path, rng, chance, loss, length)
  found = synthetic.measured(made, 'difficulty(shifts=2, draws=20)')
  real = np.isfinite(loss)
  corr = lambda u, v: np.corrcoef(u, v)[0, 1]
  np.testing.assert_allclose(found['value'][0], corr(used[real, 0], loss[real]))
  both = used.sum(1)[real]
  np.testing.assert_allclose(found['model_value'], corr(both, loss[real]))
  nulls = []
  for s in (1, 2):
    pairs = [
      (used[start[d] + p, 0], loss[start[d - s] + p])
      for d in range(s, len(length))
      for p in range(min(length[d], length[d - s]))
      if np.isfinite(loss[start[d - s] + p])
    ]
    nulls.append(corr(*np.transpose(pairs)))
  np.testing.assert_allclose(found['null'][0], np.mean(nulls))
  assert np.isnan(found['value'][1])  # that layer never varies


def test_harder_tokens_are_told_from_early_ones(tmp_path):
  rng = np.random.default_rng(2)
  n, length = 4_000, 50
  early = np.exp(-(np.arange(n) % length) / 5)
  loss = rng.exponential(size=n) + 3 * early
  # Compute follows the position alone: both are high at the start.
  made, _ = record(tmp_path / 'early', rng, 0.2 + 0.6 * early, loss)
  found = synthetic.measured(made, 'difficulty()')
  assert found['low'][0] > 0.2
  assert abs(found['value'][0] - found['null'][0]) < 0.05
  chance = np.clip(0.2 + 0.2 * (loss - 3 * early), 0, 1)
  made, _ = record(tmp_path / 'hard', rng, chance, loss)
  found = synthetic.measured(made, 'difficulty()')
  assert found['low'][0] > found['null_high'][0] + 0.1
