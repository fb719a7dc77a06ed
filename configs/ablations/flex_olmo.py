"""FlexOlmo: experts of owners who train apart, with and without each.

  python -m experiments.sweep --workdir=/tmp/moe_jax/flex_olmo --jobs=2 \\
      --config=configs/ablations/flex_olmo.py:reference
  python -m experiments.verdict --workdir=/tmp/moe_jax/flex_olmo

Shi et al. 2025, arXiv:2507.07024, table 1 and section 5: each owner trains one
expert, its row of the router and its bias beside the frozen public model; the
merge of them all is better than the public model on every owner's text, than
the average and the ensemble of models that owners trained alone, and an owner
who leaves takes what was theirs and no more. Their scores are of tasks at 7
billion parameters: public 36.9, soup 39.6, ensemble 43.4, FlexOlmo 46.7, 45.8
without the bias, 44.4 without bias and embeddings, 38.8 without coordination.
Rows begin with mean hidden states of the public model, which the paper finds
weaker than the embeddings of another model that it takes (43.5 for 46.7).

`reference`: the dense model of `configs/reference.py`, 1,024 steps on three
families of packages, is public; three owners have a family each, and 512 steps.
13 pre-trained runs and 11 arms a seed, which are not trained, 3 seeds: 60
minutes on 2 CPU cores.
"""

from configs import reference
from configs.ablations import base

STEPS = {'reference': reference.STEPS}
SEEDS = {'reference': 3}
SECONDS = {'reference': 50}

PUBLIC = ('jax', 'flax', 'scipy')
OWNERS = ('numpy', 'matplotlib', 'fonttools')
OWN = 512


def get_config(arg='reference'):
  """The config that the arms start from: the public model, all domains."""
  size = arg or 'reference'
  config = base.small(size, STEPS)
  config.moe.layers = 'none'
  config.data.update(name='python_packages', domains=PUBLIC + OWNERS)
  config.train.schedule = _rate(STEPS[size], 'dense')
  return config.lock()


def _rate(steps, kind, times=1.0):
  return reference.schedule(steps, times * reference.PEAKS[kind])


def _own(domains, kind='dense'):
  return {
    'data.domains': domains,
    'train.steps': OWN,
    'train.checkpoint_every': OWN,
    'train.schedule': _rate(OWN, kind, 0.5),
  }


def _owner(domain, router):
  """Of the pair {public, own}: what is the owner's is trained."""
  return _own((domain,), 'moe_16') | {
    'moe.layers': 'all',
    'moe.num_experts': 2,
    'moe.router': router,
    'moe.balance': (),
    'train.trainable': 'experts(of=(1,))',
  }


# How owners train: the router, and whether its rows begin as embeddings.
KINDS = {
  'flex': ('flex_olmo(k=2)', True),
  'no_bias': ('top_k(k=2, renormalize=False)', True),
  'no_rows': ('top_k(k=2, renormalize=False)', False),
}


def sweep(add, size, config):
  """The public model, owners' pairs and branches, and their merges."""
  first = {'stage': 'pretrain', 'seeds': SEEDS[size]}
  add('public', {'data.domains': PUBLIC}, **first)
  pairs, alone = {k: [] for k in KINDS}, []
  for domain in OWNERS:
    for kind, (router, rows) in KINDS.items():
      pairs[kind].append(f'{kind}_{domain}')
      up = f'upcycle(num_experts=2, router={router!r})'
      own = {'rows': ('+'.join(PUBLIC), domain)} if rows else {}
      fields = _owner(domain, router)
      made = {'sources': ('public',), 'convert': up, **own}
      add(pairs[kind][-1], fields, **first, **made)
    alone.append(f'alone_{domain}')
    add(alone[-1], _own((domain,)), **first, init_from='public')
  judged = {'judge': 'bayes()'}
  add('public_model', {}, sources=('public',), **judged)
  for kind, names in pairs.items():
    add(kind, {}, sources=names, convert='flex()', **judged)
  for i, domain in enumerate(OWNERS, 1):
    without = 'flex()', f'remove(experts=({i},))'
    add(
      f'without_{domain}', {}, sources=pairs['flex'], convert=without, **judged
    )
  everyone = ('public', *alone)
  add('soup', {}, sources=everyone, convert='soup()', **judged)
  add('ensemble', {}, sources=everyone, judge='logits(top_k=2)')
  add('btm', {}, sources=everyone, judge='bayes(top_k=2)')
  rows = ('+'.join(PUBLIC), *OWNERS)
  mix = "mix(router='top_k(k=2, renormalize=False)', balance=())"
  made = {'sources': everyone, 'convert': mix, 'rows': rows}
  add('no_coordination', {}, **made, **judged)


_ALL = ('parameters', 'active', 'tokens', 'flops', 'data', 'latency')
_LOSS = 'eval/loss'
_SIZES = ('parameters', 'active')
_STAGES = ('tokens', 'flops', 'data')


def bits(domain):
  """The metric of a domain's text."""
  return f'eval/{domain}/bits_per_byte'


def _claim(name, sentence, arms, matched, metric=_LOSS, **fields):
  return {
    'name': name,
    'paper': 'FlexOlmo',
    'table': 'table 1',
    'sentence': sentence,
    'metric': metric,
    'direction': 'lower',
    'smallest_effect': 0.005,
    'arms': arms,
    'matched': matched,
    'varied': tuple(q for q in _ALL if q not in matched),
    'added': '2026-11-29',
  } | fields


def _of_owner(domain):
  """With and without a domain: its own text, and that of the others."""
  without, others = f'without_{domain}', [d for d in OWNERS if d != domain]
  yield _claim(
    f'{domain}_gains',
    f'On the text of {domain} the merge is better than the public model.',
    ('flex', 'public_model'),
    (),
    bits(domain),
    smallest_effect=0.01,
  )
  yield _claim(
    f'{domain}_leaves',
    f'Without the expert of {domain} its text is worse.',
    ('flex', without),
    _STAGES,
    bits(domain),
    smallest_effect=0.01,
  )
  for other in others:
    yield _claim(
      f'{other}_stays_without_{domain}',
      f'Without the expert of {domain} the text of {other} is no worse.',
      (without, 'flex'),
      _STAGES,
      bits(other),
      direction='equal',
      smallest_effect=0.01,
    )


CLAIMS = (
  *(c for domain in OWNERS for c in _of_owner(domain)),
  _claim(
    'merge_over_soup',
    'The merge is better than the average of models that were trained alone.',
    ('flex', 'soup'),
    ('data',),
  ),
  _claim(
    'merge_over_ensemble',
    'It is better than their ensemble by logits.',
    ('flex', 'ensemble'),
    ('data',),
  ),
  _claim(
    'biases_help',
    'Owners with a bias are better merged than those without.',
    ('flex', 'no_bias'),
    (*_SIZES, *_STAGES),
    smallest_effect=0.002,
  ),
  _claim(
    'embeddings_help',
    'Rows that begin as embeddings are better than rows that are drawn.',
    ('no_bias', 'no_rows'),
    (*_SIZES, *_STAGES),
    smallest_effect=0.002,
  ),
  _claim(
    'coordination_helps',
    'Owners beside the frozen public expert are better merged than models '
    'that were trained alone.',
    ('flex', 'no_coordination'),
    (*_SIZES, 'tokens', 'data'),
  ),
)

COLUMNS = (
  (_LOSS, 'held-out loss', '.4f'),
  *((bits(d), f'bits a byte, {d}', '.4f') for d in OWNERS + PUBLIC),
  ('parameters', 'parameters', ',.0f'),
  ('active_parameters', 'active', ',.0f'),
)

FIGURES = (
  dict(
    file='owners.png',
    kind='points',
    title="Owners' text, with and without each",
    y='bits a byte',
    metric=bits(OWNERS[0]),
    series={
      f'text of {OWNERS[0]}': tuple(
        (n, n)
        for n in ('public_model', *(f'without_{d}' for d in OWNERS), 'flex')
      )
    },
  ),
  dict(
    file='merges.png',
    kind='points',
    title='Merges of what owners trained',
    y='held-out loss',
    metric=_LOSS,
    series={
      'all text': tuple(
        (n, n)
        for n in (
          *('public_model', 'soup', 'ensemble', 'btm', 'no_coordination'),
          *('no_rows', 'no_bias', 'flex'),
        )
      )
    },
  ),
)
