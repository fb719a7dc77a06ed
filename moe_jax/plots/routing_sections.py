"""What a routing page asks, and which metrics and figures answer it.

Metrics are read by their names in metrics.json, 'METRIC/NAME'; what is absent
or of another shape is left out, and what no section names stands at the end.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping

import numpy as np

from moe_jax.analysis import records
from moe_jax.plots import routing_figures as figures, routing_more

Metrics = routing_more.Metrics
Drawn = routing_more.Drawn


@dataclasses.dataclass(frozen=True)
class Section:
  """One question.

  Attributes:
    title: the question.
    panels: title by key without its 'value', of numbers by layer.
    caption: of their figure: what to look for.
    more: (metrics, schema) -> further figures.
  """

  title: str
  panels: Mapping[str, str]
  caption: str
  more: Callable[..., Iterator[Drawn]] = lambda metrics, schema: iter(())

  def draw(self, metrics: Metrics, schema: records.Schema) -> Iterator[Drawn]:
    """What there is to show, with names that are ids on the page."""
    fig = figures.by_layer(panels(metrics, self.panels, schema), schema.layers)
    if fig:
      yield _id(self.title), fig, self.caption
    yield from self.more(metrics, schema)


def rest(metrics: Metrics) -> Section:
  """The section of the numbers by layer that no other has."""
  named = {k for s in SECTIONS for k in s.panels}
  keys = [
    k.removesuffix('value')
    for k in metrics
    # Those of checkpoints are many, and drawn side by side.
    if k.endswith(('/value', '_value')) and not k.startswith('saturation')
  ]
  return Section(
    'What else was measured',
    {k: routing_more.words(k) for k in keys if k not in named},
    'Further numbers by layer, each beside what chance gives.',
  )


def scalars(metrics: Metrics) -> list[tuple[str, str, str]]:
  """Name, value, and value by chance of plain numbers; why there are none."""
  said = lambda v: '' if v is None else f'{v:.4g}'
  number = lambda v: isinstance(v, int | float) and not isinstance(v, bool)
  rows, nulls = [], set()
  for key, value in sorted(metrics.items()):
    stem = key.removesuffix('value')
    if key.endswith('/undefined') and isinstance(value, str):
      rows.append(
        (routing_more.words(key.removesuffix('/undefined')), value, '')
      )
    elif number(value) and '/' in key:
      null = metrics.get(f'{stem}null') if stem != key else None
      nulls |= {f'{stem}null'} if number(null) else set()
      rows.append((key, said(value), said(null) if number(null) else ''))
  return [
    (routing_more.words(k.removesuffix('value')) if '/' in k else k, v, n)
    for k, v, n in rows
    if k not in nulls
  ]


def panels(
  metrics: Metrics, titles: Mapping[str, str], schema: records.Schema
) -> list[figures.Panel]:
  """Numbers by layer with what stands beside them, as far as they are there."""
  lengths = len(schema.layers), len(schema.layers) - 1
  found = []
  for stem, title in titles.items():
    there = {}
    for name in ('value', *_BESIDE, *_OTHER):
      array = routing_more.array(metrics, f'{stem}{name}', 1)
      if array is not None and len(array) in lengths:
        there[name] = array
    other = {w: there.pop(k) for k, w in _OTHER.items() if k in there}
    # One that is what chance gives to the last digit shows nothing.
    value = there.get('value')
    if value is None or np.array_equal(value, there.get('null', np.nan)):
      continue
    scale = stem.partition('/')[0]
    found.append(figures.Panel(title, **there, other=other, scale=scale))
  return found


_BESIDE = 'null', 'null_low', 'null_high', 'low', 'high'
_OTHER = {
  'even': 'even loads',
  'marginal': 'by the loads alone',
  'given': 'as they stand',
}


def _id(title: str) -> str:
  return ''.join(c if c.isalnum() else '-' for c in title.lower()).strip('-')


SECTIONS = (
  Section(
    'Do domains have experts of their own?',
    {
      'domain_specialisation/': 'Distance of domains’ loads',
      'committee/': 'Load that all domains share, %',
    },
    'Look for lines outside the grey band, which is what documents dealt to '
    'the domains at random give. Bars: 95 % intervals.',
  ),
  Section(
    'Does the token decide, or its context?',
    {
      'context_independence/id_': 'Explained by the token, %',
      'context_independence/context_': 'More by the one before it, %',
      'vocabulary_specialisation/token_': 'Top expert of an id has, %',
      'vocabulary_specialisation/next_': 'of the true next id, %',
      'vocabulary_specialisation/predicted_': 'of the predicted id, %',
      'repetition/first_': 'Same expert as the token before, %',
    },
    'Look how far above chance the token alone lies, and whether later layers '
    'follow the predicted id rather than the one read.',
  ),
  Section('Which kinds of token have experts?', {}, '', routing_more.kinds),
  Section(
    'Who works with whom?',
    {
      'coactivation/': 'Tokens shared with the closest, %',
      'placement/': 'Saved by placing them together, %',
      'prefetch/hit_': 'Next layer’s experts foretold, %',
    },
    'Look for lines above chance: experts that can be placed together, or '
    'fetched before they are needed.',
    routing_more.together,
  ),
  Section(
    'Who is dropped, and who is idle?',
    {
      'collapse/max_load_': 'Busiest expert over the mean',
      'collapse/dead_': 'Experts that no token chose',
      'drops/': 'Dropped choices, %',
    },
    'Look for a busiest expert far above 1, which even loads give, and for '
    'dead ones: balancing is against both.',
    routing_more.lost,
  ),
  Section(
    'How much does a token use, and how surely?',
    {
      'difficulty/': 'Its experts’ correlation with its loss',
      'margins/bf16_': 'Choices that bfloat16 could flip, %',
    },
    'Look whether harder tokens use more, and how many choices are so near '
    'that rounding decides.',
    routing_more.used,
  ),
  Section(
    'When does routing settle?',
    {'replication/matched_': 'Agreement of another seed, %'},
    'Look how far above chance another run’s experts, matched with these, '
    'choose the same tokens.',
    routing_more.settled,
  ),
  Section(
    'What if an expert were gone?',
    {'importance/correlation_': 'Its loss goes with its share of a domain'},
    'Look whether the domains that use an expert most are those that need it: '
    'near 0, who routes there does not tell.',
    routing_more.gone,
  ),
)
