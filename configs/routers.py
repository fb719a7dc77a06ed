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

The presets stand in configs/router_table.py, and their sources.
"""

import difflib
import fractions

from configs import router_table

PRESETS, UNEQUAL = router_table.PRESETS, router_table.UNEQUAL
SWIGLU, RELU = router_table.SWIGLU, router_table.RELU
# d_ff of a dense FFN, in 32nds of d_model: as many weights in three matrices as
# in two.
WIDTHS = {'glu': 72, 'mlp': 108}
OTHER_NAMES = {
  'grin': 'sparse_mixer',
  'mixtral': 'top_k',
  'peer': 'product_keys',
  'relu': 'remoe',
  'x_moe': 'cosine',
}


def names() -> tuple[str, ...]:
  """All names that `get` takes."""
  return tuple(sorted(PRESETS | OTHER_NAMES))


def get(name: str) -> router_table.Preset:
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
  kind = ffn.partition('(')[0]
  if d_model % 32:
    raise ValueError(f'd_model={d_model} must be a multiple of 32')
  if kind not in WIDTHS:
    raise ValueError(f'ffn={ffn!r}: no width; known: {", ".join(WIDTHS)}')
  return d_model // 32 * WIDTHS[kind]


def apply(config, name: str, experts: int, ffn: str = ''):
  """Sets a preset's fields in an unlocked config; returns the config.

  Args:
    config: with base.py's fields, `model.d_model` and `moe.group_size`
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


def computing(p: router_table.Preset, routed: int, local: tuple[str, ...]):
  """Experts that compute for a token where loads are as the rules want them."""
  count = lambda s: int(s.partition('count=')[2].rstrip(')') or 1)
  busy = fractions.Fraction(p.tau) * routed
  return p.k * busy / (busy + sum(map(count, local)))
