"""Whether two arms were given the same: what stands beside a verdict.

A comparison of models that come of several stages is fair in some things and
not in others: branches that are mixed have had the seed's tokens, their own and
the mixture's. A claim declares which of QUANTITIES are matched and which vary
by design; where one that is declared matched is off by more than 5 %, or not
known, no winner is named.

Tokens and FLOPs are of all stages, each counted once: of the arm's own run, of
what it began with, was made of or learned from, and of what those came of.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from moe_jax import registry
from moe_jax.errors import UserError

# Parameters in all, and those that a token meets; target tokens and model
# FLOPs of training; domains of text; seconds of an evaluation.
QUANTITIES = ('parameters', 'active', 'tokens', 'flops', 'data', 'latency')
MOST = 0.05
Key = tuple[str, int]
Rows = Mapping[Key, Mapping[str, Any]]


@dataclasses.dataclass(frozen=True)
class Spent:
  """What an arm is, and what it took; means over seeds.

  Attributes:
    parameters, active, tokens, flops, latency: as in QUANTITIES; nan where a
      stage does not say.
    data: the domains that all stages saw; () is not known.
    stages: (arm, tokens, FLOPs) of each, the first first.
  """

  parameters: float
  active: float
  tokens: float
  flops: float
  data: tuple[str, ...]
  latency: float
  stages: tuple[tuple[str, float, float], ...]


@dataclasses.dataclass(frozen=True)
class FairnessReport:
  """Of a claim's two arms.

  Attributes:
    arms: their names.
    spent: of either.
    matched: what is declared to be equal; all else varies by design.
  """

  arms: tuple[str, str]
  spent: tuple[Spent, Spent]
  matched: tuple[str, ...]

  def apart(self, quantity: str) -> float:
    """The larger over the smaller, less 1; of data 0 or inf; nan if unknown."""
    a, b = (getattr(s, quantity) for s in self.spent)
    if quantity == 'data':
      return math.nan if not (a and b) else 0.0 if a == b else math.inf
    if a == b:
      return 0.0
    return max(a, b) / min(a, b) - 1 if min(a, b) > 0 else max(a, b) * math.inf

  @property
  def unfair(self) -> str:
    """Which declared matches do not hold, and by how much; '' where all do."""
    told = []
    for q in self.matched:
      apart = self.apart(q)
      if math.isnan(apart):
        told.append(f'{q} not known')
      elif apart > MOST:
        a, b = (shown(getattr(s, q)) for s in self.spent)
        told.append(f'{q} {a} against {b}')
    return f'declared matched, but {"; ".join(told)}' if told else ''

  def record(self) -> dict[str, Any]:
    """For claims.json."""
    out: dict[str, Any] = {'matched': list(self.matched)}
    for name, spent in zip(self.arms, self.spent):
      fields = dataclasses.asdict(spent)
      out[name] = {
        k: None if isinstance(v, float) and math.isnan(v) else v
        for k, v in fields.items()
      }
    return out

  def cells(self) -> list[tuple[str, ...]]:
    """Rows of a table under `header`."""
    rows = []
    for q in QUANTITIES:
      values = [getattr(s, q) for s in self.spent]
      apart = self.apart(q)
      by = f'{apart:.1%}' if math.isfinite(apart) else 'not known'
      by = 'other' if math.isinf(apart) else by
      held = 'varies by design'
      if q in self.matched:
        held = 'matched' if apart <= MOST else '**not matched**'
      rows.append((q, *map(shown, values), by, held))
    stages = [
      ', '.join(f'{n}: {shown(t)}' for n, t, _ in s.stages) for s in self.spent
    ]
    rows.append(('tokens by stage', *stages, '', ''))
    return rows

  @property
  def header(self) -> tuple[str, ...]:
    return ('', *self.arms, 'apart', 'declared')


def shown(value: Any) -> str:
  """Of a table: '1.05e+06', 'code, prose', '-'."""
  if isinstance(value, tuple):
    return ', '.join(value) or '-'
  return '-' if math.isnan(value) else f'{value:.4g}'


def check(what: str, matched: Sequence[str], varied: Sequence[str]) -> None:
  """Raises ValueError unless each quantity is in one of them, or none is."""
  for q in (*matched, *varied):
    if q not in QUANTITIES:
      raise registry.unknown(f'quantity of {what}', str(q), QUANTITIES)
  if not (matched or varied):
    return
  for q in QUANTITIES:
    if (q in matched) == (q in varied):
      raise UserError(
        f'{what}: {q!r} must be in one of matched and varied; they declare all '
        f'of {", ".join(QUANTITIES)}'
      )


def report(
  arms: tuple[str, str],
  matched: Sequence[str],
  latest: Rows,
  seeds: Sequence[int],
) -> FairnessReport:
  """Of two arms, over the seeds that both have.

  Args:
    arms: their names.
    matched: of QUANTITIES.
    latest: rows of the study, `results.latest`.
    seeds: at least one.
  """
  spent = tuple(_mean([of((a, s), latest) for s in seeds]) for a in arms)
  return FairnessReport(arms, spent, tuple(matched))


def of(key: Key, latest: Rows) -> Spent:
  """What one run is and took, with all that it comes of."""
  own = latest[key]['metrics']
  stages, domains, known = [], set(), True
  for at in _stages(key, latest, {}):
    row = latest.get(at)
    if row is None or 'needs' not in row:
      stages.append((at[0], math.nan, math.nan))
      known = False
      continue
    found = row.get('metrics', {})
    tokens = found.get('tokens', math.nan)
    flops = tokens * found.get('flops_per_token', math.nan)
    if tokens:  # what is only judged sees no text to learn from
      domains |= {*row.get('domains', ())}
      known &= bool(row.get('domains'))
      stages.append((at[0], tokens, flops))
  get = lambda k: float(own.get(k, math.nan))
  return Spent(
    get('parameters'),
    get('active_parameters'),
    float(sum(t for _, t, _ in stages)),
    float(sum(f for *_, f in stages)),
    tuple(sorted(domains)) if known else (),
    get('eval/seconds'),
    tuple(stages),
  )


def _stages(key, latest, seen) -> list[Key]:
  """The runs that a run comes of, each once, itself at the end."""
  seen[key] = None
  out = []
  for name, seed in latest.get(key, {}).get('needs', ()):
    if (name, seed) not in seen:
      out += _stages((name, seed), latest, seen)
  return [*out, key]


def _mean(found: Sequence[Spent]) -> Spent:
  """Over seeds; stages and data are the first's."""
  names = ('parameters', 'active', 'tokens', 'flops', 'latency')
  mean = lambda name: sum(getattr(s, name) for s in found) / len(found)
  return dataclasses.replace(found[0], **{n: mean(n) for n in names})
