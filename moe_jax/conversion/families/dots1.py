"""dots.llm1: DeepSeek-V3's router on heads that are normalised one by one.

Bi Huo et al., "dots.llm1 Technical Report", 2025, arXiv:2506.05767;
transformers' `dots1`.
"""

from moe_jax.conversion import biased
from moe_jax.conversion.families import base


class Dots1(base.Decoder):
  model_types = ('dots1',)
  architecture = 'Dots1ForCausalLM'
  each = 'n_routed_experts'
  aliases = {'num_local_experts': 'n_routed_experts'}
  defaults = biased.DEFAULTS | {
    'vocab_size': 152064,
    'hidden_size': 4608,
    'intermediate_size': 10944,
    'moe_intermediate_size': 1408,
    'num_hidden_layers': 62,
    'num_attention_heads': 32,
    'num_key_value_heads': 32,
    'head_dim': None,
    'n_shared_experts': None,
    'n_routed_experts': None,
    'num_experts_per_tok': None,
    'first_k_dense_replace': 0,
    'norm_topk_prob': False,
    'hidden_act': 'silu',
    'rms_norm_eps': 1e-6,
    'max_position_embeddings': 2048,
    'tie_word_embeddings': False,
    'sliding_window': 4096,
    'max_window_layers': 62,
    'layer_types': (),
  }
  optional = ('num_key_value_heads', 'sliding_window', 'layer_types')
  from_0 = ('first_k_dense_replace', 'max_window_layers')
  only = {
    'attention_bias': (False,),
    'moe_layer_freq': (1,),
    'scoring_func': ('sigmoid', 'noaux_tc'),
    'topk_method': ('noaux_tc',),
  }

  def check(self, c):
    wrong = base.check_heads(c)
    for name in ('n_routed_experts', 'n_shared_experts', 'num_experts_per_tok'):
      wrong += [f'{name} is missing'] * (c[name] is None)
    wrong += base.other_layers(c)
    windows = c['sliding_window'] and not c['layer_types']
    if windows and c['max_window_layers'] < c['num_hidden_layers']:
      wrong.append(f'max_window_layers={c["max_window_layers"]}')
    return wrong

  def fields(self, c):
    return biased.fields(c, 'none', qk_norm=True)

  def table(self, c, memory=False):
    return biased.table(c, 'none', qk_norm=True, memory=memory)

  def to_config(self, model, moe, kinds):
    return biased.config(model, moe, kinds) | {'sliding_window': None}
