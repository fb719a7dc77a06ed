"""THE mixture-of-experts layer: it only composes.

A token's path: router (who, with what weight) -> seating (who fits) ->
dispatch (rows to experts and back) -> the weighted sum; balancing rules look
at the routing on the side. Everything from the router to the sum runs in one
`jax.shard_map` region, manual over all mesh axes; a mesh of one device runs
the same region.

  | array            | outside, global           | inside, per device          |
  | tokens           | [B, L, D] over batch axes | [G, T, D], whole groups     |
  | router           | [D, E] replicated         | the same                    |
  | experts          | [E, D, F] over expert,    | [e, D, F / model], gathered |
  |                  |   fsdp, model             |   over fsdp                 |
  | what they share  | [D, F] over fsdp, model   | [D, F / model], the same    |
  | aux              | replicated                | psum over batch axes        |
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from moe_jax import types
from moe_jax.balancing import base as balancing
from moe_jax.dispatch import base as dispatching
from moe_jax.errors import UserError
from moe_jax.experts import base as experts_base
from moe_jax.layers import context, groups, health, methods, mlp, weights
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


class MoE(nn.Module):
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
  capacity_rule: capacity.Rule = capacity.per_choice()
  seating: orders.Order = orders.RankMajor()
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
    super().__post_init__()

  @nn.compact
  def __call__(
    self, x_BLD, tokens=None, carry=(), pool=None, *, train: bool, layer=0
  ):
    """Runs the layer.

    Args:
      x_BLD: tokens, any float dtype.
      tokens: types.Tokens, or None; without a mask there is no padding.
      carry: what the previous MoE layer returned, leaves [B, L, ...]; ().
      pool: parameters of experts that layers share; None for its own.
      train: capacity factor and noise of training.
      layer: int32, the number of this MoE layer in its stack.

    Returns:
      y_BLD in `dtype`, the carry for the next MoE layer, and MoEAux, summed
      over the whole batch.

    Raises:
      ValueError: group_size does not divide the tokens of a device (with the
        sizes that do), or methods that do not fit the number of experts.
    """
    B, L, D = x_BLD.shape
    E = self.num_experts + self.num_local
    mesh = self.mesh or mesh_lib.single()
    self.router.check(E)
    tokens = tokens or types.Tokens()
    if tokens.mask is None or self.route_padding:
      tokens = tokens.replace(mask=jnp.ones((B, L), bool))
    # Padding may hold anything, and 0 times NaN is NaN.
    x_BLD = jnp.where(tokens.mask[..., None], x_BLD, 0)
    factor = self.capacity_factor if train else self.eval_capacity_factor
    axes = axes_lib.make(mesh.shape)
    devices = axes.size(axes.batch)
    if B % devices:
      raise UserError(
        f'batch {B} is not divisible by the {devices} devices of the batch '
        f'axes {axes.batch}'
      )
    T = self.tokens_of_group(B * L // devices, train)

    w_router = self.param('router', self._init_router, D)
    w_experts = pool or self.param('experts', self.init_experts, D)
    w_local = {}
    if self.local_experts:
      w_local = self.param('local_experts', self._init_local, D)
    states = {}
    if balancing.init_states(self.balance, E):
      states = self.variable(
        'balance', 'state', balancing.init_states, self.balance, E
      ).value
    key = self.make_rng('router') if self.has_rng('router') else None
    drop_key = None
    if train and (self.experts.dropout or self.dispatch.random):
      drop_key = self.make_rng('dropout')

    region = functools.partial(
      self._region,
      T=T,
      capacity=self.capacities(T, factor),
      axes=axes,
      train=train,
    )
    batch = rules.spec(('batch',), mesh.shape)
    logical = self.experts.axes
    weights = {k: rules.spec(v, mesh.shape) for k, v in logical.items()}
    step, part = tokens.step, tokens.part
    tokens = tokens.replace(step=None, part=None)
    y_BLD, carry, record, aux = jax.shard_map(
      region,
      mesh=mesh,
      in_specs=(batch, batch, batch, weights, P()),
      out_specs=(batch, batch, batch, P()),
    )(
      x_BLD.astype(self.dtype),
      tokens,
      carry,
      w_experts,
      {
        'router': w_router,
        'local': w_local,
        'states': states,
        'key': key,
        'drop_key': drop_key,
        'step': step,
        'part': part,
        'layer': jnp.asarray(layer, jnp.int32),
      },
    )
    aux = aux.replace(record=record)

    if self.dense_branch != 'none':
      y_BLD += self._dense_branch(x_BLD, train)
    return y_BLD, carry, aux

  @property
  def num_local(self) -> int:
    """Zero-computation experts."""
    return sum(kind.count for kind in self.local_experts)

  def tokens_of_group(self, tokens: int, train: bool) -> int:
    """T, of so many tokens of a device; a ValueError where none fits."""
    factor = self.capacity_factor if train else self.eval_capacity_factor
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

  def leak(self) -> str:
    """Why a token may depend on later ones of its group; '' where none does."""
    E, T = self.num_experts, self.group_size
    if not self.router.causal:
      return f'the router {type(self.router).__name__} sees the whole group'
    factors = (self.capacity_factor, self.eval_capacity_factor)
    if all(self.rows(T, f) >= self.router.most_edges(T) for f in factors):
      return ''
    choices = self.router.experts_per_token(E + self.num_local)
    if self.router.first_fit:
      return 'all first choices are seated before any second try'
    if not self.seating.causal(choices):
      return (
        f'where capacity binds, {type(self.seating).__name__} seating of '
        f'{choices:g} choices gives seats of earlier tokens to later ones'
      )
    return ''

  def _init_router(self, key, D):
    replicated = lambda v: nn.LogicallyPartitioned(v, (None,) * v.ndim)
    E = self.num_experts + self.num_local
    return jax.tree.map(replicated, self.router.init(key, E, D))

  def _init_local(self, key, D):
    replicated = lambda v: nn.LogicallyPartitioned(v, (None,) * v.ndim)
    return jax.tree.map(replicated, local.init(self.local_experts, key, D))

  def init_experts(self, key: jax.Array, D: int):
    """Parameters of the experts for width D, with their logical axes."""
    E, axes = self.num_experts, self.experts.axes
    w = experts_base.initialise(self.experts, key, E, D, self.identical_experts)
    return {k: nn.LogicallyPartitioned(v, axes[k]) for k, v in w.items()}

  def _region(
    self, x_BLD, tokens, carry, w_experts, shared, *, T, capacity, axes, train
  ):
    """One device's share: whole groups of local tokens, local experts."""
    B, L, D = x_BLD.shape
    E, G = self.num_experts + self.num_local, B * L // T
    grouped = lambda v: v.reshape(G, T, *v.shape[2:])
    x_GTD, mask_GT = grouped(x_BLD), grouped(tokens.mask)

    def whole(over):
      logical = self.experts.axes
      return weights.whole(w_experts, logical, axes, over, self.dtype)

    w_router = weights.varying(shared['router'], axes.batch)

    with jax.named_scope('router'):
      states = shared['states']
      bias_E = balancing.selection_bias(self.balance, states, E, train)
      forced = tokens.forced
      if forced is not None:
        forced = forced[:, :, shared['layer']]
      by_group = {
        'mask_T': tokens.mask,
        'ids_T': tokens.ids,
        'positions_T': tokens.positions,
        'segments_T': tokens.segments,
        'forced_TK': forced,
        'carry': carry,
      }
      by_group = jax.tree.map(grouped, by_group)
      same = {
        'selection_bias_E': bias_E,
        'step': shared['step'],
        'layer': shared['layer'],
        'features': self._features(whole(axes.batch), axes)
        if self.router.reads_experts
        else {},
      }
      if shared['key'] is not None:
        by_group['key'], same['layer_key'] = context.keys(
          shared['key'], axes, G, shared['part']
        )
      static = {'num_local': self.num_local, 'train': train}
      if train:
        total = lambda v: collectives.psum(
          context.over_groups(v), axes.batch, name='solve'
        )
        static['solve'] = balancing.solver(self.balance, states, total)
      ctx, in_axes = context.make(by_group, same, static)
      route = jax.vmap(self.router, (None, 0, in_axes))
      r = route(w_router, x_GTD, ctx).replace(num_local=self.num_local)
    if ctx.solve and r.solved_E is None:
      raise UserError(
        f'the router {type(self.router).__name__} shows no scores to the '
        'balancing rule that solves for a bias'
      )
    if type(r) is not self.dispatch.routing:
      raise UserError(
        f'the router {type(self.router).__name__} and the dispatch '
        f'{type(self.dispatch).__name__} do not go together'
      )

    with jax.named_scope('seating'):
      seat = lambda r, mask_T, key: seating.seat(
        self.seating(r, key), capacity, mask_T
      )
      keys = orders.keys(self.seating, ctx.key, train)
      seated = jax.vmap(seat)(r, mask_GT, keys)
      sent = jax.vmap(seating.sent)(seated)

    x_own = x_GTD
    # One sum over the model axis in the backward pass, on tokens, not on rows.
    x_GTD = compat.device_varying(x_GTD, axes.batch + axes.model)
    y_GTD, cause_GN = self.dispatch(
      *(self.experts, whole(axes.batch + axes.model), x_GTD),
      *(sent, axes, shared['drop_key']),
    )
    y_GTD = collectives.psum(y_GTD, axes.model, name='model_sum')
    if self.local_experts:
      with jax.named_scope('local_experts'):
        y_GTD += jax.vmap(
          functools.partial(local.evaluate, self.local_experts), (None, 0, 0)
        )(shared['local'], x_own, seated)

    with jax.named_scope('balancing'):
      loss, losses, stats = balancing.evaluate(
        self.balance, r, mask_GT, B, axes.batch, states, tokens.segments
      )
      sums = balancing.Sums(r, mask_GT, 1)
      cause = jnp.stack(
        [(cause_GN == c).sum() for c in range(len(types.CAUSES))]
      )
      load_E, cause, health_ = collectives.psum(
        (
          sums.load()[0],
          cause.astype(jnp.int32),
          health.sums(r, cause_GN, bias_E, sums),
        ),
        axes.batch,
        name='moe_stats',
      )
    aux = types.MoEAux(loss, losses, stats, load_E, cause, health_, {})
    carry = jax.tree.map(lambda v: v.reshape(B, L, *v.shape[2:]), r.carry)
    record = {}
    if self.record:
      record = {
        'token': r.token_N,
        'expert': r.expert_N,
        'weight': seated.routing.weight_N,
        'cause': cause_GN,
      }
    return y_GTD.reshape(B, L, D), carry, record, aux

  def _features(self, params, axes):
    """What the routers see of the experts' weights, of all experts."""
    total = lambda v: collectives.psum(v, axes.model, name='features')
    gather = lambda v: collectives.all_gather(
      v, axes.expert, dim=0, name='routing_features'
    )
    return jax.tree.map(gather, self.experts.routing_features(params, total))

  def _dense_branch(self, x_BLD, train):
    if self.dense_branch not in BRANCHES:
      raise UserError(
        f'dense_branch={self.dense_branch!r}; valid: {", ".join(BRANCHES)}'
      )
    ffn = mlp.FFN(self.dense, self.mesh, self.dtype, name='dense')
    y_BLD = ffn(x_BLD, train=train)
    if self.dense_branch == 'gated':
      init = nn.initializers.variance_scaling(0.1, 'fan_in', 'truncated_normal')
      init = nn.with_logical_partitioning(init, (None, None))
      w_D1 = self.param('dense_gate', init, (x_BLD.shape[-1], 1), jnp.float32)
      logit_BL1 = jnp.einsum(
        'bld,de->ble',
        x_BLD.astype(jnp.float32),
        w_D1,
        precision=jax.lax.Precision.HIGHEST,
      )
      # In float32: the gradient of the gate is a sum over the width.
      y_BLD = (y_BLD * jax.nn.sigmoid(logit_BL1)).astype(self.dtype)
    return y_BLD
