"""Mixtral: top-2 of 8, renormalised, grouped-query attention.

Albert Q. Jiang et al., "Mixtral of Experts", 2024, arXiv:2401.04088;
transformers' `mixtral`.
"""

from moe_jax.conversion import parts, rope
from moe_jax.conversion.families import base


class Mixtral(base.Decoder):
  model_types = ('mixtral',)
  architecture = 'MixtralForCausalLM'
  each = 'num_local_experts'
  symbols = (1, 2)
  aliases = {'num_experts': 'num_local_experts'}
  theta = 1e6
  defaults = {
    'vocab_size': 32000,
    'hidden_size': 4096,
    'intermediate_size': 14336,
    'num_hidden_layers': 32,
    'num_attention_heads': 32,
    'num_key_value_heads': 8,
    'head_dim': None,
    'hidden_act': 'silu',
    'rms_norm_eps': 1e-5,
    'max_position_embeddings': 4096 * 32,
    'tie_word_embeddings': False,
    'sliding_window': None,
    'num_experts_per_tok': 2,
    'num_local_experts': 8,
  }
  optional = ('num_key_value_heads',)
  # Theirs shows the noise to the experts, too.
  only = {'router_jitter_noise': (0.0,)}

  def check(self, c):
    size = c['sliding_window']
    fits = size is None or (type(size) is int and size > 0)
    return base.check_heads(c) + [f'sliding_window={size!r}'] * (not fits)

  def fields(self, c):
    own = {'kv_heads': base.kv_heads(c)}
    kind = base.attention(**own)
    if c['sliding_window']:
      kind = base.attention('window', size=c['sliding_window'], **own)
    router = rope.call('top_k', k=c['num_experts_per_tok'], renormalize=True)
    E, F = c['num_local_experts'], c['intermediate_size']
    return {
      'model': base.model_fields(c, attention=(kind,)),
      'moe': base.moe_fields(c, E, F, router),
    }

  def table(self, c, memory=False):
    t = parts.table(c, E=c['num_local_experts'], F=c['intermediate_size'])
    parts.frame(t, c['tie_word_embeddings'])
    for i in range(c['num_hidden_layers']):
      at, to = parts.layer(i)
      parts.norms(t, at, to, 'moe_norm')
      parts.heads(t, at, to)
      ffn = f'{at}.mlp' if memory else f'{at}.block_sparse_moe'
      parts.router(t, f'{ffn}.gate.weight', to)
      names = ('w1', 'w3', 'w2')
      own = f'{ffn}.experts', f'{to}/moe/experts'
      parts.experts(t, *own, names, memory=memory)
    return t

  def to_config(self, model, moe, kinds):
    own = base.sizes_config(model, moe, kinds)
    return own | {
      'intermediate_size': moe.d_ff,
      'head_dim': model.d_head,
      'sliding_window': kinds.of('size', None),
      'num_local_experts': moe.num_experts,
    }
