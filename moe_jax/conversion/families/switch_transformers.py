"""Switch Transformers: an encoder and a decoder.

Fedus et al. 2021, arXiv:2101.03961; transformers' `switch_transformers`. Rows
are of 512 tokens, as theirs were trained: capacity is counted by row.

In evaluation the logits are theirs to rounding, dropped tokens included, where
padding stands at the end of its row. Padding before the tokens takes seats in
theirs with other hidden states than ours: their padding sees the tokens.

Training differs: theirs shows the router's jitter to the experts, and computes
the balancing losses over the concatenated tokens of all layers of a stack; ours
by layer.
"""

from typing import Any

from moe_jax import registry
from moe_jax.balancing import base as balancing
from moe_jax.conversion import parts
from moe_jax.conversion.families import base
from moe_jax.data import objectives
from moe_jax.experts import mlp
from moe_jax.layers import heads
from moe_jax.models import factory, pattern
from moe_jax.routers import switch
from moe_jax.seating import orders

Config = dict[str, Any]
LENGTH = 512
STACKS = ('encoder', 'decoder')
# What changes the model and has one value in ours.
_ONLY = {
  'is_encoder_decoder': True,
  'dense_act_fn': 'relu',
  'router_bias': False,
  'router_dtype': 'float32',
  'layer_norm_epsilon': 1e-6,
  'relative_attention_num_buckets': 32,
  'relative_attention_max_distance': 128,
}
# Their names for the weights of our balancing rules.
_COEFFICIENTS = {
  'switch_loss': 'router_aux_loss_coef',
  'z_loss': 'router_z_loss_coef',
}
_FROM_0 = ('dropout_rate', 'router_jitter_noise', *_COEFFICIENTS.values())
_EMBEDDINGS = tuple(f'{stack}.embed_tokens.weight' for stack in STACKS)
_EXPERT = "mlp(activation='relu')"
# Of our `model`, what does not depend on theirs.
_MODEL = {
  'attention': ('full()',),
  'positions': 'relative',
  'qk_norm': False,
  'norm_scale': True,
  'norm_eps': 1e-6,
  'norm_at': 'input',
  'residual_scale': 1.0,
  'embedding_scale': 1.0,
  'logit_scale': 0.0,
}


class SwitchTransformers(base.Family):
  model_types = ('switch_transformers',)
  architecture = 'SwitchTransformersForConditionalGeneration'
  symbols = (0, 1)
  layers = 'num_layers'
  each = 'num_experts'
  tied = {'lm_head.weight': 'shared.weight'}
  # Ours has one embedding for both stacks; theirs, with a head of its own, has
  # one for each and a third.
  again = dict.fromkeys(_EMBEDDINGS, 'shared.weight')
  aliases = {
    'hidden_size': 'd_model',
    'num_attention_heads': 'num_heads',
    'num_hidden_layers': 'num_layers',
  }
  defaults = {
    'vocab_size': 32128,
    'd_model': 768,
    'd_kv': 64,
    'd_ff': 2048,
    'expert_capacity': 64,
    'num_layers': 12,
    'num_sparse_encoder_layers': 3,
    'num_decoder_layers': 12,
    'num_sparse_decoder_layers': 3,
    'encoder_sparse_step': None,
    'decoder_sparse_step': None,
    'num_heads': 12,
    'num_experts': 8,
    'router_jitter_noise': 0.01,
    'dropout_rate': 0.1,
    'router_z_loss_coef': 0.001,
    'router_aux_loss_coef': 0.001,
    'tie_word_embeddings': True,
  }
  optional = ('num_decoder_layers',)  # as many as the encoder has
  from_0 = tuple(
    name.format(stack)
    for stack in STACKS
    for name in ('num_sparse_{}_layers', '{}_sparse_step')
  )
  only = {k: (v,) for k, v in _ONLY.items()} | {
    'feed_forward_proj': ('relu',),
    'is_gated_act': (False,),
  }
  ignored = tuple(
    """add_cross_attention add_router_probs decoder_start_token_id
    initializer_factor is_decoder n_positions output_past router_type
    router_ignore_padding_tokens task_specific_params""".split()
  )

  def check(self, c):
    n, decoder = c['num_layers'], c['num_decoder_layers']
    known = lambda v: v is not None and v >= 0
    wrong = [f'{k}={c[k]!r} (from 0)' for k in _FROM_0 if not known(c[k])]
    if decoder not in (None, n):
      wrong.append(
        f'num_layers={n} but num_decoder_layers={decoder}; ours has as many of '
        'both'
      )
    return wrong

  def fields(self, c):
    layers = {}
    for stack in STACKS:
      found = [str(i) for i, s in enumerate(sparse_layers(c, stack)) if s]
      layers[stack] = ','.join(found) or 'none'
    model = _MODEL | {
      'kind': 'encoder_decoder',
      'vocab_size': c['vocab_size'],
      'num_layers': c['num_layers'],
      'd_model': c['d_model'],
      'num_heads': c['num_heads'],
      'd_head': c['d_kv'],
      'd_ff': c['d_ff'],
      'ffn': _EXPERT,
      'tied_head': c['tie_word_embeddings'],
      'dropout': c['dropout_rate'],
    }
    # Theirs counts capacity by row, so these are the groups.
    short = objectives.SpanCorruption().targets_length(LENGTH)
    moe = {
      'layers': layers['encoder'],
      'num_experts': c['num_experts'],
      'd_ff': c['d_ff'],
      'experts': _EXPERT,
      'router': f'switch(jitter={c["router_jitter_noise"]})',
      'balance': tuple(
        f'{rule}(weight={c[k]})' for rule, k in _COEFFICIENTS.items()
      ),
      'seating': 'rank_major()',
      'capacity_rule': f'fixed(rows={c["expert_capacity"]})',
      'route_padding': True,
      # Any factor but 0, which would be dropless: the rule fixes the rows.
      'capacity_factor': 1.0,
      'eval_capacity_factor': 1.0,
      'group_size': LENGTH,
      'extra_ffn': 'none',
      'dense_branch': 'none',
      'decoder': {'layers': layers['decoder'], 'group_size': short},
    }
    data = {'objective': 'span_corruption()', 'seq_len': LENGTH}
    return {'model': model, 'moe': moe, 'data': data}

  def table(self, c, memory=False):
    t = parts.Table(
      V=c['vocab_size'],
      D=c['d_model'],
      H=c['num_heads'],
      J=c['d_kv'],
      F=c['d_ff'],
      E=c['num_experts'],
      B=c['relative_attention_num_buckets'],
    )
    t.one('shared.weight', 'V D', 'embedding/table', 'V D')
    if not c['tie_word_embeddings']:
      t.one('lm_head.weight', 'V D', 'embedding/head', 'D V')
    for stack in STACKS:
      t.norm(f'{stack}.final_layer_norm', f'{stack}/final_norm')
      first = f'{stack}.block.0.layer.0.SelfAttention'
      bias = f'{first}.relative_attention_bias.weight'
      t.one(bias, 'B H', f'{stack}/relative/table', 'B H')
      for i, sparse in enumerate(sparse_layers(c, stack)):
        _block(t, f'{stack}.block.{i}.layer', f'{stack}/layer_{i}', sparse)
    return t

  def to_config(self, model, moe, kinds):
    return _said(kinds.config)

  def unlike(self, c, config):
    m, stacks = config.model, factory.stacks(config)
    built = 'attention', 'ffn'
    same = {k: v for k, v in self.fields(c)['model'].items() if k not in built}
    wrong = base.unlike({'model': same}, config)
    plain = heads.Full(
      **{k: m[k] for k in ('num_heads', 'd_head', 'positions', 'qk_norm')}
    )
    if stacks['encoder'].attentions != (plain,):
      wrong.append(f"model.attention={m.attention} (theirs: ('full()',))")
    if not _is_plain(stacks['encoder'].layers[0].ffn, m.d_ff):
      wrong.append(f'model.ffn={m.ffn!r} (theirs: mlp with relu)')
    for rule in map(balancing.name, factory.balance_rules(config.moe.balance)):
      if rule not in _COEFFICIENTS:
        valid = ', '.join(_COEFFICIENTS)
        wrong.append(f'moe.balance: {rule} (theirs: {valid})')
    for name, f in factory.moe_fields(config).items():
      sparse = stacks[name].sparse
      if sparse != sparse_layers(c, name):
        wrong.append(f'moe.layers={f["layers"]!r} (theirs: l mod step = 1)')
      elif any(sparse):
        wrong += _unlike(stacks[name].moe, f, m.d_ff)
        wrong += [
          f'{k} is {v} in the {name} (theirs: {c[k]} in both)'
          for k, v in _common(f).items()
          if v != c[k]
        ]
    return list(dict.fromkeys(wrong))


def _said(config: Any) -> Config:
  """config.json of a config of ours; `unlike` finds what it cannot say."""
  m, moe = config.model, config.moe
  out = _ONLY | {
    'decoder_start_token_id': 0,
    'eos_token_id': 1,
    'pad_token_id': 0,
    'vocab_size': m.vocab_size,
    'd_model': m.d_model,
    'd_kv': m.d_head,
    'd_ff': m.d_ff,
    'num_heads': m.num_heads,
    'num_layers': m.num_layers,
    'num_decoder_layers': m.num_layers,
    'num_experts': moe.num_experts,
    'dropout_rate': m.dropout,
    'tie_word_embeddings': m.tied_head,
  }
  out |= dict.fromkeys(_COEFFICIENTS.values(), 0.0)
  for rule in factory.balance_rules(moe.balance):
    if (name := balancing.name(rule)) in _COEFFICIENTS:
      out[_COEFFICIENTS[name]] = rule.weight
  common: Config = {}
  for name, f in factory.moe_fields(config).items():
    sparse = pattern.sparse_layers(f['layers'], m.num_layers)
    steps = sparse_steps(sparse) or (m.num_layers, 1)
    out[f'num_sparse_{name}_layers'], out[f'{name}_sparse_step'] = steps
    common = common or (_common(f) if any(sparse) else {})
  return out | common


def _common(fields: Config) -> Config:
  """What theirs has once for both stacks."""
  _, rule = registry.parse(fields['capacity_rule'])
  router = registry.build('routers', fields['router'])
  return {
    'expert_capacity': rule.get('rows', 64),
    'router_jitter_noise': getattr(router, 'jitter', 0.0),
  }


def _is_plain(kind: Any, d_ff: int) -> bool:
  sizes = {k: getattr(kind, k, 0.0) for k in ('init_scale', 'dropout')}
  return kind == mlp.Mlp(d_ff=d_ff, activation='relu', bias=False, **sizes)


def _unlike(layer: Any, fields: Config, d_ff: int) -> list[str]:
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
    'local_experts': (not layer.local_experts, 'none'),
    'share_experts': (fields['share_experts'] == 1, '1'),
  }
  return [
    f'moe.{name}={fields[name]!r} (theirs: {theirs})'
    for name, (holds, theirs) in checks.items()
    if not holds
  ]


def _block(t: parts.Table, at: str, to: str, sparse: bool) -> None:
  """The tensors of a layer."""
  kinds = [('SelfAttention', 'attention')]
  kinds += [('EncDecAttention', 'cross')] * to.startswith('decoder')
  for n, (name, ours) in enumerate(kinds):
    t.norm(f'{at}.{n}.layer_norm', f'{to}/{ours}_norm')
    for letter, kernel in (('q', 'query'), ('k', 'key'), ('v', 'value')):
      own = f'{at}.{n}.{name}.{letter}.weight'
      t.one(own, 'HJ D', f'{to}/{ours}/{kernel}', 'D H J')
    t.one(f'{at}.{n}.{name}.o.weight', 'D HJ', f'{to}/{ours}/out', 'H J D')
  last = f'{at}.{len(kinds)}'
  t.norm(f'{last}.layer_norm', f'{to}/{"moe" if sparse else "ffn"}_norm')
  if not sparse:
    _mlp(t, f'{last}.mlp', f'{to}/ffn/ffn')
    return
  parts.router(t, f'{last}.mlp.router.classifier.weight', to)
  for e in range(t.sizes['E']):
    own = f'{last}.mlp.experts.expert_{e}', f'{to}/moe/experts'
    _mlp(t, *own, place=(e,))


def _mlp(t: parts.Table, at: str, to: str, **options: Any) -> None:
  t.one(f'{at}.wi.weight', 'F D', f'{to}/wi', 'D F', **options)
  t.one(f'{at}.wo.weight', 'D F', f'{to}/wo', 'F D', **options)


def sparse_layers(c: Config, stack: str) -> tuple[bool, ...]:
  """Which layers of 'encoder' or 'decoder' are MoE: l mod step = 1.

  The step is layers // sparse layers unless the file names it. So without
  sparse layers, layer 1 is one all the same, as in transformers.
  """
  layers, sparse = c['num_layers'], c[f'num_sparse_{stack}_layers']
  step = c.get(f'{stack}_sparse_step')
  if step is None:
    step = layers // sparse if sparse > 0 else layers
  if step == 0:
    return (False,) * layers
  return tuple(step == 1 or i % step == 1 for i in range(layers))


def sparse_steps(sparse: tuple[bool, ...]) -> tuple[int, int] | None:
  """(number of sparse layers, step) for which `sparse_layers` gives this.

  The number need not be the true one. Transformers takes the step from it, and
  makes layer 1 sparse for 0: to have none sparse, it exceeds the layers.
  """
  layers = len(sparse)
  for number in range(1, layers + 2):
    c = {'num_layers': layers, 'num_sparse_encoder_layers': number}
    if sparse_layers(c, 'encoder') == sparse:
      return number, layers // number
  return None
