"""A model from a config: call strings become methods, sizes are checked."""

import dataclasses
import functools
import types
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from moe_jax import registry
from moe_jax.balancing import base as balancing
from moe_jax.errors import UserError
from moe_jax.layers import attentions, moe
from moe_jax.models import decoder, encoder_decoder, pattern, records
from moe_jax.seating import capacity, orders

KINDS = ('decoder', 'encoder_decoder')
DTYPES = {'float32': jnp.float32, 'bfloat16': jnp.bfloat16}


def choose(what: str, value: Any, valid) -> Any:
  """`value`, or a ValueError that lists the valid ones."""
  if value not in valid:
    raise registry.unknown(what, str(value), [str(v) for v in valid])
  return value


def balance_rules(specs) -> tuple[balancing.Balance, ...]:
  """The balancing rules of `moe.balance`, all different."""
  rules = tuple(registry.build('balancing', s) for s in specs)
  names = [balancing.name(r) for r in rules]
  for n in names:
    if names.count(n) > 1:
      raise UserError(f'moe.balance={tuple(specs)}: {n} twice')
  return rules


def moe_fields(config) -> dict[str, dict[str, Any]]:
  """The fields of `config.moe` by stack: 'encoder' and 'decoder', in order.

  `config.moe.decoder` holds what differs in the decoder of an encoder-decoder;
  the number of experts and the balancing rules may not, since layers share
  their metrics.

  Raises:
    ValueError: a field there that does not exist or may not differ.
  """
  common = dict(config.moe.items())
  own = dict(common.pop('decoder').items())
  if config.model.kind == 'decoder':
    if own:
      raise UserError(
        f'moe.decoder={own} is for the decoder of an encoder-decoder; this '
        'model has one stack: set the fields of moe'
      )
    return {'decoder': common}
  shared = ('num_experts', 'balance', 'allow_noncausal')
  valid = sorted(set(common) - set(shared))
  for name in own:
    choose('field of moe.decoder', name, valid)
  return {'encoder': common, 'decoder': common | own}


def _capacity(name: str, value: float) -> float | None:
  if value < 0:
    raise UserError(f'moe.{name}={value} must be positive, or 0 for dropless')
  return value or None


def moe_layer(config, fields: dict[str, Any]) -> moe.MoE:
  """A stack's MoE layers, without mesh and dtype.

  Args:
    config: for `config.model`.
    fields: one of `moe_fields`.
  """
  f = types.SimpleNamespace(**fields)
  model = config.model
  sizes = {'init_scale': model.init_scale, 'dropout': model.dropout}
  choose('moe.dense_branch', f.dense_branch, moe.BRANCHES)
  if f.num_experts < 1:
    raise UserError(f'moe.num_experts={f.num_experts} must be at least 1')
  if f.group_size < 1:
    raise UserError(f'moe.group_size={f.group_size} must be at least 1')
  router = registry.build('routers', f.router)
  dense = None
  if f.dense_branch != 'none':
    dense = registry.build(
      'experts', model.ffn, d_ff=f.dense_branch_d_ff, **sizes
    )
  layer = moe.MoE(
    num_experts=f.num_experts,
    router=router,
    experts=registry.build('experts', f.experts, d_ff=f.d_ff, **sizes),
    dispatch=registry.build('dispatch', f.dispatch),
    balance=balance_rules(f.balance),
    group_size=f.group_size,
    capacity_factor=_capacity('capacity_factor', f.capacity_factor),
    eval_capacity_factor=_capacity(
      'eval_capacity_factor', f.eval_capacity_factor
    ),
    capacity_rule=capacity.build(f.capacity_rule),
    seating=orders.build(f.seating),
    route_padding=f.route_padding,
    identical_experts=f.identical_experts,
    dense_branch=f.dense_branch,
    dense=dense,
    local_experts=tuple(
      registry.build('local_experts', s) for s in f.local_experts
    ),
  )
  router.check(layer.num_routed)
  return layer


def make(
  config,
  vocab_size: int,
  mesh: jax.sharding.Mesh | None = None,
  cache_length: int = 0,
) -> nn.Module:
  """Builds the model of a config.

  Args:
    config: with fields `model` and `moe`.
    vocab_size: rows of the embedding table.
    mesh: None for one device.
    cache_length: positions of a decoding cache; 0 for none. A model with a
      cache is dropless, so that a token's output does not depend on its batch.

  Raises:
    ValueError: names the field, its value and the valid ones.
  """
  made = stacks(config, mesh, cache_length)
  model = {
    'decoder': decoder.Decoder,
    'encoder_decoder': encoder_decoder.EncoderDecoder,
  }
  return model[config.model.kind](
    vocab_size,
    *made.values(),
    tied_head=config.model.tied_head,
    embedding_scale=config.model.embedding_scale,
    logit_scale=config.model.logit_scale,
    cache_length=cache_length,
  )


def stacks(
  config,
  mesh: jax.sharding.Mesh | None = None,
  cache_length: int = 0,
  causal: bool = True,
) -> dict[str, records.StackConfig]:
  """The stacks of a config's model by name, 'encoder' and 'decoder'.

  Args:
    config, mesh, cache_length: as in `make`.
    causal: whether a token of the decoder sees no later one.

  Raises:
    ValueError: as `make`.
  """
  m = config.model
  choose('model.kind', m.kind, KINDS)
  made = {
    name: _stack(config, fields, mesh, cache_length)
    for name, fields in moe_fields(config).items()
  }
  if len(made) == 1:
    return {'decoder': made['decoder'](causal=causal)}
  return {
    'encoder': made['encoder'](causal=False),
    'decoder': made['decoder'](causal=causal, cross=True),
  }


def layers(
  config, fields: dict[str, Any], cached: bool = False
) -> tuple[records.Layer, ...]:
  """The layers of a stack.

  Args:
    config: for `config.model`.
    fields: one of `moe_fields`.
    cached: without drops, as a model with a cache is.
  """
  m, share = config.model, fields['share_experts']
  sparse = pattern.sparse_layers(fields['layers'], m.num_layers)
  if share < 1 or sum(sparse) % share:
    raise UserError(
      f'moe.share_experts={share} must be at least 1, and divide the '
      f'{sum(sparse)} MoE layers of the stack'
    )
  kinds = len(m.attention)
  if not 0 < kinds <= m.num_layers:
    raise UserError(
      f'model.attention={m.attention}: the {m.num_layers} layers want 1 to '
      f'{m.num_layers} kinds, as {("window(size=128)", "full()")}'
    )
  sizes = {k: m[k] for k in ('num_heads', 'd_head', 'positions', 'qk_norm')}
  kinds_ = [attentions.build(s, **sizes) for s in m.attention]
  sparse_ffn = moe_layer(config, fields) if any(sparse) else None
  if sparse_ffn and cached:
    sparse_ffn = dataclasses.replace(
      sparse_ffn, capacity_factor=None, eval_capacity_factor=None
    )
  ffn = registry.build(
    'experts', m.ffn, d_ff=m.d_ff, init_scale=m.init_scale, dropout=m.dropout
  )
  return tuple(
    records.Layer(
      kinds_[i % kinds],
      ffn,
      sparse_ffn if is_sparse else None,
      takes_experts=is_sparse and sum(sparse[:i]) % share > 0,
      extra_ffn=fields['extra_ffn'],
      norm_scale=m.norm_scale,
    )
    for i, is_sparse in enumerate(sparse)
  )


def _stack(config, fields, mesh, cache_length) -> functools.partial:
  """Makes a stack's config, given what depends on the kind of model."""
  m = config.model
  return functools.partial(
    records.StackConfig,
    layers=layers(config, fields, cache_length > 0),
    d_model=m.d_model,
    dropout=m.dropout,
    allow_noncausal=config.moe.allow_noncausal,
    init_scale=m.init_scale,
    norm_eps=m.norm_eps,
    norm_at=m.norm_at,
    residual_scale=m.residual_scale,
    scan=m.scan,
    remat=m.remat,
    mesh=mesh,
    dtype=DTYPES[choose('model.dtype', m.dtype, DTYPES)],
  )


def dummy_batch(
  config, batch_size: int, seq_len: int, target_len: int | None = None
) -> dict[str, Any]:
  """A batch of the right shapes for initialisers: int32 ones.

  Args:
    config: for the kind of model.
    batch_size, seq_len: of the batch.
    target_len: of the decoder, where an encoder's differs.
  """
  lengths = {'': seq_len if target_len is None else target_len}
  if config.model.kind == 'encoder_decoder':
    lengths['encoder_'] = seq_len
  return {
    prefix + name: jnp.ones((batch_size, length), jnp.int32)
    for prefix, length in lengths.items()
    for name in ('inputs', 'positions', 'segments')
  }
