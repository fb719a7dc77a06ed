"""What a balancing rule is: sums over tokens, then a function of the sums.

A rule says over which segments it sums (`scope`):

  global     the whole batch, over all devices, then the function
  group      each routing group apart, then the mean by real tokens
  sequence   each sequence apart, then the mean by real tokens

A mean of products is not the product of means, so the scope is part of the
method, and none depends on the mesh.
"""

import abc
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from moe_jax import types
from moe_jax.parallel import collectives

SCOPES = ('global', 'group', 'sequence')
Stats = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class Sums:
  """The tokens of this device, cut into S segments of equal length.

  Attributes:
    routing: with leading axis G on every array.
    mask_GT: bool, False on padding.
    segments: S; divides G * T.
  """

  routing: types.Routing
  mask_GT: jax.Array
  segments: int

  def tokens(self, values_GT: jax.Array) -> jax.Array:
    """Sum over the real tokens of each segment: [G, T, ...] -> [S, ...]."""
    G, T = self.mask_GT.shape
    mask = self.mask_GT.reshape(G, T, *(1,) * (values_GT.ndim - 2))
    values = jnp.where(mask, values_GT, jnp.zeros_like(values_GT))
    return values.reshape(self.segments, self.length, *values.shape[2:]).sum(1)

  def count(self) -> jax.Array:
    """f32 [S], real tokens of each segment."""
    return self.tokens(jnp.ones(self.mask_GT.shape, jnp.float32))

  @property
  def length(self) -> int:
    """Tokens of a segment, padding included."""
    return self.mask_GT.size // self.segments

  def load(self, choice: int | None = None) -> jax.Array:
    """int32 [S, E], assignments to each expert before drops.

    Args:
      choice: count that choice of each token only, 0 for the first. All of
        them otherwise, but of a `first_fit` routing the first, since the others
        are alternatives.
    """
    r, (G, T) = self.routing, self.mask_GT.shape
    token_GN, expert_GN = r.token_N, r.expert_N
    choice = 0 if choice is None and r.first_fit else choice
    if choice is not None:
      if r.choices is None:
        raise ValueError(
          'this router has no first choices to count; a rule that counts all '
          "assignments (switch_loss(count='all')) goes with it"
        )
      if choice >= r.choices:
        raise ValueError(f'this router has {r.choices} choices of a token')
      of = slice(choice * T, (choice + 1) * T)
      token_GN, expert_GN = token_GN[:, of], expert_GN[:, of]
    segment_GN = (jnp.arange(G)[:, None] * T + token_GN) // self.length
    cell_GN = segment_GN * (r.num_experts + 1) + expert_GN
    cells = self.segments * (r.num_experts + 1)
    counts = jnp.zeros(cells, jnp.int32).at[cell_GN.reshape(-1)].add(1)
    return counts.reshape(self.segments, -1)[:, :-1]


class Balance(abc.ABC):
  """A rule that keeps experts busy: a loss, a state, or both.

  Concrete rules are frozen dataclasses with at least:

  Attributes:
    weight: factor of the loss.
    scope: one of SCOPES. Rules with a state are 'global'.
    solves: whether it has a `solve`.
  """

  weight: float
  scope: str
  solves = False

  @abc.abstractmethod
  def stats(self, sums: Sums) -> Stats:
    """Sums over the tokens of each segment, leaves [S, ...]."""

  def weights(self, sums: Sums) -> jax.Array:
    """f32 [S], what the segments weigh in the mean of their losses."""
    return sums.count()

  def loss(self, stats: Stats, state: Any) -> jax.Array | None:
    """f32 [S], 1 for balanced routing where that has a meaning; or None.

    `state` is the layer's, None for a rule without one.
    """
    del stats, state
    return None

  def init(self, E: int) -> Any:
    """The state of one layer; None for a rule without one."""
    del E
    return None

  def selection_bias(self, state: Any) -> jax.Array | None:
    """f32 [E], added to the selection scores of the next step."""
    del state
    return None

  def solve(
    self,
    state: Any,
    scores_TE: jax.Array,
    mask_T: jax.Array,
    K: int,
    total: Callable[[jax.Array], jax.Array],
  ) -> tuple[jax.Array, jax.Array]:
    """Finds a selection bias in the scores of the batch, before selection.

    Args:
      state: of this layer.
      scores_TE: f32, of one group, without a bias.
      mask_T: bool, False on padding.
      K: choices of a token.
      total: the sum over all groups of the batch; the same for all of them.

    Returns:
      f32 [E] each: the bias to select by now, and `Routing.solved_E`.
    """
    raise NotImplementedError

  def update(self, state: Any, stats: Stats) -> Any:
    """The state after an optimizer step; leading layer axes pass through."""
    del stats
    return state


def squared_cv(v_SE: jax.Array) -> jax.Array:
  """f32 [S], squared coefficient of variation: population variance / mean^2.

  0 for an empty segment. Without a root, whose gradient at 0 is not finite.
  """
  mean_S = v_SE.mean(-1)
  return v_SE.var(-1) / jnp.where(mean_S > 0, mean_S, 1.0) ** 2


def entropy(p: jax.Array) -> jax.Array:
  """Entropy along the last axis in nats; its gradient at 0 is finite."""
  return -(p * jnp.log(jnp.maximum(p, 1e-30))).sum(-1)


def affinities(routing: types.Routing, rule: str) -> jax.Array:
  """The routing's [G, T, E] affinities; a ValueError where it has none."""
  if routing.probs_TE is None:
    raise ValueError(f'{rule} needs a router with [T, E] probabilities')
  return routing.probs_TE


def check_devices(rule: str, devices: int, E: int) -> None:
  """Raises ValueError where `devices` equal groups do not make E experts."""
  if devices < 1 or E % devices:
    valid = [d for d in range(1, E + 1) if E % d == 0]
    raise ValueError(
      f'{rule}: devices={devices} does not divide num_experts={E}; valid: '
      f'{", ".join(map(str, valid))}'
    )


def check_scope(rule: Balance) -> None:
  """Raises ValueError for a scope that does not exist."""
  if rule.scope not in SCOPES:
    raise ValueError(
      f'{type(rule).__name__}: scope={rule.scope!r}; valid: {", ".join(SCOPES)}'
    )


def name(rule: Balance) -> str:
  """The rule's name in losses, states and metrics: its file's."""
  return type(rule).__module__.rpartition('.')[2]


def evaluate(
  rules: Sequence[Balance],
  routing: types.Routing,
  mask_GT: jax.Array,
  sequences: int,
  axes: tuple[str, ...],
  states: dict[str, Any],
) -> tuple[jax.Array, dict[str, jax.Array], dict[str, Stats]]:
  """All rules on this device's groups, reduced over the batch axes.

  Args:
    rules: distinct rules.
    routing: with leading axis G.
    mask_GT: bool, real tokens.
    sequences: sequences on this device; they divide the tokens evenly.
    axes: mesh axes that the tokens are sharded over.
    states: of this layer, by rule.

  Returns:
    The weighted sum of the losses, the unweighted losses by rule, and the
    global sums of the rules that have a state.
  """
  total, losses, kept = jnp.float32(0), {}, {}
  segments = {'global': 1, 'group': mask_GT.shape[0], 'sequence': sequences}
  for rule in rules:
    sums = Sums(routing, mask_GT, segments[rule.scope])
    stats, state = rule.stats(sums), states.get(name(rule))
    if rule.scope == 'global':
      stats = collectives.psum(stats, axes, name='balance_stats')
      loss = rule.loss(stats, state)
      loss = loss if loss is None else loss[0]
    else:
      loss = rule.loss(stats, state)
      if loss is not None:
        weight_S = rule.weights(sums)
        top, bottom = collectives.psum(
          ((loss * weight_S).sum(), weight_S.sum()), axes, name='balance_mean'
        )
        loss = top / jnp.maximum(bottom, 1)
    if loss is not None:
      losses[name(rule)] = loss
      total += rule.weight * loss
    if rule.init(routing.num_experts) is not None:
      kept[name(rule)] = jax.tree.map(lambda v: v[0], stats)
  return total, losses, kept


def solver(
  rules: Sequence[Balance], states, total: Callable[[jax.Array], jax.Array]
) -> Callable | None:
  """`Context.solve` by the rule that has one, or None.

  Raises:
    ValueError: two rules have one.
  """
  found = [r for r in rules if r.solves]
  if len(found) > 1:
    raise ValueError(
      f'{name(found[0])} and {name(found[1])} both solve for the selection '
      'bias; only one can'
    )
  if not found:
    return None
  state = states[name(found[0])]
  return lambda scores_TE, mask_T, K: found[0].solve(
    state, scores_TE, mask_T, K, total
  )


def init_states(rules: Sequence[Balance], E: int) -> dict[str, Any]:
  """States of one layer by rule; {} where no rule has one."""
  states = {name(r): r.init(E) for r in rules}
  return {k: v for k, v in states.items() if v is not None}


def selection_bias(
  rules: Sequence[Balance], states, E: int, solving: bool = False
) -> jax.Array:
  """f32 [E], the sum of the rules' biases; less one that is `solving`."""
  bias_E = jnp.zeros(E, jnp.float32)
  for r in rules:
    if name(r) in states and not (solving and r.solves):
      b = r.selection_bias(states[name(r)])
      bias_E = bias_E if b is None else bias_E + b
  return bias_E


def update_states(rules: Sequence[Balance], states, stats) -> dict[str, Any]:
  """States of one layer (or a stack of them) after an optimizer step."""
  by_name = {name(r): r for r in rules}
  return {k: by_name[k].update(s, stats[k]) for k, s in states.items()}
