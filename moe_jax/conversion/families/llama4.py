"""Llama 4, its text model: chunks, layers without positions, input weights.

Meta, Llama 4 (2025): no paper; transformers' `llama4`. Pairs of positions are
interleaved; queries and keys are normalised after they are turned, without a
gain; where there are no positions, queries grow with the position instead. Of a
multimodal folder the vision tensors are left out.
"""

from moe_jax.conversion import parts, rope
from moe_jax.conversion.families import base

_CHUNK, _FULL = 'chunked_attention', 'full_attention'


class Llama4(base.Decoder):
  model_types = ('llama4_text', 'llama4')
  architecture = 'Llama4ForCausalLM'
  symbols = (1, 2)
  aliases = {'num_experts': 'num_local_experts'}
  flags = ('attn_temperature_tuning',)
  nested = ('text_config', 'language_model.')
  beside = {'of images': ('vision_model.', 'multi_modal_projector.')}
  theta = 500_000.0
  defaults = {
    'prefix': '',
    'vocab_size': 202048,
    'hidden_size': 5120,
    'intermediate_size': 8192,
    'intermediate_size_mlp': 16384,
    'num_hidden_layers': 48,
    'num_attention_heads': 40,
    'num_key_value_heads': 8,
    'head_dim': 128,
    'hidden_act': 'silu',
    'rms_norm_eps': 1e-5,
    'max_position_embeddings': 4096 * 32,
    'tie_word_embeddings': False,
    'num_experts_per_tok': 1,
    'num_local_experts': 16,
    'moe_layers': None,
    'interleave_moe_layer_step': 1,
    'use_qk_norm': True,
    'no_rope_layers': (),
    'no_rope_layer_interval': 4,
    'attention_chunk_size': 8192,
    'layer_types': (),
    'attn_temperature_tuning': True,
    'floor_scale': 8192,
    'attn_scale': 0.1,
    'attention_bias': False,
  }
  optional = (
    *('num_key_value_heads', 'head_dim', 'no_rope_layers', 'layer_types'),
    'attention_chunk_size',
  )
  free = ('moe_layers',)
  # Theirs shows the noise to the experts, too.
  only = {'router_jitter_noise': (0.0,)}
  ignored = (
    *('cache_implementation', 'for_llm_compressor', 'vision_config'),
    '_attn_implementation_autoset',
  )

  def check(self, c):
    wrong, n = base.check_heads(c), c['num_hidden_layers']
    for name in ('no_rope_layers', 'layer_types'):
      if c[name] and len(c[name]) != n:
        wrong.append(f'{len(c[name])} {name}')
    wrong += [
      f'layer_types: {k!r}'
      for k in c['layer_types'] or ()
      if k not in (_CHUNK, _FULL)
    ]
    if not all(t in (0, 1) for t in c['no_rope_layers'] or ()):
      wrong.append(f'no_rope_layers={c["no_rope_layers"]}')
    listed = c['moe_layers']
    if listed is not None and not (
      isinstance(listed, list | tuple)
      and all(type(i) is int and 0 <= i < n for i in listed)
    ):
      wrong.append(f'moe_layers={listed}')
    return wrong

  def fields(self, c):
    kinds = [self._kind(c, i) for i in range(c['num_hidden_layers'])]
    model = base.model_fields(
      c,
      attention=base.cycle(kinds),
      d_ff=c['intermediate_size_mlp'],
      positions=rope.positions(c, interleaved=True),
    )
    moe = base.moe_fields(
      c,
      c['num_local_experts'],
      c['intermediate_size'],
      rope.call('llama4', k=c['num_experts_per_tok']),
      layers=base.sparse(_sparse(c)),
      dense_branch='shared',
      dense_branch_d_ff=c['intermediate_size'],
    )
    return {'model': model, 'moe': moe}

  def _kind(self, c, i):
    """Of a layer: turned ones by chunks, the others over all."""
    turned, size = _turned(c, i), c['attention_chunk_size']
    own = {
      'kv_heads': base.kv_heads(c),
      'bias': base.bias(c),
    }
    if turned:
      own['qk_norm'] = 'turned' if c['use_qk_norm'] else False
    else:
      own['positions'] = 'none'
      if c['attn_temperature_tuning']:
        own['temperature'] = c['floor_scale'], float(c['attn_scale'])
    types = c['layer_types']
    chunked = types[i] == _CHUNK if types else turned and size is not None
    if chunked:
      return base.attention('chunk', size=size, **own)
    return base.attention('full', **own)

  def table(self, c, memory=False):
    prefix, F = c['prefix'], c['intermediate_size']
    t = parts.table(c, E=c['num_local_experts'], F=F)
    parts.frame(t, c['tie_word_embeddings'], prefix)
    for i, sparse in enumerate(_sparse(c)):
      at, to = parts.layer(i, prefix)
      parts.norms(t, at, to, 'moe_norm' if sparse else 'ffn_norm')
      parts.heads(t, at, to, base.bias(c))
      ffn = f'{at}.feed_forward'
      if not sparse:
        parts.dense(t, ffn, to, c['intermediate_size_mlp'])
        continue
      parts.router(t, f'{ffn}.router.weight', to)
      own = f'{ffn}.experts', f'{to}/moe/experts'
      parts.turned(t, *own, columns='GF')
      parts.shared(t, f'{ffn}.shared_expert', to, F)
    return t

  def to_config(self, model, moe, kinds):
    own = base.sizes_config(model, moe, kinds)
    every = [a for _, a in kinds.attentions]
    sizes = {a.get('size') for a in every} - {None}
    tuned = [a['temperature'] for a in every if 'temperature' in a]
    floor, scale = tuned[0] if tuned else (8192, 0.1)
    turned = [a.get('positions') != 'none' for a in every]
    return own | {
      'intermediate_size': moe.d_ff,
      'intermediate_size_mlp': model.d_ff,
      'head_dim': model.d_head,
      'num_local_experts': moe.num_experts,
      'moe_layers': [i for i, s in enumerate(kinds.sparse) if s],
      'use_qk_norm': any(a.get('qk_norm') == 'turned' for a in every),
      'no_rope_layers': [int(t) for t in turned],
      'layer_types': [
        _CHUNK if name == 'chunk' else _FULL for name, _ in kinds.attentions
      ],
      'attention_chunk_size': max(sizes, default=None),
      'attn_temperature_tuning': bool(tuned),
      'floor_scale': floor,
      'attn_scale': scale,
      'attention_bias': kinds.of('bias', 'none') == 'all',
    }


def _turned(c, i: int) -> bool:
  listed, every = c['no_rope_layers'], c['no_rope_layer_interval']
  return bool(listed[i]) if listed else (i + 1) % every != 0


def _sparse(c) -> list[bool]:
  n, step = c['num_hidden_layers'], c['interleave_moe_layer_step']
  listed = c['moe_layers']
  listed = range(step - 1, n, step) if listed is None else listed
  return [i in listed for i in range(n)]
