"""Configs of Hugging Face's Switch Transformers, in and out.

See `switch_transformers.py`. What the two cannot say to each other is an error
that lists all of it.
"""

import math
from typing import Any

from moe_jax import registry
from moe_jax.balancing import base as balancing
from moe_jax.conversion import folders
from moe_jax.errors import UserError
from moe_jax.experts import mlp
from moe_jax.layers import heads
from moe_jax.models import factory
from moe_jax.routers import switch
from moe_jax.seating import orders

Config = dict[str, Any]
STACKS = ('encoder', 'decoder')
LARGEST = 1 << 40
SIZES = (
  'vocab_size',
  'd_model',
  'd_kv',
  'd_ff',
  'num_heads',
  'num_layers',
  'num_decoder_layers',
  'num_experts',
)
# What a config.json may leave out, and transformers' value for it.
DEFAULTS = {
  'dropout_rate': 0.1,
  'expert_capacity': 64,
  'num_sparse_decoder_layers': 3,
  'num_sparse_encoder_layers': 3,
  'router_aux_loss_coef': 0.001,
  'router_jitter_noise': 0.01,
  'router_z_loss_coef': 0.001,
  'tie_word_embeddings': True,
}
# Of these and of `SIZES`: whole numbers, from 1 or from 0; numbers; a flag.
FROM_0 = ('num_sparse_decoder_layers', 'num_sparse_encoder_layers')
STEPS = tuple(f'{stack}_sparse_step' for stack in STACKS)
NUMBERS = (
  'dropout_rate',
  'router_aux_loss_coef',
  'router_jitter_noise',
  'router_z_loss_coef',
)
# What changes the model and has one value in ours.
ONLY = {
  'model_type': 'switch_transformers',
  'is_encoder_decoder': True,
  'dense_act_fn': 'relu',
  'router_bias': False,
  'router_dtype': 'float32',
  'layer_norm_epsilon': 1e-6,
  'relative_attention_num_buckets': 32,
  'relative_attention_max_distance': 128,
}
# Their names for the weights of our balancing rules.
COEFFICIENTS = {
  'switch_loss': 'router_aux_loss_coef',
  'z_loss': 'router_z_loss_coef',
}


def read_config(directory: folders.Path) -> Config:
  """config.json with defaults filled in.

  Raises:
    ValueError: names the fields that ours cannot represent.
  """
  return filled(folders.read_config(directory), str(directory))


def filled(said: Config, where: str) -> Config:
  """`read_config`, of what was read; `where` begins the messages."""
  config = DEFAULTS | said
  wrong = [
    f'{k}={config[k]!r} (ours: {v!r})'
    for k, v in ONLY.items()
    if config.setdefault(k, v) != v
  ]
  wrong += [f'{k} is missing' for k in SIZES if k not in config]
  wrong += [
    f'{k}={v!r} ({wanted} is wanted)'
    for k, v in config.items()
    if (wanted := _wanted(k, v))
  ]
  folders.refuse(f'{where}: cannot represent', wrong)
  layers = config['num_layers']
  if config['num_decoder_layers'] not in (None, layers):
    raise UserError(
      f'{where}: num_layers={layers} but num_decoder_layers='
      f'{config["num_decoder_layers"]}; ours has as many of both'
    )
  return config


def _wanted(name: str, value: Any) -> str:
  """What a field must be instead; '' where nothing is wrong."""
  if name == 'num_decoder_layers' and value is None:  # as many as encoder's
    return ''
  if name in (*SIZES, 'expert_capacity') and not _is_whole(value, 1):
    return 'a whole number from 1'
  if name in (*FROM_0, *STEPS) and not _is_whole(value, 0):
    return 'a whole number from 0'
  if name in NUMBERS and not (
    type(value) in (int, float) and 0 <= value < math.inf
  ):
    return 'a number, 0 or above,'
  if name == 'tie_word_embeddings' and not isinstance(value, bool):
    return 'true or false'
  return ''


def _is_whole(value: Any, least: int) -> bool:
  return type(value) is int and least <= value <= LARGEST


def sparse_layers(config: Config, stack: str) -> tuple[bool, ...]:
  """Which layers of 'encoder' or 'decoder' are MoE: l mod step = 1.

  The step is layers // sparse layers unless the file names it. So without
  sparse layers, layer 1 is one all the same, as in transformers.
  """
  layers, sparse = config['num_layers'], config[f'num_sparse_{stack}_layers']
  step = config.get(
    f'{stack}_sparse_step', layers // sparse if sparse > 0 else layers
  )
  if step == 0:
    return (False,) * layers
  return tuple(step == 1 or i % step == 1 for i in range(layers))


def fields(
  config: Config, encoder_length: int, decoder_length: int
) -> dict[str, Config]:
  """The fields of our config that make the checkpoint's model.

  Args:
    config: from `read_config`.
    encoder_length, decoder_length: tokens of a row: theirs counts capacity by
      row, so these are the groups.

  Returns:
    {'model': fields, 'moe': fields}; fields that are not in it do not matter.
  """
  expert = "mlp(activation='relu')"
  layers = {}
  for stack in STACKS:
    sparse = sparse_layers(config, stack)
    found = [str(l) for l, is_sparse in enumerate(sparse) if is_sparse]
    layers[stack] = ','.join(found) or 'none'
  model = {
    'kind': 'encoder_decoder',
    'vocab_size': config['vocab_size'],
    'num_layers': config['num_layers'],
    'd_model': config['d_model'],
    'num_heads': config['num_heads'],
    'd_head': config['d_kv'],
    'd_ff': config['d_ff'],
    'ffn': expert,
    'positions': 'relative',
    'qk_norm': False,
    'norm_scale': True,
    'tied_head': config['tie_word_embeddings'],
    'dropout': config['dropout_rate'],
  }
  moe = {
    'layers': layers['encoder'],
    'num_experts': config['num_experts'],
    'd_ff': config['d_ff'],
    'experts': expert,
    'router': f'switch(jitter={config["router_jitter_noise"]})',
    'balance': (
      f'switch_loss(weight={config["router_aux_loss_coef"]})',
      f'z_loss(weight={config["router_z_loss_coef"]})',
    ),
    'seating': 'rank_major()',
    'capacity_rule': f'fixed(rows={config["expert_capacity"]})',
    'route_padding': True,
    # Any factor but 0, which would be dropless: the rule fixes the rows.
    'capacity_factor': 1.0,
    'eval_capacity_factor': 1.0,
    'group_size': encoder_length,
    'extra_ffn': 'none',
    'dense_branch': 'none',
    'decoder': {'layers': layers['decoder'], 'group_size': decoder_length},
  }
  return {'model': model, 'moe': moe}


def config_from(config: Any, vocab_size: int) -> Config:
  """config.json for a model of ours: `fields` the other way.

  Args:
    config: ours, with fields `model` and `moe`.
    vocab_size: rows of the embedding table.

  Raises:
    ValueError: names the fields that theirs cannot represent.
  """
  m = config.model
  if m.kind != 'encoder_decoder':
    raise UserError(
      f'model.kind={m.kind!r}: Switch is an encoder_decoder in transformers'
    )
  stacks = factory.make(config, vocab_size).stacks
  wrong = []
  plain = heads.Full(
    **{k: m[k] for k in ('num_heads', 'd_head', 'positions', 'qk_norm')}
  )
  if stacks['encoder'].attentions != (plain,):
    wrong.append(f"model.attention={m.attention} (theirs: ('full()',))")
  if not plain.positions.relative:
    wrong.append(f"model.positions={m.positions!r} (theirs: 'relative')")
  if m.qk_norm:
    wrong.append('model.qk_norm=True (theirs: False)')
  theirs = {
    'norm_scale': True,
    'norm_eps': 1e-6,
    'norm_at': 'input',
    'residual_scale': 1.0,
    'embedding_scale': 1.0,
    'logit_scale': 0.0,
  }
  wrong += [
    f'model.{k}={m[k]!r} (theirs: {v!r})'
    for k, v in theirs.items()
    if m[k] != v
  ]
  if not _is_plain(stacks['encoder'].layers[0].ffn, m.d_ff):
    wrong.append(f'model.ffn={m.ffn!r} (theirs: mlp with relu)')
  out = ONLY | {
    'architectures': ['SwitchTransformersForConditionalGeneration'],
    'decoder_start_token_id': 0,
    'eos_token_id': 1,
    'pad_token_id': 0,
    'vocab_size': vocab_size,
    'd_model': m.d_model,
    'd_kv': m.d_head,
    'd_ff': m.d_ff,
    'num_heads': m.num_heads,
    'num_layers': m.num_layers,
    'num_decoder_layers': m.num_layers,
    'num_experts': config.moe.num_experts,
    'dropout_rate': m.dropout,
    'tie_word_embeddings': m.tied_head,
    'router_aux_loss_coef': 0.0,
    'router_z_loss_coef': 0.0,
  }
  for rule in factory.balance_rules(config.moe.balance):
    name = balancing.name(rule)
    if name in COEFFICIENTS:
      out[COEFFICIENTS[name]] = rule.weight
    else:
      wrong.append(f'moe.balance: {name} (theirs: {", ".join(COEFFICIENTS)})')
  for stack, f in factory.moe_fields(config).items():
    sparse = stacks[stack].sparse
    steps = sparse_steps(sparse)
    if steps is None:
      wrong.append(f'moe.layers={f["layers"]!r} (theirs: l mod step = 1)')
      continue
    out[f'num_sparse_{stack}_layers'], out[f'{stack}_sparse_step'] = steps
    if any(sparse):
      layer = stacks[stack].moe
      wrong += _unlike(layer, f, m.d_ff)
      _, rule = registry.parse(f['capacity_rule'])
      common = {
        'expert_capacity': rule.get('rows', 64),
        'router_jitter_noise': getattr(layer.router, 'jitter', 0.0),
      }
      for k, v in common.items():
        if out.setdefault(k, v) != v:
          wrong.append(f'{k}={out[k]} in the encoder and {v} in the decoder')
  wrong = list(dict.fromkeys(wrong))
  folders.refuse('transformers cannot represent', wrong)
  return out


def _is_plain(kind, d_ff: int) -> bool:
  sizes = {k: getattr(kind, k, 0.0) for k in ('init_scale', 'dropout')}
  return kind == mlp.Mlp(d_ff=d_ff, activation='relu', bias=False, **sizes)


def _unlike(layer, fields: Config, d_ff: int) -> list[str]:
  """What theirs lacks of an MoE layer of ours."""
  checks = {
    'router': (
      isinstance(layer.router, switch.Switch)
      and layer.router.selective_precision,
      'switch in float32',
    ),
    'experts': (
      _is_plain(layer.experts, d_ff),
      f'mlp with relu and d_ff={d_ff}, as the dense FFN',
    ),
    'capacity_rule': (
      registry.parse(fields['capacity_rule'])[0] == 'fixed',
      'fixed(rows=...)',
    ),
    'eval_capacity_factor': (layer.eval_capacity_factor is not None, 'not 0'),
    'seating': (layer.seating == orders.RankMajor(), 'rank_major()'),
    'extra_ffn': (fields['extra_ffn'] == 'none', 'none'),
    'dense_branch': (fields['dense_branch'] == 'none', 'none'),
  }
  return [
    f'moe.{name}={fields[name]!r} (theirs: {theirs})'
    for name, (holds, theirs) in checks.items()
    if not holds
  ]


def sparse_steps(sparse: tuple[bool, ...]) -> tuple[int, int] | None:
  """(number of sparse layers, step) for which `sparse_layers` gives this.

  The number need not be the true one. Transformers takes the step from it, and
  makes layer 1 sparse for 0: to have none sparse, it exceeds the layers.
  """
  layers = len(sparse)
  for number in range(1, layers + 2):
    config = {'num_layers': layers, 'num_sparse_encoder_layers': number}
    if sparse_layers(config, 'encoder') == sparse:
      return number, layers // number
  return None
