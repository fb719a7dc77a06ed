"""Whether a token may depend on later ones of its group."""

import jax
import jax.numpy as jnp

from moe_jax import types
from moe_jax.layers import moe


def leak(layer: moe.MoE, D: int) -> str:
  """Why a token may depend on later ones; '' where none does.

  Args:
    layer: in groups of `group_size` tokens.
    D: model width.
  """
  T, router = layer.group_size, layer.router
  if not router.causal:
    return f'the router {type(router).__name__} sees the whole group'
  factors = (layer.capacity_factor, layer.eval_capacity_factor)
  if all(layer.rows(T, f) >= router.most_edges(T) for f in factors):
    return ''
  if router.first_fit:
    return 'all first choices are seated before any second try'
  choices = router.experts_per_token(layer.num_routed)
  if layer.seating.causal(choices):
    # That is a mean: some tokens may have more.
    choices = max(edges(layer, T, D, train) for train in (True, False)) / T
  if layer.seating.causal(choices):
    return ''
  return (
    f'where capacity binds, {type(layer.seating).__name__} seating of '
    f'{choices:g} choices gives seats of earlier tokens to later ones'
  )


def edges(layer: moe.MoE, T: int, D: int, train: bool) -> int:
  """N, the edges that the layer's router stores for T tokens of width D."""
  E, router = layer.num_routed, layer.router

  def route():
    key, zeros_T = jax.random.key(0), jnp.zeros(T, jnp.int32)
    features = {}
    if router.reads_experts:
      w = layer.init(key, D)['experts']
      features = layer.experts.routing_features(w, lambda v: v)
    ctx = types.Context(
      key=key,
      mask_T=jnp.ones(T, bool),
      selection_bias_E=jnp.zeros(E),
      carry=router.init_carry(T, E),
      ids_T=zeros_T,
      positions_T=zeros_T,
      segments_T=zeros_T + 1,
      forced_TK=zeros_T[:, None],
      step=zeros_T[0],
      layer=zeros_T[0],
      layer_key=key,
      features=features,
      num_local=layer.num_local,
      train=train,
    )
    x_TD = jnp.zeros((T, D), layer.dtype)
    return router(router.init(key, E, D), x_TD, ctx).token_N

  return jax.eval_shape(route).size
