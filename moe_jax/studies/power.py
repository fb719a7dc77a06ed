"""How many seeds a claim needs, and which ones cannot be tested here.

Asked of a pilot, before the arms run: of an earlier sweep of the study, with
other seeds or at another size. The answer stays beside the results as
WORKDIR/power.json, and `verdicts` go by it; they never decide from the final
rows that something could not be tested.

Seeds: the fewest, up to MOST, with which a paired t interval of 95 % lies
wholly beyond the smallest effect with probability POWER, on whichever side the
pilot's mean is, if mean and deviation of the pairs are those of the pilot. The
distribution is the non-central t. For 'equal' both ends have to be within the
margin, which Bonferroni bounds from below.

A claim is not testable here where it needs more seeds than MOST, or where it
is about accuracy and the best arm of the pilot on that task is less than
LEARNED above the majority: the task is not learned, and arms would differ in
the label that they repeat.
"""

import dataclasses
import math
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

from moe_jax import json_files
from moe_jax.errors import UserError
from moe_jax.runs import writers
from moe_jax.studies import results, study as study_lib, verdicts

FILE = 'power.json'
POWER, MOST, LEARNED = 0.8, 20, 0.10
_ACCURACY, _MAJORITY = 'best/accuracy', 'eval/majority'


# Of `cells`.
HEADER = ('claim', 'pairs', 'mean ± deviation', 'seeds', 'not testable here')


@dataclasses.dataclass(frozen=True)
class Power:
  """What a pilot says of a claim.

  Attributes:
    claim: its name.
    pairs: of the pilot; those of one pre-trained model are one.
    mean, deviation: of the differences of its pairs; nan below two pairs.
    seeds: needed, MOST + 1 for more than MOST; 0 is unknown. Of arms that begin
      with a pre-trained model, such models.
    why_not: why the claim is not testable here, or ''.
  """

  claim: str
  pairs: int
  mean: float
  deviation: float
  seeds: int
  why_not: str = ''


def of(study: study_lib.Study, rows: Sequence[results.Row]) -> list[Power]:
  """For every claim about quality.

  Args:
    study: whose claims.
    rows: of the pilot.
  """
  return [_of(c, rows) for c in study.claims if c.kind == 'quality']


def _of(claim, rows) -> Power:
  units = verdicts.differences(claim, rows)
  # Runs of one pre-trained model do not say how models differ.
  d = units.values if units.count == len(units.values) else []
  mean = float(np.mean(d)) if len(d) > 1 else math.nan
  deviation = float(np.std(d, ddof=1)) if len(d) > 1 else math.nan
  count = 0
  if len(d) > 1 and deviation:
    count = seeds(claim.direction, claim.smallest_effect, mean, deviation)
  why = _not_learned(claim, rows)
  if not why and count > MOST:
    why = (
      f'needs more than {MOST} seeds: pairs of the pilot differ by '
      f'{mean:+.4g} ± {deviation:.4g}'
    )
  return Power(claim.name, units.count, mean, deviation, count, why)


def seeds(
  direction: str, smallest: float, mean: float, deviation: float
) -> int:
  """The fewest seeds for a verdict; MOST + 1 where MOST are too few.

  Args:
    direction, smallest: of the claim.
    mean, deviation: expected of the differences of its pairs.
  """
  for n in range(2, MOST + 1):
    if chance(direction, smallest, mean, deviation, n) >= POWER:
      return n
  return MOST + 1


def chance(
  direction: str, smallest: float, mean: float, deviation: float, n: int
) -> float:
  """Probability of a verdict with n pairs, reproduced or contradicted."""
  error = deviation / math.sqrt(n)
  edge = float(stats.t.ppf(0.5 + verdicts.LEVEL / 2, n - 1))
  beyond = lambda room: float(stats.nct.sf(edge, n - 1, room / error))
  outside = beyond(abs(mean) - smallest)
  if direction != 'equal' or abs(mean) > smallest:
    return outside
  return max(beyond(smallest - mean) + beyond(smallest + mean) - 1, 0.0)


def afterwards(
  direction: str,
  smallest: float,
  interval: tuple[float, float, float],
  n: int,
) -> int:
  """`seeds`, if all is as it was found; 0 where that is unknown.

  Said beside what was inconclusive. It decides nothing: who counts until a
  verdict falls has chosen it.

  Args:
    direction, smallest: of the claim.
    interval: mean, low and high of the differences, of 95 %.
    n: how many these were.
  """
  mean, low, high = interval
  if n < 2 or math.isnan(mean) or low == high:
    return 0
  edge = float(stats.t.ppf(0.5 + verdicts.LEVEL / 2, n - 1))
  return seeds(direction, smallest, mean, (high - low) / 2 / edge * n**0.5)


def _not_learned(claim, rows) -> str:
  if not any(_ACCURACY in metric for metric in claim.metrics):
    return ''
  done = {
    k: r
    for k, r in results.latest(rows).items()
    if r['status'] == results.DONE and _ACCURACY in r['metrics']
  }
  # The task is named by its data.
  task = {r.get('data') for (arm, _), r in done.items() if arm in claim.arms}
  gains: dict[str, list[float]] = {}
  for (arm, _), r in done.items():
    if r.get('data') in task and _MAJORITY in r['metrics']:
      gain = r['metrics'][_ACCURACY] - r['metrics'][_MAJORITY]
      gains.setdefault(arm, []).append(gain)
  if not gains:
    return ''
  best = max(float(np.mean(v)) for v in gains.values())
  if best >= LEARNED:
    return ''
  return (
    f'the task is not learned: the best arm of the pilot is {100 * best:.1f} '
    f'points above the majority, less than {100 * LEARNED:.0f}'
  )


def enough(found: Sequence[Power]) -> int:
  """Seeds for every claim that can be tested; 0 is unknown."""
  return max((p.seeds for p in found if not p.why_not), default=0)


def keep(workdir: str | os.PathLike, kept: Mapping[str, Any]) -> pathlib.Path:
  """Writes power.json.

  Args:
    workdir: of the runs to come, made if missing.
    kept: from `record`.

  Raises:
    ValueError: arms have run there, be they the pilot's.
  """
  path = pathlib.Path(workdir) / FILE
  rows = results.read(path.parent / results.FILE)
  if any(r.get('stage') == 'arm' for r in rows):
    raise UserError(
      f'{workdir} holds runs of arms: what can be tested is decided before; '
      'give --out, the workdir of the runs to come'
    )
  path.parent.mkdir(parents=True, exist_ok=True)
  writers.write_json(path, kept)
  return path


def record(
  study: study_lib.Study, found: Sequence[Power], date: str
) -> dict[str, Any]:
  """For power.json."""
  known = lambda v: None if isinstance(v, float) and math.isnan(v) else v
  return {
    'study': study.name,
    'size': study.size,
    'date': date,
    'seeds': enough(found),
    'claims': [
      {k: known(v) for k, v in dataclasses.asdict(p).items()} for p in found
    ],
  }


def read(workdir: str | os.PathLike) -> dict[str, Any]:
  """power.json of a workdir; {} where there is none.

  Raises:
    ValueError: another thing of that name.
  """
  path = pathlib.Path(workdir) / FILE
  if not path.exists():
    return {}
  kept = json_files.read(path)
  claims = kept.get('claims')
  texts = lambda d, *names: all(isinstance(d.get(n), str) for n in names)
  if not (
    texts(kept, 'date')
    and isinstance(claims, list)
    and all(isinstance(c, dict) for c in claims)
    and all(texts(c, 'claim', 'why_not') for c in claims)
  ):
    raise UserError(f'{path} does not say what can be tested; see --power')
  return kept


def untestable(kept: Mapping[str, Any]) -> dict[str, str]:
  """{claim: why} of those that are not testable here, from power.json."""
  return {
    p['claim']: f'{p["why_not"]} ({kept["date"]})'
    for p in kept.get('claims', ())
    if p['why_not']
  }


def cells(found: Sequence[Power]) -> list[tuple[str, ...]]:
  """A row a claim, under HEADER."""
  out = []
  for p in found:
    known = not math.isnan(p.mean)
    count = '-' if not p.seeds else str(p.seeds)
    out.append(
      (
        p.claim,
        str(p.pairs),
        f'{p.mean:+.4g} ± {p.deviation:.4g}' if known else '-',
        f'> {MOST}' if p.seeds > MOST else count,
        p.why_not,
      )
    )
  return out
