"""One group of tokens for a router, and everything that is known of them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from moe_jax import registry, types

E, D, T = 4, 8, 12


def decided(params, scale):
  """A router's parameters, scaled so that choices are clear of rounding.

  Those that start at zero are drawn.
  """
  rng = np.random.default_rng(0)
  draw = lambda v: 0.2 * rng.normal(size=v.shape).astype(v.dtype)
  one = lambda v: scale * (v if np.any(v) else draw(v))
  return jax.tree.map(lambda v: one(np.asarray(v)), params)


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


def seen(ctx, row):
  """What an oracle gets of a context; see tests/oracles.py."""
  double = lambda v: np.asarray(v, np.float64)
  arrays = {k: np.asarray(getattr(ctx, k)) for k in ('ids_T', 'forced_TK')}
  known = {'mask_T': np.asarray(ctx.mask_T), 'carry': double(ctx.carry)}
  features = jax.tree.map(double, ctx.features)
  return {**features, **known, **arrays, 'local': row.local}
