"""Dispatches under loads that no balancing allows; rows that nobody reads."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe_jax import registry, types
from moe_jax.dispatch import base
from moe_jax.experts import mlp
from moe_jax.parallel import (
  axes as axes_lib,
  collectives,
  compat,
  hlo,
  mesh as mesh_lib,
  rules,
)
from moe_jax.seating import seat as seating
from tests import poison

P = jax.sharding.PartitionSpec
D, F, G = 6, 8, 8
RECEIVER = types.RECEIVER


@dataclasses.dataclass(frozen=True)
class Case:
  """A dispatch on a mesh, and the sizes of its problem (see types)."""

  dispatch: str
  mesh: tuple[tuple[str, int], ...]
  E: int
  K: int
  T: int
  C: int
  experts: str = 'mlp(bias=True)'

  @property
  def axis(self):
    return dict(self.mesh).get('expert', 1)


def make_mesh(sizes):
  sizes = mesh_lib.exact(**dict(sizes))
  return mesh_lib.make(sizes, jax.devices()[: np.prod(list(sizes.values()))])


def inputs(case):
  """Parameters, tokens, weights and a cotangent."""
  kind = registry.build('experts', case.experts, d_ff=F)
  params = kind.init(jax.random.key(0), case.E, D)
  params = {k: v + 0.1 * (k in ('bi', 'bo')) for k, v in params.items()}
  rng = np.random.default_rng(1)
  x, out = rng.normal(size=(2, G, case.T, D)).astype(np.float32)
  weight = rng.uniform(0.1, 1, (G, case.K * case.T)).astype(np.float32)
  return jax.device_get(params), x, weight, out


def region(case, remat=None):
  """The dispatch alone; `lost_GN` are edges that it must leave out."""
  mesh = make_mesh(case.mesh)
  axes = axes_lib.make(mesh.shape)
  kind = registry.build('experts', case.experts, d_ff=F)
  dispatch = registry.build('dispatch', case.dispatch)
  token_N = jnp.tile(jnp.arange(case.T, dtype=jnp.int32), case.K)

  def device(params, x_GTD, weight_GN, expert_GN, lost_GN, key):
    def one(weight_N, expert_N, lost_N):
      r = types.Routing(
        token_N, expert_N, weight_N, num_experts=case.E, choices=case.K
      )
      seated = seating.seat(r, ((case.C, case.E),))
      cause_N = jnp.where(lost_N, RECEIVER, seated.cause_N)
      return seated.replace(cause_N=cause_N)

    seated = jax.vmap(one)(weight_GN, expert_GN, lost_GN)
    x_GTD = compat.device_varying(x_GTD, axes.batch + axes.model)
    y, cause = dispatch(kind, params, x_GTD, seated, axes, key)
    return collectives.psum(y, axes.model, name='model_sum'), cause

  batch = rules.spec(('batch',), mesh.shape)
  split = {k: rules.spec(v, mesh.shape) for k, v in kind.axes.items()}
  f = jax.shard_map(
    device,
    mesh=mesh,
    in_specs=(split, batch, batch, batch, batch, P()),
    out_specs=(batch, batch),
  )
  return f if remat is None else jax.checkpoint(f, policy=remat)


def traced(case, gradients=True, remat=None):
  params, x, weight, out = inputs(case)
  f = region(case, remat)
  ints = np.zeros(weight.shape, np.int32)

  def run(params, x, weight, expert, lost, key):
    def loss(params, x, weight):
      y, cause = f(params, x, weight, expert, lost, key)
      return (jnp.tanh(y) * out).sum(), (y, cause)

    if not gradients:
      return loss(params, x, weight)
    return jax.value_and_grad(loss, (0, 1, 2), has_aux=True)(params, x, weight)

  return jax.jit(run).trace(
    params, x, weight, ints, ints > 0, jax.random.key(0)
  )


@functools.cache
def program(case, gradients=True):
  return traced(case, gradients).lower().compile()


def run(case, expert, lost=None, key=0, compiled=None):
  params, x, weight, _ = inputs(case)
  lost = np.zeros(expert.shape, bool) if lost is None else lost
  f = compiled or program(case)
  (_, (y, cause)), grads = jax.device_get(
    f(params, x, weight, expert, lost, jax.random.key(key))
  )
  return y, cause, grads


def patterns(case):
  """Expert of each edge [G, N]: loads that no balancing would allow."""
  rng = np.random.default_rng(2)
  shape = G, case.K * case.T
  any_ = rng.integers(0, case.E, shape)
  distinct = np.argsort(rng.random((G, case.T, case.E)), -1)[..., : case.K]
  empty = any_.copy()
  empty[G // 4 : G // 2] = case.E
  some = np.where(rng.random(shape) < 0.5, any_, case.E)
  return {
    'distinct': distinct.swapaxes(1, 2).reshape(shape),
    'all to one': np.zeros(shape, int),
    'all to the last device': rng.integers(
      case.E - case.E // case.axis, case.E, shape
    ),
    'one is never used': rng.integers(1, case.E, shape),
    'shards without a row': empty,
    'half of the edges unsent': some,
    'nobody': np.full(shape, case.E),
  }


EIGHT, FOUR = (('expert', 8),), (('data', 2), ('expert', 4))
SPLIT = (('expert', 4), ('model', 2))
EXACT = "ragged_all_to_all(buffer_factor=1.0, overflow='gather_reduce')"
PREFIX = 'ragged_all_to_all(buffer_factor=1.5)'
PRIORITY = "ragged_all_to_all(buffer_factor=1.0, clip='priority')"
RANDOM = "ragged_all_to_all(buffer_factor=1.0, clip='random', matmul='loop()')"
CASES = [
  Case('gather_reduce()', EIGHT, E=8, K=8, T=2, C=2),
  Case("gather_reduce(matmul='ragged_dot()')", SPLIT, E=8, K=1, T=2, C=2),
  Case('gather_reduce()', (), E=4, K=2, T=8, C=3, experts='glu()'),
  Case(EXACT, FOUR, E=8, K=2, T=8, C=8),
  Case(EXACT, EIGHT, E=8, K=8, T=2, C=2),
  Case(PREFIX, EIGHT, E=8, K=2, T=4, C=4),
  Case(PRIORITY, SPLIT, E=8, K=2, T=4, C=4, experts='glu()'),
  Case(RANDOM, FOUR, E=4, K=2, T=8, C=8),
  Case('scatter(pipeline_degree=2)', FOUR, E=8, K=2, T=8, C=3),
  Case('einsum()', EIGHT, E=8, K=8, T=2, C=2),
]


# By default each dispatch once, the exact exchange on two axes.
FEW = [CASES[i] for i in (0, 3, 5, 6, 9)]


@pytest.mark.parametrize(
  'case',
  [c if c in FEW else pytest.param(c, marks=pytest.mark.slow) for c in CASES],
  ids=str,
)
def test_skewed_loads(case):
  """Values and every gradient are those of dense, less what was clipped."""
  dense = dataclasses.replace(case, dispatch='dense()', mesh=())
  clipped = {}
  for name, expert in patterns(case).items():
    expert = expert.astype(np.int32)
    y, cause, grads = run(case, expert)
    y_all, seated, _ = run(dense, expert)
    lost = cause == RECEIVER
    np.testing.assert_array_equal(np.where(lost, types.KEPT, cause), seated)
    y_want, _, grads_want = run(dense, expert, lost)
    np.testing.assert_allclose(y, y_want, atol=2e-5, err_msg=name)
    assert np.abs(y - y_all).max() < 2e-5 or lost.any()
    jax.tree.map(
      lambda a, b, name=name: np.testing.assert_allclose(
        a, b, atol=5e-5, err_msg=name
      ),
      grads,
      grads_want,
    )
    clipped[name] = lost.sum()
    check_buffers(case, expert, cause, seated)
  assert clipped['nobody'] == 0
  drops = case.dispatch in (PREFIX, PRIORITY, RANDOM)
  assert (clipped['all to one'] > 0) == drops


def check_buffers(case, expert, cause, seated):
  """No buffer gets more rows than it has, and none clips while it has room."""
  if case.dispatch not in (PREFIX, PRIORITY, RANDOM):
    return
  dispatch = registry.build('dispatch', case.dispatch)
  groups = G // int(np.prod([n for a, n in case.mesh if a != 'model']))
  n, e = case.axis, case.E // case.axis
  balanced = groups * min(case.K * case.T, case.E * case.C)
  rows = int(np.ceil(dispatch.buffer_factor * balanced))
  for part in np.split(np.arange(G), G // (groups * n)):
    for d in range(n):
      here = expert[part] // e == d
      want = (here & (seated[part] == types.KEPT)).sum()
      assert (here & (cause[part] == types.KEPT)).sum() == min(want, rows)


def test_rows_of_nobody_are_never_read(monkeypatch):
  """On real hardware they are garbage: values and gradients stay the same."""
  cases = [CASES[0], CASES[6]]
  expert = [patterns(c)['shards without a row'].astype(np.int32) for c in cases]
  want = [run(c, e) for c, e in zip(cases, expert)]
  poisoned = poison.sorted_ops(monkeypatch)
  for case, e, clean in zip(cases, expert, want):
    got = run(case, e, compiled=traced(case).lower().compile())
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), got, clean
    )
  assert len(poisoned) >= 2


def test_results_of_empty_slots_are_never_read(monkeypatch):
  """Empty slots come as zeros; NaN in their results changes nothing."""
  case = CASES[8]
  assert case.dispatch.startswith('scatter')
  expert = patterns(case)['half of the edges unsent'].astype(np.int32)
  want = run(case, expert)
  computed = mlp.Mlp.__call__

  def spoiled(self, params, rows, ops):
    empty = (rows == 0).all(-1, keepdims=True)
    return jnp.where(empty, jnp.nan, computed(self, params, rows, ops))

  monkeypatch.setattr(mlp.Mlp, '__call__', spoiled)
  got = run(case, expert, compiled=traced(case).lower().compile())
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), got, want
  )


@pytest.mark.parametrize('mask', ['row', 'shared', 'expert'])
def test_masks_of_sorted_rows_are_those_of_buffers(mask):
  axes = axes_lib.make(mesh_lib.exact())
  key, E, R, rate = jax.random.key(5), 3, 10, 0.3
  buffers = base.dropper(key, jnp.arange(E), jnp.arange(R), axes)
  want = jax.jit(lambda x: buffers(x, rate, mask))(jnp.ones((E, R, F)))
  at = np.random.default_rng(0).permutation(E * R)
  rows = base.sorted_dropper(
    key, jnp.asarray(at // R), jnp.asarray(at % R), axes
  )
  got = jax.jit(lambda x: rows(x, rate, mask))(jnp.ones((E * R, F)))
  np.testing.assert_array_equal(got, np.asarray(want).reshape(E * R, F)[at])


@pytest.mark.parametrize('platform', ['cpu', 'tpu', 'cuda'])
def test_the_real_exchange_where_it_exists(platform):
  """Two forward, two back; on CPU all rows are gathered instead."""
  text = traced(CASES[5]).lower(lowering_platforms=(platform,)).as_text()
  real = text.count('@ragged_all_to_all(')
  gathers = text.count('"stablehlo.all_gather"')
  assert (real, gathers) == ((0, 5) if platform == 'cpu' else (4, 1))


# Collectives.


def counted(compiled):
  return hlo.count_collectives(compiled.as_text())


def test_collectives():
  """As the docstrings say; on CPU a ragged exchange is one gather."""
  loss = {'all-reduce': 1}  # the test's own
  gather, prefix = CASES[0], CASES[5]
  forward = {'all-gather': 3, 'reduce-scatter': 1}
  assert counted(program(gather, gradients=False)) == forward | loss
  both = {'all-gather': 3 + 1, 'reduce-scatter': 1 + 2}
  assert counted(program(gather)) == both | loss
  forward = {'all-gather': 1 + 2}
  assert counted(program(prefix, gradients=False)) == forward | loss
  assert counted(program(prefix)) == {'all-gather': 1 + 2 + 2} | loss
  for case in (CASES[2], dataclasses.replace(prefix, mesh=())):
    assert counted(program(case)) == {}


@pytest.mark.parametrize('case', [CASES[0], CASES[5]], ids=str)
def test_remat_by_name_runs_no_collective_again(case):
  policy = jax.checkpoint_policies.save_only_these_names(
    collectives.DISPATCHED, collectives.RETURNED
  )
  again = traced(case, remat=policy).lower().compile()
  assert counted(again) == counted(program(case))


def test_random_clipping_loses_others_each_time():
  expert = patterns(CASES[7])['all to one'].astype(np.int32)
  lost = [run(CASES[7], expert, key=k)[1] == RECEIVER for k in range(2)]
  assert lost[0].sum() == lost[1].sum() and (lost[0] != lost[1]).any()
