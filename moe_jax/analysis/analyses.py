"""All that is found out about a run: records, metrics, what experts compute."""

import dataclasses
import functools
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from moe_jax import registry
from moe_jax.analysis import (
  importance,
  metrics as metrics_lib,
  outputs,
  overview,
  recording,
)
from moe_jax.errors import UserError
from moe_jax.models import factory
from moe_jax.problems import tokens
from moe_jax.runs import checkpoint, workdir as workdir_lib
from moe_jax.training import (
  fresh_rules,
  kept_data,
  state as state_lib,
  step as step_lib,
)

RECORD = 'routing'  # of the newest checkpoint; others are `routing_STEP`
REMOVED_BYTES = 100_000  # of text, once an expert


@dataclasses.dataclass(frozen=True)
class Analysis:
  """What is looked at, of one run.

  Attributes:
    workdir: of the run.
    mesh: spec in place of the config's.
    text, max_bytes: as in `recording.opened`.
    tell: is given lines on how it goes.
  """

  workdir: str
  mesh: str = ''
  text: str = ''
  max_bytes: int = 2_000_000
  tell: Callable[[str], None] = print

  @property
  def out(self) -> pathlib.Path:
    """The folder that all is written to."""
    return pathlib.Path(self.workdir) / 'analysis'

  def open(self, workdir: str = '', max_bytes: int | None = None):
    """A session of the run, or of another one, on this text."""
    workdir = workdir or self.workdir
    return recording.opened(
      workdir_lib.load_config(workdir),
      workdir,
      mesh_spec=self.mesh,
      text=self.text,
      max_bytes=self.max_bytes if max_bytes is None else max_bytes,
    )

  def state(self, session, workdir: str = '', step: int | None = None):
    """A state of the run; its own validation must be what it was."""
    workdir = workdir or self.workdir
    state, data = fresh_rules.of_run(session, workdir, step)
    if not self.text:
      kept_data.check(
        session.data,
        workdir,
        data['fingerprint'],
        'its validation documents may have been trained on; --text=FOLDER is '
        'another text',
      )
    return state

  def record(self, session, state, name: str, what: str):
    """Records by stack; tells of it now and then."""
    shown = [0]

    def tell(row, rows):
      tenth = 10 * row // rows
      if tenth > shown[0] or row == rows:
        shown[0] = tenth
        self.tell(f'{what}: {row} of {rows} rows')

    return recording.record(
      session,
      state,
      self.out / name,
      tell=tell,
      step=int(state.step),
      text=self.text,
      max_bytes=self.max_bytes,
    )


def steps(workdir: str | os.PathLike, asked: str) -> list[int]:
  """The checkpoints that are asked for, the newest first.

  Args:
    workdir: of the run.
    asked: 'newest', 'all', or numbers with commas between them.

  Raises:
    ValueError: there is none, or not those.
  """
  there = sorted(checkpoint.steps(pathlib.Path(workdir) / 'checkpoints'))
  if not there:
    raise UserError(f'{workdir}: there is no checkpoint to look at')
  named = {'all': there, 'newest': there[-1:]}
  wanted = named.get(asked) or [
    int(s) if s.strip().isdecimal() else s for s in asked.split(',')
  ]
  for step in wanted:
    if step not in there:
      shown = ', '.join(map(str, there))
      raise UserError(f'checkpoints={asked}: no {step}; there are {shown}')
  return sorted(set(wanted), reverse=True)


def run(
  analysis: Analysis,
  checkpoints: Sequence[int],
  *,
  compare: str = '',
  factors: Sequence[float] = (),
  remove: bool = False,
) -> dict[str, Any]:
  """Records and measures a run.

  Args:
    analysis: of what.
    checkpoints: steps, the newest first; of more than one each is set beside
      the first, and so are parameters that were never trained.
    compare: workdir of another run.
    factors: capacity factors of `drops_at`; () is the metric's own.
    remove: whether the loss without each expert is found.

  Returns:
    The metrics, as of metrics.json; those of a second stack as
    'encoder/METRIC/NAME', of pairs with checkpoints as 'METRIC_STEP/NAME'.

  Raises:
    ValueError: as `recording.opened` and `recording.record`.
  """
  session, newest = analysis.open(), checkpoints[0]
  if analysis.text:
    analysis.tell(_read_of(analysis.text, session.data.documents))
  state = analysis.state(session, step=newest)
  found = analysis.record(session, state, RECORD, f'step {newest}')
  metrics = {}
  for stack, own in found.items():
    specs = chosen(session, stack, factors)
    analysis.tell(f'{stack}: {len(own):,} tokens, {len(specs)} metrics')
    metrics |= _named(stack, found, metrics_lib.measure(own, specs))
  metrics |= _outputs(session, state)
  pair = functools.partial(_pair, found)
  if len(checkpoints) > 1:
    for step in checkpoints[1:]:
      other = analysis.state(session, step=step)
      other = analysis.record(
        session, other, f'{RECORD}_{step}', f'step {step}'
      )
      of_step = pair('saturation', other)
      metrics |= of_step | _of(of_step, 'saturation', f'saturation_{step}')
    twin = untrained(session)
    twin = analysis.record(session, twin, f'{RECORD}_untrained', 'untrained')
    of_twin = pair('saturation', twin)
    metrics |= _of(of_twin, 'saturation', 'saturation_untrained')
  if compare:
    there = analysis.open(compare)
    other = analysis.state(there, compare)
    other = analysis.record(there, other, f'{RECORD}_compared', compare)
    metrics |= pair('replication', other)
  if remove:
    metrics |= removed(analysis, state, metrics)
  names = step_lib.moe_layers(session.model)
  own = [n for n in names if n.startswith('decoder/')] or names
  return metrics | {'words': overview.words(metrics, own)}


def _read_of(folder: str, documents: Sequence[Any]) -> str:
  """A line on how much of the text of a folder is looked at."""
  there = sum(p.stat().st_size for p in pathlib.Path(folder).glob('*.txt'))
  read = sum(d.num_bytes for d in documents)
  return (
    f'{folder}: {read:,} of {there:,} bytes, {len(documents):,} documents '
    '(at most --max_bytes; what repeats another document is left out)'
  )


def chosen(session: Any, stack: str, factors: Sequence[float]) -> list[str]:
  """Call strings of the metrics of a stack, as far as they suit its layers."""
  fields = factory.moe_fields(session.config)[stack]
  own = {'seating': fields['seating'], 'rule': fields['capacity_rule']}
  own |= {'factors': tuple(factors)} if factors else {}
  options = ', '.join(f'{k}={v!r}' for k, v in own.items())
  given = {
    'drops_at': f'drops_at({options})',
    'drops': f'drops(row={session.lengths[stack]})',
  }
  specs = []
  first_fit = session.model.stacks[stack].moes[0].router.first_fit
  for spec in metrics_lib.default():
    name, _ = registry.parse(spec)
    if not (name == 'drops_at' and first_fit):
      specs.append(given.get(name, spec))
  return specs


def untrained(session: Any) -> Any:
  """The state that a run of this config would begin with."""
  s = session
  return state_lib.init(s.model, s.tx, s.dummy, s.config.seed, s.shardings)


def removed(
  analysis: Analysis, state: Any, metrics: dict[str, Any]
) -> dict[str, Any]:
  """'importance/...' of the loss without each expert, on a little text."""
  most = min(analysis.max_bytes or REMOVED_BYTES, REMOVED_BYTES)
  session = analysis.open(max_bytes=most)
  data, batches = session.data, [session.put(b) for b in session.validation()]
  documents = data.documents
  domains = list(dict.fromkeys(d.domain for d in documents))
  count_D = np.zeros(len(documents) + 1)
  for batch in data.validation(batch_size=session.config.eval.batch_size):
    np.add.at(count_D, batch['document'], 1)  # -1 is the last, padding
  variables = _variables(state)
  measured = outputs.measure(session.model, variables, batches)
  found = importance.measure(
    session.model,
    variables,
    lambda out, batch: tokens.of_documents(out, batch, data)['nats'],
    batches,
    [domains.index(d.domain) for d in documents],
    np.maximum(count_D[:-1], 1),
    outputs.siblings(measured['distance']),
    analysis.tell,
  )
  found['domains'] = domains
  share = metrics.get('domain_specialisation/shares')
  named = metrics.get('domain_specialisation/domains')
  if share and named == domains and len(session.model.stacks) == 1:
    share_MEX = np.asarray(share, float).swapaxes(1, 2)
    lost_MEX = found['removed'][..., :-1]
    beside = importance.correlation(lost_MEX, share_MEX)
    found |= {f'correlation_{k}': v for k, v in beside.items()}
  return {f'importance/{k}': metrics_lib.plain(v) for k, v in found.items()}


def _outputs(session, state):
  batches = (session.put(b) for b in session.validation())
  found = outputs.measure(session.model, _variables(state), batches)
  return {f'outputs/{k}': metrics_lib.plain(v) for k, v in found.items()}


def _variables(state):
  own = {'balance': state.balance} if state.balance else {}
  return {'params': state.params} | own


def _pair(found, metric, other):
  """A metric of pairs, of the stacks of two models."""
  out = {}
  for stack, own in found.items():
    measured = metrics_lib.measure(other[stack], [f'{metric}()'], own)
    out |= _named(stack, found, measured)
  return out


def _named(stack, found, metrics):
  first = stack == next(iter(found))
  return metrics if first else {f'{stack}/{k}': v for k, v in metrics.items()}


def _of(metrics, name, new):
  return {k.replace(f'{name}/', f'{new}/'): v for k, v in metrics.items()}
