"""FlexOlmo: no norm before a sub-layer, one after it.

Weijia Shi et al., "FlexOlmo: Open Language Models for Flexible Data Use", 2025,
arXiv:2507.07024; transformers' `flex_olmo`. Raw top-5 of 7, by the class.
"""

from moe_jax.conversion import parts, rope
from moe_jax.conversion.families import base


class FlexOlmo(base.Decoder):
  model_types = ('flex_olmo',)
  architecture = 'FlexOlmoForCausalLM'
  each = 'num_experts'
  aux = 0.01
  symbols = (None, 100257)
  aliases = {'num_local_experts': 'num_experts'}
  theta = 500_000.0
  defaults = {
    'vocab_size': 100352,
    'hidden_size': 4096,
    'intermediate_size': 11008,
    'num_hidden_layers': 32,
    'num_attention_heads': 32,
    'num_key_value_heads': None,
    'hidden_act': 'silu',
    'rms_norm_eps': 1e-6,
    'max_position_embeddings': 4096,
    'tie_word_embeddings': False,
    'attention_bias': False,
    'num_experts_per_tok': 5,
    'num_experts': 7,
    'norm_topk_prob': False,
  }

  def check(self, c):
    return base.check_heads(c)

  def fields(self, c):
    kind = base.attention(
      kv_heads=base.kv_heads(c),
      bias='all' if c['attention_bias'] else 'none',
      qk_norm='width',
    )
    router = rope.call(
      'top_k', k=c['num_experts_per_tok'], renormalize=c['norm_topk_prob']
    )
    E, F = c['num_experts'], c['intermediate_size']
    return {
      'model': base.model_fields(c, attention=(kind,), norm_at='output'),
      'moe': base.moe_fields(c, E, F, router),
    }

  def table(self, c, memory=False):
    t = parts.table(c, E=c['num_experts'], F=c['intermediate_size'])
    parts.frame(t, c['tie_word_embeddings'])
    for i in range(c['num_hidden_layers']):
      at, to = parts.layer(i)
      t.norm(f'{at}.post_attention_layernorm', f'{to}/attention_norm')
      t.norm(f'{at}.post_feedforward_layernorm', f'{to}/moe_norm')
      parts.heads(t, at, to, 'all' if c['attention_bias'] else 'none')
      parts.wide_norms(t, at, to)
      parts.router(t, f'{at}.mlp.gate.weight', to)
      parts.experts(t, f'{at}.mlp.experts', f'{to}/moe/experts', memory=memory)
    return t

  def to_config(self, model, moe, kinds):
    own = base.sizes_config(model, moe, kinds)
    return own | {
      'intermediate_size': moe.d_ff,
      'num_key_value_heads': kinds.of('kv_heads', 0) or model.num_heads,
      'attention_bias': kinds.of('bias', 'none') == 'all',
      'num_experts': moe.num_experts,
      'norm_topk_prob': kinds.router.get('renormalize', True),
    }
