"""A few sentences of what the metrics of a run say, and alarms in words."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


def words(metrics: Mapping[str, Any], names: Sequence[str]) -> list[str]:
  """Three sentences with numbers and what chance gives; then the alarms.

  What was not measured, or has no number, is left out.

  Args:
    metrics: as in metrics.json.
    names: of the MoE layers.
  """
  who = _domains(metrics) or _kinds(metrics)
  found = [who, _tokens(metrics), _settled(metrics)]
  return [s for s in (*found, *_alarms(metrics, names)) if s]


def _domains(metrics):
  value, null = _means(metrics, 'domain_specialisation/')
  if value is None:
    return ''
  if value and abs(value - null) < 1e-9:  # whatever is shuffled, it is the same
    return (
      'Whether domains have experts of their own cannot be told: each has one '
      'document.'
    )
  how = 'have experts of their own' if value > 2 * null else 'share experts'
  return (
    f'Domains {how}: the loads of a domain are {value:.1%} away from those of '
    f'all, where documents dealt to the domains at random give {null:.1%}.'
  )


def _kinds(metrics):
  """Of a text of one domain: the kind of token with most of its own."""
  names = metrics.get('token_classes/classes')
  value, null = (
    np.array(metrics.get(f'token_classes/{k}') or [], float)
    for k in ('value', 'null')
  )
  known = np.isfinite(value) & np.isfinite(null)
  if not names or not known.any():
    return ''
  count = np.maximum(known.sum(0), 1)
  means = [np.where(known, v, 0).sum(0) / count for v in (value, null)]
  best = int(np.argmax(means[0] - means[1]))
  own, chance = (v[best] for v in means)
  kind = names[best].replace('_', ' or ')
  return (
    f'Of the kinds of token {kind} has most experts of its own: its load is '
    f'{own:.1%} away from that of all, where ids as frequent have {chance:.1%} '
    'by chance.'
  )


def _tokens(metrics):
  value, null = _means(metrics, 'context_independence/id_')
  more, chance = _means(metrics, 'context_independence/context_')
  if value is None or more is None:
    return ''
  who = 'The token itself' if value > more else 'Its context'
  return (
    f'{who} decides more: of the uncertainty about the expert the token id '
    f'explains {value:.0%} (by chance {_near(null):.1%}) and the id before it '
    f'another {more:.0%} (by chance {_near(chance):.1%}).'
  )


def _settled(metrics):
  value, null = _means(metrics, 'saturation/top_k_')
  if value is not None:
    return (
      f'Of the choices of the earliest checkpoint the end makes {value:.0%}, '
      f'where {null:.0%} would be by the loads alone.'
    )
  value, null = _means(metrics, 'repetition/first_')
  if value is None:
    return ''
  return (
    f'Neighbours share their first expert in {value:.0%} of all cases; by the '
    f'loads alone it would be {null:.0%}.'
  )


def _alarms(metrics, names):
  """A sentence for each kind of collapse that there is."""
  said = {
    'dead': 'were chosen by no token',
    'starved': 'were chosen by less than a tenth of the mean',
    'always_on': 'were chosen by nine tokens of ten or more',
  }
  for kind, what in said.items():
    experts = metrics.get(f'collapse/{kind}_experts') or []
    layers = [(n, e) for n, e in zip(names, experts) if len(e)]
    if layers:
      shown = '; '.join(f'{n}: {_listed(e)}' for n, e in layers)
      count = sum(len(e) for _, e in layers)
      yield f'Collapse: {count} experts {what} ({shown}).'
  doubles = metrics.get('outputs/doubles') or []
  layers = [(n, d) for n, d in zip(metrics.get('outputs/layers', ()), doubles)]
  pairs = [f'{n}: {a} and {b}' for n, d in layers for a, b in d]
  if pairs:
    yield f'Collapse: doubles, which compute the same ({_listed(pairs, "; ")}).'
  huge = metrics.get('outputs/super') or []
  if huge:
    own, size = metrics['outputs/layers'], metrics['outputs/largest']
    middle = np.median([v for row in size for v in row if v is not None])
    shown = [f'{own[m]}: {e}, {size[m][e] / middle:.0f} times' for m, e in huge]
    yield (
      'Super experts, whose outputs are far above the median of all '
      f'({_listed(shown, "; ")}).'
    )
  known = [v for v in metrics.get('drops/value') or () if v is not None]
  if known and max(known) > 0.01:
    worst = int(np.argmax([v or 0 for v in metrics['drops/value']]))
    yield (
      f'Drops: {np.mean(known):.1%} of the choices found no seat, at the most '
      f'{max(known):.1%} in {names[worst]}.'
    )


def _near(share):
  """To a tenth of a percent, and never -0.0 %."""
  return round(share, 3) + 0.0


def _listed(items, by=', '):
  shown = by.join(map(str, items[:8]))
  return shown + (f' and {len(items) - 8} more' if len(items) > 8 else '')


def _means(metrics, stem):
  """Value and null, over the layers that have them; None where none has."""
  pair = []
  for name in ('value', 'null'):
    known = [v for v in metrics.get(f'{stem}{name}') or () if v is not None]
    if not known:
      return None, None
    pair.append(float(np.mean(known)))
  return pair
