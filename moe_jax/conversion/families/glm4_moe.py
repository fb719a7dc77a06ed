"""GLM-4.5: DeepSeek-V3's router, q/k/v biases, half of a head turned.

GLM-4.5 Team, "GLM-4.5: Agentic, Reasoning, and Coding (ARC) Foundation Models",
2025, arXiv:2508.06471; transformers' `glm4_moe`. Layers that predict further
tokens are left out, and 0 is written of them.
"""

from moe_jax.conversion import biased
from moe_jax.conversion.families import base


class Glm4Moe(base.Decoder):
  model_types = ('glm4_moe',)
  architecture = 'Glm4MoeForCausalLM'
  each = 'n_routed_experts'
  predicts = True
  aliases = {
    'num_local_experts': 'n_routed_experts',
    'num_mtp_layers': 'num_nextn_predict_layers',
  }
  defaults = biased.DEFAULTS | {
    'vocab_size': 151552,
    'hidden_size': 4096,
    'intermediate_size': 10944,
    'moe_intermediate_size': 1408,
    'num_hidden_layers': 46,
    'num_attention_heads': 96,
    'num_key_value_heads': 8,
    'head_dim': None,
    'n_routed_experts': 128,
    'num_experts_per_tok': 8,
    'hidden_act': 'silu',
    'rms_norm_eps': 1e-5,
    'max_position_embeddings': 131072,
    'tie_word_embeddings': False,
    'attention_bias': False,
    'use_qk_norm': False,
    'partial_rotary_factor': 0.5,
    'num_nextn_predict_layers': 1,
  }
  from_0 = ('first_k_dense_replace', 'num_nextn_predict_layers')

  def check(self, c):
    return base.check_heads(c)

  def _own(self, c):
    return 'qkv' if c['attention_bias'] else 'none', c['use_qk_norm']

  def fields(self, c):
    return biased.fields(c, *self._own(c))

  def table(self, c, memory=False):
    return biased.table(c, *self._own(c), memory)

  def to_config(self, model, moe, kinds):
    own = biased.config(model, moe, kinds)
    return (
      {'partial_rotary_factor': 1.0}
      | own
      | {
        'attention_bias': kinds.of('bias', 'none') == 'qkv',
        'use_qk_norm': kinds.of('qk_norm', False) == 'head',
        'num_nextn_predict_layers': 0,
      }
    )
