"""Grouped products and sorted rows against loops in NumPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe_jax.kernels import batched, blocked, grouped, permute, sorted_rows
from moe_jax.parallel import mesh as mesh_lib

P = jax.sharding.PartitionSpec
A, B = 48, 5
SPECS = (
  'auto()',
  'blocked()',
  'blocked(rows=5, grain=2)',
  'loop',
  'ragged_dot()',
)
# Three shapes, to compile few programs.
SIZES = {
  'an expert without rows': ([3, 0, 7, 1], 13),
  'all rows at one': ([0, 0, 13, 0], 13),
  'no row at all': ([0, 0, 0, 0], 13),
  'more experts than rows': ([1, 0] * 6, 6),
  'one row at the end': ([0, 0, 0, 2], 300),
  'more than a block': ([70, 130, 0, 64], 300),
}


def oracle(x, w, sizes, dy):
  """Values, and gradients of the rows and the matrices, row by row."""
  y, dx, dw = np.zeros((len(x), B)), np.zeros(x.shape), np.zeros(w.shape)
  expert = [e for e, n in enumerate(sizes) for _ in range(n)]
  for r, e in enumerate(expert):
    y[r], dx[r] = x[r] @ w[e], w[e] @ dy[r]
    dw[e] += np.outer(x[r], dy[r])
  return y, dx, dw


def inputs(case, dtype):
  """Rounded to dtype, NaN in the rows past the groups."""
  sizes, R = SIZES[case]
  rng = np.random.default_rng(R)
  shapes = (R, A), (len(sizes), A, B), (R, B)
  x, w, dy = (np.array(jnp.asarray(rng.normal(size=s), dtype)) for s in shapes)
  exact = [v.astype(np.float64) for v in (x, w, dy)]
  want = oracle(*exact[:2], sizes, exact[2])
  x[sum(sizes) :] = dy[sum(sizes) :] = np.nan
  return x, w, np.int32(sizes), dy, want


@functools.cache
def program(spec):
  f = grouped.build(spec)

  def run(x, w, sizes, dy):
    y, transpose = jax.vjp(lambda x, w: f(x, w, sizes), x, w)
    return y, *transpose(dy)

  return jax.jit(run)


@pytest.mark.parametrize('case', SIZES)
@pytest.mark.parametrize('spec', SPECS)
def test_grouped_product(spec, case):
  x, w, sizes, dy, want = inputs(case, jnp.float32)
  for got, exact in zip(program(spec)(x, w, sizes, dy), want):
    np.testing.assert_allclose(got, exact, atol=3e-5)


@pytest.mark.parametrize('spec', SPECS)
def test_bfloat16_sums_in_float32(spec):
  """One rounding, of the result: sums in bf16 would be off by far more."""
  x, w, sizes, dy, want = inputs('more than a block', jnp.bfloat16)
  for got, exact in zip(program(spec)(x, w, sizes, dy), want):
    assert got.dtype == jnp.bfloat16
    np.testing.assert_allclose(
      np.asarray(got, np.float64), exact, rtol=2**-8, atol=1e-5
    )


def test_ragged_dot_where_rows_stay_unwritten(monkeypatch):
  """Hardware leaves garbage in rows past the groups; XLA on CPU does not."""
  real = jax.lax.ragged_dot

  def spoil(v, sizes):
    past_R1 = (jnp.arange(v.shape[0]) >= sizes.sum())[:, None]
    return jnp.where(past_R1, jnp.nan, v)

  @jax.custom_vjp
  def unwritten(x, w, sizes):
    return spoil(real(x, w, sizes), sizes)

  def backward(args, dy):
    x, w, sizes = args
    dx, dw = jax.vjp(lambda x, w: real(x, w, sizes), x, w)[1](dy)
    return spoil(dx, sizes), dw, None

  unwritten.defvjp(lambda *args: (unwritten(*args), args), backward)
  monkeypatch.setattr(jax.lax, 'ragged_dot', unwritten)
  x, w, sizes, dy, want = inputs('more than a block', jnp.float32)
  for got, exact in zip(
    program.__wrapped__('ragged_dot')(x, w, sizes, dy), want
  ):
    np.testing.assert_allclose(got, exact, atol=3e-5)


def test_blocks_cost_what_their_rows_cost():
  """As many blocks as are needed, the last of an expert cut to the grain."""
  sizes = jnp.array([0, 33, 1, 16, 0, 100, 17, 3])
  b, grain, R = 16, 4, 256

  def blocks(expert):
    def product(n, begin, end):
      return jnp.array([1, n, end - begin])

    def step(row, begin, end, carry):
      del begin, end
      return carry + row

    return blocked._over_blocks(
      product, step, jnp.zeros(3, jnp.int32), sizes, expert, R, b, grain
    )

  for expert, size in enumerate(sizes):
    full, rest = divmod(int(size), b)
    rounded = -(-rest // grain) * grain
    np.testing.assert_array_equal(
      jax.jit(blocks)(expert), [full + (rest > 0), full * b + rounded, size]
    )


def test_a_block_has_the_flops_of_its_rows():
  """In each of the three products; each loop body is counted once."""
  b, R, E = 16, 256, 8
  x, w, dy = jnp.ones((R, A)), jnp.ones((E, A, 96)), jnp.ones((R, 96))
  sizes = jnp.full(E, R // E)
  f = blocked.make(b, b)

  def flops(g, *args):
    return jax.jit(g).lower(*args).compile().cost_analysis()['flops']

  def gradients(x, w, sizes, dy):
    return jax.vjp(lambda x, w: f(x, w, sizes), x, w)[1](dy)

  block = 2 * b * A * 96
  assert 1 <= flops(f, x, w, sizes) / block < 1.1
  assert 2 <= flops(gradients, x, w, sizes, dy) / block < 2.4


@pytest.mark.parametrize('spec', SPECS)
def test_weights_that_all_devices_share(spec):
  """Inside a region, types checked: their gradient is summed over devices."""
  x, w, sizes, dy, (y, dx, dw) = inputs('more than a block', jnp.float32)
  mesh = mesh_lib.make(mesh_lib.exact(data=2), jax.devices()[:2])
  both = lambda v: np.concatenate([v, v])
  f = grouped.build(spec)
  region = jax.shard_map(
    f, mesh=mesh, in_specs=(P('data'), P(), P()), out_specs=P('data')
  )

  @jax.jit
  def run(x, w, dy):
    out, transpose = jax.vjp(lambda x, w: region(x, w, sizes), x, w)
    return out, *transpose(dy)

  got = run(both(x), w, both(dy))
  for g, want in zip(got, (both(y), both(dx), 2 * dw)):
    np.testing.assert_allclose(g, want, atol=6e-5)


@pytest.mark.parametrize(
  ('spec', 'message'),
  [
    ('dots()', "unknown matmul 'dots'; valid: auto, blocked, loop, megablox, "),
    ('blocked(rows=0)', 'rows=0 must be a whole number from 1'),
    ('blocked(rows=16)', 'grain=32 exceeds rows=16'),
    (
      'blocked(size=4)',
      "argument of matmul 'blocked' 'size'; valid: grain, rows",
    ),
  ],
)
def test_errors(spec, message):
  with pytest.raises(ValueError, match=message):
    grouped.build(spec)


def test_reorder_is_a_permutation_both_ways():
  index = np.random.default_rng(0).permutation(9)
  f = lambda x: permute.reorder(x, *map(jnp.asarray, (index, index.argsort())))
  x = jax.random.normal(jax.random.key(0), (9, 3))
  y, transpose = jax.vjp(f, x)
  np.testing.assert_array_equal(y, x[index])
  back = np.zeros((9, 3), np.float32)
  for r, i in enumerate(index):
    back[i] += x[r]
  np.testing.assert_array_equal(transpose(x)[0], back)


def test_regroup():
  """Rows that came by source, then expert, by expert, then source."""
  size = np.array([[2, 0, 1], [0, 0, 3]], np.int32)
  came = [
    (s, e, i) for s in range(2) for e in range(3) for i in range(size[s, e])
  ]
  by_expert = sorted(range(6), key=lambda r: (came[r][1], came[r][0], r))
  np.testing.assert_array_equal(
    sorted_rows.regroup(size, 8), by_expert + [8, 8]
  )
  np.testing.assert_array_equal(
    sorted_rows.regroup(size.T, 8)[:6], np.argsort(by_expert)
  )


def test_places_and_segments():
  """By expert, then group, then seat; none for those who have no seat."""
  count = np.array([[2, 1], [0, 3], [1, 1]], np.int32)  # group, expert
  expert = np.array([[0, 0, 1, 0], [1, 1, 1, 0], [1, 0, -1, 2]], np.int32)
  slot = np.array([[1, 0, 0, 2], [0, 2, 1, 0], [0, 0, 0, 0]], np.int32)
  rows = sorted_rows.places(expert, slot, count, 10)
  np.testing.assert_array_equal(
    rows, [[1, 0, 3, 10], [4, 6, 5, 10], [7, 2, 10, 10]]
  )
  queue, place = sorted_rows.segment(count.T.reshape(-1), 8)
  np.testing.assert_array_equal(queue, [0, 0, 2, 3, 4, 4, 4, 5])
  np.testing.assert_array_equal(place, [0, 1, 0, 0, 0, 1, 2, 0])


@pytest.mark.parametrize('wide', [False, True], ids=['narrow', 'wide'])
def test_buffers_of_many_small_experts(wide):
  """By a loop over experts where that is faster; rows in NumPy."""
  E, R, (a, b) = batched.MANY, 3, (7, 4) if wide else (4, 7)
  rng = np.random.default_rng(0)
  shapes = (E, R, a), (E, a, b), (E, R, b)
  x, w, dy = (rng.normal(size=s).astype(np.float32) for s in shapes)

  @jax.jit
  def run(x, w, dy):
    y, transpose = jax.vjp(batched.product, x, w)
    return y, *transpose(dy)

  want = [np.zeros((E, R, b)), np.zeros(x.shape), np.zeros(w.shape)]
  for e in range(E):
    for r in range(R):
      want[0][e, r] = x[e, r] @ w[e]
      want[1][e, r] = w[e] @ dy[e, r]
      want[2][e] += np.outer(x[e, r], dy[e, r])
  for found, expected in zip(run(x, w, dy), want):
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=1e-5)
  text = run.lower(x, w, dy).as_text()
  assert text.count('stablehlo.while') == 1, 'one of forward and dx is a loop'


def test_buffers_of_many_experts_on_devices():
  """Weights that devices share get the sum of their gradients."""
  mesh = mesh_lib.make({'data': 2, 'fsdp': 1, 'expert': 4, 'model': 1})
  E = 4 * batched.MANY
  x = jnp.ones((2, E, 2, 3))
  w = jnp.arange(E * 15, dtype=jnp.float32).reshape(E, 3, 5)

  def loss(x_1ERA, w_EAB):
    y = batched.product(x_1ERA[0], w_EAB)
    return jax.lax.psum(y.sum(), ('data', 'expert'))

  def total(x, w):
    run = jax.shard_map(
      loss,
      mesh=mesh,
      in_specs=(P('data', 'expert'), P('expert')),
      out_specs=P(),
    )
    return run(x, w)

  dx, dw = jax.jit(jax.grad(total, (0, 1)))(x, w)
  np.testing.assert_allclose(dw, 4.0)
  np.testing.assert_allclose(dx, np.broadcast_to(w.sum(-1)[:, None], x.shape))
