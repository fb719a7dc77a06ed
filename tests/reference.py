"""Loop-written NumPy references, float64, from the papers' equations.

One token, one expert, one seat at a time; nothing here imports moe_jax.
"""

import math

import numpy as np

ACTIVATIONS = {
  'relu': lambda x: np.maximum(x, 0),
  'silu': lambda x: x / (1 + np.exp(-x)),
  'gelu': lambda x: (
    0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
  ),
  'gelu_exact': lambda x: (
    0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))
  ),
}


def mlp(params, e, x_D, activation, bias=False):
  h = x_D @ params['wi'][e] + (params['bi'][e] if bias else 0)
  y = ACTIVATIONS[activation](h) @ params['wo'][e]
  return y + (params['bo'][e] if bias else 0)


def glu(params, e, x_D, activation, bias='none'):
  gate = ACTIVATIONS[activation](x_D @ params['wi_gate'][e])
  hidden = gate * (x_D @ params['wi_up'][e])
  if bias == 'multiplicative':
    hidden = hidden * params['bias'][e]
  elif bias == 'additive':
    hidden = hidden + params['bias'][e]
  return hidden @ params['wo'][e]


def autonomy(params, e, x_D):
  """Autonomy-of-Experts, algorithm 2: a gate of low rank."""
  gate = (x_D @ params['down'][e]) @ params['wi_gate'][e]
  hidden = gate / (1 + np.exp(-gate)) * (x_D @ params['wi_up'][e])
  return hidden @ params['wo'][e]


def switch_loss(
  choices, masks, count='first', second_weight=0.0, over_padding=False
):
  """Switch Transformer, equations 4 to 6, over one segment of tokens."""
  E = choices[0].probs.shape[-1]
  real = [(c, t) for c, m in zip(choices, masks) for t in np.flatnonzero(m)]
  length = sum(len(m) for m in masks) if over_padding else len(real)

  def form(experts_of, probs_of):
    f, P, edges = np.zeros(E), np.zeros(E), 0
    for choice, t in real:
      for e in experts_of(choice, t):
        if e < E:  # E is nobody
          f[e] += 1
          edges += 1
      P += probs_of(choice, t)
    f /= len(real) if count == 'union' else edges
    P /= len(real)
    share = len(real) / length
    return E * sum(f[i] * share * P[i] * share for i in range(E))

  def without_first(choice, t):
    p = choice.probs[t].copy()
    p[choice.expert[t][0]] = 0
    return p / p.sum()

  every = slice(0, 1) if count == 'first' else slice(None)
  loss = form(lambda c, t: c.expert[t][every], lambda c, t: c.probs[t])
  if second_weight:
    loss += second_weight * form(lambda c, t: c.expert[t][1:2], without_first)
  return loss


def importance_loss(choices, masks):
  """Shazeer et al. 2017, equations 6 and 7, with V-MoE's softmax."""
  total = sum(c.probs[m].sum(0) for c, m in zip(choices, masks))
  return (np.std(total) / np.mean(total)) ** 2


def load_loss(choices, masks):
  """The same of the smooth loads, which the test puts into the choices."""
  total = sum(c.smooth_load[m].sum(0) for c, m in zip(choices, masks))
  return (np.std(total) / np.mean(total)) ** 2


def z_loss(choices, masks):
  """ST-MoE, equation 5, over the real tokens."""
  squares = []
  for choice, mask in zip(choices, masks):
    for t in np.flatnonzero(mask):
      squares.append(math.log(sum(math.exp(v) for v in choice.logits[t])) ** 2)
  return float(np.mean(squares))
