"""Qwen1.5-MoE and Qwen2-MoE: a shared expert behind a gate, q/k/v biases.

Qwen Team, "Qwen1.5-MoE: Matching 7B Model Performance with 1/3 Activated
Parameters", 2024, and "Qwen2 Technical Report", 2024, arXiv:2407.10671;
transformers' `qwen2_moe`.
"""

from moe_jax.conversion import parts, qwen
from moe_jax.conversion.families import base


class Qwen2Moe(base.Decoder):
  model_types = ('qwen2_moe',)
  architecture = 'Qwen2MoeForCausalLM'
  each = 'num_experts'
  aliases = {'num_local_experts': 'num_experts'}
  defaults = {
    'vocab_size': 151936,
    'hidden_size': 2048,
    'intermediate_size': 5632,
    'num_hidden_layers': 24,
    'num_attention_heads': 16,
    'num_key_value_heads': 16,
    'head_dim': None,
    'hidden_act': 'silu',
    'rms_norm_eps': 1e-6,
    'max_position_embeddings': 32768,
    'tie_word_embeddings': False,
    'decoder_sparse_step': 1,
    'moe_intermediate_size': 1408,
    'shared_expert_intermediate_size': 5632,
    'num_experts_per_tok': 4,
    'num_experts': 60,
    'norm_topk_prob': False,
    'mlp_only_layers': (),
    'qkv_bias': True,
    'layer_types': (),
  }
  optional = ('num_key_value_heads', 'mlp_only_layers', 'layer_types')
  # Without it these two say nothing.
  only = {'use_sliding_window': (False,)}
  ignored = ('sliding_window', 'max_window_layers')

  def check(self, c):
    return base.check_heads(c) + base.other_layers(c)

  def fields(self, c):
    kind = base.attention(
      kv_heads=base.kv_heads(c), bias='qkv' if c['qkv_bias'] else 'none'
    )
    moe = base.moe_fields(
      c,
      c['num_experts'],
      c['moe_intermediate_size'],
      base.top_k(c),
      layers=base.sparse(qwen.sparse(c)),
      dense_branch='gated',
      dense_branch_d_ff=c['shared_expert_intermediate_size'],
    )
    return {'model': base.model_fields(c, attention=(kind,)), 'moe': moe}

  def table(self, c, memory=False):
    t = parts.table(c, E=c['num_experts'], F=c['moe_intermediate_size'], O=1)
    parts.frame(t, c['tie_word_embeddings'])
    for i, sparse in enumerate(qwen.sparse(c)):
      at, to = parts.layer(i)
      parts.norms(t, at, to, 'moe_norm' if sparse else 'ffn_norm')
      parts.heads(t, at, to, 'qkv' if c['qkv_bias'] else 'none')
      if not sparse:
        parts.dense(t, f'{at}.mlp', to, c['intermediate_size'])
        continue
      parts.router(t, f'{at}.mlp.gate.weight', to)
      parts.experts(t, f'{at}.mlp.experts', f'{to}/moe/experts', memory=memory)
      F = c['shared_expert_intermediate_size']
      parts.shared(t, f'{at}.mlp.shared_expert', to, F)
      gate = f'{at}.mlp.shared_expert_gate.weight'
      t.one(gate, 'O D', f'{to}/moe/dense_gate', 'D O')
    return t

  def to_config(self, model, moe, kinds):
    return qwen.config(model, moe, kinds) | {
      'qkv_bias': kinds.of('bias', 'none') == 'qkv',
      'shared_expert_intermediate_size': moe.dense_branch_d_ff,
    }
