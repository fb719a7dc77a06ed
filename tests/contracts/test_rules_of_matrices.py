"""Rules that read the router's matrix count it once, on any mesh."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from moe_jax import registry, types
from moe_jax.balancing import base
from moe_jax.layers import moe
from moe_jax.models import factory
from moe_jax.parallel import mesh as mesh_lib
from moe_jax.problems import base as problems
from moe_jax.training import state as state_lib, step as step_lib, tuning
from tests import balances, tiny
from tests.balancing.test_simbal import simbal

G, T, D, E = 4, 6, 5, 4
BOTH = mesh_lib.exact(data=2, expert=4)
GLOBAL = "simbal(scope='global')"


def slopes(f, at, eps=1e-6):
  """By central differences, entry by entry."""
  at = np.asarray(at, np.float64)
  out = np.zeros(at.shape)
  for i in np.ndindex(at.shape):
    step = np.zeros(at.shape)
    step[i] = eps
    out[i] = (f(at + step) - f(at - step)) / (2 * eps)
  return out


@pytest.mark.parametrize(
  'row', balances.rows(reads_matrix=True), ids=lambda row: row.spec
)
def test_equals_reference(row):
  """Values, and the gradient of the matrix; of padding nothing is read."""
  r, choices, mask_GT = balances.uneven()
  R_DE = np.random.default_rng(1).normal(size=(D, r.num_experts))

  @jax.jit
  @jax.value_and_grad
  def run(R_DE, r):
    router = {'kernel': R_DE}
    return balances.evaluate(row.spec, r, mask_GT, balances.B, router)[1]

  loss, gradient = run(jnp.asarray(R_DE, jnp.float32), r)
  want = lambda R_DE: balances.expected(row, choices, mask_GT, balances.B, R_DE)
  np.testing.assert_allclose(loss, want(R_DE), rtol=1e-5)
  np.testing.assert_allclose(gradient, slopes(want, R_DE), rtol=1e-4, atol=1e-5)
  real = mask_GT[..., None]
  other = r.replace(
    logits_TE=jnp.where(real, r.logits_TE, 50.0),
    probs_TE=jnp.where(real, r.probs_TE, 0.9),
  )
  assert run(jnp.asarray(R_DE, jnp.float32), other)[0] == loss


@dataclasses.dataclass(frozen=True)
class Long(base.Balance):
  """Mean probabilities times the experts' squared lengths: sums and matrix."""

  weight: float = 3.0
  scope: str = 'group'
  reads_matrix = True

  def stats(self, sums):
    return {'prob': sums.tokens(sums.routing.probs_TE), 'n': sums.count()}

  def loss(self, stats, state, router):
    mean_SE = stats['prob'] / jnp.maximum(stats['n'], 1)[:, None]
    return (mean_SE * (router['kernel'] ** 2).sum(0)).sum(-1)


def long(x_ND, R_DE):
  z = x_ND @ R_DE
  p = np.exp(z - z.max(-1, keepdims=True))
  mean_E = (p / p.sum(-1, keepdims=True)).mean(0)
  return sum(mean_E[e] * (R_DE[:, e] ** 2).sum() for e in range(E))


def test_a_layer_counts_the_matrix_once():
  """Not once a device, nor a group; the sums' part of the gradient, too."""
  layer = moe.MoE(
    num_experts=E,
    router='top_k()',
    experts='mlp(d_ff=4)',
    dispatch='gather_reduce()',
    balance=(registry.build('balancing', GLOBAL), Long()),
    group_size=T,
    mesh=mesh_lib.make(BOTH, jax.devices()),
  )
  x = jax.random.normal(jax.random.key(0), (8, T, D))
  # Unequal groups, an empty one: a mean over devices is not that over tokens.
  mask = jnp.arange(T) < jnp.arange(8)[:, None]
  shapes = jax.eval_shape(lambda: layer.init(jax.random.key(1), D))
  params = jax.tree.map(lambda v: jnp.ones(v.shape), shapes)
  R_DE = jax.random.normal(jax.random.key(2), (D, E))

  @jax.jit
  @jax.value_and_grad
  def run(R_DE):
    own = params | {'router': {'kernel': R_DE}}
    return layer(own, {}, x, types.Tokens(mask=mask), train=True)[2].loss

  loss, got = run(R_DE)
  x, mask = np.asarray(x, np.float64), np.asarray(mask)
  tokens = zip(x[1:], mask[1:])
  parts = [(m.sum() / mask.sum(), v[m]) for v, m in tokens]
  want = lambda R: 0.1 * simbal(R) + 3 * sum(w * long(v, R) for w, v in parts)
  np.testing.assert_allclose(loss, want(np.float64(R_DE)), rtol=1e-5)
  np.testing.assert_allclose(got, slopes(want, R_DE), rtol=1e-4, atol=1e-4)


slow = functools.partial(pytest.param, marks=pytest.mark.slow)


def matrices(tree):
  """The routers' of all layers, [D, E]; scanned ones have a leading axis."""
  for path, v in jax.tree_util.tree_leaves_with_path(tree):
    if "['router']['kernel']" in jax.tree_util.keystr(path):
      yield from np.reshape(v, (-1, *v.shape[-2:]))


@pytest.mark.parametrize(
  ('parts', 'trainable', 'fields'),
  [
    slow(2, 'all', {'moe.balance': (GLOBAL, 'loss_free_bias()')}),
    (2, 'all', {'moe.balance': ('simbal()',), 'model.scan': False}),
    slow(1, 'moe', {'moe.balance': (GLOBAL,), 'moe.share_experts': 2}),
    slow(2, 'all', {'moe.balance': (GLOBAL,), 'model.kind': 'encoder_decoder'}),
  ],
  ids=['scanned', 'group', 'shared', 'encoder_decoder'],
)
def test_a_step_counts_the_matrix_once(parts, trainable, fields):
  """Where no target counts the matrices alone have a gradient."""
  config = tiny.config(**{'model.d_model': 8, 'moe.layers': 'all'} | fields)
  model = factory.make(config, 30, mesh_lib.make(BOTH, jax.devices()))
  batch = factory.dummy_batch(config, 16, 16)
  batch |= {'targets': batch['inputs'], 'loss': 0 * batch['inputs']}
  lay = state_lib.layout(model, batch)
  rng = np.random.default_rng(1)
  draw = lambda v: jnp.asarray(rng.normal(size=v.shape), v.dtype)
  params, balance = jax.tree.map(draw, (lay.params, lay.balance))
  mask, tx = tuning.trained(params, trainable), optax.sgd(1.0)
  opt_state = tx.init(tuning.select(params, mask))
  state = state_lib.TrainState(jnp.int32(0), params, opt_state, balance)
  problem = problems.of(config)
  step = step_lib.make_train_step(
    model, tx, problem=problem, seed=0, accumulate=parts, trained=mask
  )
  new, metrics = jax.jit(step)(state, batch)
  grad = jax.tree.map(jnp.subtract, params, new.params)
  values = []
  for R, got in zip(matrices(params), matrices(grad)):
    values.append(simbal(R))
    want = slopes(lambda R: 0.1 * simbal(R), R)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)
  np.testing.assert_allclose(
    metrics['total_loss'], 0.1 * sum(values), rtol=1e-5
  )
  found = sorted(metrics['balance']['simbal'])
  np.testing.assert_allclose(found, sorted(values), rtol=1e-5)
  square = sum((g**2).sum() for g in matrices(grad))
  np.testing.assert_allclose(metrics['grad_norm'] ** 2, square, rtol=1e-4)


@pytest.mark.parametrize(
  'router', ['hash()', 'cosine()', 'product_keys(k=2)', 'soft()']
)
def test_a_router_without_a_matrix_is_refused(router):
  """Where the layer is built: no array is needed."""
  name = type(registry.build('routers', router)).__name__
  said = f"simbal reads the router's matrix, .* 'kernel' .*{name} has none"
  with pytest.raises(ValueError, match=said):
    config = tiny.config(**{'moe.router': router, 'moe.balance': ('simbal()',)})
    factory.make(config, 30)


@pytest.mark.parametrize('rule', ['loss_free_bias()', 'bip()'])
def test_a_bias_that_product_keys_would_ignore_is_refused(rule):
  fields = {'moe.router': 'product_keys(k=2)', 'moe.balance': (rule,)}
  said = f'{rule[:-2]} biases the choice of experts; the router ProductKeys'
  with pytest.raises(ValueError, match=said):
    factory.make(tiny.config(**fields), 30)


def test_routers_that_say_so_have_a_matrix():
  """Their 'kernel' has a column for each expert, whatever their number."""
  options = {'scheduled_top_k': {'until': 1}, 'soft': {'slots': 2}}
  for name in registry.names('routers'):
    router = registry.build('routers', name, **options.get(name, {}))
    init = functools.partial(router.init, D=7)
    made = [
      jax.eval_shape(functools.partial(init, E=E), jax.random.key(0))
      for E in (16, 25)
    ]
    columns = [m['kernel'].shape[-1] for m in made if 'kernel' in m]
    assert router.has_matrix == (columns == [16, 25]), name
