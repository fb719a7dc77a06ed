"""Routers with all that goes with them: one table of presets, by name.

  routers.apply(config, 'deepseek_v3', experts=8)

A preset is what its paper trains with: router, balancing rules, kind of
experts, shared and zero-computation experts, capacity and order of seating. The
constants are the papers', the sizes are not. Weights of losses are in the units
of the rules here (what Hugging Face calls 0.001 is 0.004 for its top-4).

All cost a token the same. An expert is d_ff / (k + shared) wide, d_ff being the
dense FFN's width, k the experts that compute for a token at balance, and
`shared` its shared ones. An ungated FFN is 27/8 d wide and a gated one, three
matrices for two, 9/4 d: for d a multiple of 32 both hold 1 to 9 equal experts.
Most presets have the parameters of `experts` dense FFNs besides: the more
experts, the finer. UNEQUAL names those that cost something else, and why.

Which blocks are sparse is not a preset's. Where k is above 1 and capacity would
bind, a decoder leaks: presets are dropless, except where dropping is the
method (`gshard`, `st_moe`, `vmoe`), which then allow it by name.

Sources are the methods' files. Recalled, not read: k and experts of `bip`
(4 of 16) and `qwen2_moe` (4 of 60), gamma of `moe_plus_plus`. Not published,
chosen here: the balancing of `top_k` (Mixtral), `gpt_oss` and `llama4` (their
code's defaults, Switch's for Mixtral), of `moe_x`, `cosine` and `segment`; the
weight of `dselect_k` and `comet`, which is tuned for each task.

To add one: a line of PRESETS. Tests want one for every router and every rule.
"""

import dataclasses
import difflib
import fractions
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
    'moe_x(k=2)', (_ALL(0.01, 'group'),), RELU, k=2, cut=2, moe=DROPLESS
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
}
OTHER_NAMES = {
  'mixtral': 'top_k',
  'peer': 'product_keys',
  'relu': 'remoe',
  'x_moe': 'cosine',
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
  'remoe': '1 expert is what its loss seeks; it starts at half of all',
}


def names() -> tuple[str, ...]:
  """All names that `get` takes."""
  return tuple(sorted(PRESETS | OTHER_NAMES))


def get(name: str) -> Preset:
  """The preset of that name, or a ValueError that lists them."""
  name = OTHER_NAMES.get(name, name)
  if name not in PRESETS:
    near = difflib.get_close_matches(name, names(), n=1)
    raise ValueError(
      f'no router preset {name!r}; valid: {", ".join(names())}'
      + (f'; did you mean {near[0]!r}?' if near else '')
    )
  return PRESETS[name]


def width(ffn: str, d_model: int) -> int:
  """d_ff of a dense FFN of that kind; d_model a multiple of 32."""
  if d_model % 32:
    raise ValueError(f'd_model={d_model} must be a multiple of 32')
  return d_model * 9 // 4 if 'glu' in ffn else d_model * 27 // 8


def apply(config, name: str, experts: int, ffn: str = ''):
  """Sets a preset's fields in an unlocked config; returns the config.

  Args:
    config: with the quickstart's fields, `model.d_model` and `moe.group_size`
      as they shall be.
    name: one of `names()`.
    experts: dense FFNs that all experts together amount to.
    ffn: in place of the preset's own, unless its experts have their own kind.
  """
  p, d = get(name), config.model.d_model
  ffn = p.ffn if p.experts or not ffn else ffn
  routed = experts * p.cut - p.less
  numbers = {
    'experts': routed,
    'slots': max(config.moe.group_size // routed, 1),
    'constants': max(routed // 4 - 2, 1),
    'third': d // 3,
  }
  local = tuple(s.format(**numbers) for s in p.local)
  d_ff = width(ffn, d)
  each = d_ff / (computing(p, routed, local) + p.shared)
  if 'd_low' in p.experts:
    # As many parameters as a gated expert (arXiv:2501.13074, section 3).
    low = numbers['third']
    each = fractions.Fraction(3 * d * round(each) - low * d, low + 2 * d)
  config.model.update(ffn=ffn, d_ff=d_ff)
  config.moe.update(
    router=p.router.format(**numbers) or config.moe.router,
    balance=p.balance,
    experts=p.experts.format(**numbers) or ffn,
    num_experts=routed,
    d_ff=round(each),
    local_experts=local,
    dense_branch=('gated' if p.gated else 'shared') if p.shared else 'none',
    dense_branch_d_ff=p.shared * round(each) or d_ff,
    **p.moe,
  )
  return config


def computing(p: Preset, routed: int, local: tuple[str, ...]):
  """Experts that compute for a token where loads are as the rules want them."""
  count = lambda s: int(s.partition('count=')[2].rstrip(')') or 1)
  busy = fractions.Fraction(p.tau) * routed
  return p.k * busy / (busy + sum(map(count, local)))
