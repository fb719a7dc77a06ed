"""Batches of bad steps, kept for study in WORKDIR/bad_batches.

A file is read by `np.load`. It has the batch's arrays, first axis rows; 'rows',
their numbers, which with the seed they are a function of; 'documents', names of
what the rows were cut from, as far as the data knows, and 'document_rows', the
row of each name; 'step' and 'why'.
"""

import pathlib

import numpy as np

from moe_jax.data import batches
from moe_jax.training import run as run_lib

_FOLDER = 'bad_batches'
_MOST = 10


def save(run: run_lib.Run, step: int, first_row: int, why: str) -> None:
  """Writes the batch of a step, unless there are ten; process 0 does.

  It is made anew, whole: none was kept in memory.

  Args:
    run: whose step it was.
    step: of the run.
    first_row: of its batch.
    why: what was bad.
  """
  if not run.lead:
    return
  size = run.session.config.train.batch_size
  rows = range(first_row, first_row + size)
  name = f'step_{step}_row_{first_row}.npz'
  path = pathlib.Path(run.workdir) / _FOLDER / name
  try:
    _save(run, step, rows, why, path)
  except OSError as e:  # which is no reason to end, or to end otherwise
    print(f'step {step}: its batch is not kept: {e.strerror}', flush=True)


def _save(
  run: run_lib.Run, step: int, rows: range, why: str, path: pathlib.Path
) -> None:
  folder, data = path.parent, run.session.data
  seed = run.session.config.seed
  folder.mkdir(exist_ok=True)
  there = len(list(folder.glob('step_*.npz')))
  if path.exists() or there >= _MOST:
    return
  made = batches.stack([data.train_row(seed, row) for row in rows])
  sources = [(name, r) for r in rows for name in data.sources(seed, r)]
  facts = {
    'rows': np.array(rows, np.int64),
    'documents': np.array([name for name, _ in sources], np.str_),
    'document_rows': np.array([row for _, row in sources], np.int64),
    'step': np.int64(step),
    'why': np.array(why),
  }
  # Renamed when whole: a name that is there says that the file can be read.
  tmp = folder / f'.{path.name}'
  with open(tmp, 'wb') as f:
    np.savez_compressed(f, **(made | facts))
  tmp.rename(path)
  last = f', the last of {_MOST} that are kept' if there + 1 == _MOST else ''
  print(
    f'step {step}: its batch, rows {rows[0]} to {rows[-1]}, is in {path}{last}',
    flush=True,
  )
