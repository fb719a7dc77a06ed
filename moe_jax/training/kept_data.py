"""What a run keeps of its data, so that other data can be told and named."""

import os
import pathlib
from collections.abc import Mapping
from typing import Any

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


def check_text(
  data: batches.Batches, workdir: str | os.PathLike, otherwise: str
) -> None:
  """As `check`, where the domains that are read may be others."""
  there, here = _read(pathlib.Path(workdir) / FILE).get('kept'), data.kept()
  if there and (named := data.changes({**there, **_chosen(here)})):
    raise UserError(
      f'{workdir} was trained on other data: {named}; {otherwise}'
    )


def _chosen(kept: Mapping[str, Any]) -> dict[str, Any]:
  return {k: v for k, v in kept.items() if k.startswith('data.')}


def _read(path):
  try:
    return json_files.read(path)
  except (OSError, ValueError):
    return {}  # it only helps to say what is known to differ
