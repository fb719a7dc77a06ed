"""What routers, seating, dispatches and balancing rules say to each other.

Dimension letters, used as suffixes of names and in einsums everywhere:

  B batch             L length of a sequence   D model width
  G routing groups    T tokens of a group      F hidden width of an expert
  E experts           e experts on a device    K choices of a token
  N assignments       C capacity of an expert  R rows after dispatch
  H attention heads   J width of a head        V vocabulary
  S segments that a balancing rule sums over

Capitals are logical sizes; inside the expert-parallel region G counts the
groups on this device.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

# Why an assignment was or was not computed by an expert; values of `cause_N`.
# UNSENT are those of real tokens that the router itself sent to nobody, LOCAL
# those of zero-computation experts, which never leave the token's device.
KEPT, CAPACITY, RECEIVER, PADDING, UNSENT, LOCAL = range(6)
CAUSES = ('kept', 'capacity', 'receiver', 'padding', 'unsent', 'local')
OWN = -2  # in `Tokens.forced`


@struct.dataclass
class Tokens:
  """What is known of the tokens beside their vectors; None where it is not.

  Attributes:
    mask: bool [B, L], False on padding, which no expert sees.
    ids: int32 [B, L], of the vocabulary.
    positions: int32 [B, L], within the segment.
    segments: int32 [B, L], which sequence of a packed row; 0 is padding.
    forced: int32 [B, L, M, K], experts to be used, for `replay` and `forced`,
      in each of M MoE layers; -1 is nobody, and OWN a token whose experts the
      router `forced` chooses itself.
    step: int32 scalar, of training.
    part: int32 [2], which micro-batch of how many these are: the groups of a
      device are numbered through all of them.
  """

  mask: jax.Array | None = None
  ids: jax.Array | None = None
  positions: jax.Array | None = None
  segments: jax.Array | None = None
  forced: jax.Array | None = None
  step: jax.Array | None = None
  part: jax.Array | None = None


@struct.dataclass
class Context:
  """What some router or balancing rule needs beside the tokens of its group.

  Attributes:
    key: PRNG key of this group and layer, or None where nothing may be random.
    mask_T: bool, False on padding, which no expert may see.
    selection_bias_E: f32, added to selection scores, never to combine weights.
    carry: what the router of the previous MoE layer left (leaves [T, ...]).
    ids_T, positions_T, segments_T: int32, as in Tokens; None if not known.
    forced_TK: int32, experts to be used, or None.
    given_TK: the same, for all routers: in place of those that they would
      choose. None but by `forced`.
    step: int32 scalar of training, or None.
    layer: int32 scalar, the number of the MoE layer in its stack.
    layer_key: PRNG key of this layer and step, the same for all groups.
    features: what the expert kind lets a router see of its weights, [E, ...].
    solve: (scores_TE, mask_T, K) -> the selection bias f32 [E] to use and the
      one to keep, by the balancing rule that solves for it from the scores of
      the whole batch before selection; None where there is no such rule.
    num_local: the last `num_local` experts compute nothing that is sent.
    train: whether noise and other training-only behaviour is on.
  """

  key: jax.Array | None
  mask_T: jax.Array
  selection_bias_E: jax.Array
  carry: Any = ()
  ids_T: jax.Array | None = None
  positions_T: jax.Array | None = None
  segments_T: jax.Array | None = None
  forced_TK: jax.Array | None = None
  given_TK: jax.Array | None = None
  step: jax.Array | None = None
  layer: jax.Array | None = None
  layer_key: jax.Array | None = None
  features: Any = ()
  solve: Callable | None = struct.field(pytree_node=False, default=None)
  num_local: int = struct.field(pytree_node=False, default=0)
  train: bool = struct.field(pytree_node=False, default=False)

  @property
  def num_experts(self) -> int:
    """E, those that are local among them."""
    return self.selection_bias_E.shape[-1]


@struct.dataclass
class Routing:
  """Who goes where, with what weight: the edges of one group.

  Edges keep their storage order. Who is seated first when an expert is full is
  `priority_N`, a separate thing.

  Attributes:
    token_N: int32, index of the token in its group.
    expert_N: int32; `num_experts` means nobody (padding, or a choice that the
      router does not use).
    weight_N: f32 combine weight.
    priority_N: int32, lower is seated first, ties in storage order; None is
      storage order throughout.
    logits_TE: f32 router logits with their noise, before the selection bias;
      None where E is too large for [T, E] arrays.
    probs_TE: f32 affinities, the differentiable ones that weights and losses
      use.
    log_probs_TE: f32, their logarithms, in which quotients of them are made;
      None for affinities with true zeros, or without logarithms at hand.
    terms: per-token values that only the router can compute ([T, ...]);
      'clean_logits' where the router adds noise.
    carry: what the next MoE layer's router gets (leaves [T, ...]).
    solved_E: f32, the selection bias to keep, from `Context.solve`.
    chosen_N: int32, the experts before a policy left choices unused, which
      losses count; None where they are `expert_N`.
    log_weight_N: f32, logarithms of the weights that `renormalize_kept` is to
      divide, -inf for a weight of 0; None divides the weights themselves.
    num_experts: E.
    num_local: of these the last, which compute nothing that is sent.
    choices: K where the edges are K blocks of T in token order, so that edge
      k * T + t is token t's k-th choice; combine is then a gather and a sum.
    weight_on: 'output', or 'input' where the weight multiplies the expert's
      input (Llama 4).
    renormalize_kept: whether the weights of a token's kept edges are divided by
      their sum once it is known who was seated.
    first_fit: whether a token takes the first of its choices that has room, and
      no other (no-token-left-behind).
    given: whether the experts are those of `Context.given_TK`.
  """

  token_N: jax.Array
  expert_N: jax.Array
  weight_N: jax.Array
  priority_N: jax.Array | None = None
  logits_TE: jax.Array | None = None
  probs_TE: jax.Array | None = None
  log_probs_TE: jax.Array | None = None
  terms: dict[str, jax.Array] = struct.field(default_factory=dict)
  carry: Any = ()
  solved_E: jax.Array | None = None
  chosen_N: jax.Array | None = None
  log_weight_N: jax.Array | None = None
  num_experts: int = struct.field(pytree_node=False, default=0)
  num_local: int = struct.field(pytree_node=False, default=0)
  choices: int | None = struct.field(pytree_node=False, default=None)
  weight_on: str = struct.field(pytree_node=False, default='output')
  renormalize_kept: bool = struct.field(pytree_node=False, default=False)
  first_fit: bool = struct.field(pytree_node=False, default=False)
  given: bool = struct.field(pytree_node=False, default=False)


@struct.dataclass
class SlotRouting(Routing):
  """Slots that are mixtures of all tokens of the group: no assignments.

  The inherited edges are the slots, S for each expert, all of weight 1: they
  count, and cannot be dispatched as tokens.

  Attributes:
    dispatch_TN: f32, each slot's weights of the tokens.
    combine_TN: f32, each token's weights of the slots' results.
  """

  dispatch_TN: jax.Array | None = None
  combine_TN: jax.Array | None = None


@struct.dataclass
class Seated:
  """A routing after seating: which edges have a row at their expert.

  Attributes:
    routing: with its weights finished.
    cause_N: int32, one of KEPT, CAPACITY, PADDING, UNSENT; LOCAL for a kept
      edge of an expert that is not sent, once these are taken out.
    slot_N: int32, the edge's place in its expert's queue; a row of the buffer
      where the edge is kept.
    order_N: int32, the edges sorted by expert, then by priority.
    start_E, count_E: int32, where an expert's queue begins in `order_N`, and
      how many want it.
    capacity: ((rows, experts), ...), how many experts have how many rows, in
      the order of the experts.
  """

  routing: Routing
  cause_N: jax.Array
  slot_N: jax.Array
  order_N: jax.Array
  start_E: jax.Array
  count_E: jax.Array
  capacity: tuple[tuple[int, int], ...] = struct.field(pytree_node=False)

  @property
  def kept_N(self) -> jax.Array:
    return self.cause_N == KEPT

  @property
  def rows(self) -> int:
    """C, the rows of the largest expert."""
    return max(rows for rows, _ in self.capacity)

  @property
  def capacity_E(self) -> jax.Array:
    """int32, rows of each expert."""
    return rows_of_experts(self.capacity)


def rows_of_experts(capacity: tuple[tuple[int, int], ...]) -> jax.Array:
  """int32 [E] from ((rows, experts), ...)."""
  parts = [jnp.full(experts, rows, jnp.int32) for rows, experts in capacity]
  return jnp.concatenate(parts)


@struct.dataclass
class MoEAux:
  """What an MoE layer returns beside its output; sums over the whole batch.

  Attributes:
    loss: f32 scalar, the weighted sum of the balancing losses.
    losses: unweighted loss of each rule, by name.
    stats: the sums that losses are a function of and states are updated from,
      by rule; they add up over micro-batches: see `balancing.base.evaluate`.
    load_E: int32, assignments that wanted each expert, before drops.
    cause: int32 [6], assignments by cause, in the order of CAUSES.
    health: sums over real tokens, and their number, from which
      `training.health` makes rates: see `layers.statistics`.
    record: with `MoE.record`, the edges of all groups, and what is known of
      their tokens: see `layers.statistics.edges`; else {}.
  """

  loss: jax.Array
  losses: dict[str, jax.Array]
  stats: dict[str, Any]
  load_E: jax.Array
  cause: jax.Array
  health: dict[str, jax.Array]
  record: dict[str, jax.Array]

  @property
  def entropy(self) -> jax.Array:
    """f32, mean entropy of the affinities in nats; 0 without affinities."""
    tokens = jnp.maximum(self.health['tokens'], 1)
    return self.health.get('entropy', jnp.zeros_like(tokens)) / tokens
