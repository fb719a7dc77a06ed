"""FlexOlmo: no norm before a sub-layer, one after it.

Weijia Shi et al., "FlexOlmo: Open Language Models for Flexible Data Use", 2025,
arXiv:2507.07024; transformers' `flex_olmo`. Raw top-5 of 7, by the class.
"""

from moe_jax.conversion import olmo
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
    return olmo.fields(c, 'output')

  def table(self, c, memory=False):
    names = 'post_attention_layernorm', 'post_feedforward_layernorm'
    return olmo.table(c, names, memory)

  def to_config(self, model, moe, kinds):
    return olmo.config(model, moe, kinds)
