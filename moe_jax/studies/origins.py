"""What a study's arms begin with or learn from: runs of stage 'pretrain'.

Such a run is in the workdir of the sweep or, with `pretrained`, in that of
another one, of this study or not, that has a finished run with the same config
and seed. Its row is then copied, under the name that it has here:
`'pretrained'` says which runs/ directory of the other sweep it stands in.
"""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence

from moe_jax.errors import UserError
from moe_jax.studies import results, study as study_lib

# The fields that an arm's names are given to, as workdirs.
FIELDS = ('init_from', 'teacher')


@dataclasses.dataclass(frozen=True)
class Origins:
  """Where the 'pretrain' runs of a study are.

  Attributes:
    workdir: of the sweep.
    pretrained: workdir of another sweep, or ''.
    elsewhere: {(arm, seed): its directory there} of runs taken from there.
  """

  workdir: str
  pretrained: str = ''
  elsewhere: Mapping[tuple[str, int], str] = dataclasses.field(
    default_factory=dict
  )

  def directory(self, key: tuple[str, int]) -> str:
    """The workdir of a run."""
    if key in self.elsewhere:
      return f'{self.pretrained or "PRETRAINED"}/{self.elsewhere[key]}'
    return f'{self.workdir}/{directory(key)}'

  def fields(
    self, study: study_lib.Study, arm: study_lib.Arm, seed: int
  ) -> dict:
    """{'init_from': workdir, ...}: what the run's config has in `train`."""
    found = keys(study, arm, seed)
    return {field: self.directory(key) for field, key in found.items()}

  def anonymous(self) -> 'Origins':
    """The same, of workdirs by their names: for what is kept."""
    return Origins('WORKDIR', '', self.elsewhere)


def directory(key: tuple[str, int]) -> str:
  """Of a run, in the workdir of its sweep."""
  return f'runs/{key[0]}/{key[1]}'


def keys(
  study: study_lib.Study, arm: study_lib.Arm, seed: int
) -> dict[str, tuple[str, int]]:
  """{'init_from': (arm, seed), ...}: the runs of what an arm names.

  Seeds take turns: of three, the fourth of the arm's begins with the first.
  """
  found = {}
  for field in FIELDS:
    if name := getattr(arm, field):
      seeds = study.arm(name).seeds
      found[field] = name, seeds[arm.seeds.index(seed) % len(seeds)]
  return found


def sources(
  study: study_lib.Study, arm: study_lib.Arm, seed: int
) -> list[tuple[str, int]]:
  """The runs of the sources of an arm; seeds take turns, as in `keys`."""
  found = []
  for name in arm.sources:
    seeds = study.arm(name).seeds
    found.append((name, seeds[arm.seeds.index(seed) % len(seeds)]))
  return found


def needs(
  study: study_lib.Study, arm: study_lib.Arm, seed: int
) -> list[tuple[str, int]]:
  """All runs that must be there before a run can begin."""
  return [*keys(study, arm, seed).values(), *sources(study, arm, seed)]


def closure(study: study_lib.Study, only: Sequence[str]) -> set[str]:
  """Names of arms, and of all that they need."""
  wanted: set[str] = set()
  left = [study.arm(name).name for name in only]
  while left:
    name = left.pop()
    if name not in wanted:
      wanted.add(name)
      named = study.arm(name)
      left += [n for f in FIELDS if (n := getattr(named, f))]
      left += named.sources
  return wanted


def find(
  study: study_lib.Study,
  rows: Sequence[results.Row],
  workdir: str,
  pretrained: str = '',
) -> tuple[Origins, list[results.Row]]:
  """Origins, and rows of the other sweep that are to be added to this one's.

  Args:
    study: of the sweep.
    rows: of the sweep, so far.
    workdir: of the sweep.
    pretrained: of the other sweep, or ''.

  Raises:
    ValueError: no results in the other sweep.
  """
  latest = results.latest(rows)
  elsewhere = {
    k: r['pretrained'] for k, r in latest.items() if 'pretrained' in r
  }
  if not pretrained:
    return Origins(workdir, '', elsewhere), []
  theirs = results.read(pathlib.Path(pretrained) / results.FILE)
  if not theirs:
    raise UserError(f'--pretrained={pretrained} holds no {results.FILE}')
  known = {
    (r['config_digest'], r['seed']): r
    for r in results.latest(theirs).values()
    # What was taken from a third sweep lies there.
    if r['status'] == results.DONE and 'pretrained' not in r
  }
  new = []
  for arm in study.arms:
    for seed in arm.seeds if arm.stage == 'pretrain' else ():
      key = arm.name, seed
      found = [(d, seed) for d in results.arm_digests(study, arm)]
      row = next((known[k] for k in found if k in known), None)
      if row and latest.get(key, {}).get('status') not in results.FINISHED:
        elsewhere[key] = directory((row['arm'], seed))
        new.append(_copy(study, arm, row, elsewhere[key]))
  return Origins(workdir, pretrained, elsewhere), new


def _copy(study, arm, row, where) -> results.Row:
  return row | {
    'study': study.name,
    'path': study.path,
    'size': study.size,
    'flags': results.placeholders(study.flags),
    'overrides': results.placeholders(arm.overrides),
    'arm': arm.name,
    'pretrained': where,
  }
