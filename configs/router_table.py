"""The router presets of configs/routers.py, a line each.

Sources are the methods' files. Recalled, not read: k and experts of `bip`
(4 of 16) and `qwen2_moe` (4 of 60), gamma of `moe_plus_plus`. Not published,
chosen here: the balancing of `top_k` (Mixtral), `gpt_oss` and `llama4` (their
code's defaults, Switch's for Mixtral), of `moe_x` and `cosine`; the
weight of `dselect_k` and `comet`, which is tuned for each task; the balancing
of `sparse_mixer` and `rexmoe`.

To add one: a line of PRESETS. Tests want one for every router and every rule.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from configs import presets

RELU, GELU = "mlp(activation='relu')", "mlp(activation='gelu')"
GEGLU, SWIGLU = "glu(activation='gelu')", "glu(activation='silu')"


@dataclasses.dataclass(frozen=True)
class Preset:
  """What goes together.

  Call strings may hold {experts}, the number of routed ones; {slots}, tokens of
  a group over it; {constants}, a quarter of it less 2, at least 1 (MoE++); and
  {third}, of the model's width.

  Attributes:
    router: call string; '' is a dense model.
    balance: call strings.
    ffn: of dense FFNs, and of experts that have no kind of their own.
    experts: that kind, or ''.
    k: choices of a token.
    cut: there are as many times the size's experts, less `less`.
    shared: width of the FFN that all tokens take, in experts.
    gated: that by sigmoid(x w).
    local: zero-computation experts.
    tau: load of an expert over a zero-computation one's, at balance.
    moe: further fields, by name.
  """

  router: str
  balance: tuple[str, ...] = ()
  ffn: str = SWIGLU
  experts: str = ''
  k: int = 1
  cut: int = 1
  less: int = 0
  shared: int = 0
  gated: bool = False
  local: tuple[str, ...] = ()
  tau: str = '1'
  moe: Mapping[str, Any] = dataclasses.field(default_factory=dict)


# Rows follow the load: the edges that a router sends are all computed.
DROPLESS = {
  'dispatch': 'gather_reduce()',
  'capacity_factor': 0.0,
  'eval_capacity_factor': 0.0,
}
NONCAUSAL = {'allow_noncausal': True}
EC = DROPLESS | NONCAUSAL


def _moe(fields):
  """Of a codebase's conventions, what is the router's and not a size's."""
  left_out = ('layers', 'group_size', 'experts', 'router', 'balance')
  names = {k.removeprefix('moe.'): v for k, v in fields.items() if 'moe.' in k}
  return {k: v for k, v in names.items() if k not in left_out}


_SWITCH, _ST_MOE, _VMOE = presets.switch(), presets.st_moe(), presets.vmoe()
_V2 = (
  "sigmoid_top_k(k=6, score='softmax', groups=8, kept_groups=3, "
  "group_score='max', renormalize=False, scaling=16.0)"
)
_ALL = "switch_loss(weight={}, count='all', scope='{}')".format

PRESETS = {
  'dense': Preset('', ffn=SWIGLU, moe={'layers': 'none'}),
  # One expert a token.
  'switch': Preset(
    _SWITCH['moe.router'], _SWITCH['moe.balance'], RELU, moe=_moe(_SWITCH)
  ),
  'no_token_left_behind': Preset(
    'no_token_left_behind(k=4)',
    _SWITCH['moe.balance'],
    RELU,
    moe=_moe(_SWITCH) | NONCAUSAL,
  ),
  'hash': Preset('hash()', (), RELU, moe=DROPLESS),
  'base_layer': Preset(
    'base_layer()',
    (),
    RELU,
    # Exactly full in training; greedy, and so without a limit, in evaluation.
    moe={'capacity_factor': 1.0, 'eval_capacity_factor': 0.0} | NONCAUSAL,
  ),
  'sinkhorn': Preset('sinkhorn()', (), RELU, moe=EC),
  'cosine': Preset(
    'cosine()', ('switch_loss(weight=0.01)',), RELU, moe=DROPLESS
  ),
  'sigma_moe': Preset(
    'switch()', ('top1_loss(temperature=0.1, weight=0.01)',), moe=DROPLESS
  ),
  'llama4': Preset(
    'llama4()', ('switch_loss(weight=0.001)',), cut=2, shared=1, moe=DROPLESS
  ),
  'segment': Preset(
    'segment(size=4)',
    (_ALL(0.02, 'global'),),
    RELU,
    cut=2,
    shared=1,
    gated=True,
    moe=EC,
  ),
  # Two and four, coarse.
  'top_k': Preset(
    'top_k(k=2)', (_ALL(0.01, 'group'),), k=2, cut=2, moe=DROPLESS
  ),
  'gshard': Preset(
    "top_k(k=2, second_policy='gshard')",
    ('switch_loss(weight=0.01)',),
    RELU,
    k=2,
    cut=2,
    # C = 2 T / E.
    moe={'capacity_factor': 1.0, 'eval_capacity_factor': 1.0} | NONCAUSAL,
  ),
  'st_moe': Preset(
    _ST_MOE['moe.router'],
    _ST_MOE['moe.balance'],
    GEGLU,
    _ST_MOE['moe.experts'],
    k=2,
    cut=2,
    moe=_moe(_ST_MOE),
  ),
  'vmoe': Preset(
    _VMOE['moe.router'],
    _VMOE['moe.balance'],
    GELU,
    k=2,
    cut=2,
    moe=_moe(_VMOE) | NONCAUSAL,
  ),
  'noisy_top_k': Preset(
    'noisy_top_k(k=4)',
    ('importance_loss(weight=0.1)', 'load_loss(weight=0.1)'),
    RELU,
    k=4,
    cut=4,
    moe=DROPLESS,
  ),
  'gpt_oss': Preset(
    'gpt_oss(k=4)',
    (_ALL(0.004, 'global'),),
    experts='clamped_glu()',
    k=4,
    cut=4,
    moe=DROPLESS,
  ),
  'moe_x': Preset(
    'moe_x(k=2)',
    (_ALL(0.01, 'group'),),
    RELU,
    # No GLU: the router reads their first matrix.
    experts=RELU,
    k=2,
    cut=2,
    moe=DROPLESS,
  ),
  'module_former': Preset(
    'top_k(k=4)',
    ('mutual_information(weight=0.001)',),
    k=4,
    cut=4,
    moe=DROPLESS,
  ),
  'bip': Preset('top_k(k=4)', ('bip(iterations=4)',), k=4, cut=4, moe=DROPLESS),
  'quantile': Preset(
    'top_k(k=4)',
    ('bip(iterations=1, clip=False, before=False)',),
    k=4,
    cut=4,
    moe=DROPLESS,
  ),
  # Fine-grained, with and without shared experts.
  'olmoe': Preset(
    'top_k(k=8, renormalize=False)',
    (_ALL(0.01, 'global'), 'z_loss(weight=0.001)'),
    k=8,
    cut=8,
    moe=DROPLESS,
  ),
  'deepseek_moe': Preset(
    'top_k(k=7, renormalize=False)',
    (_ALL(0.01, 'sequence'),),
    k=7,
    cut=8,
    less=1,
    shared=1,
    moe=DROPLESS,
  ),
  'deepseek_v2': Preset(
    _V2,
    (
      _ALL(0.003, 'sequence'),
      'device_loss(devices=8, weight=0.05)',
      'communication_loss(devices=8, limit=3, weight=0.02)',
    ),
    k=6,
    cut=8,
    shared=2,
    moe=DROPLESS,
  ),
  'deepseek_v3': Preset(
    'sigmoid_top_k(k=8, groups=8, kept_groups=4, scaling=2.5)',
    ('loss_free_bias(rate=0.001)', 'sequence_loss(weight=0.0001)'),
    k=8,
    cut=8,
    shared=1,
    moe=DROPLESS,
  ),
  'loss_free': Preset(
    'sigmoid_top_k(k=6, scaling=1.0)',
    ('loss_free_bias(rate=0.001)',),
    k=6,
    cut=8,
    shared=2,
    moe=DROPLESS,
  ),
  'qwen2_moe': Preset(
    'top_k(k=4, renormalize=False)',
    (_ALL(0.004, 'global'),),
    k=4,
    cut=8,
    less=4,
    shared=4,
    gated=True,
    moe=DROPLESS,
  ),
  # As many as it takes.
  'top_p': Preset(
    'top_p(p=0.4)',
    ("switch_loss(weight=0.01, count='union')", 'entropy_loss(weight=0.0001)'),
    k=2,
    cut=2,
    moe=DROPLESS,
  ),
  'remoe': Preset('relu()', ('relu_loss(k=1)',), moe=DROPLESS),
  'adamoe': Preset(
    # 0.02 of shares that sum to k.
    'adamoe(k=4)',
    ('null_loss(weight=0.08)',),
    k=4,
    cut=2,
    local=('zero(count={experts})',),
    moe=DROPLESS,
  ),
  'moe_plus_plus': Preset(
    'moe_plus_plus(k=2)',
    ('heterogeneous_loss(tau=0.75, weight=0.01)',),
    k=2,
    local=('zero()', 'copy()', 'constant(count={constants})'),
    tau='0.75',
    moe={
      'capacity_rule': 'moe_plus_plus(tau=0.75)',
      'capacity_factor': 1.1,
      'eval_capacity_factor': 1.1,
      'seating': 'token_major()',
    },
  ),
  'dselect_k': Preset(
    'dselect_k(k=2)', ('selector_loss()',), RELU, k=2, cut=2, moe=DROPLESS
  ),
  'comet': Preset(
    'comet(k=2)', ('selector_loss()',), RELU, k=2, cut=2, moe=DROPLESS
  ),
  'autonomy': Preset(
    'autonomy(k=2)',
    (_ALL(0.01, 'group'),),
    experts='autonomy(d_low={third})',
    k=2,
    cut=2,
    moe=DROPLESS,
  ),
  # Experts choose, or nobody does.
  'expert_choice': Preset(
    'expert_choice(choices=2.0)', (), RELU, k=2, cut=2, moe=EC
  ),
  'capped_expert_choice': Preset(
    'capped_expert_choice(choices=2.0, cap=3)', (), RELU, k=2, cut=2, moe=EC
  ),
  'soft': Preset(
    'soft(slots={slots})', (), GELU, moe=EC | {'dispatch': 'slots()'}
  ),
  'product_keys': Preset(
    'product_keys(heads=8, k=16)',
    (),
    GELU,
    k=128,
    cut=128,
    experts="mlp(activation='gelu', d_ff=1)",
    moe=DROPLESS | {'dispatch': 'lookup()'},
  ),
  'round_robin': Preset('round_robin()', (), RELU, moe=DROPLESS),
  'random': Preset('random()', (), RELU, moe=DROPLESS),
  'prototype': Preset('prototype(k=2)', (), k=2, cut=2, moe=DROPLESS),
  'sparse_mixer': Preset(
    'sparse_mixer()', ('switch_loss(weight=0.01)',), RELU, moe=DROPLESS
  ),
  # By steps: a hundredth of the paper's; 90 % of the schema's.
  'rexmoe': Preset(
    'rexmoe(k=2, layers=2, start=100, end=300)',
    (_ALL(0.01, 'global'),),
    k=2,
    cut=2,
    moe=DROPLESS | {'layers': 'all', 'share_experts': 2},
  ),
  'scheduled_top_k': Preset(
    'scheduled_top_k(first=(2,), until=450)',
    ('top1_loss(temperature=0.1, weight=0.01)',),
    moe=DROPLESS,
  ),
}
# What a token costs there, if not d_ff.
UNEQUAL = {
  'st_moe': 'its sparse blocks have a dense FFN besides, of d_ff',
  'product_keys': '8 heads of 16 experts of one neuron, at any width',
  'autonomy': 'as many parameters as an expert of d_ff / 2, at a low rank; all '
  "experts' down-projections are computed",
  'comet': 'all experts compute until the splits are saturated, then 2',
  'dselect_k': 'all experts compute until the bits are saturated, then 2',
  'top_p': '2 experts are what it should come to; it starts at 0.4 of all',
  'scheduled_top_k': 'two experts in its first layer until the switch',
  'remoe': '1 expert is what its loss seeks; it starts at half of all',
}
