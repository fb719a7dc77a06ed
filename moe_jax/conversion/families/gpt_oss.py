"""gpt-oss: sinks, every other layer a window, biases everywhere, clamped GLU.

OpenAI, "gpt-oss-120b & gpt-oss-20b Model Card", 2025, arXiv:2508.10925;
transformers' `gpt_oss`. Its YaRN multiplies cosines and sines, and does not
round where it cuts. Gate and up are columns in turn; published in MXFP4.
"""

from moe_jax.conversion import parts, rope
from moe_jax.conversion.families import base

_KINDS = ('sliding_attention', 'full_attention')


class GptOss(base.Decoder):
  model_types = ('gpt_oss',)
  architecture = 'GptOssForCausalLM'
  aliases = {'num_experts': 'num_local_experts'}
  theta = 150_000.0
  scaling = {
    'rope_type': 'yarn',
    'factor': 32.0,
    'truncate': False,
    'original_max_position_embeddings': 4096,
  }
  defaults = {
    'vocab_size': 201088,
    'hidden_size': 2880,
    'intermediate_size': 2880,
    'num_hidden_layers': 36,
    'num_attention_heads': 64,
    'num_key_value_heads': 8,
    'head_dim': 64,
    'rms_norm_eps': 1e-5,
    'max_position_embeddings': 131072,
    'tie_word_embeddings': False,
    'sliding_window': 128,
    'num_experts_per_tok': 4,
    'num_local_experts': 128,
    'swiglu_alpha': 1.702,
    'swiglu_limit': 7.0,
    'layer_types': (),
    'attention_bias': True,
  }
  optional = ('sliding_window', 'layer_types', 'num_key_value_heads')
  only = {'hidden_act': ('silu',)}
  # Of OpenAI's own code; the first is what rope_scaling says as well.
  ignored = ('initial_context_length', 'experts_per_token')

  def check(self, c):
    wrong, kinds = base.check_heads(c), c['layer_types'] or ()
    if kinds and len(kinds) != c['num_hidden_layers']:
      wrong.append(f'{len(kinds)} layer_types')
    wrong += [f'layer_types: {k!r}' for k in kinds if k not in _KINDS]
    return wrong

  def fields(self, c):
    own = {
      'kv_heads': base.kv_heads(c),
      'bias': base.bias(c),
      'sinks': True,
    }
    full, size = base.attention(**own), c['sliding_window']
    window = base.attention('window', size=size, **own) if size else full
    n = c['num_hidden_layers']
    kinds = c['layer_types'] or [_KINDS[i % 2] for i in range(n)]
    kinds = [window if k == _KINDS[0] else full for k in kinds]
    glu = rope.call(
      'clamped_glu',
      alpha=float(c['swiglu_alpha']),
      limit=float(c['swiglu_limit']),
    )
    router = rope.call('gpt_oss', k=c['num_experts_per_tok'])
    E, F = c['num_local_experts'], c['intermediate_size']
    return {
      'model': base.model_fields(c, attention=base.cycle(kinds)),
      'moe': base.moe_fields(c, E, F, router, experts=glu),
    }

  def table(self, c, memory=False):
    t = parts.table(c, E=c['num_local_experts'], F=c['intermediate_size'])
    parts.frame(t, c['tie_word_embeddings'])
    for i in range(c['num_hidden_layers']):
      at, to = parts.layer(i)
      parts.norms(t, at, to, 'moe_norm')
      parts.heads(t, at, to, base.bias(c))
      t.one(f'{at}.self_attn.sinks', 'H', f'{to}/attention/sinks', 'H')
      parts.router(t, f'{at}.mlp.router.weight', to)
      t.one(f'{at}.mlp.router.bias', 'E', f'{to}/moe/router/bias', 'E')
      own = f'{at}.mlp.experts', f'{to}/moe/experts'
      parts.turned(t, *own, columns='FG')
      parts.pair(
        *(t, f'{own[0]}.gate_up_proj_bias', 'E FG'),
        *(f'{own[1]}/bi_gate', f'{own[1]}/bi_up', 'E F'),
      )
      t.one(f'{own[0]}.down_proj_bias', 'E D', f'{own[1]}/bo', 'E D')
    return t

  def to_config(self, model, moe, kinds):
    own = base.sizes_config(model, moe, kinds)
    sizes = {a.get('size') for _, a in kinds.attentions} - {None}
    return own | {
      'hidden_act': 'silu',
      'intermediate_size': moe.d_ff,
      'head_dim': model.d_head,
      'attention_bias': kinds.of('bias', 'none') == 'all',
      'sliding_window': max(sizes, default=None),
      'layer_types': [
        _KINDS[0] if name == 'window' else _KINDS[1]
        for name, _ in kinds.attentions
      ],
      'num_local_experts': moe.num_experts,
      'swiglu_alpha': kinds.experts.get('alpha', 1.702),
      'swiglu_limit': kinds.experts.get('limit', 7.0),
    }
