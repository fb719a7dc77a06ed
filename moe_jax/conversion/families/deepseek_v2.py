"""DeepSeek-V2: latent attention, softmax scores, group-limited or not.

DeepSeek-AI, "DeepSeek-V2: A Strong, Economical, and Efficient
Mixture-of-Experts Language Model", 2024, arXiv:2405.04434; transformers'
`deepseek_v2`, whose code ignores `norm_topk_prob`: true is refused.
"""

from moe_jax.conversion import latent, rope
from moe_jax.conversion.families import base

_METHODS = ('greedy', 'group_limited_greedy')


class DeepseekV2(base.Decoder):
  model_types = ('deepseek_v2',)
  architecture = 'DeepseekV2ForCausalLM'
  each = 'n_routed_experts'
  symbols = (1, 2)
  aliases = {
    'num_experts': 'n_routed_experts',
    'num_local_experts': 'n_routed_experts',
  }
  defaults = {
    'vocab_size': 102400,
    'hidden_size': 4096,
    'intermediate_size': 11008,
    'moe_intermediate_size': 1407,
    'num_hidden_layers': 32,
    'num_attention_heads': 32,
    'num_key_value_heads': None,
    'n_shared_experts': 2,
    'n_routed_experts': 64,
    'routed_scaling_factor': 1.0,
    'kv_lora_rank': 512,
    'q_lora_rank': 1536,
    'qk_rope_head_dim': 64,
    'v_head_dim': 128,
    'qk_nope_head_dim': 128,
    'n_group': None,
    'topk_group': None,
    'topk_method': 'greedy',
    'num_experts_per_tok': None,
    'first_k_dense_replace': 0,
    'hidden_act': 'silu',
    'rms_norm_eps': 1e-6,
    'max_position_embeddings': 2048,
    'tie_word_embeddings': False,
  }
  optional = ('q_lora_rank',)
  from_0 = ('first_k_dense_replace',)
  only = {
    'norm_topk_prob': (False, None),
    'attention_bias': (False,),
    'mlp_bias': (False,),
    'moe_layer_freq': (1,),
    'scoring_func': ('softmax',),
  }
  ignored = ('ep_size', 'seq_aux', 'aux_loss_alpha', 'head_dim', 'qk_head_dim')

  def check(self, c):
    wrong = latent.check(c)
    for name in ('num_experts_per_tok', 'n_group', 'topk_group'):
      value = c[name]
      optional = name != 'num_experts_per_tok'
      if c['topk_method'] == _METHODS[0] and optional:
        continue
      if not (type(value) is int and value > 0):
        wrong.append(f'{name}={value!r}')
    if c['topk_method'] not in _METHODS:
      valid = ', '.join(_METHODS)
      wrong.append(f'topk_method={c["topk_method"]!r} (ours: {valid})')
    return wrong

  def fields(self, c):
    limits = {}
    if c['topk_method'] == 'group_limited_greedy':
      limits = {'groups': c['n_group'], 'kept_groups': c['topk_group']}
    router = rope.call(
      'sigmoid_top_k',
      k=c['num_experts_per_tok'],
      score='softmax',
      renormalize=False,
      scaling=float(c['routed_scaling_factor']),
      **limits,
      group_score='max',
    )
    own = base.moe_fields(
      *(c, c['n_routed_experts'], c['moe_intermediate_size'], router),
      **latent.shared(c),
    )
    return {'model': latent.fields(c, interleaved=True), 'moe': own}

  def table(self, c, memory=False):
    return latent.table(c, memory)

  def to_config(self, model, moe, kinds):
    groups = kinds.router.get('groups', 1)
    return latent.config(model, moe, kinds) | {
      'topk_method': _METHODS[groups > 1],
      'n_group': groups,
      'topk_group': kinds.router.get('kept_groups', 1),
      'routed_scaling_factor': kinds.router.get('scaling', 2.5),
      'norm_topk_prob': False,
    }
