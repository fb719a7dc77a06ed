"""The exchanges that jax does not have, by loops and by simpler ones."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from moe_jax.parallel import collectives, mesh as mesh_lib


@pytest.mark.parametrize(('split', 'concat'), [(0, 1), (1, 0), (0, 0)])
def test_two_stages_are_one_exchange(split, concat):
  """Inside hosts of 2 or 4 and then across, on an axis of 8."""
  mesh = mesh_lib.make(mesh_lib.exact(expert=8))
  shape = (16, 6, 3) if split == 0 else (4, 16, 3)
  x = np.arange(8.0 * np.prod(shape)).reshape(8 * shape[0], *shape[1:])
  found = []
  for host in (1, 2, 4):
    exchange = jax.shard_map(
      lambda v, host=host: collectives.all_to_all(
        v, ('expert',), split=split, concat=concat, name='x', host=host
      ),
      mesh=mesh,
      in_specs=P('expert'),
      out_specs=P('expert'),
    )
    weigh = lambda v, f=exchange: (jnp.sin(f(v)) * f(v)).sum()
    found.append((jax.jit(exchange)(x), jax.jit(jax.grad(weigh))(x)))
  for values, gradients in found[1:]:
    np.testing.assert_array_equal(values, found[0][0])
    np.testing.assert_allclose(gradients, found[0][1], rtol=1e-6)


@functools.cache
def exchange(rows):
  f = jax.shard_map(
    lambda x, sizes: collectives.ragged_all_to_all(
      x, sizes, rows=rows, axes=('expert',), name='test'
    ),
    mesh=mesh_lib.make(mesh_lib.exact(data=2, expert=4)),
    in_specs=(P(('data', 'expert')), P()),
    out_specs=P(('data', 'expert')),
  )

  def both(x, sizes, dy):
    y, transpose = jax.vjp(lambda x: f(x, sizes), x)
    return y, transpose(dy)[0]

  return jax.jit(both)


@pytest.mark.parametrize('seed', range(4))
def test_exchange(seed):
  """Block by block; the transpose sends all of it back; the rest is zeros."""
  rng = np.random.default_rng(seed)
  n, sent, got = 4, 9, 14
  sizes = rng.integers(0, 4, (n, n)).astype(np.int32)
  sizes[:, 0] = rng.permutation([0, 0, 2, 1])
  sizes[1] = 0
  sizes = np.where(sizes.cumsum(1) > sent, 0, sizes)
  x = rng.normal(size=(2, n, sent, 3)).astype(np.float32)
  dy = rng.normal(size=(2, n, got, 3)).astype(np.float32)
  y, dx = np.zeros_like(dy), np.zeros_like(x)
  for half in range(2):
    filled = [0] * n
    for source in range(n):
      at = 0
      for target in range(n):
        for _ in range(sizes[source, target]):
          y[half, target, filled[target]] = x[half, source, at]
          dx[half, source, at] = dy[half, target, filled[target]]
          at, filled[target] = at + 1, filled[target] + 1
  flat = lambda v: v.reshape(-1, 3)
  y_got, dx_got = exchange(got)(flat(x), sizes, flat(dy))
  np.testing.assert_array_equal(y_got, flat(y))
  np.testing.assert_array_equal(dx_got, flat(dx))
