"""From dense to sparse: upcycling, branching, mixing, and what they replace.

  python -m experiments.sweep --workdir=/tmp/moe_jax/from_dense --jobs=2 \\
      --config=configs/ablations/from_dense.py:reference
  python -m experiments.verdict --workdir=/tmp/moe_jax/from_dense

Sparse upcycling (Komatsuzaki et al. 2022, arXiv:2212.05055): copies of a dense
model's FFN as experts, trained on, are better than the dense model trained on
and, until it has had 120 % of the dense model's budget, than a mixture from
scratch; OLMoE (Muennighoff et al. 2024, arXiv:2409.02060) finds 25 %. Branches
of a seed, one a domain, as an ensemble (Branch-Train-Merge, Li et al. 2022,
arXiv:2208.03306), averaged, and mixed (Branch-Train-MiX, Sukhbaatar et al.
2024, arXiv:2403.07816), which is compared at equal tokens with the dense seed
and with its upcycling trained on. The papers' scores are accuracies of tasks at
7 billion parameters; here are losses of bytes, so no number stands beside ours.

`reference`: the dense model of `configs/reference.py` as seed, 1,024 steps on
code, prose and C of the standard library; mixtures have 8 experts, top-2, or
one a branch. What is continued warms up anew, to half the rate; the `near`
branches to an eighth. 29 runs a seed and 3 seeds, of which a third are short or
not trained: 33 minutes on 2 CPU cores.
"""

from configs import reference
from configs.ablations import base

STEPS = {'reference': reference.STEPS}
SEEDS = {'reference': 3}
SECONDS = {'reference': 45}

DOMAINS = ('code', 'prose', 'c')
# Of a branch; and of the mixture behind them.
BRANCH, MIXED = 512, 512
# Times the peak, of branches that stay near.
NEAR = 0.125
# Extra steps, as shares of the seed's: where scratch catches up.
EXTRA = {'quarter': 0.25, 'half': 0.5, 'more': 1.2}
_MOE = {
  'moe.layers': 'all',
  'moe.router': 'top_k(k=2)',
  'moe.balance': ('switch_loss(weight=0.01)',),
}


def get_config(arg='reference'):
  """The config that the arms start from: the dense model, all domains."""
  size = arg or 'reference'
  config = base.small(size, STEPS)
  config.moe.layers = 'none'
  config.data.domains = DOMAINS
  config.train.schedule = rate(STEPS[size], 'dense')
  return config.lock()


def rate(steps, kind='moe_16', times=1.0):
  """The schedule of a run of a kind; what is continued has half the peak."""
  return reference.schedule(steps, times * reference.PEAKS[kind])


def for_steps(steps, kind='dense', times=0.5):
  """Fields of a run of so many steps, continued unless `times` is 1."""
  return {
    'train.steps': steps,
    'train.checkpoint_every': steps,
    'train.schedule': rate(steps, kind, times),
  }


def mixture(count, steps, times=0.5):
  """Fields of a mixture of so many experts for so many steps."""
  return _MOE | {'moe.num_experts': count} | for_steps(steps, 'moe_16', times)


def sweep(add, size, config):
  """The seed, what becomes of it, and mixtures from scratch."""
  seeds, whole = SEEDS[size], STEPS[size]
  add('seed', {}, stage='pretrain', seeds=seeds)
  names = []
  for d in config.data.domains:
    names.append(f'branch_{d}')
    own = for_steps(BRANCH) | {'data.domains': (d,)}
    add(names[-1], own, stage='pretrain', seeds=seeds, init_from='seed')
  up = {'sources': ('seed',), 'convert': 'upcycle(num_experts=8)'}
  add('dense', {}, sources=('seed',), judge='bayes()')
  add('upcycled_start', {}, **up, judge='bayes()')
  for name, share in EXTRA.items():
    steps = int(share * whole)
    add(f'upcycled_{name}', mixture(8, steps), **up)
    add(f'scratch_{name}', mixture(8, steps, 1.0))
    add(f'dense_{name}', for_steps(steps), init_from='seed')
  total = whole + int(EXTRA['half'] * whole)
  add('scratch_total', mixture(8, total, 1.0))
  add('btm', {}, sources=names, judge='bayes()')
  add('btm_top_1', {}, sources=names, judge='bayes(top_k=1)')
  add('btm_logits', {}, sources=names, judge='logits()')
  add('soup', {}, sources=names, convert='soup()', judge='bayes()')
  mixed = {'sources': names, 'convert': 'mix()'}
  add('btx_start', {}, **mixed, judge='bayes()')
  add('btx', mixture(len(names), MIXED), **mixed)
  # Branches that stay nearer to the seed, and to one another.
  near = []
  for d in config.data.domains:
    near.append(f'near_{d}')
    own = for_steps(BRANCH, times=NEAR) | {'data.domains': (d,)}
    add(near[-1], own, stage='pretrain', seeds=seeds, init_from='seed')
  add('soup_near', {}, sources=near, convert='soup()', judge='bayes()')
  own = mixture(len(near), MIXED)
  add('btx_near', own, sources=near, convert='mix()')
  # What branches and mixture saw together.
  equal = len(names) * BRANCH + MIXED
  add('dense_equal', for_steps(equal), init_from='seed')
  up['convert'] = f'upcycle(num_experts={len(names)})'
  add('upcycled_equal', mixture(len(names), equal), **up)


_LOSS = 'eval/loss'
_ALL = ('parameters', 'active', 'tokens', 'flops', 'data', 'latency')


def _claim(name, paper, table, sentence, arms, matched, **fields):
  return {
    'name': name,
    'paper': paper,
    'table': table,
    'sentence': sentence,
    'metric': _LOSS,
    'direction': 'lower',
    'smallest_effect': 0.005,
    'arms': arms,
    'matched': matched,
    'varied': tuple(q for q in _ALL if q not in matched),
    'added': '2026-11-29',
  } | fields


_UP, _OLMOE = 'Sparse upcycling', 'OLMoE'
_BTM, _BTX = 'Branch-Train-Merge', 'Branch-Train-MiX'
CLAIMS = (
  _claim(
    'upcycling_over_dense',
    _UP,
    'figure 2',
    'With the same tokens more the upcycled model is better than the dense.',
    ('upcycled_half', 'dense_half'),
    ('tokens', 'data'),
  ),
  _claim(
    'upcycling_keeps_the_function',
    _UP,
    'section 3',
    'With weights that sum to 1 the upcycled model begins as the dense one.',
    ('upcycled_start', 'dense'),
    ('tokens', 'flops', 'data'),
    direction='equal',
    smallest_effect=1e-4,
    kind='deterministic',
    seeds_needed=1,
  ),
  _claim(
    'upcycling_over_scratch_at_its_extra',
    _UP,
    'figure 4',
    'At a quarter of the budget more, the dense model as sunk, upcycling is '
    'better than a mixture from scratch.',
    ('upcycled_quarter', 'scratch_quarter'),
    ('parameters', 'active', 'data'),
  ),
  _claim(
    'scratch_is_even_at_120',
    _UP,
    'section 4.2',
    'At 120 % of the budget the mixture from scratch has caught up.',
    ('scratch_more', 'upcycled_more'),
    ('parameters', 'active', 'data'),
    direction='equal',
    smallest_effect=0.02,
  ),
  _claim(
    'scratch_at_equal_tokens',
    _OLMOE,
    'figure 8',
    'At equal tokens, the dense stage in them, scratch is better.',
    ('scratch_total', 'upcycled_half'),
    ('parameters', 'active', 'tokens', 'data'),
  ),
  _claim(
    'ensemble_over_soup',
    _BTM,
    'table 3',
    'The ensemble of the branches is better than their average.',
    ('btm', 'soup'),
    ('tokens', 'flops', 'data'),
  ),
  _claim(
    'one_expert_is_enough',
    _BTM,
    'section 4.3',
    'The ensemble keeps its loss with the likeliest branch alone.',
    ('btm_top_1', 'btm'),
    ('parameters', 'tokens', 'flops', 'data'),
    direction='equal',
    smallest_effect=0.02,
  ),
  _claim(
    'mix_over_soup',
    _BTX,
    'table 2',
    'Mixed and trained on, the branches are better than averaged.',
    ('btx', 'soup'),
    ('data',),
  ),
  _claim(
    'mix_over_ensemble',
    _BTX,
    'table 2',
    'Mixed and trained on, they are better than their ensemble.',
    ('btx', 'btm'),
    ('data',),
  ),
  _claim(
    'mix_over_dense',
    _BTX,
    'table 2',
    'At equal tokens the mixture is better than the dense seed trained on.',
    ('btx', 'dense_equal'),
    ('tokens', 'data'),
  ),
  _claim(
    'mix_over_upcycling',
    _BTX,
    'table 2',
    'At equal tokens it is better than the upcycled seed trained on.',
    ('btx', 'upcycled_equal'),
    ('parameters', 'active', 'tokens', 'data'),
  ),
  # Why it is not: added when that was seen, before their runs. The branches'
  # average is worse than the seed: they may be too far apart to be mixed.
  _claim(
    'near_branches_average_better',
    _BTX,
    'none: a follow-up',
    'Branches at a quarter of the rate are better averaged.',
    ('soup_near', 'soup'),
    ('parameters', 'active', 'tokens', 'flops', 'data'),
    smallest_effect=0.05,
  ),
  _claim(
    'near_branches_mix_better',
    _BTX,
    'none: a follow-up',
    'And they are better mixed and trained on.',
    ('btx_near', 'btx'),
    ('parameters', 'active', 'tokens', 'flops', 'data'),
    smallest_effect=0.01,
  ),
  _claim(
    'near_mix_over_upcycling',
    _BTX,
    'none: a follow-up',
    'Mixed so, they are better than the upcycled seed trained on.',
    ('btx_near', 'upcycled_equal'),
    ('parameters', 'active', 'tokens', 'data'),
  ),
)

COLUMNS = (
  (_LOSS, 'held-out loss', '.4f'),
  ('eval/bits_per_byte', 'bits a byte', '.4f'),
  ('parameters', 'parameters', ',.0f'),
  ('active_parameters', 'active', ',.0f'),
  ('tokens', 'tokens of the last stage', ',.0f'),
  ('flops_per_token', 'FLOPs a token', ',.0f'),
)

FIGURES = (
  dict(
    file='upcycling.png',
    kind='lines',
    title='Upcycled and from scratch, by what is trained beyond the seed',
    x='steps, as a share of the seed',
    y='held-out loss',
    metric=_LOSS,
    series={
      kind: tuple((share, f'{kind}_{name}') for name, share in EXTRA.items())
      for kind in ('dense', 'upcycled', 'scratch')
    },
  ),
  dict(
    file='merged.png',
    kind='points',
    title='What becomes of branches',
    y='held-out loss',
    metric=_LOSS,
    series={
      'of branches': tuple(
        (n, n)
        for n in (
          *('soup', 'soup_near', 'btm_logits', 'btm_top_1', 'btm'),
          *('btx_start', 'btx', 'btx_near'),
        )
      ),
      'as many tokens': (
        ('dense', 'dense_equal'),
        ('upcycled', 'upcycled_equal'),
      ),
    },
  ),
)

NOTES = {
  'reference': {
    'mix_over_upcycling': (
      'That the branches are too far apart is not why: nearer ones average '
      'much better and mix no better. What is left: three quarters of the '
      "tokens beyond the seed's train experts that never meet, where the "
      'upcycled model trains as a mixture on all of them; and three domains of '
      'one library have much in common.'
    ),
  }
}
