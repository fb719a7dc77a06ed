"""A stack of Transformer blocks: a record each, scanned over their period."""

import dataclasses
import functools
import itertools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from moe_jax import types
from moe_jax.errors import UserError
from moe_jax.layers import attention, embeddings, linen, mlp, norms
from moe_jax.models import pattern, records
from moe_jax.parallel import collectives, rules


class Block(nn.Module):
  """Attention and FFN (or MoE) sub-layers with norms and residuals.

  Attributes:
    layer: what it is.
    config: the stack's.
  """

  layer: records.Layer
  config: records.StackConfig
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
    own, c, (x, number, carry) = self.layer, self.config, state
    drop = nn.Dropout(c.dropout, deterministic=not self.train)

    def norm(name, v, at):
      if c.norm_at != at:
        return v
      made = norms.RMSNorm(c.dtype, c.norm_eps, own.norm_scale, name=name)
      return made(v)

    before = lambda name: norm(name, x, 'input')
    after = lambda name, y: drop(norm(name, y, 'output')) * c.residual_scale
    attend = functools.partial(
      own.attention.module,
      own.attention,
      norm_scale=own.norm_scale,
      norm_eps=c.norm_eps,
      init_scale=c.init_scale,
      dropout=0.0 if not self.train else c.dropout,
      mesh=c.mesh,
      dtype=c.dtype,
    )
    h = before('attention_norm')
    mask, bias = shared['seen'][c.attentions.index(own.attention)]
    causal = c.causal and not self.cache_length
    y = attend(causal=causal, name='attention')(
      h, h, mask, shared['positions'], bias, shared['cached']
    )
    x += after('attention_norm', y)
    if c.cross:
      cross = attend(name='cross')
      y = cross(before('cross_norm'), shared['encoded'], shared['cross_mask'])
      x += after('cross_norm', y)

    def ffn(name):
      run = linen.FFN(mlp.FFN(own.ffn, c.mesh, c.dtype), name=name)
      y = run(before(f'{name}_norm'), train=self.train)
      return after(f'{name}_norm', y)

    if own.moe is None:
      return (x + ffn('ffn'), number, carry), ()
    if own.extra_ffn == 'before':
      x += ffn('extra')
    core = dataclasses.replace(own.moe, mesh=c.mesh, dtype=c.dtype)
    y, carry, aux = linen.MoE(core, name='moe')(
      before('moe_norm'),
      shared['tokens'],
      carry,
      pool,
      train=self.train,
      layer=number,
    )
    y = after('moe_norm', y)
    if own.extra_ffn == 'parallel':
      y += ffn('extra')
    x += y
    if own.extra_ffn == 'after':
      x += ffn('extra')
    return (x, number + 1, carry), aux


def blocks(layers, make, names, state, shared):
  """Runs adjacent blocks, giving those that share experts their pool.

  Args:
    layers: theirs; all of those that share experts.
    make: makes a Block, given layer and name.
    names: formats of the names of a block and of a pool, given a number; that
      of a pool is its first block's.
    state, shared: as Block takes them.

  Returns:
    The state, and the MoEAux by the sparse block's name.
  """
  aux, pool = {}, None
  block_name, pool_name = names
  sparse = [i for i, layer in enumerate(layers) if layer.moe is not None]
  after = dict(itertools.pairwise(sparse))
  for i, layer in enumerate(layers):
    if i in sparse and not layer.takes_experts:
      pool = None
      if i in after and layers[after[i]].takes_experts:
        D = state[0].shape[-1]
        pool = linen.Pool(layer.moe, D, name=pool_name.format(i))()
    name = block_name.format(i)
    block = make(layer, name=name)
    state, a = block(state, shared, pool if i in sparse else None)
    if i in sparse:
      aux[name] = a
  return state, aux


class Period(nn.Module):
  """The blocks of one period; scanned."""

  layers: tuple[records.Layer, ...]
  config: records.StackConfig
  train: bool
  cache_length: int = 0

  @nn.compact
  def __call__(self, state, shared):
    make = functools.partial(
      Block,
      config=self.config,
      train=self.train,
      cache_length=self.cache_length,
    )
    return blocks(self.layers, make, ('block_{}', 'pool_{}'), state, shared)


class Stack(nn.Module):
  """Blocks, final norm, and what the blocks share: masks, positions, bias.

  Attributes:
    config: the stack's.
    cache_length: S > 0 for decoding with a cache of S positions.
  """

  config: records.StackConfig
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
    c, parts = self.config, self.config.split
    tokens = (tokens or types.Tokens()).replace(
      mask=segment_BL > 0, positions=position_BL, segments=segment_BL
    )
    seen, cached = self._seen(position_BL, segment_BL)
    shared = {
      'seen': seen,
      'cached': cached,
      'positions': position_BL,
      'tokens': tokens,
    }
    if c.cross:
      shared['encoded'] = encoded_BSD
      shared['cross_mask'] = (
        segment_BL[:, :, None] == encoded_segment_BS[:, None]
      )
    drop = nn.Dropout(c.dropout, deterministic=not train)
    x_BLD = rules.constrain(drop(x_BLD), ('batch', None, None), c.mesh)
    state, aux = (x_BLD, jnp.int32(0), self._first_carry(x_BLD)), {}
    options = {
      'config': c,
      'train': train,
      'cache_length': self.cache_length,
    }

    def run(part, layers, state):
      make = functools.partial(self._remat(Block), **options)
      names = part + '_{}', part + '_pool_{}'
      state, found = blocks(layers, make, names, state, shared)
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
      period = scanned(parts.period, **options, name='period')
      state, aux['period'] = period(state, shared)
    state = run('suffix', parts.suffix, state)
    scaled = c.layers[-1].norm_scale
    norm = norms.RMSNorm(c.dtype, c.norm_eps, scaled, name='final_norm')
    return drop(norm(state[0])), aux

  def _seen(self, position_BL, segment_BL):
    """(mask [B, L, S], bias or None) for each of `config.attentions`.

    And where keys are cached, or None.
    """
    c, L, cached = self.config, position_BL.shape[1], None
    if self.cache_length:
      cached, key_position = self._cached(position_BL, segment_BL)
      mask_BLS = key_position[:, None] <= position_BL[:, :, None]
      mask_BLS &= key_position[:, None] >= 0
    else:
      key_position = position_BL
      mask_BLS = segment_BL[:, :, None] == segment_BL[:, None]
      if c.causal:
        mask_BLS &= jnp.tril(jnp.ones((L, L), bool))
    bias, seen = None, []
    for kind in c.attentions:
      near = kind.near(position_BL[:, :, None], key_position[:, None])
      mask = mask_BLS if near is None else mask_BLS & near
      if kind.positions.relative and bias is None:
        make = embeddings.RelativeBias(
          kind.num_heads, not c.causal, name='relative'
        )
        bias = make(position_BL, key_position)
      seen.append((mask, bias if kind.positions.relative else None))
    return tuple(seen), cached

  def _cached(self, position_BL, segment_BL):
    """Where this call's keys go, and the positions [B, S] of all; -1 is none.

    Rows fill their part of the cache at their own pace: padding is not kept.
    """
    B, S = position_BL.shape[0], self.cache_length
    none = lambda: jnp.full((B, S), -1, jnp.int32)
    position = self.variable('cache', 'position', none)
    end = self.variable('cache', 'end', jnp.zeros, B, jnp.int32)
    real_BL = segment_BL > 0
    slot_BL = end.value[:, None] + jnp.cumsum(real_BL, 1) - 1
    cached = attention.Cached(S, jnp.where(real_BL, slot_BL, S))
    if not self.is_initializing():
      rows = jnp.arange(B)[:, None]
      kept = position.value.at[rows, cached.slot_BL]
      position.value = kept.set(position_BL, mode='drop')
      end.value += real_BL.sum(1, dtype=jnp.int32)
    return cached, position.value

  def _first_carry(self, x_BLD):
    """What a router takes that takes what the last one left; ()."""
    B, L = x_BLD.shape[:2]
    carries = [
      m.router.init_carry(B * L, m.num_routed) for m in self.config.moes
    ]
    shapes = {str(jax.tree.map(jnp.shape, carry)) for carry in carries}
    if len(shapes) > 1:
      raise UserError(
        'a router takes what that of the MoE layer before it left: these '
        f'differ, {sorted(shapes)}'
      )
    first = carries[0] if carries else ()
    return jax.tree.map(lambda v: v.reshape(B, L, *v.shape[1:]), first)

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


def with_moe(model: Any, change: Callable[[Any], Any], names=None) -> Any:
  """The model with every MoE layer changed, of these stacks; None is all."""
  fields = [f.name for f in dataclasses.fields(model)]
  changed = {}
  for name, config in model.stacks.items():
    if names is None or name in names:
      (field,) = (f for f in fields if getattr(model, f) is config)
      changed[field] = config.with_moe(change)
  return model.clone(**changed)


def aux_by_layer(
  aux, places: tuple[pattern.Place, ...]
) -> list[tuple[int, Any]]:
  """(layer index, its MoEAux) in layer order, from what Stack returned.

  Args:
    aux: what Stack returned.
    places: `StackConfig.places`.
  """
  out = []
  for layer, (module, block, repeat) in enumerate(places):
    found = aux.get(module)
    if block is not None:
      found = jax.tree.map(lambda v, r=repeat: v[r], found.get(block))
    if found is not None:
      out.append((layer, found))
  return out
