"""What an MoE layer's conventions make of the same logits.

Two papers that print 'capacity factor 1.25' or 'balance loss 1.02' may mean
different things. `measure` runs the routing half of a layer (router, seating,
balancing rules) on logits that are given, without tokens and experts.
`BALANCE_LOSSES` says which rule here, times what, is another codebase's loss.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from moe_jax import registry, types
from moe_jax.balancing import base as balancing
from moe_jax.layers import moe as moe_layer
from moe_jax.seating import seat as seating


def measure(
  layer: moe_layer.MoE, logits_TE: np.ndarray, mask_T: np.ndarray
) -> dict[str, Any]:
  """The routing of one group, at the training capacity and without noise.

  Args:
    layer: of E experts, with a router of one [D, E] matrix.
    logits_TE: f32, what the router is made to compute.
    mask_T: bool, False on padding.

  Returns:
    'capacity': rows of an expert; 'kept', 'dropped': assignments of real
    tokens; 'weight_TK': combine weights, 0 where dropped; 'losses': unweighted,
    by rule; 'loss': their weighted sum.
  """
  T, E = logits_TE.shape
  mask_T = jnp.asarray(mask_T)
  routed_T = jnp.ones(T, bool) if layer.route_padding else mask_T
  ctx = types.Context(
    key=None, mask_T=routed_T, selection_bias_E=jnp.zeros(E, jnp.float32)
  )
  # With the identity for a matrix, tokens are logits.
  params = {'kernel': jnp.eye(E, dtype=jnp.float32)}
  r = layer.router(params, jnp.asarray(logits_TE, jnp.float32), ctx)
  C = layer.rows(T, layer.capacity_factor)
  seated = seating.seat(layer.seating(r), ((C, E),), routed_T)
  one_group = jax.tree.map(lambda v: v[None], r)
  loss, losses, _ = balancing.evaluate(
    layer.balance, one_group, routed_T[None], 1, (), {}
  )
  kept_N = seated.kept_N & mask_T[r.token_N]
  dropped_N = (seated.cause_N == types.CAPACITY) & mask_T[r.token_N]
  weight_N = jnp.where(kept_N, seated.routing.weight_N, 0.0)
  return {
    'capacity': C,
    'kept': int(kept_N.sum()),
    'dropped': int(dropped_N.sum()),
    'weight_TK': np.asarray(weight_N.reshape(r.choices, T).T),
    'losses': {k: float(v) for k, v in losses.items()},
    'loss': float(loss),
  }


@dataclasses.dataclass(frozen=True)
class LossConvention:
  """A published balancing loss in terms of a rule here.

  Attributes:
    rule: call string of the rule with the same formula.
    factor: (E, K, Z) -> its value over the rule's; Z of the E experts are
      zero-computation ones.
  """

  rule: str
  factor: Callable[[int, int, int], float]


_ALL = "switch_loss(count='all')"
_BY_SEQUENCE = "switch_loss(count='all', scope='sequence')"
_ONE = lambda E, K, Z: 1.0
# Losses of one layer. Means over layers and their sums are another difference
# (`train.balance_over_layers`); 'hugging_face' first pools f and P over all
# layers, which equals this for one layer alone. 'st_moe_pytorch' counts first
# choices that were kept, which equals this where none is dropped.
BALANCE_LOSSES: dict[str, LossConvention] = {
  'switch': LossConvention('switch_loss()', _ONE),
  'gshard': LossConvention('switch_loss()', lambda E, K, Z: 1 / E**2),
  't5x': LossConvention("switch_loss(count='union')", _ONE),
  'st_moe_pytorch': LossConvention('switch_loss()', _ONE),
  'hugging_face': LossConvention(
    "switch_loss(count='all', scope='global')", lambda E, K, Z: float(K)
  ),
  'megablocks': LossConvention(_ALL, _ONE),
  'megatron': LossConvention(_ALL, _ONE),
  'olmo_core': LossConvention(_ALL, _ONE),
  'deepseek_moe': LossConvention(_BY_SEQUENCE, _ONE),
  'deepseek_v3': LossConvention('sequence_loss()', _ONE),
  # Without the number of experts in front, shares that sum to K, tau of 0.75.
  'moe_plus_plus': LossConvention(
    'heterogeneous_loss()', lambda E, K, Z: K / (E - Z + Z / 0.75)
  ),
  'adamoe': LossConvention('null_loss()', lambda E, K, Z: float(K)),
}


def weight_here(source: str, weight: float, E: int, K: int, Z: int = 0):
  """The weight of our rule that does what a codebase's weight does there.

  Args:
    source: one of BALANCE_LOSSES.
    weight: the coefficient in that codebase or paper.
    E: experts, of which `Z` are zero-computation ones.
    K: choices of a token.
    Z: see E.

  Returns:
    The call string of the rule, and its weight.

  Raises:
    ValueError: an unknown source.
  """
  if source not in BALANCE_LOSSES:
    raise ValueError(
      f'no balancing loss of {source!r}; valid: '
      f'{", ".join(sorted(BALANCE_LOSSES))}'
    )
  convention = BALANCE_LOSSES[source]
  return convention.rule, weight * convention.factor(E, K, Z)


def published_losses(
  layer: moe_layer.MoE, logits_TE: np.ndarray, mask_T: np.ndarray
) -> list[tuple[str, str, float, float]]:
  """Every balancing loss of the same logits: source, rule, factor, value.

  Before weights; arguments as of `measure`, without zero-computation experts.
  """
  E, found = logits_TE.shape[1], []
  K = int(layer.router.experts_per_token(E))
  for source in BALANCE_LOSSES:
    spec, factor = weight_here(source, 1.0, E, K)
    rule = registry.build('balancing', spec)
    m = measure(layer.clone(balance=(rule,)), logits_TE, mask_T)
    value = factor * m['losses'][balancing.name(rule)]
    found.append((source, spec, factor, value))
  return found
