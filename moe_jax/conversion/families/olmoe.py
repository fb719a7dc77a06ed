"""OLMoE: raw top-8 of 64, queries and keys normalised over their whole width.

Niklas Muennighoff et al., "OLMoE: Open Mixture-of-Experts Language Models",
2024, arXiv:2409.02060; transformers' `olmoe`.
"""

from moe_jax.conversion import olmo
from moe_jax.conversion.families import base


class Olmoe(base.Decoder):
  model_types = ('olmoe',)
  architecture = 'OlmoeForCausalLM'
  each = 'num_experts'
  aux = 0.01
  symbols = (None, 50279)
  aliases = {'num_local_experts': 'num_experts'}
  defaults = {
    'vocab_size': 50304,
    'hidden_size': 2048,
    'intermediate_size': 2048,
    'num_hidden_layers': 16,
    'num_attention_heads': 16,
    'num_key_value_heads': None,
    'hidden_act': 'silu',
    'rms_norm_eps': 1e-5,
    'max_position_embeddings': 4096,
    'tie_word_embeddings': False,
    'attention_bias': False,
    'clip_qkv': None,
    'num_experts_per_tok': 8,
    'num_experts': 64,
    'norm_topk_prob': False,
  }
  free = ('clip_qkv',)

  def check(self, c):
    clip = c['clip_qkv']
    fits = clip is None or (type(clip) in (int, float) and clip > 0)
    return base.check_heads(c) + [f'clip_qkv={clip!r}'] * (not fits)

  def fields(self, c):
    return olmo.fields(c, 'input', clip=float(c['clip_qkv'] or 0))

  def table(self, c, memory=False):
    names = 'input_layernorm', 'post_attention_layernorm'
    return olmo.table(c, names, memory)

  def to_config(self, model, moe, kinds):
    clip = kinds.of('clip', 0.0) or None
    return olmo.config(model, moe, kinds) | {'clip_qkv': clip}
