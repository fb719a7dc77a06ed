"""Freezes st-moe-pytorch's MoE layer: top-2 and top-3, ample and tight.

  python -m tests.golden.make_st_moe_pytorch [--check]

What of st-moe-pytorch 0.1.8 is switched off:

  * the random policy of second and third experts, which it applies in
    evaluation too: a threshold of 1e-9 sends every token;
  * straight_through_dispatch_tensor, by default on: it adds the experts' own
    gradient to the router's as if dispatching were smooth;
  * differentiable_topk; the additive biases of its Linear layers (zero here).

What is matched:

  * a group is one row; capacity is int(n f / E), at most n, at least 4;
  * gates are divided by their sum before drops;
  * z-loss on clean logits, all tokens; losses exist in training mode alone;
  * GEGLU with the exact gelu, of the second half of its first projection, and
    a multiplicative bias; hidden width int(2 / 3 * multiple * d).

What differs: f of the balance loss counts the first choices that were kept, in
place of all, so its value is the paper's without drops only. Both are frozen.
"""

import st_moe_pytorch
import torch

from tests.golden import freeze

SEED = 0
D, E, MULTIPLE, ROWS, TOKENS = 6, 5, 2, 2, 16
# int(16 * 1.6 / 5) = 5 rows an expert; int(16 * 5 / 5) = 16, one for each.
FACTORS = {'tight': 1.6, 'ample': 5.0}


def weights(shape):
  """A fixed scalar of any output: its sum with these weights."""
  n = torch.Size(shape).numel()
  return torch.cos(torch.arange(n, dtype=torch.float32)).reshape(shape)


def make():
  torch.manual_seed(SEED)
  x = torch.randn(ROWS, TOKENS, D)
  out = {'seed': SEED, 'x': x.numpy()}
  state = None
  for top_n in (2, 3):
    for case, factor in FACTORS.items():
      moe = st_moe_pytorch.MoE(
        D,
        num_experts=E,
        expert_hidden_mult=MULTIPLE,
        threshold_train=1e-9,
        capacity_factor_train=factor,
        gating_top_n=top_n,
        straight_through_dispatch_tensor=False,
        differentiable_topk=False,
      )
      if state is None:
        state = moe.state_dict()
        for name, value in state.items():
          if name.endswith('bias') and 'mult_bias' not in name:
            value.zero_()
          if name.endswith('mult_bias'):
            value.normal_(1.0, 0.5)
        state['gate.to_gates.weight'].normal_(0.0, 1.0)
        state = {k: v for k, v in state.items() if 'threshold' not in k}
        out |= {f'params/{k}': v.numpy() for k, v in state.items()}
      missing, unexpected = moe.load_state_dict(state, strict=False)
      assert not unexpected and all('threshold' in k for k in missing)
      moe.train()

      at = f'top_{top_n}/{case}'
      mine = x.clone().requires_grad_()
      y, _, balance, z = moe(mine)
      probs = moe.gate.to_gates(x).softmax(-1).topk(top_n + 1).values
      assert (probs[..., :-1] - probs[..., 1:]).min() > 1e-4
      kernel = moe.gate.to_gates.weight
      for name, loss in (('balance', balance), ('z_loss', z)):
        (grad,) = torch.autograd.grad(loss, kernel, retain_graph=True)
        out[f'{at}/{name}'] = loss.item()
        out[f'{at}/{name}_grad'] = grad.numpy()
      (y * weights(y.shape)).sum().backward()
      dispatch, *_ = moe.gate(x)
      kept = dispatch.sum(-1).bool()
      assert (kept.sum() == ROWS * TOKENS * top_n) == (case == 'ample')
      out[f'{at}/y'] = y.detach().numpy()
      out[f'{at}/kept'] = kept.numpy()
      out[f'{at}/grads/x'] = mine.grad.numpy()
      for name, p in moe.named_parameters():
        if 'mult_bias' in name or not name.endswith('bias'):
          out[f'{at}/grads/{name}'] = p.grad.numpy()
  return out


if __name__ == '__main__':
  freeze.main('st_moe_pytorch', ('torch', 'st-moe-pytorch'), make)
