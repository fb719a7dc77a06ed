"""What a run keeps of its data, so that other data can be told and named."""

import os
import pathlib

from moe_jax import json_files
from moe_jax.data import batches
from moe_jax.errors import UserError
from moe_jax.runs import writers

FILE = 'data.json'


def keep(data: batches.Batches, workdir: str | os.PathLike) -> None:
  """Writes it, once the run is known to be of these data; process 0."""
  path = pathlib.Path(workdir) / FILE
  now = {'fingerprint': data.fingerprint, 'kept': data.kept()}
  if now != _read(path):
    writers.write_json(path, now)


def check(
  data: batches.Batches,
  workdir: str | os.PathLike,
  fingerprint: str,
  otherwise: str,
) -> None:
  """Raises ValueError where a run was trained on other data than these.

  Args:
    data: of today.
    workdir: of the run.
    fingerprint: of its data; '' of a model from elsewhere, whose text nobody
      here knows.
    otherwise: what the message ends with.
  """
  if fingerprint in ('', data.fingerprint):
    return
  there = _read(pathlib.Path(workdir) / FILE)
  named = ''
  if there.get('fingerprint') == fingerprint:
    named = data.changes(there.get('kept'))
  raise UserError(
    f'{workdir} was trained on other data ({str(fingerprint)[:12]}, now '
    f'{data.fingerprint[:12]}){named and f": {named}"}; {otherwise}'
  )


def _read(path):
  try:
    return json_files.read(path)
  except (OSError, ValueError):
    return {}  # it only helps to say what is known to differ
