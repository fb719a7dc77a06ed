"""A model from a config: call strings become methods, sizes are checked."""

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from moe_jax import registry
from moe_jax.balancing import base as balancing
from moe_jax.layers import moe as moe_layer
from moe_jax.models import decoder, encoder_decoder, pattern, stack

KINDS = ('decoder', 'encoder_decoder')
DTYPES = {'float32': jnp.float32, 'bfloat16': jnp.bfloat16}


def choose(what: str, value: Any, valid) -> Any:
  """`value`, or a ValueError that lists the valid ones."""
  if value not in valid:
    raise registry.unknown(what, str(value), [str(v) for v in valid])
  return value


def balance_rules(config) -> tuple[balancing.Balance, ...]:
  """The balancing rules of `config.moe.balance`, all different."""
  rules = tuple(registry.build('balancing', s) for s in config.moe.balance)
  names = [balancing.name(r) for r in rules]
  for n in names:
    if names.count(n) > 1:
      raise ValueError(f'moe.balance={tuple(config.moe.balance)}: {n} twice')
  return rules


def _capacity(name: str, value: float) -> float | None:
  if value < 0:
    raise ValueError(f'moe.{name}={value} must be positive, or 0 for dropless')
  return value or None


def moe_partial(config) -> functools.partial:
  """What makes the model's MoE layers, without mesh, dtype and name."""
  m, sizes = config.moe, {'init_scale': config.model.init_scale}
  choose('moe.dense_branch', m.dense_branch, moe_layer.BRANCHES)
  if m.num_experts < 1:
    raise ValueError(f'moe.num_experts={m.num_experts} must be at least 1')
  if m.group_size < 1:
    raise ValueError(f'moe.group_size={m.group_size} must be at least 1')
  router = registry.build('routers', m.router, **sizes)
  router.check(m.num_experts)
  dense = None
  if m.dense_branch != 'none':
    dense = registry.build(
      'experts', config.model.ffn, d_ff=m.dense_branch_d_ff, **sizes
    )
  return functools.partial(
    moe_layer.MoE,
    num_experts=m.num_experts,
    router=router,
    experts=registry.build('experts', m.experts, d_ff=m.d_ff, **sizes),
    dispatch=registry.build('dispatch', m.dispatch),
    balance=balance_rules(config),
    group_size=m.group_size,
    capacity_factor=_capacity('capacity_factor', m.capacity_factor),
    eval_capacity_factor=_capacity(
      'eval_capacity_factor', m.eval_capacity_factor
    ),
    dense_branch=m.dense_branch,
    dense=dense,
  )


def make(
  config,
  vocab_size: int,
  mesh: jax.sharding.Mesh | None = None,
  cache_length: int = 0,
) -> nn.Module:
  """Builds the model of a config.

  Args:
    config: with fields `model` and `moe`.
    vocab_size: of the tokenizer.
    mesh: None for one device.
    cache_length: positions of a decoding cache; 0 for none. A model with a
      cache is dropless, so that a token's output does not depend on its batch.

  Raises:
    ValueError: names the field, its value and the valid ones.
  """
  m = config.model
  choose('model.kind', m.kind, KINDS)
  if m.positions == 'rope' and m.d_head % 2:
    raise ValueError(f'model.d_head={m.d_head} must be even for rope positions')
  sparse = pattern.sparse_layers(config.moe.layers, m.num_layers)
  moe = moe_partial(config) if any(sparse) else None
  if moe is not None and cache_length:
    moe = functools.partial(
      moe, capacity_factor=None, eval_capacity_factor=None
    )
  common = stack.StackConfig(
    num_layers=m.num_layers,
    d_model=m.d_model,
    num_heads=m.num_heads,
    d_head=m.d_head,
    sparse=sparse,
    ffn=registry.build('experts', m.ffn, d_ff=m.d_ff, init_scale=m.init_scale),
    moe=moe,
    extra_ffn=config.moe.extra_ffn,
    positions=m.positions,
    qk_norm=m.qk_norm,
    dropout=m.dropout,
    init_scale=m.init_scale,
    scan=m.scan,
    remat=m.remat,
    mesh=mesh,
    dtype=DTYPES[choose('model.dtype', m.dtype, DTYPES)],
  )
  rest = dict(tied_head=m.tied_head, cache_length=cache_length)
  if m.kind == 'decoder':
    return decoder.Decoder(vocab_size, common, **rest)
  return encoder_decoder.EncoderDecoder(
    vocab_size,
    dataclasses.replace(common, causal=False),
    dataclasses.replace(common, cross=True),
    **rest,
  )


def dummy_batch(config, batch_size: int, seq_len: int) -> dict[str, Any]:
  """A batch of the right shapes for initialisers: int32 ones."""
  names = ['inputs', 'positions', 'segments']
  if config.model.kind == 'encoder_decoder':
    names += ['encoder_' + n for n in names]
  return {n: jnp.ones((batch_size, seq_len), jnp.int32) for n in names}
