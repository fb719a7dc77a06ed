"""Freezes constants that several codebases print, with what they come from.

  python -m tests.golden.make_constants [--check]

The inputs and the printed results of (a) to (c) are those of flaxformer's and
of transformers' router tests; here transformers' functions compute them again.
(c)'s printed 1.000308 is the mean over its two groups. (d) is footnote 7 of
ST-MoE (Zoph et al. 2022, arXiv:2202.08906): ten logits of 128 and one of 128.5,
which bfloat16 rounds to 128.
"""

import torch
from transformers.models.switch_transformers import (
  modeling_switch_transformers as theirs,
)

from tests.golden import freeze

PROBS = [
  [0.35490513, 0.60419905],
  [0.4275843, 0.23061597],
  [0.32985854, 0.43953657],
  [0.25099766, 0.27730572],
  [0.7678207, 0.71474564],
]
CHOICES = [0, 1, 1, 0, 0]
LOGITS = [
  [
    [-4.2124424, 3.891939, -3.6481273, 1.8849981],
    [0.32625437, 2.918651, 0.84758997, -4.556842],
    [-3.32062, 4.6977115, -0.15439987, 0.44086337],
    [3.4467149, 4.3436565, -4.7224274, -4.264637],
    [-2.224406, -2.5318158, -1.3832569, 1.1891162],
    [-2.320062, -0.44705987, 4.289819, -0.00662684],
  ],
  [
    [0.99470854, -0.6992364, 0.25503993, 4.2952085],
    [3.5937333, -3.2408535, -4.298278, 4.426601],
    [0.7669008, 2.6588762, 2.4505413, 4.6051874],
    [0.23330331, -3.0845237, 0.6262374, -2.9865491],
    [0.7595146, -2.1099675, -4.155346, -2.8326452],
    [2.3771453, 1.004138, -3.1781673, 0.7581556],
  ],
]
TOKENS = [
  [
    [0.6433916, 0.18188512, 0.02240455, 0.563781],
    [0.5526401, 0.0958724, 0.34253013, 0.03644359],
    [0.08744538, 0.7909105, 0.35205448, 0.53364205],
  ],
  [
    [0.02900076, 0.4168595, 0.5802449, 0.91486526],
    [0.27414513, 0.14991808, 0.9383501, 0.5209162],
    [0.51207185, 0.90618336, 0.7309413, 0.95533276],
  ],
]
KERNEL = [
  [0.02008116, 0.00620062],
  [-0.00811031, -0.00031623],
  [-0.03542127, 0.02703803],
  [0.02335377, -0.02971946],
]
PRINTED = {
  'probs_loss': 0.8741045,
  'logits_z_loss': 13.786719,
  'tokens_z_loss': 0.4789799,
  'tokens_loss': 1.000308,
}


def make():
  probs, choices = torch.tensor(PROBS), torch.tensor(CHOICES)[:, None]
  logits = torch.tensor(TOKENS) @ torch.tensor(KERNEL)
  chosen = logits.argmax(-1)
  by_group = [
    theirs.load_balancing_loss_func(
      logits[g : g + 1].softmax(-1), chosen[g : g + 1]
    )
    for g in range(2)
  ]
  footnote = torch.tensor([128.5] + [128.0] * 10)
  rounded = footnote.bfloat16().float()
  out = {
    'probs': PROBS,
    'choices': CHOICES,
    'probs_loss': theirs.load_balancing_loss_func(probs, choices),
    'logits': LOGITS,
    'logits_z_loss': theirs.router_z_loss_func(torch.tensor(LOGITS)),
    'tokens': TOKENS,
    'kernel': KERNEL,
    'tokens_choices': chosen,
    'tokens_z_loss': theirs.router_z_loss_func(logits),
    'tokens_loss': theirs.load_balancing_loss_func(logits.softmax(-1), chosen),
    'tokens_loss_by_group': by_group,
    'footnote_logits': footnote,
    'footnote': [footnote.softmax(0)[0], rounded.softmax(0)[0]],
  }
  for name, printed in PRINTED.items():
    assert abs(float(out[name]) - printed) < 2e-6, (name, out[name])
  return out


if __name__ == '__main__':
  freeze.main('constants', ('torch', 'transformers'), make)
