"""A run's directory: one config, one writer at a time, nothing ever deleted.

WORKDIR/config.json    the config of the run, for evaluate and generate
WORKDIR/config_<n>.json   what it was before fields were allowed to change
WORKDIR/summary_<n>.json  what the run had come to by then, if it was over
WORKDIR/lock           host and process id of who writes here, see `lock`
WORKDIR/metrics_<n>.jsonl what it had told before it passed over a checkpoint
                       that could not be read
WORKDIR/bad_batches/   batches of steps that were not finite, or spiked
WORKDIR/starts.json    how many starts in a row came to no new step
WORKDIR/previous_<n>/  an older run, moved aside by a restart
WORKDIR/tokenizer.json    what a tokenizer learned from the run's text
WORKDIR/data.json      sizes and digests of the data, to name what has changed
WORKDIR/data/          built data; survives a restart
"""

import json
import os
import pathlib
import re
import shutil
from typing import Any

from absl import logging

from moe_jax import json_files
from moe_jax.errors import UserError
from moe_jax.runs import config_history, configs, lock, schema, writers

_CONFIG, _DATA = 'config.json', 'data'
_SUMMARY = 'summary.json'
# Any of these says that a run has been here.
_RUN_FILES = (_CONFIG, writers.METRICS, 'checkpoints')


def prepare(
  workdir: str | os.PathLike,
  config: dict[str, Any],
  *,
  restart: bool,
  allow: tuple[str, ...],
  take_over: bool = False,
) -> bool:
  """Makes or reopens a run's directory and locks it; process 0 calls it.

  Of a run that goes on nothing is written but the lock: another config is
  written by `adopt`, once it is known that the run can go on with it. The lock
  is released by `release`, or when the process ends.

  Args:
    workdir: a directory, made if absent; not an object store.
    config: nested dict of JSON's types (`configs.to_dict`).
    restart: move the run that is there to `previous_<n>/` and start anew.
    allow: fields (`train.steps`) or groups of fields (`eval`) in which the
      config may differ from that of the run that is there.
    take_over: take the lock that a dead run on another host left.

  Returns:
    True where a run with this config was there and goes on.

  Raises:
    ValueError: the directory cannot be written, is in use, holds another
      config's run (all fields that differ are named), or a config that cannot
      be read.
  """
  check_place(workdir)
  path = pathlib.Path(workdir).absolute()
  try:
    path.mkdir(parents=True, exist_ok=True)
    lock.hold(path, take_over)
  except OSError as e:
    raise UserError(f'workdir {workdir} cannot be written: {e}') from None
  try:
    return _open(path, config, restart, allow)
  except OSError as e:
    release(path)
    raise UserError(f'workdir {workdir} cannot be written: {e}') from None
  except ValueError:
    release(path)
    raise


def check_place(workdir: str | os.PathLike) -> None:
  """Raises ValueError where a workdir is in an object store; all call it."""
  if '://' in str(workdir):
    raise UserError(
      f'workdir {workdir} is no local path; a mounted directory is wanted'
    )


def adopt(workdir: str | os.PathLike, config: dict[str, Any]) -> None:
  """Makes `config` that of the run, and keeps the one before; process 0."""
  path = pathlib.Path(workdir)
  found = changes(path, config)
  if found:
    check(path)
    logging.info('%s goes on with %s', path, '; '.join(found.values()))
    n = _next(path, 'config')
    # First: it must never stand beside a config that it is not of.
    if (path / _SUMMARY).exists():
      os.rename(path / _SUMMARY, path / f'summary_{n}.json')
    shutil.copy2(path / _CONFIG, path / f'config_{n}.json')
    writers.write_json(path / _CONFIG, config)


def keep_metrics(workdir: str | os.PathLike) -> None:
  """Copies the metrics, of which the run is going to drop lines; process 0."""
  path = pathlib.Path(workdir)
  if (path / writers.METRICS).exists():
    copy = path / f'metrics_{_next(path, "metrics")}.jsonl'
    shutil.copy2(path / writers.METRICS, copy)
    logging.warning('%s: all lines so far are kept in %s', path, copy.name)


def changes(
  workdir: str | os.PathLike, config: dict[str, Any]
) -> dict[str, str]:
  """{dotted name: 'name is 1 there, 2 here'}: in what a run's config differs.

  Fields that the run's code did not have are as they were without them.

  Raises:
    ValueError: as `read_config`.
  """
  return _differences(read_config(workdir), config_history.upgrade(config))


def read_config(workdir: str | os.PathLike) -> dict[str, Any]:
  """The config of a run, with today's fields, whenever it was written.

  Raises:
    ValueError: no config.json, or one that is not a JSON object.
  """
  path = pathlib.Path(workdir) / _CONFIG
  try:
    config = json_files.read(path)
  except FileNotFoundError:
    raise UserError(f'{workdir} holds no run: no {_CONFIG}') from None
  except (OSError, ValueError) as e:
    raise UserError(f'cannot read {path}: {e}') from None
  return config_history.upgrade(config)


def load_config(workdir: str | os.PathLike) -> Any:
  """The locked ConfigDict of a run, whose fields are all there and known.

  Raises:
    ValueError: as `read_config`, or names the field that is not as it should.
  """
  where = str(pathlib.Path(workdir) / _CONFIG)
  return configs.from_dict(schema.known(read_config(workdir), where))


def withdraw(workdir: str | os.PathLike) -> None:
  """Takes back a fresh `prepare`, where the run failed before it began."""
  (pathlib.Path(workdir) / _CONFIG).unlink(missing_ok=True)
  release(workdir)


def check(workdir: str | os.PathLike) -> None:
  """Raises ValueError where another process has taken the run over."""
  lock.check(workdir)


def release(workdir: str | os.PathLike) -> None:
  """Gives up the lock, if this process has it; no file of it is left."""
  lock.release(workdir)


def _open(
  path: pathlib.Path, config: dict, restart: bool, allow: tuple[str, ...]
) -> bool:
  there = [name for name in _RUN_FILES if (path / name).exists()]
  if restart and there:
    _move_aside(path)
    there = []
  if not there:
    writers.write_json(path / _CONFIG, config)
    return False
  if _CONFIG not in there:
    raise UserError(
      f'{path} has {there[0]} but no {_CONFIG}; restart moves it aside'
    )
  refused = [
    text
    for name, text in changes(path, config).items()
    if not any(name == a or name.startswith(f'{a}.') for a in allow)
  ]
  if refused:
    raise UserError(
      f'{path} holds a run with another config: {"; ".join(refused)}. Choose'
      ' another workdir, allow these fields (--allow), or --restart'
    )
  return True


def _differences(old: dict, new: dict) -> dict[str, str]:
  """{dotted name: 'name is 1 there, 2 here'} of the leaves that differ."""
  old, new = configs.flatten(old), configs.flatten(new)
  out = {}
  for name in sorted(old.keys() | new.keys()):
    there, here = (
      json.dumps(d[name]) if name in d else 'absent' for d in (old, new)
    )
    # As text: in JSON 1, 1.0 and true differ, in Python they are equal.
    if there != here:
      out[name] = f'{name} is {there} there, {here} here'
  return out


def _next(path: pathlib.Path, prefix: str) -> int:
  """1 above the largest n of `<prefix>_<n>` in a directory."""
  found = (
    re.fullmatch(rf'{prefix}_(\d+)(\.jsonl?)?', n) for n in os.listdir(path)
  )
  return max((int(m[1]) for m in found if m), default=0) + 1


def _move_aside(path: pathlib.Path) -> None:
  aside = path / f'previous_{_next(path, "previous")}'
  aside.mkdir()
  # The config goes last: a move cut short is still seen as a run.
  for name in sorted(os.listdir(path), key=lambda n: n == _CONFIG):
    if name not in (_DATA, lock.FILE) and not name.startswith('previous_'):
      os.rename(path / name, aside / name)
  logging.info('%s: the run that was here is now in %s', path, aside.name)
