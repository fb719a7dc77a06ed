"""Granite-MoE: multipliers of embedding, residual, scores and logits.

IBM Granite Team, "Granite 3.0 Language Models", 2024; transformers'
`granitemoe`. A softmax over the chosen logits, which is top-k, renormalised.
The attention multiplier stands for head width to the -1/2; logits are divided.
"""

from moe_jax.conversion import parts, rope
from moe_jax.conversion.families import base


class GraniteMoe(base.Decoder):
  model_types = ('granitemoe',)
  architecture = 'GraniteMoeForCausalLM'
  symbols = (1, 2)
  aliases = {'num_experts': 'num_local_experts'}
  defaults = {
    'vocab_size': 32000,
    'hidden_size': 4096,
    'intermediate_size': 11008,
    'num_hidden_layers': 32,
    'num_attention_heads': 32,
    'num_key_value_heads': None,
    'hidden_act': 'silu',
    'rms_norm_eps': 1e-6,
    'max_position_embeddings': 2048,
    'tie_word_embeddings': False,
    'attention_bias': False,
    'embedding_multiplier': 1.0,
    'logits_scaling': 1.0,
    'residual_multiplier': 1.0,
    'attention_multiplier': 1.0,
    'num_local_experts': 8,
    'num_experts_per_tok': 2,
  }

  def check(self, c):
    wrong = base.check_heads(c)
    for name in ('logits_scaling', 'attention_multiplier'):
      if not c[name] > 0:
        wrong.append(f'{name}={c[name]!r}')
    return wrong

  def fields(self, c):
    kind = base.attention(
      kv_heads=base.kv_heads(c),
      bias=base.bias(c),
      scale=float(c['attention_multiplier']),
    )
    model = base.model_fields(
      c,
      attention=(kind,),
      embedding_scale=float(c['embedding_multiplier']),
      residual_scale=float(c['residual_multiplier']),
      logit_scale=1.0 / c['logits_scaling'],
    )
    router = rope.call('top_k', k=c['num_experts_per_tok'], renormalize=True)
    E, F = c['num_local_experts'], c['intermediate_size']
    return {'model': model, 'moe': base.moe_fields(c, E, F, router)}

  def table(self, c, memory=False):
    t = parts.table(c, E=c['num_local_experts'], F=c['intermediate_size'])
    parts.frame(t, c['tie_word_embeddings'])
    for i in range(c['num_hidden_layers']):
      at, to = parts.layer(i)
      parts.norms(t, at, to, 'moe_norm')
      parts.heads(t, at, to, base.bias(c))
      ffn, own = f'{at}.block_sparse_moe', f'{to}/moe/experts'
      router = 'router' if memory else 'router.layer'
      parts.router(t, f'{ffn}.{router}.weight', to)
      names = ('input_linear.weight', 'output_linear.weight')
      if memory:
        names = ('experts.gate_up_proj', 'experts.down_proj')
      parts.stacked(t, *(f'{ffn}.{n}' for n in names), own)
    return t

  def to_config(self, model, moe, kinds):
    own = base.sizes_config(model, moe, kinds)
    return own | {
      'intermediate_size': moe.d_ff,
      'attention_bias': kinds.of('bias', 'none') == 'all',
      'embedding_multiplier': model.embedding_scale,
      'residual_multiplier': model.residual_scale,
      'logits_scaling': 1.0 / model.logit_scale,
      'attention_multiplier': kinds.of('scale', 0.0) or model.d_head**-0.5,
      'num_local_experts': moe.num_experts,
    }
