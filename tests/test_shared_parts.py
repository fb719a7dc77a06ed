"""Parts that all experts share: in every dispatch, on meshes, and in counts."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from moe_jax import registry, types
from moe_jax.dispatch import base as dispatching
from moe_jax.experts import base, shared_low_rank
from moe_jax.kernels import grouped
from moe_jax.layers import weights
from moe_jax.parallel import (
  axes as axes_lib,
  collectives,
  compat,
  mesh as mesh_lib,
  rules,
)
from moe_jax.seating import seat as seating
from moe_jax.training import plans, tuning
from tests import methods, poison, tiny

G, T, D, E, K, F = 8, 6, 8, 4, 2, 12
MESHES = (dict(data=2, expert=4), dict(expert=2, fsdp=2, model=2))
DISPATCHES = [r.spec for r in methods.rows('dispatch')] + [
  'scatter(pipeline_degree=4)'
]
KIND = shared_low_rank.SharedLowRank(d_ff=F, rank=2, bias=True)
BF16 = jnp.bfloat16


def draw(seed, *shape):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@functools.cache
def inputs():
  """Parameters without zeros, tokens, a cotangent, and each token's edges."""
  shapes = jax.eval_shape(lambda: KIND.init(jax.random.key(0), E, D))
  w = {k: draw(i, *v.shape) / 2 for i, (k, v) in enumerate(shapes.items())}
  rng = np.random.default_rng(0)
  order = rng.permuted(np.tile(np.arange(E), (G, T, 1)), axis=2)
  expert_GKT = order[..., :K].swapaxes(1, 2).astype(np.int32)
  expert_GKT[:, 1, 2] = E  # nobody
  weight_GKT = rng.uniform(0.1, 1, expert_GKT.shape).astype(np.float32)
  return w, draw(7, G, T, D), draw(8, G, T, D), expert_GKT, weight_GKT


def loss_by_merged(w, x_GTD):
  """Every expert's own matrices, W + A B, on every token."""
  *_, out, expert_GKT, weight_GKT = inputs()
  merged = lambda k: w[k] + w[f'{k}_a'] @ w[f'{k}_b']
  hidden = jnp.einsum('gtd,edf->gtef', x_GTD, merged('wi')) + w['bi']
  y = jnp.einsum('gtef,efd->gted', jax.nn.relu(hidden), merged('wo')) + w['bo']
  weight_GTE = jnp.einsum(
    'gkt,gkte->gte', weight_GKT, jax.nn.one_hot(expert_GKT, E)
  )
  return (jnp.einsum('gte,gted->gtd', weight_GTE, y) * out).sum()


@functools.cache
def want():
  w, x, *_ = inputs()
  return jax.device_get(jax.value_and_grad(loss_by_merged, (0, 1))(w, x))


def seated_groups(expert_GN, weight_GN):
  tokens = jnp.tile(jnp.arange(T, dtype=jnp.int32), K)

  def one(expert_N, weight_N):
    r = types.Routing(tokens, expert_N, weight_N, num_experts=E, choices=K)
    return seating.seat(r, ((T, E),))

  return jax.vmap(one)(expert_GN, weight_GN)


def gradients(dispatch, sizes):
  """Loss and gradients of the experts' parameters and of the tokens."""
  w, x, out, expert_GKT, weight_GKT = inputs()
  sizes = mesh_lib.exact(**sizes)
  mesh, axes = mesh_lib.make(sizes, jax.devices()), axes_lib.make(sizes)
  run = registry.build('dispatch', dispatch)

  def device(w, x_GTD, expert_GN, weight_GN):
    over = axes.batch + axes.model
    params = weights.whole(w, KIND.axes, axes, over, jnp.float32)
    x_GTD = compat.device_varying(x_GTD, over)
    seated = seated_groups(expert_GN, weight_GN)
    y_GTD, _ = run(KIND, params, x_GTD, seated, axes, None)
    return collectives.psum(y_GTD, axes.model, name='model_sum')

  batch = rules.spec(('batch',), sizes)
  logical = {k: rules.spec(a, sizes) for k, a in KIND.axes.items()}
  region = jax.shard_map(
    device, mesh=mesh, in_specs=(logical, *[batch] * 3), out_specs=batch
  )
  flat = lambda v: v.reshape(G, K * T)

  def loss(w, x):
    return (region(w, x, flat(expert_GKT), flat(weight_GKT)) * out).sum()

  return jax.device_get(jax.jit(jax.value_and_grad(loss, (0, 1)))(w, x))


def close(got, want, atol=2e-5):
  def one(path, a, b):
    scale = max(np.abs(b).max(), 1.0)
    np.testing.assert_allclose(
      a / scale, b / scale, atol=atol, err_msg=jax.tree_util.keystr(path)
    )

  jax.tree_util.tree_map_with_path(one, got, want)


@pytest.mark.parametrize(
  'sizes',
  [
    pytest.param(MESHES[0], id='experts', marks=pytest.mark.slow),
    pytest.param(MESHES[1], id='model'),
  ],
)
@pytest.mark.parametrize('dispatch', DISPATCHES)
def test_every_dispatch_equals_merged_experts(dispatch, sizes):
  close(gradients(dispatch, sizes), want())


def test_rows_of_nobody_touch_no_shared_part(monkeypatch):
  """Past the last sorted row there may be anything, before and after each
  operation."""
  poisoned = poison.sorted_ops(monkeypatch)
  close(gradients('gather_reduce()', MESHES[1]), want())
  assert poisoned


@pytest.mark.parametrize('matmul', ['blocked', 'loop', 'ragged_dot'])
def test_sorted_rows_past_the_last(matmul):
  """3 + 4 rows of two experts, then NaN: zeros come of them, both ways."""
  x_RA, w_AB, dy_RB = draw(0, 9, 5), draw(1, 5, 6), draw(2, 9, 6)
  real = np.arange(9)[:, None] < 7
  size_e = jnp.array([3, 4], jnp.int32)
  ops = dispatching.sorted_ops(grouped.build(f'{matmul}()'), size_e, 9, ())
  run = lambda x, w, b: ops.dot(x, w) + ops.spread(b)
  y, transpose = jax.vjp(run, np.where(real, x_RA, np.nan), w_AB, w_AB[0])
  dx, dw, db = transpose(np.where(real, dy_RB, np.nan))
  close(y, np.where(real, x_RA @ w_AB + w_AB[0], 0))
  close(dx, np.where(real, dy_RB @ w_AB.T, 0))
  close((dw, db), (x_RA[:7].T @ dy_RB[:7], dy_RB[:7].sum(0)))


@dataclasses.dataclass(frozen=True)
class Plain(base.Experts):
  """x W + b, nothing else."""

  axes = {'w': ('embed', None), 'b': (None,)}

  def init(self, key, E, D):
    return {'w': jnp.eye(D), 'b': jnp.zeros(D)}

  def __call__(self, params, rows, ops):
    return ops.dot(rows, params['w']) + ops.spread(params['b'])


@pytest.mark.parametrize(
  'dispatch', ['dense()', 'gather_reduce()', 'lookup()', 'scatter()']
)
def test_gradients_sum_over_rows_of_all_experts_in_float32(dispatch):
  """256 + 7 x 1, of 8 tokens at two experts; in bfloat16 it may stay 256."""
  axes = axes_lib.make(mesh_lib.exact())
  run = registry.build('dispatch', dispatch)
  dy_TD = np.ones((8, 8)) + 255 * np.eye(8)

  def loss(w):
    r = types.Routing(
      *(jnp.arange(8, dtype=jnp.int32), jnp.arange(8, dtype=jnp.int32) % 2),
      *(jnp.ones(8),),
      num_experts=2,
      choices=1,
    )
    seated = jax.tree.map(lambda v: v[None], seating.seat(r, ((8, 2),)))
    x_GTD = jnp.ones((1, 8, 8), BF16)
    y_GTD, _ = run(Plain(), w, x_GTD, seated, axes, None)
    return (y_GTD[0].astype(jnp.float32) * dy_TD).sum()

  w = {'w': jnp.eye(8, dtype=BF16), 'b': jnp.zeros(8, BF16)}
  for name, g in jax.jit(jax.grad(loss))(w).items():
    np.testing.assert_array_equal(g, np.full(g.shape, 264), name)


SPEC = 'shared_low_rank(rank=2, bias=True)'
MODEL = {
  'moe.experts': SPEC,
  'moe.router': 'top_k(k=2)',
  'moe.capacity_factor': 0.0,
  'moe.eval_capacity_factor': 0.0,
}
# Of tiny.config: D = 16, F = 32.
SHARED, OWN, BIASES = 2 * 16 * 32, 2 * 2 * (16 + 32), 16 + 32


def session(mesh, overrides):
  return plans.make(tiny.config(**MODEL | overrides), mesh)


@pytest.mark.parametrize('share', [1, 2])
def test_counts_by_hand(share):
  """What is shared is met wholly, and multiplied once for each choice."""
  layers = {'moe.layers': 'all', 'moe.share_experts': share}
  made = session('exact()', layers)
  found = plans.describe(tiny.config(**MODEL | layers), 'exact()')
  pools = 2 // share  # layers' experts: their own, or both layers' one pool
  assert found['parts']['experts'] == {
    'total': pools * (SHARED + BIASES + 4 * OWN),
    'active': pools * (SHARED + BIASES) + pools * share * 2 * OWN,
  }
  plain = session('exact()', layers | {'moe.experts': 'mlp()'})
  more = made.forward_flops() - plain.forward_flops()
  assert more == 16 * 2 * 2 * (2 * OWN)  # tokens, layers, 2 FLOPs, K
  layer = plans.layers(made)['decoder']
  assert layer.products == SHARED + OWN
  assert layer.inner == layer.outer == (SHARED + 4 * OWN) // 2


def test_batch_axes_shardings_and_choices_of_what_is_trained():
  """A layer axis is a batch axis of a shared matrix, and it alone."""
  fields = {
    'moe.layers': 'all',
    'mesh': 'exact(data=1, fsdp=2, expert=2, model=2)',
    'train.optimizer': 'adafactor(min_dim=8)',
  }
  made = session('', fields)
  of = lambda tree: tree['decoder']['period']['block_0']['moe']['experts']
  dims, state = of(made.layout.batch_dims()), made.abstract_state
  assert dims == {k: 1 + base.is_stacked(a) for k, a in KIND.axes.items()}
  spec = {k: v.sharding.spec for k, v in of(state.params).items()}
  assert spec['wi'] == P(None, 'fsdp', 'model')
  assert spec['wi_a'] == P(None, 'expert', 'fsdp', None)
  assert spec['bi'] == P(None, 'model')
  (moments,) = (
    s
    for s in jax.tree.leaves(
      state.opt_state, is_leaf=lambda s: hasattr(s, 'v_row')
    )
    if hasattr(s, 'v_row')
  )
  # Two layers, each factored alone; the ranks of 2 are not factored.
  assert of(moments.v_row)['wi'].shape == (2, 16)
  assert of(moments.v_col)['wi'].shape == (2, 32)
  assert of(moments.v)['wi_a'].shape == (2, 4, 16, 2)
  for choice in ('moe', 'non_moe'):
    mask = of(tuning.trained(made.layout.params, choice))
    assert set(mask.values()) == {choice == 'moe'}


def test_identical_experts_share_what_they_share():
  w = base.initialise(KIND, jax.random.key(0), E, D, identical=True)
  assert w['wi'].shape == (D, F) and w['wi_a'].shape == (E, D, 2)
  assert (w['wi_a'] == w['wi_a'][:1]).all()
  apart = base.initialise(KIND, jax.random.key(0), E, D)
  assert (apart['wi_a'] != apart['wi_a'][:1]).any()


@pytest.mark.parametrize('field', ['moe.experts', 'model.ffn'])
def test_models_name_it_too(field):
  with pytest.raises(ValueError, match=r"Wrong: parameter 'w' .*lacks it"):
    session('exact()', {field: f'{__name__}.Wrong()'})


@dataclasses.dataclass(frozen=True)
class Wrong(Plain):
  """One parameter of any shape and axes."""

  shape: tuple | None = (2, 3)
  given: tuple | None = None

  @property
  def axes(self):
    return {} if self.given is None else {'w': self.given}

  def init(self, key, E, D):
    return {} if self.shape is None else {'w': jnp.zeros(self.shape)}


@pytest.mark.parametrize(
  ('shape', 'axes', 'why'),
  [
    ((E, D, F), None, '`axes` lacks it'),
    (None, ('expert', 'embed', 'mlp'), '`init` lacks it'),
    ((D, F), ('expert', 'embed', 'mlp'), '2 dimensions, 3 axes'),
    ((E, D, F), ('expert', 'mlp', 'embed'), "'embed' has size 8, not 12"),
    ((D, E, F), ('embed', 'expert', 'mlp'), "'expert' must be the first"),
    ((E + 1, D, F), ('expert', 'embed', 'mlp'), "'expert' has size 4, not 5"),
    ((E, D, F), (None, 'embed', 'mlp'), 'share is a matrix or a vector'),
    ((D, F), ('embd', 'mlp'), "valid: None, 'embed', 'expert', 'mlp'"),
  ],
)
def test_a_parameter_that_does_not_fit_its_axes_is_named(shape, axes, why):
  kind = Wrong(shape=shape, given=axes)
  with pytest.raises(ValueError, match=f"Wrong: parameter 'w' .*{why}"):
    base.initialise(kind, jax.random.key(0), E, D)
