"""Ernie 4.5: softmax scores with a bias of the selection, interleaved pairs.

Baidu, "ERNIE 4.5 Technical Report", 2025; transformers' `ernie4_5_moe`. Sparse
are the layers from `moe_layer_start_index` to `moe_layer_end_index`, or every
`moe_layer_interval`-th of them.
"""

from moe_jax.conversion import parts, rope
from moe_jax.conversion.families import base


class Ernie45Moe(base.Decoder):
  model_types = ('ernie4_5_moe',)
  architecture = 'Ernie4_5_MoeForCausalLM'
  each = 'moe_num_experts'
  symbols = (1, 2)
  theta = 500_000.0
  aliases = {
    'num_experts': 'moe_num_experts',
    'num_experts_per_tok': 'moe_k',
  }
  defaults = {
    'vocab_size': 103424,
    'hidden_size': 2560,
    'intermediate_size': 12288,
    'num_hidden_layers': 28,
    'num_attention_heads': 20,
    'num_key_value_heads': 4,
    'head_dim': None,
    'hidden_act': 'silu',
    'max_position_embeddings': 131072,
    'rms_norm_eps': 1e-5,
    'tie_word_embeddings': True,
    'moe_intermediate_size': 1536,
    'moe_k': 6,
    'moe_num_experts': 64,
    'moe_num_shared_experts': 2,
    'moe_layer_start_index': 1,
    'moe_layer_end_index': -1,
    'moe_layer_interval': 1,
  }
  optional = ('num_key_value_heads',)
  free = ('moe_layer_end_index',)
  from_0 = ('moe_layer_start_index', 'moe_num_shared_experts')
  only = {'use_bias': (False,), 'moe_norm_min': (1e-12,)}
  # Of Baidu's own code, for training.
  ignored = ('moe_capacity', 'moe_gate', 'moe_use_aux_free')

  def check(self, c):
    last = c['moe_layer_end_index']
    fits = type(last) is int and last >= -1
    wrong = base.check_heads(c) + [f'moe_layer_end_index={last!r}'] * (not fits)
    if fits and not any(_sparse(c)):
      wrong.append('no layer is sparse')
    return wrong

  def fields(self, c):
    router = rope.call(
      'sigmoid_top_k', k=c['moe_k'], score='softmax', scaling=1.0
    )
    F, shared = c['moe_intermediate_size'], c['moe_num_shared_experts']
    moe = base.moe_fields(
      *(c, c['moe_num_experts'], F, router),
      layers=base.sparse(_sparse(c)),
      balance=('loss_free_bias(rate=0.001)',),
    )
    if shared:
      moe |= {'dense_branch': 'shared', 'dense_branch_d_ff': shared * F}
    model = base.model_fields(
      c,
      attention=(base.attention(kv_heads=base.kv_heads(c)),),
      positions=rope.positions(c, interleaved=True),
    )
    return {'model': model, 'moe': moe}

  def table(self, c, memory=False):
    F, shared = c['moe_intermediate_size'], c['moe_num_shared_experts']
    t = parts.table(c, E=c['moe_num_experts'], F=F, Z=1)
    parts.frame(t, c['tie_word_embeddings'])
    for i, sparse in enumerate(_sparse(c)):
      at, to = parts.layer(i)
      parts.norms(t, at, to, 'moe_norm' if sparse else 'ffn_norm')
      parts.heads(t, at, to)
      if not sparse:
        parts.dense(t, f'{at}.mlp', to, c['intermediate_size'])
        continue
      parts.router(t, f'{at}.mlp.gate.weight', to)
      held = f'{at}.mlp.gate' if memory else f'{at}.mlp'
      bias = f'{held}.moe_statics.e_score_correction_bias'
      parts.selection_bias(t, bias, to, 'Z E')
      parts.experts(t, f'{at}.mlp.experts', f'{to}/moe/experts', memory=memory)
      if shared:
        parts.shared(t, f'{at}.mlp.shared_experts', to, shared * F)
    return t

  def to_config(self, model, moe, kinds):
    sparse = [i for i, s in enumerate(kinds.sparse) if s]
    step = sparse[1] - sparse[0] if len(sparse) > 1 else 1
    shared = moe.dense_branch_d_ff // moe.d_ff
    return base.sizes_config(model, moe, kinds) | {
      'head_dim': model.d_head,
      'moe_intermediate_size': moe.d_ff,
      'moe_num_experts': moe.num_experts,
      'moe_num_shared_experts': shared * (moe.dense_branch == 'shared'),
      'moe_layer_start_index': sparse[0],
      'moe_layer_end_index': sparse[-1],
      'moe_layer_interval': step,
    }


def _sparse(c) -> list[bool]:
  n, last = c['num_hidden_layers'], c['moe_layer_end_index']
  last, step = n - 1 if last == -1 else last, c['moe_layer_interval']
  first = c['moe_layer_start_index']
  return [first <= i <= last and (i + 1) % step == 0 for i in range(n)]
