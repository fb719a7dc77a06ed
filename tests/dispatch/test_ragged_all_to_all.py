"""Who loses where a receiver's buffer is too small."""

import functools

import numpy as np
import pytest

from moe_jax import registry
from tests.lazy import jax, jnp, ragged
from tests.methods import Row

ROWS = (Row("ragged_all_to_all(overflow='gather_reduce')", '2211.15841'),)
ERRORS = {
  'ragged_all_to_all(buffer_factor=0.5)': 'buffer_factor=0.5 must be at le',
  "ragged_all_to_all(clip='last')": "clip='last'; valid: prefix, priority, ra",
  "ragged_all_to_all(overflow='fail')": "overflow='fail'; valid: drop, gather",
  "ragged_all_to_all(matmul='dots()')": "unknown matmul 'dots'",
}
CLIPS = ('prefix', 'priority', 'random')


def counts(seed, n=4, groups=2, E=8):
  rng = np.random.default_rng(seed)
  return rng.integers(0, 12, (n * groups, E)).astype(np.int32), n


@functools.cache
def allot(clip, R, n):
  one = lambda *seen: ragged.quotas(clip, seen[0], R, n, *seen[1:])
  return jax.jit(jax.vmap(one, (None, None, 0)))


def draws(clip, R, n, count, group, seeds):
  """Quotas of several keys, [key, H, E]."""
  keys = jax.vmap(jax.random.key)(jnp.asarray(seeds))
  return np.asarray(allot(clip, R, n)(count, group, keys))


@pytest.mark.parametrize('clip', CLIPS)
@pytest.mark.parametrize('R', [0, 37, 500])
def test_quotas(clip, R):
  """Each buffer is filled; by queues in order, or seat by seat."""
  count, n = counts(0)
  count[:, 6:], count[3, 6] = 0, 40  # the last device has one queue
  H, E = count.shape
  group = np.arange(H, dtype=np.int32)
  quota = draws(clip, R, n, count, group, [1])[0]
  assert (quota >= 0).all() and (quota <= count).all()
  e = E // n
  for d in range(n):
    want = count[:, d * e : (d + 1) * e]
    got = quota[:, d * e : (d + 1) * e]
    assert got.sum() == min(R, want.sum())
    if clip == 'prefix':
      left = R
      for s in range(n):
        for i in range(e):
          for h in range(s * H // n, (s + 1) * H // n):
            fits = min(left, want[h, i])
            assert got[h, i] == fits
            left -= fits
    elif clip == 'random':  # whole queues, but for one
      assert ((got > 0) & (got < want)).sum() <= 1
    else:
      short = got[got < want]
      assert not short.size or got.max() <= short.min() + 1


def test_random_clipping_follows_key_and_group():
  """Not the place of the group, nor anything else."""
  count, n = counts(1)
  group = np.arange(len(count), dtype=np.int32)
  first, same, other = draws('random', 37, n, count, group, [1, 1, 2])
  np.testing.assert_array_equal(first, same)
  assert (first != other).any()
  at = np.random.default_rng(0).permutation(len(count))
  moved = draws('random', 37, n, count[at], group[at], [1, 1, 2])[0]
  np.testing.assert_array_equal(moved, first[at])


def test_who_loses():
  """All tokens of 8 devices to one expert, room for a quarter of them."""
  count = np.zeros((8, 8), np.int32)
  count[:, 0] = 8
  group = np.arange(8, dtype=np.int32)
  kept = {
    clip: draws(clip, 16, 8, count, group, range(200))[:, :, 0].mean(0) / 8
    for clip in CLIPS
  }
  np.testing.assert_array_equal(kept['prefix'], [1, 1, 0, 0, 0, 0, 0, 0])
  np.testing.assert_array_equal(kept['priority'], [0.25] * 8)
  np.testing.assert_allclose(kept['random'], 0.25, atol=0.1)
  # Of seats that do not go round, who gets one is drawn: 20 of 8 queues.
  seats = draws('priority', 20, 8, count, group, range(200))[:, :, 0]
  assert set(seats.reshape(-1)) == {2, 3}
  np.testing.assert_allclose(seats.mean(0), 2.5, atol=0.15)


def test_only_random_clipping_wants_a_key():
  assert ragged.CLIPS == CLIPS
  build = lambda c: registry.build('dispatch', f'ragged_all_to_all(clip={c!r})')
  assert [c for c in CLIPS if build(c).random] == ['random']
