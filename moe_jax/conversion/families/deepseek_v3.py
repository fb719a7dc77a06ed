"""DeepSeek-V3: latent attention, node-limited sigmoids with a learned bias.

DeepSeek-AI, "DeepSeek-V3 Technical Report", 2024, arXiv:2412.19437;
transformers' `deepseek_v3`. The bias of the selection is balancing state of
ours, float32 in every checkpoint. Layers from `num_hidden_layers` on are those
that predict further tokens: they are left out, and 0 is written of them.
Published in FP8.
"""

from moe_jax.conversion import biased, latent, parts
from moe_jax.conversion.families import base


class DeepseekV3(base.Decoder):
  model_types = ('deepseek_v3',)
  architecture = 'DeepseekV3ForCausalLM'
  each = 'n_routed_experts'
  symbols = (0, 1)
  predicts = True
  aliases = {
    'num_local_experts': 'n_routed_experts',
    'num_mtp_layers': 'num_nextn_predict_layers',
  }
  defaults = {
    'vocab_size': 129280,
    'hidden_size': 7168,
    'intermediate_size': 18432,
    'moe_intermediate_size': 2048,
    'num_hidden_layers': 61,
    'num_attention_heads': 128,
    'num_key_value_heads': 128,
    'n_shared_experts': 1,
    'n_routed_experts': 256,
    'routed_scaling_factor': 2.5,
    'kv_lora_rank': 512,
    'q_lora_rank': 1536,
    'qk_rope_head_dim': 64,
    'v_head_dim': 128,
    'qk_nope_head_dim': 128,
    'n_group': 8,
    'topk_group': 4,
    'num_experts_per_tok': 8,
    'first_k_dense_replace': 3,
    'norm_topk_prob': True,
    'hidden_act': 'silu',
    'rms_norm_eps': 1e-6,
    'max_position_embeddings': 4096,
    'tie_word_embeddings': False,
    'rope_interleave': True,
    'num_nextn_predict_layers': 1,
  }
  optional = ('q_lora_rank', 'num_key_value_heads')
  from_0 = ('first_k_dense_replace', 'num_nextn_predict_layers')
  only = {
    'attention_bias': (False,),
    'moe_layer_freq': (1,),
    'scoring_func': ('sigmoid',),
    'topk_method': ('noaux_tc',),
  }
  ignored = ('ep_size', 'seq_aux', 'aux_loss_alpha', 'head_dim', 'qk_head_dim')

  def check(self, c):
    return latent.check(c)

  def fields(self, c):
    own = base.moe_fields(
      *(c, c['n_routed_experts'], c['moe_intermediate_size'], biased.router(c)),
      balance=('loss_free_bias(rate=0.001)',),
      **latent.shared(c),
    )
    return {'model': latent.fields(c, c['rope_interleave']), 'moe': own}

  def table(self, c, memory=False):
    t = latent.table(c, memory)
    for i in range(c['first_k_dense_replace'], c['num_hidden_layers']):
      at, to = parts.layer(i)
      parts.selection_bias(t, f'{at}.mlp.gate.e_score_correction_bias', to)
    return t

  def to_config(self, model, moe, kinds):
    return latent.config(model, moe, kinds) | {
      'n_group': kinds.router.get('groups', 1),
      'topk_group': kinds.router.get('kept_groups', 1),
      'norm_topk_prob': kinds.router.get('renormalize', True),
      'routed_scaling_factor': kinds.router.get('scaling', 2.5),
      'rope_interleave': 'interleaved=True' in model.positions,
      'num_nextn_predict_layers': 0,
    }
