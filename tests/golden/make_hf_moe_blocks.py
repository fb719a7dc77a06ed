"""Freezes the sparse blocks of Hugging Face's open mixture-of-experts models.

  python -m tests.golden.make_hf_moe_blocks [--check]

Each block of transformers 5.23.0 stands alone, dropless as all of them are, in
evaluation mode: parameters, input, output, and the gradients of a fixed scalar
of the output. Every size differs from the others, so that no transposed matrix
fits. No two scores that selection compares are closer than 1e-4.

What differs between them: the router; whether rows of the fused first kernel
are [gate; up] (most), columns gate | up (Llama 4) or gate and up in turn
(gpt-oss); a shared FFN, gated or not; what a weight multiplies (Llama 4: the
expert's input).

Also their balancing loss, of one layer's logits and of two layers' together.
"""

import importlib

import torch
import transformers
from transformers.models.mixtral import modeling_mixtral as mixtral

from tests.golden import freeze

SEED = 0
B, L, D, E, F, K = 2, 11, 10, 8, 6, 3
MOE = dict(hidden_size=D, num_experts=E, num_experts_per_tok=K)
LOCAL = dict(hidden_size=D, num_local_experts=E, intermediate_size=F)
DEEPSEEK = dict(
  hidden_size=D,
  num_experts_per_tok=K,
  moe_intermediate_size=F,
  n_shared_experts=2,
  n_group=4,
  topk_group=2,
)
DENSE = MOE | dict(intermediate_size=F)
V2 = DEEPSEEK | dict(n_routed_experts=E)
SPARSE = 'SparseMoeBlock'
# Model of `transformers`, its classes' prefix, the block, the config's fields.
CASES = {
  'olmoe': ('olmoe', 'Olmoe', SPARSE, DENSE),
  'olmoe/renormalized': (
    'olmoe',
    'Olmoe',
    SPARSE,
    DENSE | dict(norm_topk_prob=True),
  ),
  'mixtral': (
    'mixtral',
    'Mixtral',
    SPARSE,
    LOCAL | dict(num_experts_per_tok=K),
  ),
  'flex_olmo': ('flex_olmo', 'FlexOlmo', SPARSE, DENSE),
  'qwen2_moe': (
    'qwen2_moe',
    'Qwen2Moe',
    SPARSE,
    MOE | dict(moe_intermediate_size=F, shared_expert_intermediate_size=13),
  ),
  'deepseek_v2': (
    'deepseek_v2',
    'DeepseekV2',
    'Moe',
    V2 | dict(topk_method='greedy', routed_scaling_factor=1.0),
  ),
  'deepseek_v2/group_limited': (
    'deepseek_v2',
    'DeepseekV2',
    'Moe',
    V2 | dict(topk_method='group_limited_greedy', routed_scaling_factor=1.5),
  ),
  'deepseek_v3': (
    'deepseek_v3',
    'DeepseekV3',
    'MoE',
    V2 | dict(routed_scaling_factor=2.5, norm_topk_prob=True),
  ),
  'gpt_oss': ('gpt_oss', 'GptOss', 'MLP', LOCAL | dict(num_experts_per_tok=K)),
  'llama4': (
    'llama4',
    'Llama4Text',
    'Moe',
    LOCAL | dict(num_experts_per_tok=1),
  ),
  'llama4/top_2': (
    'llama4',
    'Llama4Text',
    'Moe',
    LOCAL | dict(num_experts_per_tok=2),
  ),
}


def weights(shape):
  """A fixed scalar of any output: its sum with these weights."""
  n = torch.Size(shape).numel()
  return torch.cos(torch.arange(n, dtype=torch.float32)).reshape(shape)


def clear(router, x_TD, k):
  """Asserts that no selection hangs on a rounding."""
  scores = torch.nn.functional.linear(
    x_TD, router.weight, getattr(router, 'bias', None)
  ).detach()
  ranked = [scores]
  if 'e_score_correction_bias' in router.state_dict():
    scores = scores.sigmoid() + router.e_score_correction_bias
    # A mask of 0 in place of -inf would stand above some that are chosen.
    assert (scores.topk(k).values < 0).any()
    of_group = scores.unflatten(-1, (-1, 2)).sum(-1)
    ranked = [scores, of_group]
  for values in ranked:
    best = values.sort(descending=True).values
    assert (best[:, :-1] - best[:, 1:]).min() > 1e-4


def make():
  out = {'seed': SEED}
  for name, (model, prefix, kind, fields) in CASES.items():
    torch.manual_seed(SEED)
    config = getattr(transformers, f'{prefix}Config')
    config = config(**fields, num_attention_heads=2)
    config._experts_implementation = 'eager'
    theirs = importlib.import_module(
      f'transformers.models.{model}.modeling_{model}'
    )
    block = getattr(theirs, prefix + kind)(config).eval()
    with torch.no_grad():
      for key, value in block.state_dict().items():
        value.normal_(-1.0 if 'correction' in key else 0.0, 0.5)
      if model == 'gpt_oss':
        block.experts.gate_up_proj.mul_(6.0)
    x = torch.randn(B, L, D, requires_grad=True)
    router = block.gate if hasattr(block, 'gate') else block.router
    clear(router, x.detach().reshape(-1, D), fields['num_experts_per_tok'])
    if model == 'gpt_oss':
      rows = torch.einsum('bld,edf->blef', x, block.experts.gate_up_proj)
      assert 0.1 < (rows.abs() > config.swiglu_limit).float().mean() < 0.6
    y = block(x)
    y = (y[0] if isinstance(y, tuple) else y).reshape(x.shape)
    (y * weights(y.shape)).sum().backward()
    out[f'{name}/x'], out[f'{name}/y'] = x.detach().numpy(), y.detach().numpy()
    out[f'{name}/grads/x'] = x.grad.numpy()
    for key, value in block.state_dict().items():
      out[f'{name}/params/{key}'] = value.numpy()
    for key, value in block.named_parameters():
      assert value.grad.abs().max() > 0.01, (name, key)
      out[f'{name}/grads/{key}'] = value.grad.numpy()
  return out | balance_losses()


def balance_losses():
  """The same function for Mixtral, OLMoE, Qwen2-MoE, FlexOlmo and gpt-oss."""
  torch.manual_seed(SEED)
  logits = tuple(torch.randn(2, B * L, E) + torch.linspace(0, 1, E))
  return {
    'balance/logits': torch.stack(logits).numpy(),
    'balance/one': mixtral.load_balancing_loss_func(logits[:1], E, K).numpy(),
    'balance/two': mixtral.load_balancing_loss_func(logits, E, K).numpy(),
  }


if __name__ == '__main__':
  freeze.main('hf_moe_blocks', ('torch', 'transformers'), make)
