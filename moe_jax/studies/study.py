"""What a study file says: its arms, and the claims that they are to test.

A study is a config file with more names in it:

  get_config(arg)    the config that all arms start from, by size:
                     'reference', 'quick', 'gpu' or 'paper'
  sweep(add, size, config)   calls `add(name, overrides)` for each arm: what
                     differs, by dotted field. `config` is that of get_config,
                     command line included. `add(..., stage='pretrain')` makes a
                     run that other arms begin with, `init_from=name`, or learn
                     from, `teacher=name`. `add(..., sources=names,
                     convert='mix()')` begins with what a conversion makes of
                     such runs; with `judge='bayes()'` an arm is not trained,
                     and what it would begin with is judged: see `stages`
  CLAIMS             a tuple of dicts, see `Claim`; fixed before any run
  SEEDS              {size: how many}
  SECONDS            {size: of one run, for estimates}
  COLUMNS            ((metric, label, format), ...) of the table of arms
  FIGURES            a tuple of dicts, see `plots.ablations`; one with 'sizes'
                     is of these alone
  LAWS               a tuple of dicts, scaling laws to fit, see `lawful`
  ANALYSIS           options of a look inside each mixture that is trained, see
                     `inside`; what claims, columns and figures name of it is
                     kept
  NOTES              {size: {claim: why it came out so}}; the one that comes
                     afterwards
"""

import copy
import dataclasses
import importlib.util
import pathlib
from collections.abc import Mapping
from typing import Any

from moe_jax import registry
from moe_jax.errors import UserError
from moe_jax.runs import configs
from moe_jax.studies import fairness

SIZES = ('reference', 'quick', 'gpu', 'paper')
DIRECTIONS = ('lower', 'higher', 'equal')
KINDS = ('quality', 'deterministic')
STAGES = ('pretrain', 'arm')
# What ANALYSIS may say, as flags of experiments.analyze.
ANALYSIS = {'checkpoints': 'newest', 'max_bytes': 2_000_000}


@dataclasses.dataclass(frozen=True)
class Arm:
  """One setting, run with several seeds.

  Attributes:
    name: of letters, digits, '_', '.', '-'; a directory's name.
    overrides: values by dotted field.
    seeds: values of `config.seed`.
    init_from: the 'pretrain' arm whose checkpoint it starts from, or ''.
    teacher: the 'pretrain' arm that it learns from, or ''.
    sources: 'pretrain' arms that it is made of, in order.
    convert: call strings of `conversion.methods`, one after the other: the
      first is given the sources, what the last makes is the start.
    rows: domains by whose embeddings the first conversion's router begins, a
      row each, 'code+prose' for one of two; see `training.embeddings`.
    judge: call string of `training.ensemble` of an arm that is not trained.
    stage: 'pretrain' arms run first, with one seed unless they name more; an
      arm with seed s begins with the s-th of these, in turn.
  """

  name: str
  overrides: Mapping[str, Any]
  seeds: tuple[int, ...]
  init_from: str = ''
  teacher: str = ''
  stage: str = 'arm'
  sources: tuple[str, ...] = ()
  convert: tuple[str, ...] = ()
  rows: tuple[str, ...] = ()
  judge: str = ''

  def __post_init__(self):
    what = f'arm {self.name}'
    if self.sources and (self.init_from or not (self.convert or self.judge)):
      raise UserError(
        f'{what} has sources: it wants convert or judge, and no init_from'
      )
    if (self.convert or self.judge) and not self.sources:
      raise UserError(f'{what} converts or judges: it wants sources')
    if self.rows and not self.convert:
      raise UserError(f'{what} has rows of a router: it wants convert')
    if self.judge and (self.stage == 'pretrain' or self.teacher):
      raise UserError(
        f"{what} is judged, not trained: of stage 'arm', without a teacher"
      )

  @property
  def made(self) -> dict[str, str]:
    """What it is made of and how, by name; for digests."""
    names = ('sources', 'convert', 'rows')
    told = {k: ', '.join(getattr(self, k)) for k in names}
    return {k: v for k, v in (told | {'judge': self.judge}).items() if v}


@dataclasses.dataclass(frozen=True)
class Claim:
  """What a paper says, made testable; declared before any run.

  Attributes:
    name: of the claim.
    paper, table: where it stands; a table or a figure.
    sentence: in our words.
    metric: of a run's summary, or a call of `derived.DERIVED`; a pair where
      the arms are looked at in two ways.
    direction: of the first arm's metric against the second's: 'lower',
      'higher', or 'equal'.
    smallest_effect: the difference that counts; of 'equal', the margin.
    arms: (a, b).
    published: {label: number}, beside ours; {} where there is none.
    kind: 'quality', or 'deterministic' for counts, costs and drops.
    seeds_needed: pairs without which there is no verdict.
    added: the day it was declared, of a claim that is younger than its study.
    matched, varied: of `fairness.QUANTITIES`, what the arms have alike and what
      differs by design: each in one of them, or none is declared.
  """

  name: str
  paper: str
  table: str
  sentence: str
  metric: str | tuple[str, str]
  direction: str
  smallest_effect: float
  arms: tuple[str, str]
  published: Mapping[str, float] = dataclasses.field(default_factory=dict)
  kind: str = 'quality'
  seeds_needed: int = 3
  added: str = ''
  matched: tuple[str, ...] = ()
  varied: tuple[str, ...] = ()

  @property
  def metrics(self) -> tuple[str, str]:
    """Of the first and of the second arm."""
    m = self.metric
    return (m, m) if isinstance(m, str) else m


@dataclasses.dataclass(frozen=True)
class Study:
  """A study file at one size.

  Attributes:
    name, size: of the file, and of its argument.
    path: relative to the working directory; of a file elsewhere its name.
    file: the same, of a file elsewhere its absolute path: for this machine.
    title: the first line of the file's docstring.
    config: ConfigDict that the arms start from, command line included.
    flags: what the command line changed, by dotted field.
    arms, claims: in the order declared; 'pretrain' arms first.
    seconds: one run's, as estimated in the file; 0 is unknown.
    columns, figures, laws, notes, analysis: as in the file.
  """

  name: str
  size: str
  path: str
  file: str
  title: str
  config: Any
  flags: Mapping[str, Any]
  arms: tuple[Arm, ...]
  claims: tuple[Claim, ...]
  seconds: float
  columns: tuple
  figures: tuple
  laws: tuple
  notes: Mapping[str, str]
  analysis: Mapping[str, Any] | None = None

  def arm(self, name: str) -> Arm:
    """The arm of that name."""
    by_name = {a.name: a for a in self.arms}
    if name not in by_name:
      raise registry.unknown(f'arm of {self.name}', name, by_name)
    return by_name[name]

  def config_of(self, arm: Arm, seed: int) -> Any:
    """The config of one run, locked; workdirs are the runner's.

    Raises:
      ValueError: an override of a field that does not exist.
    """
    config = copy.deepcopy(self.config)
    known = configs.flatten(config)
    with config.unlocked():
      for field, value in arm.overrides.items():
        if field not in known and not _open_field(config, field):
          raise registry.unknown(f'field of arm {arm.name}', field, known)
        config.update_from_flattened_dict({field: value})
      config.seed = seed
    return config


def _open_field(config, field: str) -> bool:
  """`moe.decoder` takes any field of moe."""
  group, _, name = field.rpartition('.')
  return group == 'moe.decoder' and name in config.moe


def load(
  spec: str,
  *,
  config: Any = None,
  flags: Mapping[str, Any] | None = None,
  seeds: int = 0,
) -> Study:
  """Reads a study file.

  Args:
    spec: 'configs/ablations/capacity_factor.py:quick'; without a size the first
      of SIZES that the file has.
    config: in place of the file's, where the command line changed fields.
    flags: these fields.
    seeds: of every arm in place of the file's number; 0 is the file's.

  Raises:
    ValueError: no such file or size, a file that is no study, arms or claims
      that do not fit; says which.
  """
  path, _, size = spec.partition(':')
  module = _module(path)
  for name in ('get_config', 'sweep', 'CLAIMS', 'SEEDS'):
    if not hasattr(module, name):
      raise UserError(f'{path} is no study: it has no {name}')
  sizes = [s for s in SIZES if s in module.SEEDS]
  size = size or sizes[0]
  if size not in sizes:
    raise registry.unknown(f'size of {path}', size, sizes)
  if seeds < 0:
    raise UserError(f'seeds={seeds}; a number above 0 is wanted')
  config = module.get_config(size) if config is None else config
  name = pathlib.Path(path).stem
  arms = _arms(module, size, seeds or module.SEEDS[size], config)
  tested = {a.name for a in arms if a.stage == 'arm'}
  claims = tuple(_claim(c, name, tested) for c in module.CLAIMS)
  known = [c.name for c in claims]
  _check_unique('claim', known)
  notes = getattr(module, 'NOTES', {})
  for of_size, told in notes.items():
    if of_size not in SIZES:
      raise registry.unknown(f'size in NOTES of {name}', of_size, SIZES)
    for n in told:
      if n not in known:
        raise registry.unknown(f'claim in NOTES of {name}', n, known)
  return Study(
    name=name,
    size=size,
    path=_relative(path) or pathlib.Path(path).name,
    file=_relative(path) or str(pathlib.Path(path).resolve()),
    title=(module.__doc__ or name).strip().splitlines()[0].rstrip('.'),
    config=config,
    flags=dict(flags or {}),
    arms=arms,
    claims=claims,
    seconds=float(getattr(module, 'SECONDS', {}).get(size, 0)),
    columns=tuple(getattr(module, 'COLUMNS', ())),
    figures=tuple(
      f for f in getattr(module, 'FIGURES', ()) if size in f.get('sizes', SIZES)
    ),
    laws=tuple(getattr(module, 'LAWS', ())),
    notes=notes.get(size, {}),
    analysis=_analysis(getattr(module, 'ANALYSIS', None), name),
  )


def _relative(path: str) -> str:
  """To the working directory; '' of a file that is not in it."""
  full, here = pathlib.Path(path).resolve(), pathlib.Path.cwd().resolve()
  return str(full.relative_to(here)) if here in full.parents else ''


def _module(path: str):
  if not pathlib.Path(path).is_file():
    raise UserError(f'no study file {path}')
  # The name is one of ours: a wrong value in the file is the user's mistake.
  name = f'configs.ablations.{pathlib.Path(path).stem}'
  spec = importlib.util.spec_from_file_location(name, path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def _arms(module, size: str, default: int, config) -> tuple[Arm, ...]:
  found: list[Arm] = []
  first = config.seed

  def add(
    name,
    overrides,
    *,
    seeds=0,
    init_from='',
    teacher='',
    stage='arm',
    sources=(),
    convert=(),
    rows=(),
    judge='',
  ):
    if not name or set(name) - _NAME:
      raise UserError(f'arm {name!r}: a name of letters, digits, _ . - only')
    if stage not in STAGES:
      raise registry.unknown(f'stage of arm {name}', stage, STAGES)
    count = seeds or (1 if stage == 'pretrain' else default)
    every = tuple(range(first, first + count))
    origins = init_from or '', teacher or ''
    convert = (convert,) if isinstance(convert, str) else tuple(convert)
    made = tuple(sources), convert, tuple(rows), judge
    found.append(Arm(name, dict(overrides), every, *origins, stage, *made))

  module.sweep(add, size, config)
  _check_unique('arm', [a.name for a in found])
  found.sort(key=lambda a: STAGES.index(a.stage))
  before: list[str] = []
  for a in found:
    for field in ('init_from', 'teacher'):
      name = getattr(a, field)
      if name and name not in before:
        raise registry.unknown(f'{field} of arm {a.name}', name, before)
    for name in a.sources:
      if name not in before:
        raise registry.unknown(f'source of arm {a.name}', name, before)
    # What a 'pretrain' arm needs is declared before it.
    before += [a.name] if a.stage == 'pretrain' else []
  return tuple(found)


_NAME = frozenset(
  'abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-'
)


def _claim(fields: Mapping[str, Any], study: str, arms: set[str]) -> Claim:
  what = f'claim {fields.get("name", "?")!r} of {study}'
  valid = [f.name for f in dataclasses.fields(Claim)]
  for k in fields:
    if k not in valid:
      raise registry.unknown(f'field of {what}', k, valid)
  try:
    claim = Claim(**fields)
  except TypeError as e:
    raise UserError(f'{what}: {e}') from None
  for field, value, choices in (
    ('direction', claim.direction, DIRECTIONS),
    ('kind', claim.kind, KINDS),
    *(('arm', a, arms) for a in claim.arms),
  ):
    if value not in choices:
      raise registry.unknown(f'{field} of {what}', str(value), choices)
  fairness.check(what, claim.matched, claim.varied)
  if not claim.smallest_effect >= 0:
    raise UserError(f'{what}: smallest_effect={claim.smallest_effect} < 0')
  if claim.direction == 'equal' and not claim.smallest_effect:
    raise UserError(f"{what}: direction 'equal' needs a margin above 0")
  if len(claim.arms) != 2 or len(claim.metrics) != 2:
    raise UserError(f'{what}: two arms, and one metric or two, are wanted')
  if claim.seeds_needed < (1 if claim.kind == 'deterministic' else 2):
    raise UserError(f'{what}: seeds_needed={claim.seeds_needed} is too few')
  return claim


def _analysis(given, study: str) -> dict[str, Any] | None:
  for field in given or ():
    if field not in ANALYSIS:
      raise registry.unknown(f'field of ANALYSIS in {study}', field, ANALYSIS)
  return None if given is None else ANALYSIS | given


def _check_unique(what: str, names: list[str]) -> None:
  for n in names:
    if names.count(n) > 1:
      raise UserError(f'{what} {n!r} twice')
