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
from moe_jax.experts import base as experts_base
from moe_jax.layers import mlp
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
  """An MoE layer.

  Attributes:
    num_experts: E.
    router, experts, dispatch: the methods.
    balance: balancing rules, all different.
    group_size: T, tokens of a group; divides the tokens of a device.
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
  mesh: jax.sharding.Mesh | None = None
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x_BLD, mask_BL=None, carry=(), *, train: bool):
    """Runs the layer.

    Args:
      x_BLD: tokens, any float dtype.
      mask_BL: bool, False on padding, which no expert sees; None is no padding.
      carry: what the previous MoE layer returned, leaves [B, L, ...]; ().
      train: capacity factor and noise of training.

    Returns:
      y_BLD in `dtype`, the carry for the next MoE layer, and MoEAux, summed
      over the whole batch.

    Raises:
      ValueError: group_size does not divide the tokens of a device (with the
        sizes that do), or methods that do not fit the number of experts.
    """
    B, L, D = x_BLD.shape
    E = self.num_experts
    mesh = self.mesh or mesh_lib.single()
    self.router.check(E)
    if mask_BL is None or self.route_padding:
      mask_BL = jnp.ones((B, L), bool)
    factor = self.capacity_factor if train else self.eval_capacity_factor
    axes = axes_lib.make(mesh.shape)
    devices = axes.size(axes.batch)
    if B % devices:
      raise ValueError(
        f'batch {B} is not divisible by the {devices} devices of the batch '
        f'axes {axes.batch}'
      )
    T = group_size(self.group_size, B * L // devices, factor)

    w_router = self.param('router', self._init_router, D)
    w_experts = self.param('experts', self._init_experts, D)
    states = {}
    if balancing.init_states(self.balance, E):
      states = self.variable(
        'balance', 'state', balancing.init_states, self.balance, E
      ).value
    bias_E = balancing.selection_bias(self.balance, states, E)
    key = self.make_rng('router') if self.has_rng('router') else None
    drop_key = None
    if train and (self.experts.dropout or self.dispatch.random):
      drop_key = self.make_rng('dropout')

    C = self.rows(T, factor)
    region = functools.partial(self._region, T=T, C=C, axes=axes, train=train)
    tokens = rules.spec(('batch',), mesh.shape)
    logical = self.experts.axes
    weights = {k: rules.spec(v, mesh.shape) for k, v in logical.items()}
    y_BLD, carry, aux = jax.shard_map(
      region,
      mesh=mesh,
      in_specs=(tokens, tokens, tokens, P(), weights, P(), P(), P()),
      out_specs=(tokens, tokens, P()),
    )(
      x_BLD.astype(self.dtype),
      mask_BL,
      carry,
      w_router,
      w_experts,
      bias_E,
      key,
      drop_key,
    )

    if self.dense_branch != 'none':
      y_BLD += self._dense_branch(x_BLD, train)
    return y_BLD, carry, aux

  def rows(self, T: int, factor: float | None) -> int:
    """C, rows of an expert in a group of T tokens."""
    K = self.router.experts_per_token(self.num_experts)
    return capacity.rows(self.capacity_rule, factor, T, K, self.num_experts)

  def leak(self) -> str:
    """Why a token may depend on later ones of its group; '' where none does."""
    E, T = self.num_experts, self.group_size
    if not self.router.causal:
      return f'the router {type(self.router).__name__} sees the whole group'
    factors = (self.capacity_factor, self.eval_capacity_factor)
    if all(self.rows(T, f) >= T for f in factors):
      return ''
    choices = self.router.experts_per_token(E)
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
    return jax.tree.map(replicated, self.router.init(key, self.num_experts, D))

  def _init_experts(self, key, D):
    E, axes = self.num_experts, self.experts.axes
    params = self.experts.init(key, 1 if self.identical_experts else E, D)
    params = {
      k: jnp.broadcast_to(v, (E, *v.shape[1:])) for k, v in params.items()
    }
    return {k: nn.LogicallyPartitioned(v, axes[k]) for k, v in params.items()}

  def _region(
    self, x_BLD, mask_BL, carry, w_router, w_experts, bias_E, key, drop_key,
    *, T, C, axes, train
  ):  # fmt: skip
    """One device's share: whole groups of local tokens, local experts."""
    B, L, D = x_BLD.shape
    E, G = self.num_experts, B * L // T
    grouped = lambda v: v.reshape(G, T, *v.shape[2:])
    x_GTD, mask_GT = grouped(x_BLD), grouped(mask_BL)

    with jax.named_scope('router'):
      ctx = types.Context(
        key=None,
        mask_T=mask_GT,
        selection_bias_E=bias_E,
        carry=jax.tree.map(grouped, carry),
        train=train,
      )
      over = types.Context(
        key=None, mask_T=0, selection_bias_E=None, carry=0, train=train
      )
      if key is not None:
        # Noise follows the group's place in the batch, never the device.
        group_G = dispatching.local_groups(axes, G)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, group_G)
        ctx, over = ctx.replace(key=keys), over.replace(key=0)
      r = jax.vmap(self.router, (None, 0, over))(w_router, x_GTD, ctx)

    with jax.named_scope('seating'):
      seat = lambda r, mask_T: seating.seat(self.seating(r), (C,) * E, mask_T)
      seated = jax.vmap(seat)(r, mask_GT)

    def whole(name, shard):
      logical, shard = self.experts.axes[name], shard.astype(self.dtype)
      if 'embed' not in logical:
        return shard
      return collectives.all_gather(
        shard, axes.fsdp, dim=logical.index('embed'), name='fsdp_gather'
      )

    w_experts = {k: whole(k, v) for k, v in w_experts.items()}
    # One sum over the model axis in the backward pass, on tokens, not on rows.
    x_GTD = compat.device_varying(x_GTD, axes.batch + axes.model)
    y_GTD, cause_GN = self.dispatch(
      self.experts, w_experts, x_GTD, seated, axes, drop_key
    )
    y_GTD = collectives.psum(y_GTD, axes.model, name='model_sum')

    with jax.named_scope('balancing'):
      loss, losses, stats = balancing.evaluate(
        self.balance, r, mask_GT, B, axes.batch
      )
      sums = balancing.Sums(r, mask_GT, 1)
      real = jnp.float32(1), jnp.float32(0)
      if r.probs_TE is not None:
        p = r.probs_TE
        entropy_GT = -(p * jnp.log(jnp.maximum(p, 1e-30))).sum(-1)
        real = sums.count()[0], sums.tokens(entropy_GT)[0]
      cause = jnp.stack(
        [(cause_GN == c).sum() for c in range(len(types.CAUSES))]
      )
      load_E, cause, real = collectives.psum(
        (sums.load()[0], cause.astype(jnp.int32), real),
        axes.batch,
        name='moe_stats',
      )
      entropy = real[1] / jnp.maximum(real[0], 1)
    aux = types.MoEAux(loss, losses, stats, load_E, cause, entropy)
    carry = jax.tree.map(lambda v: v.reshape(B, L, *v.shape[2:]), r.carry)
    return y_GTD.reshape(B, L, D), carry, aux

  def _dense_branch(self, x_BLD, train):
    if self.dense_branch not in BRANCHES:
      raise ValueError(
        f'dense_branch={self.dense_branch!r}; valid: {", ".join(BRANCHES)}'
      )
    y_BLD = mlp.FFN(self.dense, self.mesh, self.dtype, name='dense')(
      x_BLD, train=train
    )
    if self.dense_branch == 'gated':
      init = nn.with_logical_partitioning(
        nn.initializers.variance_scaling(0.1, 'fan_in', 'truncated_normal'),
        (None, None),
      )
      w_D1 = self.param('dense_gate', init, (x_BLD.shape[-1], 1), jnp.float32)
      gate = jax.nn.sigmoid(x_BLD.astype(jnp.float32) @ w_D1)
      y_BLD *= gate.astype(self.dtype)
    return y_BLD


def group_size(size: int, tokens: int, factor: float | None) -> int:
  """The group size to use for this many tokens of a device.

  Dropless routing has no groups to speak of, and takes any divisor; with a
  capacity the size is part of the method and must fit.

  Raises:
    ValueError: names the sizes that fit.
  """
  if tokens % size == 0:
    return size
  sizes = [n for n in range(1, tokens + 1) if tokens % n == 0]
  if factor is None:
    return max(n for n in sizes if n <= size)
  near = sorted(sizes, key=lambda n: abs(n - size))[:6]
  raise ValueError(
    f'moe.group_size={size} does not divide the {tokens} tokens of a device; '
    f'sizes that do, nearest first: {", ".join(map(str, near))}'
  )
