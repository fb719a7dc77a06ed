"""What a balancing rule is: sums over tokens, then a function of the sums.

A rule says over which segments it sums (`scope`):

  global     the whole batch, over all devices, then the function
  group      each routing group apart, then the mean by real tokens
  sequence   each sequence apart, then the mean by real tokens; the sequences of
             a packed row are told by `Tokens.segments`

A mean of products is not the product of means, so the scope is part of the
method, and none depends on the mesh. Nor on micro-batches: a layer returns sums
that add up over them (`evaluate`), and `losses` is the function of the total.

A rule that reads the router's parameters, no sums, does so in the function.
"""

import abc
import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from moe_jax import types
from moe_jax.errors import UserError
from moe_jax.kernels import gates
from moe_jax.parallel import collectives

SCOPES = ('global', 'group', 'sequence')
Stats = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class Sums:
  """The tokens of this device, cut into S segments.

  Attributes:
    routing: with leading axis G on every array.
    mask_GT: bool, False on padding.
    segments: S; divides G * T where they are of equal length.
    segment_GT: int32, the segment of each token; None where they are of equal
      length, one behind the other.
  """

  routing: types.Routing
  mask_GT: jax.Array
  segments: int
  segment_GT: jax.Array | None = None

  def tokens(self, values_GT: jax.Array) -> jax.Array:
    """Sum over the real tokens of each segment: [G, T, ...] -> [S, ...]."""
    G, T = self.mask_GT.shape
    mask = self.mask_GT.reshape(G, T, *(1,) * (values_GT.ndim - 2))
    return self._total(jnp.where(mask, values_GT, jnp.zeros_like(values_GT)))

  def count(self) -> jax.Array:
    """f32 [S], real tokens of each segment."""
    return self.tokens(jnp.ones(self.mask_GT.shape, jnp.float32))

  def length(self) -> jax.Array:
    """f32 [S], tokens of each segment, padding included."""
    return self._total(jnp.ones(self.mask_GT.shape, jnp.float32))

  def _total(self, values_GT):
    rest = values_GT.shape[2:]
    if self.segment_GT is None:
      return values_GT.reshape(self.segments, -1, *rest).sum(1)
    zero = jnp.zeros((self.segments, *rest), values_GT.dtype)
    flat = values_GT.reshape(-1, *rest)
    return zero.at[self.segment_GT.reshape(-1)].add(flat)

  def load(self, choice: int | None = None, chosen: bool = False) -> jax.Array:
    """int32 [S, E], assignments to each expert before drops.

    Args:
      choice: count that choice of each token only, 0 for the first; None all,
        but of a `first_fit` routing the first: the others are alternatives.
      chosen: count choices that a second policy leaves unused, too, as losses
        on what the router wants do.
    """
    r, (G, T) = self.routing, self.mask_GT.shape
    token_GN, expert_GN = r.token_N, r.expert_N
    if chosen and r.chosen_N is not None:
      expert_GN = r.chosen_N
    choice = 0 if choice is None and r.first_fit else choice
    if choice is not None:
      if r.choices is None:
        raise UserError(
          'this router has no first choices to count; a rule that counts all '
          "assignments (switch_loss(count='all')) goes with it"
        )
      if choice >= r.choices:
        raise UserError(f'this router has {r.choices} choices of a token')
      of = slice(choice * T, (choice + 1) * T)
      token_GN, expert_GN = token_GN[:, of], expert_GN[:, of]
    segment_GN = jnp.arange(G)[:, None] * T + token_GN
    if self.segment_GT is None:
      segment_GN //= self.mask_GT.size // self.segments
    else:
      segment_GN = self.segment_GT.reshape(-1)[segment_GN]
    cell_GN = segment_GN * (r.num_experts + 1) + expert_GN
    cells = self.segments * (r.num_experts + 1)
    counts = jnp.zeros(cells, jnp.int32).at[cell_GN.reshape(-1)].add(1)
    return counts.reshape(self.segments, -1)[:, :-1]


class Balance(abc.ABC):
  """A rule that keeps experts busy: a loss, a state, or both.

  Concrete rules are frozen dataclasses with at least:

  Attributes:
    weight: factor of the loss.
    scope: one of SCOPES. Rules with a state are 'global', others have a loss.
    solves: whether it has a `solve`.
    reads_matrix: whether `loss` reads the router's matrix, `router['kernel']`.
    devices: equal blocks of experts, by number, that it tells apart.
  """

  weight: float
  scope: str
  devices: int = 1
  solves = False
  reads_matrix = False

  def __post_init__(self):
    for field, value in vars(self).items():
      # A negative weight would reward what the rule is there to prevent.
      if field.endswith('weight') and not value >= 0:
        raise UserError(f'{name(self)}: {field}={value} must be 0 or above')
    if self.scope not in SCOPES:
      valid = ', '.join(SCOPES)
      raise UserError(f'{name(self)}: scope={self.scope!r}; valid: {valid}')
    self.check()

  def check(self) -> None:
    """Raises ValueError where a rule's own fields do not fit."""

  @abc.abstractmethod
  def stats(self, sums: Sums) -> Stats:
    """Sums over the tokens of each segment, leaves [S, ...]."""

  def weights(self, sums: Sums) -> jax.Array:
    """f32 [S], what the segments weigh in the mean of their losses."""
    return sums.count()

  def loss(self, stats: Stats, state: Any, router: Any) -> jax.Array | None:
    """f32 [S], 1 for balanced routing where that has a meaning; or None.

    Args:
      stats: sums over the tokens of S segments.
      state: of this layer; None for a rule without one.
      router: f32 parameters of this layer's router, as its `init` names them.
    """
    return None

  def init(self, E: int) -> Any:
    """The state of one layer; None for a rule without one."""
    return None

  def selection_bias(self, state: Any) -> jax.Array | None:
    """f32 [E], added to the selection scores of the next step."""
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
    return state


def squared_cv(v_SE: jax.Array) -> jax.Array:
  """f32 [S], squared coefficient of variation: population variance / mean^2.

  0 for an empty segment. Without a root, whose gradient at 0 is not finite.
  """
  v_SE = gates.scaled(v_SE)
  mean_S = v_SE.mean(-1)
  return v_SE.var(-1) / jnp.where(mean_S > 0, mean_S, 1.0) ** 2


def entropy(p: jax.Array) -> jax.Array:
  """Entropy along the last axis in nats; its gradient at 0 is finite."""
  return -(p * jnp.log(jnp.maximum(p, 1e-30))).sum(-1)


def affinities(routing: types.Routing, rule: str) -> jax.Array:
  """The routing's [G, T, E] affinities; a ValueError where it has none."""
  if routing.probs_TE is None:
    raise UserError(f'{rule} needs a router with [T, E] probabilities')
  return routing.probs_TE


def check_devices(rule: str, devices: int, E: int) -> None:
  """Raises ValueError where `devices` equal groups do not make E experts."""
  if devices < 1 or E % devices:
    valid = ', '.join(str(d) for d in range(1, E + 1) if E % d == 0)
    wrong = f'devices={devices} does not divide num_experts={E}'
    raise UserError(f'{rule}: {wrong}; valid: {valid}')


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
  segment_BL: jax.Array | None = None,
  router: Any = None,
) -> tuple[jax.Array, dict[str, jax.Array], dict[str, Stats]]:
  """All rules on this device's groups, reduced over the batch axes.

  Args:
    rules: distinct rules.
    routing: with leading axis G.
    mask_GT: bool, real tokens.
    sequences: rows on this device; they divide the tokens evenly.
    axes: mesh axes that the tokens are sharded over.
    states: of this layer, by rule.
    segment_BL: int32, as in types.Tokens, of these rows; None where each is one
      sequence.
    router: parameters of this layer's router, which no mesh axis splits.

  Returns:
    As `losses`, and by rule the sums that make them, which add up over micro-
    batches, with their gradients: the `stats` of the batch where the scope is
    'global'; else, over segments, 'loss' times its weight, and 'weight'.
  """
  stats = {}
  for rule in rules:
    sums = _sums(rule.scope, routing, mask_GT, sequences, segment_BL)
    own = rule.stats(sums)
    if rule.scope == 'global':
      own = jax.tree.map(lambda v: v[0], own)
    else:
      weight_S = rule.weights(sums)
      loss_S = rule.loss(own, states.get(name(rule)), router)
      own = {'loss': (loss_S * weight_S).sum(), 'weight': weight_S.sum()}
    stats[name(rule)] = collectives.psum(own, axes, name='balance_stats')
  return *losses(rules, stats, states, router=router), stats


def _sums(scope, routing, mask_GT, sequences, segment_BL) -> Sums:
  segments = {'global': 1, 'group': mask_GT.shape[0], 'sequence': sequences}
  if scope != 'sequence' or segment_BL is None:
    return Sums(routing, mask_GT, segments[scope])
  # A row has L sequences at most; most of them are empty, and weigh nothing.
  segment_GT = sequence_numbers(segment_BL).reshape(mask_GT.shape)
  return Sums(routing, mask_GT, mask_GT.size, segment_GT)


def sequence_numbers(segment_BL: jax.Array) -> jax.Array:
  """int32 [B, L], a number below B * L for the sequence of each token.

  Args:
    segment_BL: int32, as in types.Tokens. Padding (0) is of the sequence before
      it, at a row's start of the one behind.
  """
  B, L = segment_BL.shape
  real_BL = segment_BL > 0
  last_BL = jax.lax.cummax(jnp.where(real_BL, jnp.arange(L), -1), axis=1)
  at_BL = jnp.maximum(last_BL, jnp.argmax(real_BL, axis=1)[:, None])
  own_BL = jnp.take_along_axis(segment_BL, at_BL, axis=1)
  new_BL = jnp.diff(own_BL, axis=1, prepend=own_BL[:, :1]) != 0
  row_B1 = L * jnp.arange(B, dtype=jnp.int32)[:, None]
  return row_B1 + jnp.cumsum(new_BL, axis=1, dtype=jnp.int32)


def losses(
  rules: Sequence[Balance],
  stats: dict[str, Stats],
  states: dict[str, Any],
  weights: dict[str, jax.Array] | None = None,
  router: Any = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """The losses of one layer from the sums of a batch.

  Args:
    rules: as `evaluate` had them.
    stats: from it, of a whole batch; or of a part, given the next.
    states: of this layer, by rule.
    weights: from `total_weights` of the whole batch; what is returned is then
      the part's share, and adds up over parts where `splits`.
    router: parameters of this layer's router.

  Returns:
    Their weighted sum, and the unweighted losses by rule.
  """
  total, found = jnp.float32(0), {}
  for rule in rules:
    own = stats[name(rule)]
    if rule.scope == 'global':
      one = jax.tree.map(lambda v: v[None], own)
      loss_S = rule.loss(one, states.get(name(rule)), router)
      loss = None if loss_S is None else loss_S[0]
    else:
      whole = own['weight'] if weights is None else weights[name(rule)]
      loss = own['loss'] / jnp.maximum(whole, 1)
    if loss is not None:
      found[name(rule)] = loss
      total += rule.weight * loss
  return total, found


def total_weights(
  rules: Sequence[Balance], mask_BL: jax.Array
) -> dict[str, jax.Array]:
  """What the segments of a batch weigh together, by rule; from its mask."""
  sums = Sums(None, mask_BL, 1)
  return {name(r): r.weights(sums)[0] for r in rules if r.scope != 'global'}


def check_router(rules: Sequence[Balance], router: Any) -> None:
  """Raises ValueError where a rule needs what `router` does not have."""
  kind = type(router).__name__
  for rule in rules:
    biases = type(rule).selection_bias is not Balance.selection_bias
    if biases and not router.takes_bias:
      why = f'the router {kind} has no scores of all experts'
      raise UserError(f'{name(rule)} biases the choice of experts; {why}')
    if rule.reads_matrix and not router.has_matrix:
      raise UserError(
        f"{name(rule)} reads the router's matrix, its parameter 'kernel' "
        f'[D, E]; the router {kind} has none'
      )


def splits(rules: Sequence[Balance]) -> bool:
  """Whether losses of parts of a batch add up: none is of 'global' sums."""
  return all(r.scope != 'global' or type(r).loss is Balance.loss for r in rules)


def solver(
  rules: Sequence[Balance], states, total: Callable[[jax.Array], jax.Array]
) -> Callable | None:
  """`Context.solve` by the rule that has one, or None.

  Raises:
    ValueError: two rules have one.
  """
  found = [r for r in rules if r.solves]
  if len(found) > 1:
    both = f'{name(found[0])} and {name(found[1])}'
    raise UserError(f'{both} both solve for the selection bias; only one can')
  if not found:
    return None
  solve = functools.partial(found[0].solve, states[name(found[0])])
  return functools.partial(solve, total=total)


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
