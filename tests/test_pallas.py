"""Kernels for accelerators, interpreted on CPU, and what they lower to."""

import contextlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe_jax.kernels import grouped, pallas_triton
from moe_jax.parallel import mesh as mesh_lib
from tests import test_kernels

P = jax.sharding.PartitionSpec
# Tiles that neither divide the widths nor the groups.
TRITON = 'triton(rows=16, cols=32, inner=32, band=3, interpret=True)'
MEGABLOX = 'megablox(rows=16, cols=128, inner=128, interpret=True)'
WHOLE = (
  'triton(rows=16, cols=16, inner=16, interpret=True)',
  'triton(interpret=True)',
  'megablox(interpret=True)',
)
FEW = ('an expert without rows', 'all rows at one', 'no row at all')


def check(run, case, dtype):
  """Values and gradients, in float32 but for one rounding; their dtypes."""
  x, w, sizes, dy, want = test_kernels.inputs(case, dtype)
  got = run(x, w, sizes, dy)
  rtol, atol = (2**-8, 1e-5) if dtype == jnp.bfloat16 else (0, 3e-5)
  for g, exact in zip(got, want):
    assert g.dtype == dtype
    g = np.asarray(g, np.float64)
    np.testing.assert_allclose(g, exact, rtol=rtol, atol=atol)


@pytest.mark.parametrize('case', FEW)
@pytest.mark.parametrize('spec', (TRITON, MEGABLOX))
def test_grouped_product(spec, case):
  check(test_kernels.program(spec), case, jnp.float32)


@pytest.mark.parametrize('spec', (TRITON, MEGABLOX))
def test_many_tiles_of_bfloat16(spec):
  check(test_kernels.program(spec), 'more than a block', jnp.bfloat16)


@pytest.mark.slow
@pytest.mark.parametrize('dtype', (jnp.float32, jnp.bfloat16))
@pytest.mark.parametrize('case', test_kernels.SIZES)
@pytest.mark.parametrize('spec', (TRITON, MEGABLOX, *WHOLE))
def test_grouped_product_elsewhere(spec, case, dtype):
  check(test_kernels.program(spec), case, dtype)


@pytest.mark.parametrize(
  'spec', (TRITON, pytest.param(MEGABLOX, marks=pytest.mark.slow))
)
def test_weights_that_all_devices_share(spec):
  """In a region that checks types, of which the kernels carry none."""
  case = 'an expert without rows'
  x, w, sizes, dy, want = test_kernels.inputs(case, jnp.float32)
  mesh = mesh_lib.make(mesh_lib.exact(data=2), jax.devices()[:2])
  region = jax.shard_map(
    grouped.build(spec),
    mesh=mesh,
    in_specs=(P('data'), P(), P()),
    out_specs=P('data'),
  )
  both = lambda v: np.concatenate([v, v])

  @jax.jit
  def run(x, w, dy):
    y, transpose = jax.vjp(lambda x, w: region(x, w, sizes), x, w)
    return y, *transpose(dy)

  y, dx, dw = run(both(x), w, both(dy))
  for got, exact in (
    (y, both(want[0])),
    (dx, both(want[1])),
    (dw, 2 * want[2]),
  ):
    np.testing.assert_allclose(got, exact, atol=6e-5)


def test_tiles_cover_every_row_once():
  """Of one expert each; the rows past the groups are those of nobody."""
  R, rows = 100, 16
  tiles = jax.jit(lambda sizes: pallas_triton.tile_list(sizes, R, rows))
  for sizes in ([0, 33, 0, 16, 51, 0], [0] * 6, [100] + [0] * 5, [1, 2, 3] * 2):
    expert, begin, end = map(np.asarray, tiles(np.int32(sizes)))
    found = [
      (e, row)
      for e, first, last in zip(expert, begin, end)
      for row in range(first, last)
    ]
    owners = np.repeat(range(7), [*sizes, R - sum(sizes)])
    assert found == [(e, row) for row, e in enumerate(owners)]
    assert (end - begin <= rows).all()
    # Tiles that are full, and one of each expert and of the rest that is not.
    assert len(expert) == (R + 7 * (rows - 1)) // rows <= R // rows + 7


def test_tiles_take_turns_in_bands():
  """Three rows of tiles at a time, down each column; the last band is lower."""
  want = [(r, c) for c in range(2) for r in range(3)]
  want += [(r, c) for c in range(2) for r in range(3, 5)]
  place = jax.vmap(lambda i: jnp.stack(pallas_triton._place(i, 5, 2, 3)))
  np.testing.assert_array_equal(place(jnp.arange(10)), want)


def hopper():
  """Newer versions of jax want to know which GPU they lower for."""
  if jax.__version_info__ < (0, 11):
    return contextlib.nullcontext()
  device = jax.sharding.AbstractDevice('NVIDIA H200', 132, 'gpu')
  mesh = jax.sharding.AbstractMesh((), (), abstract_device=device)
  return jax.sharding.use_abstract_mesh(mesh)


def kernels_in(f, platform, dtype=jnp.bfloat16):
  """The names of what a product and its gradients call when lowered.

  Of shapes that tiles do not divide.
  """

  def run(x, w, sizes, dy):
    y, transpose = jax.vjp(lambda x, w: f(x, w, sizes), x, w)
    return y, *transpose(dy)

  S = jax.ShapeDtypeStruct
  R, E, wide, narrow = 1000, 3, 1408, 1100
  shapes = S((R, narrow), dtype), S((E, narrow, wide), dtype)
  shapes += S((E,), jnp.int32), S((R, wide), dtype)
  with hopper():
    traced = jax.jit(run).trace(*shapes)
    text = traced.lower(lowering_platforms=(platform,)).as_text()
  return re.findall(r'(tpu_custom_call|gpu.triton|chlo.ragged_dot)"?\(', text)


@pytest.mark.filterwarnings('ignore:The Pallas Triton backend is deprecated')
@pytest.mark.parametrize(
  ('spec', 'platform', 'dtype', 'kernel'),
  [
    ('triton()', 'cuda', jnp.bfloat16, 'gpu.triton'),
    ('triton()', 'cuda', jnp.float32, 'gpu.triton'),
    ('megablox()', 'tpu', jnp.bfloat16, 'tpu_custom_call'),
    ('megablox()', 'tpu', jnp.float32, 'tpu_custom_call'),
    ('auto(every=True)', 'cuda', jnp.bfloat16, 'gpu.triton'),
    ('auto(every=True)', 'tpu', jnp.bfloat16, 'tpu_custom_call'),
    ('auto(every=True)', 'tpu', jnp.float16, 'chlo.ragged_dot'),
    ('auto(every=True)', 'rocm', jnp.bfloat16, 'chlo.ragged_dot'),
  ],
)
def test_lowers_to_its_kernels(spec, platform, dtype, kernel):
  """One for values, one for each of the gradients, and nothing else's."""
  assert kernels_in(grouped.build(spec), platform, dtype) == [kernel] * 3


def test_auto_on_cpu_is_blocked():
  assert kernels_in(grouped.build('auto(every=True)'), 'cpu') == []


def test_without_the_triton_backend(monkeypatch):
  """jax 0.12 announces its end."""
  monkeypatch.setattr(pallas_triton, 'triton', None)
  assert (
    kernels_in(grouped.auto.__wrapped__(every=True), 'cuda')
    == ['chlo.ragged_dot'] * 3
  )
  with pytest.raises(ImportError, match=r'which jax .* has not'):
    grouped.build('triton')


@pytest.mark.parametrize(
  ('spec', 'message'),
  [
    ('triton(rows=48)', 'triton: rows=48 must be a power of two from 16'),
    ('triton(inner=8)', 'triton: inner=8 must be a power of two from 16'),
    ('triton(warps=3)', 'triton: warps=3 must be a power of two'),
    ('triton(stages=0)', 'triton: stages=0 must be a whole number from 1'),
    ('megablox(rows=8)', 'megablox: rows=8 must be a multiple of 16'),
    ('megablox(cols=64)', 'megablox: cols=64 must be a multiple of 128'),
  ],
)
def test_errors(spec, message):
  with pytest.raises(ValueError, match=message):
    grouped.build(spec)
