"""A stack of Transformer blocks, scanned over its repeating period."""

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from absl import logging

from moe_jax import types
from moe_jax.errors import UserError
from moe_jax.experts import base as experts_base
from moe_jax.layers import (
  attention,
  causality,
  embeddings,
  linen,
  mlp,
  moe as moe_layer,
  norms,
)
from moe_jax.models import pattern
from moe_jax.parallel import collectives, rules

REMAT = ('none', 'full', 'dots', 'dispatch')
STACKING = ('none', 'before', 'after', 'parallel')


@dataclasses.dataclass(frozen=True)
class StackConfig:
  """What the blocks of a stack have in common.

  Attributes:
    num_layers, d_model, num_heads, d_head: sizes.
    sparse: by layer, whether its FFN is an MoE.
    ffn: kind of the dense FFNs.
    moe: the MoE layers, or None; blocks give them mesh and dtype.
    share_experts: adjacent MoE layers that have one set of experts, each with
      a router of its own (ReXMoE, arXiv:2510.17483).
    extra_ffn: in sparse layers, a dense FFN sub-layer with its own norm and
      residual 'before' or 'after' the MoE (ST-MoE, arXiv:2202.08906, appendix
      C) or in 'parallel' to it, from the same residual (Arctic); 'none'.
    positions: 'rope' or 'relative' (T5's, without scaled products).
    qk_norm: as in attention.Attention.
    norm_scale: whether norms have a gain; those of queries and keys, too.
    causal: no token sees a later one.
    cross: blocks attend to an encoder's output.
    dropout: rate after every sub-layer, on the attention weights, and on the
      stack's input and output, as in T5; FFNs have their own.
    allow_noncausal: let an MoE layer of a causal stack depend on later tokens.
    init_scale: variance factor of all kernels.
    scan: compile one period as a loop; False unrolls it. Parameters have the
      same layout either way.
    remat: what backward may reuse: 'none' recomputes nothing, 'full' a whole
      period, 'dots' all but matrix products, 'dispatch' all but what the
      all-to-alls brought, so that they do not run again.
    mesh, dtype: of the computation.
  """

  num_layers: int
  d_model: int
  num_heads: int
  d_head: int
  sparse: tuple[bool, ...]
  ffn: experts_base.Experts
  moe: moe_layer.MoE | None = None
  share_experts: int = 1
  extra_ffn: str = 'none'
  positions: str = 'rope'
  qk_norm: bool = False
  norm_scale: bool = True
  causal: bool = True
  cross: bool = False
  dropout: float = 0.0
  allow_noncausal: bool = False
  init_scale: float = 1.0
  scan: bool = True
  remat: str = 'none'
  mesh: Any = None
  dtype: Any = jnp.float32

  def __post_init__(self):
    for name, valid in (
      ('remat', REMAT),
      ('extra_ffn', STACKING),
      ('positions', ('rope', 'relative')),
    ):
      if getattr(self, name) not in valid:
        raise UserError(
          f'{name}={getattr(self, name)!r}; valid: {", ".join(valid)}'
        )
    pattern.places(self.sparse, self.share_experts)  # or raises
    if self.causal and self.moe is not None:
      self._check_causal()

  @property
  def places(self) -> tuple[int, ...]:
    """By layer, as `pattern.places`."""
    return pattern.places(self.sparse, self.share_experts)

  def _check_causal(self):
    leak = causality.leak(self.moe, self.d_model)
    if leak and not self.allow_noncausal:
      raise UserError(
        f'a decoder with this MoE layer is not causal: {leak}, so the model '
        "learns to read the future from its drops; use seating='token_major()',"
        ' a capacity that cannot bind (0 is dropless), or allow_noncausal=True'
      )
    if leak:
      logging.log_first_n(
        logging.WARNING, 'the decoder is not causal: %s', 1, leak
      )


class Block(nn.Module):
  """Pre-norm attention and FFN (or MoE) sub-layers with residuals."""

  config: StackConfig
  is_sparse: bool
  train: bool
  cache_length: int = 0

  @nn.compact
  def __call__(self, state, shared, pool=None):
    """One block.

    Args:
      state: x_BLD, the number of MoE layers before, what the last one left.
      shared: what all blocks use.
      pool: the experts of a group of MoE layers, None for its own.

    Returns:
      The state, and the MoEAux or ().
    """
    c, (x, layer, carry) = self.config, state
    norm = lambda name: norms.RMSNorm(c.dtype, scaled=c.norm_scale, name=name)(
      x
    )
    drop = nn.Dropout(c.dropout, deterministic=not self.train)
    attend = lambda name, rope, causal, cache_length: attention.Attention(
      c.num_heads,
      c.d_head,
      rope,
      c.qk_norm,
      scaled=c.positions == 'rope',
      init_scale=c.init_scale,
      norm_scale=c.norm_scale,
      dropout=0.0 if not self.train else c.dropout,
      causal=causal,
      cache_length=cache_length,
      mesh=c.mesh,
      dtype=c.dtype,
      name=name,
    )
    h = norm('attention_norm')
    causal = c.causal and not self.cache_length
    rope = c.positions == 'rope'
    attention_ = attend('attention', rope, causal, self.cache_length)
    x += drop(
      attention_(h, h, shared['mask'], shared['positions'], shared['bias'])
    )
    if c.cross:
      h = norm('cross_norm')
      cross = attend('cross', False, False, 0)
      x += drop(cross(h, shared['encoded'], shared['cross_mask']))
    ffn = lambda name: functools.partial(
      linen.FFN(mlp.FFN(c.ffn, c.mesh, c.dtype), name=name), train=self.train
    )
    if not self.is_sparse:
      x += drop(ffn('ffn')(norm('ffn_norm')))
      return (x, layer, carry), ()
    if c.extra_ffn == 'before':
      x += drop(ffn('extra')(norm('extra_norm')))
    core = dataclasses.replace(c.moe, mesh=c.mesh, dtype=c.dtype)
    y, carry, aux = linen.MoE(core, name='moe')(
      norm('moe_norm'),
      shared['tokens'],
      carry,
      pool,
      train=self.train,
      layer=layer,
    )
    y = drop(y)
    if c.extra_ffn == 'parallel':
      y += drop(ffn('extra')(norm('extra_norm')))
    x += y
    if c.extra_ffn == 'after':
      x += drop(ffn('extra')(norm('extra_norm')))
    return (x, layer + 1, carry), aux


def blocks(config, kinds, make, pool_name, state, shared):
  """Runs adjacent blocks, giving those of a group its experts.

  Args:
    config: the stack's.
    kinds: as `pattern.places`; whole groups.
    make: (number, whether sparse) -> Block.
    pool_name: of the experts of groups, by the number of their first block.
    state, shared: as Block takes them.

  Returns:
    The state, and the MoEAux by the sparse block's name.
  """
  aux, pool = {}, None
  for i, place in enumerate(kinds):
    if place == 1 and config.share_experts > 1:
      name = pool_name.format(i)
      pool = linen.Pool(config.moe, config.d_model, name=name)()
    block = make(i, place > 0)
    state, a = block(state, shared, pool if place else None)
    if place:
      aux[block.name] = a
  return state, aux


class Period(nn.Module):
  """The blocks of one period; scanned."""

  config: StackConfig
  kinds: tuple[int, ...]
  train: bool
  cache_length: int = 0

  @nn.compact
  def __call__(self, state, shared):
    c = self.config
    make = lambda i, sparse: Block(
      c, sparse, self.train, self.cache_length, name=f'block_{i}'
    )
    return blocks(c, self.kinds, make, 'pool_{}', state, shared)


class Stack(nn.Module):
  """Blocks, final norm, and what the blocks share: masks, positions, bias.

  Attributes:
    config: the stack's.
    cache_length: S > 0 for decoding with a cache of S positions.
  """

  config: StackConfig
  cache_length: int = 0

  @nn.compact
  def __call__(
    self,
    x_BLD,
    position_BL,
    segment_BL,
    *,
    train: bool,
    encoded_BSD=None,
    encoded_segment_BS=None,
    tokens=None,
  ):
    """Runs the stack.

    Args:
      x_BLD: embeddings.
      position_BL: int32 positions within their segment.
      segment_BL: int32, 0 is padding; tokens see their own segment alone. With
        a cache all tokens are of one segment.
      train: dropout, router noise, capacity of training.
      encoded_BSD, encoded_segment_BS: an encoder's output, for cross-attention.
      tokens: types.Tokens, what else routers may ask for.

    Returns:
      [B, L, D] after the final norm, and the MoEAux by module name (leaves of
      'period' have a leading axis of repeats).
    """
    c = self.config
    tokens = (tokens or types.Tokens()).replace(
      mask=segment_BL > 0, positions=position_BL, segments=segment_BL
    )
    if self.cache_length:
      S = self.cache_length
      key_position = jnp.broadcast_to(jnp.arange(S), (x_BLD.shape[0], S))
      mask_BLS = key_position[:, None] <= position_BL[:, :, None]
    else:
      key_position = position_BL
      mask_BLS = segment_BL[:, :, None] == segment_BL[:, None]
      if c.causal:
        L = x_BLD.shape[1]
        mask_BLS &= jnp.tril(jnp.ones((L, L), bool))
    shared = {
      'mask': mask_BLS,
      'positions': position_BL,
      'tokens': tokens,
      'bias': None,
    }
    if c.positions == 'relative':
      bias = embeddings.RelativeBias(c.num_heads, not c.causal, name='relative')
      shared['bias'] = bias(position_BL, key_position)
    if c.cross:
      shared['encoded'] = encoded_BSD
      shared['cross_mask'] = (
        segment_BL[:, :, None] == encoded_segment_BS[:, None]
      )
    drop = nn.Dropout(c.dropout, deterministic=not train)
    x_BLD = rules.constrain(drop(x_BLD), ('batch', None, None), c.mesh)
    state, aux = (x_BLD, jnp.int32(0), self._first_carry(x_BLD)), {}
    parts = pattern.split(c.places)

    def run(name, kinds, state):
      make = lambda i, sparse: self._remat(Block)(
        c, sparse, train, self.cache_length, name=f'{name}_{i}'
      )
      pool_name = name + '_pool_{}'
      state, found = blocks(c, kinds, make, pool_name, state, shared)
      aux.update(found)
      return state

    state = run('prefix', parts.prefix, state)
    if parts.repeats:
      scanned = nn.scan(
        self._remat(Period, scanned=True),
        variable_axes={'params': 0, 'balance': 0, 'cache': 0},
        split_rngs={'params': True, 'dropout': True, 'router': True},
        in_axes=nn.broadcast,
        length=parts.repeats,
        unroll=1 if c.scan else parts.repeats,
        metadata_params={nn.PARTITION_NAME: 'layers'},
      )
      period = scanned(c, parts.period, train, self.cache_length, name='period')
      state, aux['period'] = period(state, shared)
    state = run('suffix', parts.suffix, state)
    norm = norms.RMSNorm(c.dtype, scaled=c.norm_scale, name='final_norm')
    return drop(norm(state[0])), aux

  def _first_carry(self, x_BLD):
    if self.config.moe is None:
      return ()
    core, (B, L) = self.config.moe, x_BLD.shape[:2]
    carry = core.router.init_carry(B * L, core.num_routed)
    return jax.tree.map(lambda v: v.reshape(B, L, *v.shape[1:]), carry)

  def _remat(self, module, scanned=False):
    policies = jax.checkpoint_policies
    policy = {
      'full': policies.nothing_saveable,
      'dots': policies.dots_saveable,
      'dispatch': policies.save_only_these_names(
        collectives.DISPATCHED, collectives.RETURNED
      ),
    }
    if self.config.remat == 'none':
      return module
    return nn.remat(
      module, policy=policy[self.config.remat], prevent_cse=not scanned
    )


def tokens(batch: dict[str, Any], prefix: str = '') -> types.Tokens:
  """What a batch knows of the tokens of a stack, but what Stack is given."""
  ids = batch[prefix + 'inputs']
  return types.Tokens(
    ids=ids if jnp.issubdtype(ids.dtype, jnp.integer) else None,
    forced=batch.get(prefix + 'forced'),
    step=batch.get('step'),
    part=batch.get('part'),
  )


def aux_by_layer(aux, sparse: tuple[int, ...]) -> list[tuple[int, Any]]:
  """(layer index, its MoEAux) in layer order, from what Stack returned.

  Args:
    aux: what Stack returned.
    sparse: `StackConfig.places`, or `sparse` where no experts are shared.
  """
  out = []
  for layer, (module, block, repeat) in enumerate(pattern.layer_names(sparse)):
    if sparse[layer]:
      a = aux[module]
      if block is not None:
        a = jax.tree.map(lambda v, r=repeat: v[r], a[block])
      out.append((layer, a))
  return out
