"""Runs a study's arms, one after the other; several processes may share them.

WORKDIR/results.jsonl          a line a run
WORKDIR/locks/                 who does what, see `queue`
WORKDIR/study.txt              where the study file is, if elsewhere
WORKDIR/runs/<arm>/<seed>/     the workdir of a run, with log.txt
WORKDIR/runs/<arm>/<seed>/start_<n>/   made by conversions to begin with
WORKDIR/data/, WORKDIR/jit_cache/   shared by all runs
"""

import contextlib
import dataclasses
import pathlib
import time
from collections.abc import Callable, Sequence

import jax

from moe_jax.benchmarks import machine
from moe_jax.errors import UserError
from moe_jax.studies import (
  commands,
  estimates,
  inside,
  origins,
  queue,
  results,
  stages,
  study as study_lib,
)
from moe_jax.training import checks, loop, session as session_lib


@dataclasses.dataclass(frozen=True)
class Run:
  """One arm with one seed."""

  arm: study_lib.Arm
  seed: int

  @property
  def key(self) -> tuple[str, int]:
    return self.arm.name, self.seed

  @property
  def directory(self) -> str:
    """Of the run, in the workdir of the sweep."""
    return origins.directory(self.key)


def runs(
  study: study_lib.Study, only: Sequence[str] = (), task: str = ''
) -> list[Run]:
  """The runs to do: 'pretrain', then arms of claims, then others, by seed.

  So a sweep that is cut short has whole pairs for whole claims.

  Args:
    study: whose arms.
    only: names of arms; () is all, and named arms bring what they need.
    task: 'i/n', i from 0: that part of the runs of stage 'arm', all of which
      are in exactly one part; 'pretrain' runs are in none. '' is all.

  Raises:
    ValueError: an unknown arm, or a task that is no 'i/n'.
  """
  wanted = origins.closure(study, only)
  arms = [a for a in study.arms if not only or a.name in wanted]
  every = [Run(a, seed) for a in arms for seed in a.seeds]
  if task:
    # In parts of whole arms, as far as may be: each is compiled once.
    index, count = _task(task)
    every = [r for r in every if r.arm.stage == 'arm']
    ends = [len(every) * i // count for i in (index, index + 1)]
    every = every[slice(*ends)]
  claimed = _claimed(study)
  stages = study_lib.STAGES.index
  return sorted(
    every,
    key=lambda r: (stages(r.arm.stage), r.arm.name not in claimed, r.seed),
  )


def _claimed(study: study_lib.Study) -> set[str]:
  """The arms that claims are about, those in their metrics too."""
  metrics = ' '.join(m for c in study.claims for m in c.metrics)
  named = {a for c in study.claims for a in c.arms}
  return named | {a.name for a in study.arms if f"'{a.name}'" in metrics}


def _task(task: str) -> tuple[int, int]:
  index, _, count = task.partition('/')
  if not (index.isdigit() and count.isdigit() and int(index) < int(count)):
    raise UserError(f'array_task={task!r}; expected i/n with i from 0 to n - 1')
  return int(index), int(count)


def sweep(
  study: study_lib.Study,
  workdir: str,
  todo: Sequence[Run],
  *,
  pretrained: str = '',
  done: str = '',
  processes: int = 1,
  say: Callable[[str], None] = lambda s: print(s, flush=True),
  allow_download: bool = False,
) -> list[results.Row]:
  """Does the runs that are not finished; a failure does not stop the rest.

  Args:
    study: of the runs.
    workdir: of the sweep; a finished run in it is not repeated.
    todo: from `runs`.
    pretrained: workdir of another sweep, whose finished runs stand for the
      'pretrain' runs here that have the same config.
    done: a file of rows, read at the beginning and added to after each run:
      what it has is not done again, whatever the workdir, save 'pretrain' runs
      that others still begin with.
    processes: how many do the same runs, for the time that is left.
    say: is given a line at a time.
    allow_download: lets TFDS download.

  Returns:
    The rows of the runs that failed, of this process.

  Raises:
    ValueError: the workdir or `done` holds another study's results, or a
      'pretrain' run that is needed is in none of `todo` and not done.
  """
  root = pathlib.Path(workdir)
  path = root / results.FILE
  with queue.alone(root):
    rows = results.check(path, study)
    if done:
      rows += _from_done(study, pathlib.Path(done), rows, todo)
    found, taken = origins.find(study, rows, str(root), pretrained)
    rows += taken
    finished = _finished(rows)
    left = [r for r in todo if r.key not in finished]
    _check_origins(study, left, finished, found)
    for row in rows[len(results.read(path)) :]:
      results.append(path, row)
  for row in taken:
    say(f'{row["arm"]} seed {row["seed"]} is taken from {pretrained}')
  results.keep_source(root, study)
  jax.config.update('jax_compilation_cache_dir', str(root / 'jit_cache'))
  if len(left) < len(todo):
    say(f'{len(todo) - len(left)} of {len(todo)} runs are finished already')
  failed, sessions = [], {}
  needs = lambda run: origins.needs(study, run.arm, run.seed)
  with contextlib.closing(queue.take(root, left, needs, len(rows))) as turns:
    for run in turns:
      lacking = _lacking(study, run, results.read(path))
      row, session = _one(
        *(study, run, found, lacking, sessions.get(run.arm.name)),
        allow_download,
      )
      # Those of an arm share its programs, from seed to seed.
      sessions[run.arm.name] = session
      results.append(path, row)
      if done:
        kept = results.for_keeping(row, study)
        results.append(pathlib.Path(done), kept)
      if row['status'] == results.FAILED:
        failed.append(row)
      now = results.read(path)
      over = {(r['arm'], r['seed']) for r in now[len(rows) :]}
      ahead = [r for r in left if r.key not in over]
      names = [r.arm.name for r in ahead]
      remaining = estimates.ahead(study, names, now) / processes
      say(_line(row, len(left) - len(ahead), len(left), remaining))
  return failed


def _finished(rows) -> set[tuple[str, int]]:
  return {
    k
    for k, r in results.latest(rows).items()
    if r['status'] in results.FINISHED
  }


def _from_done(study, done, rows, todo) -> list[results.Row]:
  """The finished rows of another file that the workdir has not.

  Without those of 'pretrain' runs that others are still to begin with: their
  checkpoints are in another workdir.
  """
  known = _finished(rows)
  new = {
    k: r
    for k, r in results.latest(results.check(done, study)).items()
    if k not in known and r['status'] in results.FINISHED
  }
  begin = [r for r in todo if r.key not in known | new.keys()]
  while begin:
    run = begin.pop()
    for key in origins.needs(study, run.arm, run.seed):
      if 'pretrained' not in new.get(key, {'pretrained': ''}):
        del new[key]
        begin.append(Run(study.arm(key[0]), key[1]))
  return list(new.values())


def _check_origins(study, left, finished, found) -> None:
  here = {r.key for r in left}
  for run in left:
    for key in origins.needs(study, run.arm, run.seed):
      if key not in here | finished:
        raise UserError(
          f'arm {run.arm.name!r} needs {key[0]!r}, which has not been run: run '
          f'--only={key[0]} first'
        )
      if key in found.elsewhere and not found.pretrained:
        raise UserError(
          f'arm {run.arm.name!r} needs {key[0]!r}, which was taken from '
          'another workdir: give --pretrained'
        )


def _lacking(study, run, rows) -> list[str]:
  """What a run needs and is not there whole: it failed, or diverged."""
  latest = results.latest(rows)
  return [
    f'{key[0]!r} is {latest[key]["status"]}'
    for key in origins.needs(study, run.arm, run.seed)
    if latest[key]['status'] != results.DONE
  ]


def _one(study, run, found, lacking, session, allow_download):
  """The row of a run, and the session to use for the arm's next seed."""
  config = study.config_of(run.arm, run.seed)
  began = time.monotonic()
  root = pathlib.Path(found.workdir)
  directory = root / run.directory
  directory.mkdir(parents=True, exist_ok=True)
  row = {
    'study': study.name,
    'path': study.path,
    'size': study.size,
    'arm': run.arm.name,
    'stage': run.arm.stage,
    'seed': run.seed,
    'status': results.DONE,
    'overrides': results.placeholders(run.arm.overrides),
    'flags': results.placeholders(study.flags),
    'config_digest': results.arm_digest(study, run.arm),
    'command': commands.of(study, run, found.anonymous(), study.path),
    'commit': results.commit(),
    'date': results.today(),
    'machine': machine.describe(),
  }
  row |= {
    k: name for k, (name, _) in origins.keys(study, run.arm, run.seed).items()
  }
  needs = origins.needs(study, run.arm, run.seed)
  row |= run.arm.made | {'needs': [list(key) for key in needs]}
  with config.unlocked():
    config.data.cache = config.data.cache or str(root / 'data')
    config.train.update(found.fields(study, run.arm, run.seed))
  try:
    if lacking:  # its last checkpoint would be of the middle of a run
      raise UserError(f'needs another run: {", ".join(lacking)}')
    with _logged(directory / 'log.txt'):
      keys = origins.sources(study, run.arm, run.seed)
      of = [found.directory(key) for key in keys]
      begin = stages.converted(run.arm, run.seed, of, directory)
      if run.arm.judge:
        summary, data = stages.judged(run.arm, config, begin)
      else:
        if run.arm.convert:
          with config.unlocked():
            (config.train.init_from,) = begin
        if session is None:
          session = session_lib.make(
            config, str(root), allow_download=allow_download
          )
        summary = loop.train(
          config,
          str(directory),
          allow_download=allow_download,
          session=session,
        )
        if 'not_known' in summary:
          raise UserError(f'to be trained anew: {summary["not_known"]}')
        if study.analysis and checks.sparse_stacks(config):
          summary |= inside.measured(study, directory, config.mesh)
        data = session.data
    row['data'] = data.fingerprint[:16]
    row['domains'] = list(getattr(data, 'domains', ()))
    row['metrics'] = results.metrics(summary)
    if 'curve' in summary:
      row['curve'] = summary['curve']
  except FloatingPointError as e:
    row |= {'status': results.DIVERGED, 'error': _error(e)}
  except Exception as e:  # whatever it is, the other arms go on
    row |= {'status': results.FAILED, 'error': _error(e)}
    session = None
  row['seconds'] = round(time.monotonic() - began, 2)
  return row, session


def _error(e: Exception) -> str:
  text = ' '.join(str(e).split())
  return results.without_paths(f'{type(e).__name__}: {text}')[:500]


@contextlib.contextmanager
def _logged(path: pathlib.Path):
  """What is printed inside goes to a file, a run's own progress included."""
  with (
    open(path, 'a') as f,
    contextlib.redirect_stdout(f),
    contextlib.redirect_stderr(f),
  ):
    yield


def _line(row: results.Row, done: int, total: int, remaining: float) -> str:
  width = len(str(total))
  found = row.get('metrics', {})
  parts = [f'[{done:>{width}}/{total}] {row["arm"]} seed {row["seed"]}']
  if row['status'] != results.DONE:
    parts.append(f'{row["status"].upper()}: {row["error"]}')
  if 'train/loss' in found:
    parts.append(f'loss {found["train/loss"]:.4f}')
  if 'train/dropped' in found:
    parts.append(f'dropped {100 * found["train/dropped"]:.1f} %')
  parts.append(f'{row["seconds"]:.0f} s')
  if remaining:
    parts.append(f'{estimates.duration(remaining)} left')
  return '  '.join(parts)


def plan(
  study: study_lib.Study,
  workdir: str,
  todo: Sequence[Run],
  pretrained: str = '',
  done: str = '',
) -> str:
  """What `sweep` would do: a command a run, and how long all would take."""
  rows = results.check(pathlib.Path(workdir) / results.FILE, study)
  if done:
    rows += _from_done(study, pathlib.Path(done), rows, todo)
  found, taken = origins.find(study, rows, workdir, pretrained)
  rows += taken
  latest = results.latest(rows)
  lines, left = [], 0
  for run in todo:
    finished = latest.get(run.key, {}).get('status') in results.FINISHED
    left += not finished
    mark = '# finished: ' if finished else ''
    lines.append(f'{mark}{commands.of(study, run, found, study.file)}')
  each = estimates.a_run(study, rows)
  estimate = 'for an unknown time'
  if each:
    estimate = f'about {estimates.duration(left * each)} in one process'
  source = (
    'as the finished ones took'
    if any(r['status'] == results.DONE for r in rows)
    else 'as the study file says'
  )
  lines.append(
    f'{left} of {len(todo)} runs to do, {estimate}'
    + (f' ({each:.0f} s a run, {source})' if each else '')
  )
  return '\n'.join(lines)
