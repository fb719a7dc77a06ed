"""A limit on starts that come to nothing, as when a run crashes in a loop.

WORKDIR/starts.json has how many starts in a row have seen no new step, by the
lines of metrics and the checkpoints, and the newest step there was. A scheduler
that starts again whatever fails would go on for ever.
"""

import pathlib

from moe_jax import json_files
from moe_jax.errors import UserError
from moe_jax.runs import checkpoint, writers

FILE = 'starts.json'
MOST = 10


def count(workdir: str | pathlib.Path) -> None:
  """Counts one more; process 0, when all is read and nothing is computed.

  Raises:
    ValueError: the ones before it, `MOST` in a row, came to nothing.
  """
  path = pathlib.Path(workdir) / FILE
  saved = checkpoint.steps(path.with_name('checkpoints'))
  newest = max(*saved, writers.last_step(workdir), 0)
  step, starts = _read(path)
  if newest > step:
    starts = 0
  if starts >= MOST:
    raise UserError(
      f'{starts} starts of {workdir} in a row came to no new step, after step'
      f' {max(step, newest)}: this one would, too; without {path} it is tried'
      ' again, and --restart begins anew'
    )
  found = {'step': max(step, newest), 'starts': starts + 1}
  writers.write_json(path, found)


def _read(path: pathlib.Path) -> tuple[int, int]:
  """(the newest step, starts since then)."""
  try:
    found = json_files.read(path)
    return int(found['step']), int(found['starts'])
  except (FileNotFoundError, ValueError, TypeError, KeyError):
    return 0, 0  # a file that is broken is no reason not to start
