"""THE mixture-of-experts layer: it only composes.

A token's path: router (who, with what weight) -> seating (who fits) ->
dispatch (rows to experts and back) -> the weighted sum; balancing rules look
at the routing on the side. Everything from the router to the sum runs in one
`jax.shard_map` region, manual over all mesh axes; a mesh of one device runs
the same region.

The layer holds no parameters and no state: it makes them, and is called with
them. `linen.MoE` and `nnx.MoE` are modules around it.

  | array            | outside, global           | inside, per device          |
  | tokens           | [B, L, D] over batch axes | [G, T, D], whole groups     |
  | router           | [D, E] replicated         | the same                    |
  | experts          | [E, D, F] over expert,    | [e, D, F / model], gathered |
  |                  |   fsdp, model             |   over fsdp                 |
  | what they share  | [D, F] over fsdp, model   | [D, F / model], the same    |
  | aux              | replicated                | psum over batch axes        |
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from moe_jax import types
from moe_jax.balancing import base as balancing
from moe_jax.dispatch import base as dispatching
from moe_jax.errors import UserError
from moe_jax.experts import base as experts_base
from moe_jax.layers import (
  context,
  groups,
  methods,
  mlp,
  statistics,
  streams,
  weights,
)
from moe_jax.local_experts import base as local
from moe_jax.parallel import (
  axes as axes_lib,
  collectives,
  compat,
  mesh as mesh_lib,
  rules,
)
from moe_jax.routers import base as routers
from moe_jax.seating import capacity, orders, seat as seating

BRANCHES = ('none', 'shared', 'gated')


@dataclasses.dataclass(frozen=True)
class MoE:
  """An MoE layer. Its methods and mesh are objects, or their call strings.

  Attributes:
    num_experts: E.
    router, experts, dispatch: the methods.
    balance: balancing rules, all different.
    group_size: T, tokens of a group; divides the tokens of a device, or is
      made to where groups mean nothing (`groups.size`).
    capacity_factor: what `capacity_rule` makes the rows of an expert from, by
      default units of the mean load; None is dropless.
    eval_capacity_factor: the same when `train` is False.
    capacity_rule: from seating.capacity.
    seating: who is seated first, from seating.orders.
    route_padding: padding is routed like any token: it takes seats and enters
      the losses (T5X, Hugging Face).
    identical_experts: all experts start equal (V-MoE).
    dense_branch: 'none'; 'shared' adds an FFN that every token takes
      (DeepSeekMoE's shared experts, arXiv:2401.06066, section 3.2); 'gated'
      multiplies it by sigmoid(x w) (Qwen2-MoE).
    dense: the kind of that FFN.
    local_experts: kinds of zero-computation experts, counted after the
      `num_experts` others by routers and rules, and never sent anywhere.
    record: whether the aux holds all edges.
    mesh: four-axis mesh; None is one device.
    dtype: of the computation; parameters are float32.
  """

  num_experts: int
  router: routers.Router
  experts: experts_base.Experts
  dispatch: dispatching.Dispatch
  balance: tuple[balancing.Balance, ...] = ()
  group_size: int = 1024
  capacity_factor: float | None = 1.25
  eval_capacity_factor: float | None = 2.0
  capacity_rule: capacity.Rule = 'per_choice()'
  seating: orders.Order = 'rank_major()'
  route_padding: bool = False
  identical_experts: bool = False
  dense_branch: str = 'none'
  dense: experts_base.Experts | None = None
  local_experts: tuple[local.LocalExperts, ...] = ()
  record: bool = False
  mesh: jax.sharding.Mesh | None = None
  dtype: Any = jnp.float32

  def __post_init__(self):
    methods.build(self)
    balancing.check_router(self.balance, self.router)
    if self.router.reads_experts and self.local_experts:
      raise UserError(
        f'local_experts={self.local_experts}: they have no weights for the '
        f'router {routers.name(self.router)} to read; valid with it: ()'
      )
    if self.dense_branch not in BRANCHES:
      raise UserError(
        f'dense_branch={self.dense_branch!r}; valid: {", ".join(BRANCHES)}'
      )
    if self.dense_branch != 'none' and self.dense is None:
      raise UserError(
        f"dense_branch={self.dense_branch!r} needs dense, the FFN's kind"
      )

  def initializers(self, D: int) -> dict[str, Callable[[jax.Array], Any]]:
    """By name of the parameters, what makes them from a key, for width D."""
    E = self.num_routed
    self.router.check(E)
    made = {
      'router': lambda key: self.router.init(key, E, D),
      'experts': lambda key: self._init_experts(key, D),
    }
    if self.local_experts:
      made['local_experts'] = lambda key: local.init(self.local_experts, key, D)
    if self.dense_branch != 'none':
      made['dense'] = lambda key: {'ffn': self.ffn.init(key, D)}
    if self.dense_branch == 'gated':
      made['dense_gate'] = lambda key: mlp.init_gate(key, D)
    return made

  def init(self, key: jax.Array, D: int) -> dict[str, Any]:
    """float32 parameters for model width D."""
    return {
      name: init(jax.random.fold_in(key, i))
      for i, (name, init) in enumerate(self.initializers(D).items())
    }

  def axes(self, D: int) -> dict[str, Any]:
    """Logical axes of the parameters: tuples where `init` has arrays."""
    shapes = jax.eval_shape(lambda: self.init(jax.random.key(0), D))
    replicated = lambda v: (None,) * v.ndim
    own = {'experts': self.experts.axes}
    if 'dense' in shapes:
      own['dense'] = {'ffn': self.ffn.axes()}
    return jax.tree.map(replicated, shapes) | own

  def init_state(self) -> dict[str, Any]:
    """States of the balancing rules by name; {} where none has one."""
    return balancing.init_states(self.balance, self.num_routed)

  def update(self, state: dict[str, Any], stats) -> dict[str, Any]:
    """The state after an optimizer step.

    Args:
      state: of this layer; or of several, with leading axes.
      stats: `MoEAux.stats` of the step's whole batch.
    """
    return balancing.update_states(self.balance, state, stats)

  def __call__(
    self,
    params: dict[str, Any],
    state: dict[str, Any],
    x_BLD: jax.Array,
    tokens: types.Tokens | None = None,
    carry: Any = (),
    key: streams.Key = None,
    *,
    train: bool,
    layer: int | jax.Array = 0,
  ) -> tuple[jax.Array, Any, types.MoEAux]:
    """Runs the layer.

    Args:
      params: as from `init`.
      state: as from `init_state`.
      x_BLD: tokens, any float dtype.
      tokens: types.Tokens, or None; without a mask there is no padding.
      carry: what the previous MoE layer returned, leaves [B, L, ...]; ().
      key: of this layer and step, or one for each of the STREAMS that are
        drawn from; None where none is.
      train: capacity factor and noise of training.
      layer: int32, the number of this MoE layer in its stack.

    Returns:
      y_BLD in `dtype`, the carry for the next MoE layer, and MoEAux, summed
      over the whole batch.

    Raises:
      ValueError: group_size does not divide the tokens of a device (with the
        sizes that do), methods that do not fit the number of experts, or no key
        for what is random.
    """
    B, L, _ = x_BLD.shape
    mesh = self.mesh or mesh_lib.single()
    self.router.check(self.num_routed)
    tokens = tokens or types.Tokens()
    if tokens.mask is None or self.route_padding:
      tokens = tokens.replace(mask=jnp.ones((B, L), bool))
    # Padding may hold anything, and 0 times NaN is NaN.
    x_BLD = jnp.where(tokens.mask[..., None], x_BLD, 0)
    axes = axes_lib.make(mesh.shape)
    devices = axes.size(axes.batch)
    if B % devices:
      raise UserError(
        f'batch {B} is not divisible by the {devices} devices of the batch '
        f'axes {axes.batch}'
      )
    T = self.tokens_of_group(B * L // devices, train)
    keys = streams.split(key)

    region = functools.partial(
      self._region,
      T=T,
      capacity=self.capacities(T, self.factor(train)),
      axes=axes,
      train=train,
    )
    batch = rules.spec(('batch',), mesh.shape)
    of_experts = {
      k: rules.spec(v, mesh.shape) for k, v in self.experts.axes.items()
    }
    shared = {
      'router': params['router'],
      'local': params.get('local_experts', {}),
      'states': state,
      'key': keys['router'],
      'drop_key': streams.wanted(keys['dropout'], self.draws(train)),
      'step': tokens.step,
      'part': tokens.part,
      'layer': jnp.asarray(layer, jnp.int32),
    }
    y_BLD, carry, record, aux = jax.shard_map(
      region,
      mesh=mesh,
      in_specs=(batch, batch, batch, of_experts, P()),
      out_specs=(batch, batch, batch, P()),
    )(
      x_BLD.astype(self.dtype),
      tokens.replace(step=None, part=None),
      carry,
      params['experts'],
      shared,
    )
    if self.dense_branch != 'none':
      y_BLD += self._dense_branch(params, x_BLD, keys['dense'], train)
    return y_BLD, carry, aux.replace(record=record)

  @property
  def num_local(self) -> int:
    """Zero-computation experts."""
    return sum(kind.count for kind in self.local_experts)

  @property
  def num_routed(self) -> int:
    """E, experts that routers and rules see: these are among them."""
    return self.num_experts + self.num_local

  @property
  def ffn(self) -> mlp.FFN:
    """What `dense_branch` adds."""
    return mlp.FFN(self.dense, self.mesh, self.dtype)

  def draws(self, train: bool) -> bool:
    """Whether a call draws from 'dropout'."""
    return train and (self.experts.dropout > 0 or self.dispatch.random)

  def factor(self, train: bool) -> float | None:
    """The capacity factor of training or evaluation; None is dropless."""
    return self.capacity_factor if train else self.eval_capacity_factor

  def tokens_of_group(self, tokens: int, train: bool) -> int:
    """T, of so many tokens of a device; a ValueError where none fits."""
    factor = self.factor(train)
    return groups.size(self.group_size, tokens, self.router, factor, train)

  def rows(self, T: int, factor: float | None) -> int:
    """C, rows of an expert in a group of T tokens."""
    return self.capacities(T, factor)[0][0]

  def capacities(self, T: int, factor: float | None):
    """((rows, experts), ...): of those that are sent, and of the local ones."""
    E, Z = self.num_experts, self.num_local
    K = self.router.experts_per_token(E + Z)
    most = self.router.most_edges(T)
    C, C_local = capacity.rows(self.capacity_rule, factor, T, K, E, Z, most)
    return ((C, E), (C_local, Z)) if Z else ((C, E),)

  def _init_experts(self, key, D):
    E, same = self.num_experts, self.identical_experts
    return experts_base.initialise(self.experts, key, E, D, same)

  def _region(
    self, x_BLD, tokens, carry, w_experts, shared, *, T, capacity, axes, train
  ):
    """One device's share: whole groups of local tokens, local experts."""
    B, L, D = x_BLD.shape
    grouped = lambda v: v.reshape(B * L // T, T, *v.shape[2:])
    whole = lambda over: weights.whole(
      w_experts, self.experts.axes, axes, over, self.dtype
    )
    w_router = weights.varying(shared['router'], axes.batch)
    x_GTD = grouped(x_BLD)

    with jax.named_scope('router'):
      ctx, in_axes = context.make(
        self.balance,
        self.num_routed,
        *jax.tree.map(grouped, (tokens, carry)),
        shared,
        self._features(whole, axes),
        axes,
        train=train,
        num_local=self.num_local,
      )
      route = jax.vmap(self.router, (None, 0, in_axes))
      r = route(w_router, x_GTD, ctx).replace(num_local=self.num_local)
    self._check(r, ctx)

    with jax.named_scope('seating'):
      seat = lambda r, mask_T, key: seating.seat(
        self.seating(r, key), capacity, mask_T
      )
      keys = orders.keys(self.seating, ctx.key, train)
      seated = jax.vmap(seat)(r, ctx.mask_T, keys)
      sent = jax.vmap(seating.sent)(seated)

    # One sum over the model axis in the backward pass, on tokens, not on rows.
    over = axes.batch + axes.model
    rows_GTD = compat.device_varying(x_GTD, over)
    y_GTD, cause_GN = self.dispatch(
      self.experts, whole(over), rows_GTD, sent, axes, shared['drop_key']
    )
    y_GTD = collectives.psum(y_GTD, axes.model, name='model_sum')
    if self.local_experts:
      with jax.named_scope('local_experts'):
        near = functools.partial(local.evaluate, self.local_experts)
        y_GTD += jax.vmap(near, (None, 0, 0))(shared['local'], x_GTD, seated)

    with jax.named_scope('balancing'):
      seen = self.balance, shared['states'], shared['router']
      aux = statistics.of(*seen, r, cause_GN, ctx, tokens, axes)
    record = {}
    if self.record:
      record = statistics.edges(r, seated, cause_GN, T)
    carry = jax.tree.map(lambda v: v.reshape(B, L, *v.shape[2:]), r.carry)
    return y_GTD.reshape(B, L, D), carry, record, aux

  def _check(self, r, ctx):
    """Raises ValueError where router, rules and dispatch do not fit."""
    name = type(self.router).__name__
    if ctx.solve and r.solved_E is None:
      raise UserError(
        f'the router {name} shows no scores to the balancing rule that solves '
        'for a bias'
      )
    if type(r) is not self.dispatch.routing:
      raise UserError(
        f'the router {name} and the dispatch {type(self.dispatch).__name__} do '
        'not go together'
      )

  def _features(self, whole, axes):
    """What the routers see of the experts' weights, of all experts."""
    if not self.router.reads_experts:
      return {}
    total = lambda v: collectives.psum(v, axes.model, name='features')
    gather = lambda v: collectives.all_gather(
      v, axes.expert, dim=0, name='routing_features'
    )
    own = self.experts.routing_features(whole(axes.batch), total)
    return jax.tree.map(gather, own)

  def _dense_branch(self, params, x_BLD, key, train):
    with jax.named_scope('dense'):
      y_BLD = self.ffn(params['dense']['ffn'], x_BLD, key, train=train)
      if self.dense_branch == 'gated':
        y_BLD = mlp.gated(y_BLD, x_BLD, params['dense_gate'])
    return y_BLD
