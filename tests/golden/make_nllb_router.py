"""Freezes the top-2 router of Hugging Face's NLLB-MoE.

  python -m tests.golden.make_nllb_router [--check]

Of transformers 5.23.0 the layer around it is broken (it runs experts 0 and 1
alone); `route_tokens`, a function of the logits, is right. Training mode and an
explicit capacity: in evaluation it overwrites its own capacity. Policy 'all':
'sampling' would add its noise to the caller's logits, 'random' discards the
normalised second gate. Its batch-prioritised order goes by the largest
probability. Padding takes no seats, unless router_ignore_padding_tokens, which
says the opposite.
"""

import torch
import transformers
from transformers.models.nllb_moe import modeling_nllb_moe

from tests.golden import freeze

SEED = 0
T, E, CAPACITY = 18, 4, 6


def make():
  torch.manual_seed(SEED)
  logits = torch.randn(T, E)
  top = logits.softmax(-1).topk(3).values
  assert (top[:, :-1] - top[:, 1:]).min() > 1e-4
  assert top[:, 0].sort().values.diff().min() > 1e-5
  padding = torch.zeros(T, dtype=torch.long)
  padding[[2, 3, 11]] = 1
  out = {
    'seed': SEED,
    'logits': logits.numpy(),
    'padding': padding.numpy(),
    'capacity': CAPACITY,
  }
  for order, prioritized in (('position', False), ('prioritized', True)):
    for renormalize in ('before', 'after'):
      config = transformers.NllbMoeConfig(
        hidden_size=E,
        num_experts=E,
        expert_capacity=CAPACITY,
        second_expert_policy='all',
        normalize_router_prob_before_dropping=renormalize == 'before',
        batch_prioritized_routing=prioritized,
      )
      router = modeling_nllb_moe.NllbMoeTop2Router(config).train()
      for name, mask in (('full', None), ('padded', padding)):
        mine = logits.clone().requires_grad_()
        _, weight = router.route_tokens(mine, padding_mask=mask)
        scalar = torch.cos(torch.arange(T * E)).reshape(T, E)
        (weight * scalar).sum().backward()
        at = f'{order}/{renormalize}/{name}'
        assert (weight > 0).sum() < 2 * T - (0 if mask is None else 6)
        out[f'{at}/weight'] = weight.detach().numpy()
        out[f'{at}/grad'] = mine.grad.numpy()
  return out


if __name__ == '__main__':
  freeze.main('nllb_router', ('torch', 'transformers'), make)
