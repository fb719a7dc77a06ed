"""One group of tokens for a router, and everything that is known of them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from moe_jax import registry, types
from moe_jax.seating import seat

E, D, T = 4, 8, 12


def decided(params, scale):
  """A router's parameters, scaled so that choices are clear of rounding.

  Those that start at zero are drawn.
  """
  rng = np.random.default_rng(0)
  draw = lambda v: 0.2 * rng.normal(size=v.shape).astype(v.dtype)
  one = lambda v: scale * (v if np.any(v) else draw(v))
  return jax.tree.map(lambda v: one(np.asarray(v)), params)


@functools.cache
def group(seed=0, dtype=jnp.float32, masked=0, row=None):
  """Tokens of a group, and a context in which everything is known."""
  x_TD = jax.random.normal(jax.random.key(seed), (T, D), dtype)
  mask_T = jnp.arange(T) < T - masked
  first_T = jnp.arange(T) % (E + 1)  # E is nobody
  draw = lambda i, *shape: jax.random.normal(jax.random.key(20 + i), shape)
  ctx = types.Context(
    key=jax.random.key(1),
    mask_T=mask_T,
    selection_bias_E=jnp.zeros(E),
    carry=draw(0, T, E),
    ids_T=7 * jnp.arange(T) % 5,
    positions_T=jnp.arange(T),
    segments_T=jnp.ones(T, jnp.int32),
    forced_TK=jnp.stack([first_T, (first_T + 2) % E], 1),
    step=jnp.int32(3),
    layer=jnp.int32(1),
    layer_key=jax.random.key(2),
    features={
      'down': draw(1, E, D, 3),
      'mean': 0.1 * draw(2, E, D),
      'variance': draw(3, E, D) ** 2,
    },
    num_local=row.local if row else 0,
  )
  return x_TD, ctx


def permuted(ctx, order):
  """The context of the tokens in another order."""
  of_token = ('mask_T', 'carry', 'ids_T', 'positions_T', 'segments_T')
  of_token += ('forced_TK',)
  return ctx.replace(**{k: getattr(ctx, k)[order] for k in of_token})


@functools.cache
def build(row):
  """A router with parameters, as a jitted function; trains if the row does."""
  router = registry.build('routers', row.spec)
  params = decided(router.init(jax.random.key(2), E, D), 8)
  route = lambda p, x_TD, ctx: router(p, x_TD, ctx.replace(train=row.train))
  return router, params, jax.jit(route)


def table(r):
  """{(token, expert): weight} of all edges that go to somebody."""
  edges = zip(*map(np.asarray, (r.token_N, r.expert_N, r.weight_N)))
  return {(int(t), int(e)): float(w) for t, e, w in edges if e < E}


SEEN = ('ids_T', 'forced_TK', 'step', 'layer')


def seen(ctx, row):
  """What an oracle gets of a context; see tests/oracles.py."""
  double = lambda v: np.asarray(v, np.float64)
  arrays = {k: np.asarray(getattr(ctx, k)) for k in SEEN}
  known = {'mask_T': np.asarray(ctx.mask_T), 'carry': double(ctx.carry)}
  features = jax.tree.map(double, ctx.features)
  return {**features, **known, **arrays, 'local': row.local}


def route(spec, x_TD, params=None, E=8, **known):
  """A router's routing of tokens; `known` is what else the context has.

  Its parameters are drawn where none are given.
  """
  router = registry.build('routers', spec)
  router.check(E)
  x_TD = jnp.asarray(x_TD)
  if params is None:
    params = router.init(jax.random.key(0), E, x_TD.shape[1])
  given = {
    'key': jax.random.key(2),
    'layer_key': jax.random.key(3),
    'mask_T': jnp.ones(len(x_TD), bool),
    'selection_bias_E': jnp.zeros(E),
  }
  known |= {k: jnp.int32(known[k]) for k in ('step', 'layer') if k in known}
  ctx = types.Context(**given | known)
  return jax.jit(router)(params, x_TD, ctx)


def by_logits(spec, logits_TE, **known):
  """The same of one-hot tokens, which the matrix maps to these logits."""
  T, E = np.shape(logits_TE)
  kernel = jnp.asarray(logits_TE, jnp.float32)
  return route(spec, np.eye(T), {'kernel': kernel}, E, **known)


def many(spec, logits_E, n=4000, train=True):
  """The same of n tokens of these logits: experts, weights, routing."""
  kernel = jnp.asarray(logits_E, jnp.float32)[None]
  x, E = np.ones((n, 1)), len(logits_E)
  r = route(spec, x, {'kernel': kernel}, E, key=jax.random.key(5), train=train)
  return choices(r), weights(r), r


def choices(r):
  """[T, K] of a routing with `choices`."""
  return np.asarray(r.expert_N).reshape(r.choices, -1).T


def weights(r):
  return np.asarray(r.weight_N).reshape(r.choices, -1).T


def slopes(spec, logits_TE, bias_E=None, local=0, rows=0):
  """Weights [T, K], the routing, and the weights' derivatives by the logits.

  With `rows` of an expert after drops.
  """
  logits_TE = jnp.asarray(logits_TE, jnp.float32)
  router, n = registry.build('routers', spec), logits_TE.shape[1]
  ctx = types.Context(
    key=None,
    mask_T=jnp.ones(len(logits_TE), bool),
    selection_bias_E=jnp.zeros(n) if bias_E is None else jnp.asarray(bias_E),
    num_local=local,
  )

  def of(logits_TE):
    r = router({'kernel': jnp.eye(n)}, logits_TE, ctx)
    if rows:
      r = seat.seat(r, ((rows, n),)).routing
    return r.weight_N.reshape(r.choices, -1).T, r

  @jax.jit
  def run(logits_TE):
    jacobian = jax.jacrev(of, has_aux=True)(logits_TE)
    return *of(logits_TE), jacobian[0]

  return jax.device_get(run(logits_TE))
