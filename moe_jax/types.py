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

from typing import Any

import jax
from flax import struct

# Why an assignment was or was not computed; values of `cause_N`. UNSENT are
# those of real tokens that the router itself sent to nobody.
KEPT, CAPACITY, RECEIVER, PADDING, UNSENT = range(5)
CAUSES = ('kept', 'capacity', 'receiver', 'padding', 'unsent')


@struct.dataclass
class Context:
  """What some router or balancing rule needs beside the tokens of its group.

  Attributes:
    key: PRNG key of this group and layer, or None where nothing may be random.
    mask_T: bool, False on padding, which no expert may see.
    selection_bias_E: f32, added to selection scores, never to combine weights.
    carry: what the router of the previous MoE layer left (leaves [T, ...]).
    train: whether noise and other training-only behaviour is on.
  """

  key: jax.Array | None
  mask_T: jax.Array
  selection_bias_E: jax.Array
  carry: Any = ()
  train: bool = struct.field(pytree_node=False, default=False)


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
    terms: per-token values that only the router can compute ([T, ...]);
      'clean_logits' where the router adds noise.
    carry: what the next MoE layer's router gets (leaves [T, ...]).
    num_experts: E.
    choices: K where the edges are K blocks of T in token order, so that edge
      k * T + t is token t's k-th choice; combine is then a gather and a sum.
    weight_on: 'output', or 'input' where the weight multiplies the expert's
      input (Llama 4).
    renormalize_kept: whether the weights of a token's kept edges are divided by
      their sum once it is known who was seated.
    first_fit: whether a token takes the first of its choices that has room, and
      no other (no-token-left-behind).
  """

  token_N: jax.Array
  expert_N: jax.Array
  weight_N: jax.Array
  priority_N: jax.Array | None = None
  logits_TE: jax.Array | None = None
  probs_TE: jax.Array | None = None
  terms: dict[str, jax.Array] = struct.field(default_factory=dict)
  carry: Any = ()
  num_experts: int = struct.field(pytree_node=False, default=0)
  choices: int | None = struct.field(pytree_node=False, default=None)
  weight_on: str = struct.field(pytree_node=False, default='output')
  renormalize_kept: bool = struct.field(pytree_node=False, default=False)
  first_fit: bool = struct.field(pytree_node=False, default=False)


@struct.dataclass
class Seated:
  """A routing after seating: which edges have a row at their expert.

  Attributes:
    routing: with its weights finished.
    cause_N: int32, one of KEPT, CAPACITY, PADDING, UNSENT.
    slot_N: int32, the edge's place in its expert's queue; a row of the buffer
      where the edge is kept.
    order_N: int32, the edges sorted by expert, then by priority.
    start_E, count_E: int32, where an expert's queue begins in `order_N`, and
      how many want it.
    capacity_E: rows of each expert.
  """

  routing: Routing
  cause_N: jax.Array
  slot_N: jax.Array
  order_N: jax.Array
  start_E: jax.Array
  count_E: jax.Array
  capacity_E: tuple[int, ...] = struct.field(pytree_node=False)

  @property
  def kept_N(self) -> jax.Array:
    return self.cause_N == KEPT

  @property
  def rows(self) -> int:
    """C, the rows of the largest expert."""
    return max(self.capacity_E)


@struct.dataclass
class MoEAux:
  """What an MoE layer returns beside its output; sums over the whole batch.

  Attributes:
    loss: f32 scalar, the weighted sum of the balancing losses.
    losses: unweighted loss of each rule, by name.
    stats: sums that stateful rules update from, by rule.
    load_E: int32, assignments that wanted each expert, before drops.
    cause: int32 [5], assignments by cause, in the order of CAUSES.
    entropy: f32 scalar, mean entropy of the affinities in nats (0 without
      affinities).
  """

  loss: jax.Array
  losses: dict[str, jax.Array]
  stats: dict[str, Any]
  load_E: jax.Array
  cause: jax.Array
  entropy: jax.Array
