"""The layer: every dispatch on every mesh against loops in NumPy."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct

from moe_jax import registry, types
from moe_jax.layers import linen, moe
from moe_jax.parallel import mesh as mesh_lib
from moe_jax.routers import base as routers
from tests import methods, oracles, routing
from tests.balancing import test_switch_loss, test_z_loss
from tests.experts import test_mlp

B, L, D, E, F, T = 8, 8, 8, 4, 12, 8
MESHES = (
  dict(),
  dict(data=2, expert=4),
  dict(expert=2, fsdp=2, model=2),
  dict(data=8),
)
RULES = ('z_loss()', 'loss_free_bias()')
BY_EXPERT = {r.spec for r in methods.rows('routers') if r.by_expert}


def make_mesh(sizes):
  sizes = mesh_lib.exact(**sizes)
  n = int(np.prod(list(sizes.values())))
  return mesh_lib.make(sizes, jax.devices()[:n])


def layer(dispatch='scatter()', router='top_k()', sizes=None, **fields):
  experts = fields.pop('experts', "mlp(activation='gelu', bias=True)")
  fields = {'capacity_factor': 1.0, 'group_size': T} | fields
  first = 'all' if router in BY_EXPERT else 'first'
  rules = (f'switch_loss(count={first!r})', *RULES)
  return linen.MoE(
    moe.MoE(
      num_experts=E,
      router=registry.build('routers', router),
      experts=registry.build('experts', experts, d_ff=F),
      dispatch=registry.build('dispatch', dispatch),
      balance=tuple(registry.build('balancing', s) for s in rules),
      mesh=make_mesh(sizes or {}),
      **fields,
    )
  )


@functools.cache
def variables(router='top_k()', **fields):
  """Parameters with a decided router and non-zero biases, on the host."""
  m = layer(router=router, **fields)
  v = jax.jit(lambda k: nn.unbox(m.init(k, jnp.zeros((B, L, D)), train=True)))(
    jax.random.key(0)
  )
  if 'router' in v['params']:
    v['params']['router'] = routing.decided(v['params']['router'], 5)
  for name in ('bi', 'bo'):
    if name in v['params']['experts']:
      v['params']['experts'][name] += 0.1
  v['balance']['state']['loss_free_bias'] += jnp.linspace(-0.1, 0.1, E)
  return jax.device_get(v)


X = np.asarray(jax.random.normal(jax.random.key(7), (B, L, D)))
MASK = np.arange(L) < np.array([8, 8, 5, 8, 8, 0, 8, 7])[:, None]
OUT = np.asarray(jax.random.normal(jax.random.key(8), (B, L, D)))


def run(m, v, x=X, mask=MASK, train=True):
  """Loss, output, aux and gradients, on the host."""

  def loss(params, x):
    y, _, aux = m.apply(
      {**v, 'params': params},
      x,
      types.Tokens(jnp.asarray(mask)),
      train=train,
    )
    return (y * OUT).sum() + 10 * aux.loss, (y, aux)

  f = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))
  return jax.device_get(f(v['params'], x))


def close(got, want, tolerance=2e-5):
  """Every leaf, relative to the largest entry of the wanted one."""

  def one(path, a, b):
    scale = max(np.abs(b).max(), 1.0)
    error = np.abs(np.asarray(a, np.float64) - b).max() / scale
    assert error < tolerance, (jax.tree_util.keystr(path), error)

  jax.tree_util.tree_map_with_path(one, got, want)


@functools.cache
def want(router, capacity_factor, kind):
  """What dense computes on one device: the oracle of values and gradients."""
  fields = {} if kind is None else {'experts': kind}
  m = layer('dense()', router, capacity_factor=capacity_factor, **fields)
  return run(m, variables(router, **fields))


CLEAN = [r for r in methods.rows('routers') if not r.context and not r.noisy]
MORE = ('switch()', 'top_k()', "top_k(k=2, renormalize='kept')")
# Every second of those that costly contracts take: the grid has them, too.
OFTEN = [row for row in CLEAN if row.always][::2]
LOOPS = [
  pytest.param(
    *(row, cf),
    id=f'{row.spec}-{cf}',
    marks=[]
    if (row in OFTEN if cf == 1.0 else row.spec in MORE)
    else pytest.mark.slow,
  )
  for row in CLEAN
  for cf in (None, 1.0, 0.5)
]


@pytest.mark.parametrize(('row', 'capacity_factor'), LOOPS)
def test_two_dispatches_equal_loops(row, capacity_factor):
  """Outputs, kept set, losses and loads against the NumPy reference."""
  router = row.spec
  v = variables(router)
  layers = [
    layer(d, router, capacity_factor=capacity_factor)
    for d in ('dense()', 'scatter()')
  ]

  @jax.jit
  def forward(v):
    tokens = types.Tokens(jnp.asarray(MASK))
    apply = lambda m: m.apply(v, X, tokens, train=True)[::2]
    return [apply(m) for m in layers]

  (y, aux), (scattered, scattered_aux) = jax.device_get(forward(v))
  np.testing.assert_allclose(scattered, y, atol=2e-5)
  np.testing.assert_array_equal(scattered_aux.cause, aux.cause)
  p = v['params']
  K = registry.build('routers', router).experts_per_token(E)
  C = (
    T if capacity_factor is None else int(np.ceil(capacity_factor * T * K / E))
  )
  expert = functools.partial(
    test_mlp.mlp,
    {k: np.asarray(w, np.float64) for k, w in p['experts'].items()},
    activation='gelu',
    bias=True,
  )
  masks = MASK.reshape(-1, T)
  y_ref, kept, choices = oracles.moe(
    X.reshape(-1, T, D),
    p.get('router', {}),
    v['balance']['state']['loss_free_bias'],
    row.expected,
    lambda e, x: expert(e, x),
    MASK.reshape(-1, T),
    C,
  )
  np.testing.assert_allclose(y.reshape(-1, T, D), y_ref, atol=2e-5)
  edges = choices[0].expert.shape[1]
  real = edges * int(MASK.sum())
  nobody = sum((c.expert[m] == E).sum() for c, m in zip(choices, masks))
  if choices[0].first_fit:  # alternatives that were not needed
    nobody = real - int(MASK.sum())
  padding = edges * (~MASK).sum()
  dropped = real - kept.sum() - nobody
  if row.by_expert:  # experts that found too few real tokens took padding
    nobody, padding = 0, aux.cause.sum() - kept.sum() - dropped
  assert list(aux.cause) == [kept.sum(), dropped, 0, padding, nobody, 0]
  count = 'all' if row.by_expert else 'first'
  by_group = [
    test_switch_loss.switch_loss([c], [m], count=count) if m.any() else 0.0
    for c, m in zip(choices, masks)
  ]
  tokens = masks.sum(-1)
  np.testing.assert_allclose(
    aux.losses['switch_loss'], np.average(by_group, weights=tokens), rtol=1e-5
  )
  np.testing.assert_allclose(
    aux.losses['z_loss'],
    test_z_loss.z_loss(choices, masks),
    rtol=1e-5,
    atol=1e-12,  # 0 where logits are logs of probabilities, but for rounding
  )
  load = np.zeros(E + 1, int)
  for c, m in zip(choices, masks):
    wanted = c.expert[m][:, :1] if c.first_fit else c.expert[m]
    np.add.at(load, wanted.reshape(-1), 1)
  load = load[:E]
  np.testing.assert_array_equal(aux.load_E, load)
  np.testing.assert_array_equal(aux.stats['loss_free_bias']['load'], load)


EXACT = "ragged_all_to_all(buffer_factor=1.0, overflow='gather_reduce')"
# All pairs of dispatch and mesh, and each router, expert kind and capacity on
# some of them; the full product would compile for an hour.
CELLS = [
  ('scatter()', MESHES[0], 'top_k()', 1.0, None),
  ('scatter()', MESHES[1], 'top_k()', 0.5, None),
  ('scatter()', MESHES[2], 'top_k()', 1.0, None),
  ('scatter()', MESHES[3], 'top_k()', None, None),
  ('einsum()', MESHES[0], "top_k(k=2, renormalize='kept')", 0.5, None),
  ('einsum()', MESHES[1], 'top_k()', 1.0, None),
  ('einsum()', MESHES[2], 'top_k()', None, None),
  ('einsum()', MESHES[3], 'switch()', 1.0, None),
  ('dense()', MESHES[1], 'switch()', 0.5, None),
  ('dense()', MESHES[2], 'top_k()', 1.0, 'glu()'),
  ('dense()', MESHES[3], 'top_k()', 0.5, None),
  ('scatter()', MESHES[1], 'switch()', 1.0, 'glu()'),
  ('scatter()', MESHES[2], "top_k(k=2, renormalize='kept')", 0.5, None),
  ('scatter()', MESHES[1], 'top_k(k=3, renormalize=False)', 1.0, None),
  ('scatter()', dict(model=8), 'top_k()', 1.0, 'mlp(d_ff=16, bias=True)'),
  ('scatter(pipeline_degree=3)', MESHES[1], 'top_k()', 1.0, None),
  ('scatter(pipeline_degree=2, host=2)', MESHES[1], 'switch()', 0.5, None),
  ('gather_reduce()', MESHES[0], 'switch()', 1.0, None),
  ('gather_reduce()', MESHES[1], "top_k(k=2, renormalize='kept')", 0.5, None),
  ('gather_reduce()', MESHES[2], 'top_k()', 1.0, 'glu()'),
  ("ragged_all_to_all(clip='priority')", MESHES[0], 'top_k()', 0.5, None),
  (EXACT, MESHES[1], 'top_k()', None, None),
  (EXACT, MESHES[2], "top_k(k=2, renormalize='kept')", 0.5, None),
  ('ragged_all_to_all()', MESHES[3], 'top_k()', None, None),
]


# Every third, of most dispatches; all of them, and the grid, in CI.
@pytest.mark.parametrize(
  ('dispatch', 'sizes', 'router', 'cf', 'kind'),
  [
    pytest.param(*c, marks=pytest.mark.slow if i % 3 else ())
    for i, c in enumerate(CELLS)
  ],
)
def test_equals_dense_on_any_mesh(dispatch, sizes, router, cf, kind):
  fields = {} if kind is None else {'experts': kind}
  m = layer(dispatch, router, sizes, capacity_factor=cf, **fields)
  got = run(m, variables(router, **fields))
  expected = want(router, cf, kind)
  close(got, expected)
  got_aux, want_aux = got[0][1][1], expected[0][1][1]
  for name in ('load_E', 'cause'):  # integers exactly
    np.testing.assert_array_equal(
      getattr(got_aux, name), getattr(want_aux, name)
    )


@pytest.mark.slow
@pytest.mark.parametrize('router', [r.spec for r in CLEAN])
def test_every_router_on_a_mesh_equals_dense(router):
  m = layer('scatter()', router, MESHES[1])
  close(run(m, variables(router)), want(router, 1.0, None))


def test_gradients_do_not_need_the_type_checker(monkeypatch):
  """The same gradients with check_vma off: transposes without the types."""
  m = layer('scatter()', sizes=dict(expert=2, fsdp=2, model=2))
  checked = run(m, variables())
  shard_map = jax.shard_map
  unchecked = functools.partial(shard_map, check_vma=False)
  monkeypatch.setattr(jax, 'shard_map', unchecked)
  close(run(m, variables()), checked)


ORDERS = [('by_expert', 'output'), ('reversed', 'input'), ('stored', 'input')]


@struct.dataclass
class Reordered(routers.Router):
  """Top-2 with its edges in another order, seated as before."""

  order: str = struct.field(pytree_node=False)
  weight_on: str = struct.field(pytree_node=False)

  def init(self, key, E, D):
    return routers.init_linear(key, E, D)

  def experts_per_token(self, E):
    return 2.0

  def __call__(self, params, x_TD, ctx):
    r = registry.build('routers', 'top_k()')(params, x_TD, ctx)
    place = jnp.arange(r.expert_N.shape[0], dtype=jnp.int32)
    if self.order == 'stored':
      return r.replace(weight_on=self.weight_on)
    by_expert = self.order == 'by_expert'
    at = jnp.argsort(r.expert_N) if by_expert else place[::-1]
    return r.replace(
      token_N=r.token_N[at],
      expert_N=r.expert_N[at],
      weight_N=r.weight_N[at],
      priority_N=place[at],
      choices=None,
      weight_on=self.weight_on,
    )


@functools.cache
def run_reordered(dispatch, order, weight_on):
  m = layer(dispatch, sizes=dict(data=2, expert=4), experts='mlp()')
  # First choices are not known without the hint.
  rule = registry.build('balancing', "switch_loss(count='all')")
  router = Reordered(order, weight_on)
  balance = (rule, *m.core.balance[1:])
  m = linen.MoE(dataclasses.replace(m.core, router=router, balance=balance))
  return run(m, variables(experts='mlp()'))


@pytest.mark.parametrize('dispatch', [r.spec for r in methods.rows('dispatch')])
@pytest.mark.parametrize(('order', 'weight_on'), ORDERS)
def test_edges_in_any_order_and_weights_on_the_input(
  dispatch, order, weight_on
):
  """No `choices` hint (expert choice stores so), and Llama 4's side.

  A ReLU expert without biases is homogeneous: the side does not matter.
  """
  stored = run_reordered('dense()', 'stored', 'output')
  close(run_reordered(dispatch, order, weight_on), stored)
