"""Seating orders: who is seated first when an expert is full, by call string.

An order sets the priority of a routing's edges and drops nobody itself.

  | order             | first come                                | causal     |
  | rank_major        | all first choices of the group, then all  | for one    |
  |                   |   second choices, ...; tokens by position | choice     |
  | token_major       | all choices of a token, then the next     | yes        |
  | batch_prioritized | as rank_major, the surest tokens first    | no         |
  | highest_weight    | at each expert the largest weights        | no         |
  | random_tokens     | as rank_major, tokens by lot in training  | no         |

'Causal' is whether a token's seats can depend on later tokens of its group
where an expert overflows. With two choices and rank_major they do: all first
choices, later tokens' included, come before any second choice. Mesh-TensorFlow,
flaxformer, V-MoE and ST-MoE seat so in decoders too, and no paper mentions it.
"""

import dataclasses
from typing import Protocol

import jax
import jax.numpy as jnp

from moe_jax import registry, types
from moe_jax.errors import UserError


class Order(Protocol):
  """Gives a routing its `priority_N`.

  Attributes:
    random: whether it draws, with the group's key, in training.
  """

  random: bool

  def __call__(
    self, routing: types.Routing, key: jax.Array | None = None
  ) -> types.Routing:
    """`key` is the group's in training, None in evaluation."""

  def causal(self, choices: int) -> bool:
    """Whether seats depend on the past alone, with this many choices."""


@dataclasses.dataclass(frozen=True)
class RankMajor:
  """The order of storage, or the router's own priority where it has one.

  ST-MoE (Zoph et al. 2022, arXiv:2202.08906), appendix D: 'left to right'.
  """

  random = False

  def __call__(self, routing, key=None):
    return routing

  def causal(self, choices):
    return choices <= 1


@dataclasses.dataclass(frozen=True)
class TokenMajor:
  """By token, a token's choices in storage order. Not what papers did."""

  random = False

  def __call__(self, routing, key=None):
    return routing.replace(priority_N=routing.token_N)

  def causal(self, choices):
    return True


@dataclasses.dataclass(frozen=True)
class BatchPrioritized:
  """Batch-prioritised routing: tokens by their largest probability.

  Riquelme et al., "Scaling Vision with Sparse Mixture of Experts", 2021,
  arXiv:2106.05974, section 4.1; ST-MoE, appendix D. A token that is dropped
  learns of later ones: for encoders.

  Attributes:
    score: 'max' of a token's chosen probabilities (V-MoE's, flaxformer's and
      NLLB's code) or their 'sum'.
  """

  score: str = 'max'
  random = False

  def __post_init__(self):
    if self.score not in ('max', 'sum'):
      raise UserError(
        f'batch_prioritized: score={self.score!r}; valid: max, sum'
      )

  def __call__(self, routing, key=None):
    K = _choices(routing, 'batch_prioritized')
    p_KT = _affinity(routing).reshape(K, -1)
    score_T = p_KT.max(0) if self.score == 'max' else p_KT.sum(0)
    return routing.replace(priority_N=_rank_major(_rank(-score_T), K))

  def causal(self, choices):
    return False


@dataclasses.dataclass(frozen=True)
class HighestWeight:
  """Each expert keeps its largest combine weights (MTF's `switch_max`)."""

  random = False

  def __call__(self, routing, key=None):
    return routing.replace(priority_N=_rank(-routing.weight_N))

  def causal(self, choices):
    return False


@dataclasses.dataclass(frozen=True)
class RandomTokens:
  """Random token selection: who is dropped does not depend on the position.

  Kim et al., "Scalable and Efficient MoE Training for Multitask Multilingual
  Models" (Z-code M3), 2021, arXiv:2109.10465, section 3; DeepSpeed's `use_rts`,
  for top-1. By position in evaluation, where DeepSpeed draws too.
  """

  random = True

  def __call__(self, routing, key=None):
    K = _choices(routing, 'random_tokens')
    if key is None:
      return routing
    T = routing.token_N.shape[0] // K
    # A stream of its own: routers fold small numbers into the same key.
    key = jax.random.fold_in(key, 2**32 - 2)
    rank_T = jax.random.permutation(key, jnp.arange(T, dtype=jnp.int32))
    return routing.replace(priority_N=_rank_major(rank_T, K))

  def causal(self, choices):
    return False


ORDERS = {
  'rank_major': RankMajor,
  'token_major': TokenMajor,
  'batch_prioritized': BatchPrioritized,
  'highest_weight': HighestWeight,
  'random_tokens': RandomTokens,
}


def build(spec: str) -> Order:
  """`'batch_prioritized()'` -> an order; a ValueError lists the names."""
  return registry.call(spec, ORDERS, 'seating')


def keys(order: Order, keys_G: jax.Array | None, train: bool):
  """The groups' keys for an order that draws, else None.

  Raises:
    ValueError: there are none, in training.
  """
  if not (train and order.random):
    return None
  if keys_G is None:
    raise UserError(
      f'{type(order).__name__} seating draws in training and needs the '
      "'router' random stream"
    )
  return keys_G


def _choices(routing: types.Routing, name: str) -> int:
  if routing.choices is None:
    raise UserError(f'seating={name}: this router has no choices to rank')
  return routing.choices


def _affinity(routing: types.Routing) -> jax.Array:
  """The probability of each edge's expert, 0 for nobody's."""
  if routing.probs_TE is None:
    return routing.weight_N
  E = routing.num_experts
  p_N = routing.probs_TE[routing.token_N, jnp.minimum(routing.expert_N, E - 1)]
  return jnp.where(routing.expert_N < E, p_N, 0.0)


def _rank_major(rank_T: jax.Array, K: int) -> jax.Array:
  """int32 [K * T]: all first choices by rank, then all second ones, ..."""
  block_K1 = jnp.arange(K, dtype=jnp.int32)[:, None] * rank_T.shape[0]
  return (block_K1 + rank_T).reshape(-1)


def _rank(key_N: jax.Array) -> jax.Array:
  """int32 place of each entry in ascending order, ties by position."""
  order_N = jnp.argsort(jax.lax.stop_gradient(key_N), stable=True)
  place_N = jnp.arange(key_N.shape[0], dtype=jnp.int32)
  return jnp.zeros_like(place_N).at[order_N].set(place_N)
