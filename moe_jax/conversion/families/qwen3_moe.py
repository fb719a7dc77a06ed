"""Qwen3-MoE: top-8 of 128, queries and keys normalised head by head.

Qwen Team, "Qwen3 Technical Report", 2025, arXiv:2505.09388; transformers'
`qwen3_moe`.
"""

from moe_jax.conversion import parts, qwen
from moe_jax.conversion.families import base


class Qwen3Moe(base.Decoder):
  model_types = ('qwen3_moe',)
  architecture = 'Qwen3MoeForCausalLM'
  each = 'num_experts'
  aliases = {'num_local_experts': 'num_experts'}
  defaults = {
    'vocab_size': 151936,
    'hidden_size': 2048,
    'intermediate_size': 6144,
    'num_hidden_layers': 24,
    'num_attention_heads': 32,
    'num_key_value_heads': 4,
    'head_dim': None,
    'hidden_act': 'silu',
    'rms_norm_eps': 1e-6,
    'max_position_embeddings': 32768,
    'tie_word_embeddings': False,
    'attention_bias': False,
    'decoder_sparse_step': 1,
    'moe_intermediate_size': 768,
    'num_experts_per_tok': 8,
    'num_experts': 128,
    'norm_topk_prob': False,
    'mlp_only_layers': (),
  }
  optional = ('mlp_only_layers',)
  # Without it these two say nothing.
  only = {'use_sliding_window': (False,)}
  ignored = ('sliding_window', 'max_window_layers')

  def check(self, c):
    return base.check_heads(c)

  def fields(self, c):
    kind = base.attention(
      kv_heads=base.kv_heads(c),
      bias=base.bias(c),
      qk_norm='head',
    )
    E, F = c['num_experts'], c['moe_intermediate_size']
    layers = base.sparse(qwen.sparse(c))
    return {
      'model': base.model_fields(c, attention=(kind,)),
      'moe': base.moe_fields(c, E, F, base.top_k(c), layers=layers),
    }

  def table(self, c, memory=False):
    t = parts.table(c, E=c['num_experts'], F=c['moe_intermediate_size'])
    parts.frame(t, c['tie_word_embeddings'])
    for i, sparse in enumerate(qwen.sparse(c)):
      at, to = parts.layer(i)
      parts.norms(t, at, to, 'moe_norm' if sparse else 'ffn_norm')
      parts.heads(t, at, to, base.bias(c))
      t.norm(f'{at}.self_attn.q_norm', f'{to}/attention/query_norm', 'J')
      t.norm(f'{at}.self_attn.k_norm', f'{to}/attention/key_norm', 'J')
      if not sparse:
        parts.dense(t, f'{at}.mlp', to, c['intermediate_size'])
        continue
      parts.router(t, f'{at}.mlp.gate.weight', to)
      parts.experts(t, f'{at}.mlp.experts', f'{to}/moe/experts', memory=memory)
    return t

  def to_config(self, model, moe, kinds):
    return qwen.config(model, moe, kinds) | {
      'attention_bias': kinds.of('bias', 'none') == 'all'
    }
