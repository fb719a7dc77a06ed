"""Where a program's time goes, by named scope, out of a profiler's trace.

The trace names each operation that ran; the compiled program says in which
scope it was written, forward and backward alike. At every moment the time goes
in equal shares to the operations that run then (their containers, loops and
branches, left out); moments without any are 'idle'. A traced run is slower than
others, on CPU by much where operations are many and small: shares, not seconds,
are to be read.
"""

import collections
import dataclasses
import os
import pathlib
import re
import tempfile
from collections.abc import Callable, Iterable
from typing import Any

import jax
import optax

from moe_jax.dispatch import base as dispatching
from moe_jax.errors import UserError
from moe_jax.experts import base as experts_base

# Part, scopes; the first part that has one of an operation's scopes gets it.
PARTS = (
  ('experts', 'experts'),
  ('routing', 'router|seating|balancing'),
  ('permutation', 'dispatch'),
  ('attention', 'attention|attention_norm'),
  ('dense FFN', 'ffn'),
  ('embedding and head', 'embedding'),
  ('optimizer', 'optimizer'),
)
_CONTAINERS = ('while', 'conditional', 'call')


@dataclasses.dataclass(frozen=True)
class Experts(experts_base.Experts):
  """An expert kind in the scope 'experts'."""

  kind: experts_base.Experts

  @property
  def axes(self):
    return self.kind.axes

  @property
  def dropout(self):
    return self.kind.dropout

  def init(self, key, E, D):
    return self.kind.init(key, E, D)

  def __call__(self, params, rows, ops):
    with jax.named_scope('experts'):
      return self.kind(params, rows, ops)


@dataclasses.dataclass(frozen=True)
class Dispatch(dispatching.Dispatch):
  """A dispatch in the scope 'dispatch'."""

  kind: dispatching.Dispatch

  @property
  def random(self):
    return self.kind.random

  def __call__(self, experts, params, x_GTD, seated, axes, key):
    with jax.named_scope('dispatch'):
      return self.kind(experts, params, x_GTD, seated, axes, key)


def name_kernels() -> None:
  """Has XLA launch a GPU's kernels one by one; before devices are used.

  It gathers them in CUDA graphs else, whose kernels a trace does not name.
  """
  flags = os.environ.get('XLA_FLAGS', '')
  os.environ['XLA_FLAGS'] = f'{flags} --xla_gpu_enable_command_buffer='


def optimizer(tx: optax.GradientTransformation) -> optax.GradientTransformation:
  """The optimizer in the scope 'optimizer'."""
  return tx._replace(update=jax.named_scope('optimizer')(tx.update))


def facts(text: str, run: Callable[[], Any]) -> dict[str, Any]:
  """`split` under 'parts_percent', or under 'no_parts' why there is none.

  A profiler may be refused, and times stand without it.
  """
  try:
    return {'parts_percent': split(text, run)}
  except ValueError as e:
    return {'no_parts': str(e)}


def split(text: str, run: Callable[[], Any]) -> dict[str, float]:
  """Percent of a run's time by part, the largest first.

  Args:
    text: of the compiled program (`compiled.as_text()`).
    run: runs it once and returns when it is done.

  Raises:
    ValueError: the trace has none of the program's operations.
  """
  scope, containers = scopes(text)
  with tempfile.TemporaryDirectory() as folder:
    with jax.profiler.trace(folder):
      run()
    (path,) = pathlib.Path(folder).rglob('*.xplane.pb')
    intervals = list(_intervals(str(path), frozenset(scope)))
  seconds = shares((i for i in intervals if i[2] not in containers), scope)
  if not seconds:
    raise UserError('the profiler recorded no operation of the program')
  total = sum(seconds.values())
  percent = {k: round(100 * v / total, 1) for k, v in seconds.items()}
  return dict(sorted(percent.items(), key=lambda item: -item[1]))


def text(parts: dict[str, float]) -> str:
  """'experts 61, attention 20, ...', whole percent."""
  return ', '.join(f'{k} {v:.0f}' for k, v in parts.items() if v >= 0.5)


def part(name: str) -> str:
  """The part of an operation, by the path of its scopes."""
  for found, words in PARTS:
    if re.search(rf'\b({words})\b', name):
      return found
  return 'other'


def scopes(text: str) -> tuple[dict[str, str], frozenset[str]]:
  """Part by instruction, and the instructions that contain others.

  A fusion belongs where most of its instructions do that are in some part.
  """
  own, inside, calls = {}, collections.defaultdict(collections.Counter), {}
  containers, computation = set(), ''
  for line in text.splitlines():
    header = re.match(r'(?:ENTRY )?%?([\w.-]+) \(.*\{$', line)
    if header:
      computation = header[1]
      continue
    found = re.match(r'\s+(?:ROOT )?%?([\w.-]+) = (.*)', line)
    if not found:
      continue
    name, rest = found[1], found[2]
    path = re.search(r'op_name="([^"]*)"', rest)
    own[name] = part(path[1]) if path else 'other'
    if own[name] != 'other':
      inside[computation][own[name]] += 1
    called = re.search(r'(?:calls|to_apply)=%?([\w.-]+)', rest)
    if called:
      calls[name] = called[1]
    if re.search(rf' ({"|".join(_CONTAINERS)})\(', f' {rest}'):
      containers.add(name)
  for name, computation in calls.items():
    most = inside[computation].most_common(1)
    if most:
      own[name] = most[0][0]
  return own, frozenset(containers)


def shares(
  intervals: Iterable[tuple[float, float, str]], scope: dict[str, str]
) -> dict[str, float]:
  """Time by part, of (begin, end, instruction) that may overlap."""
  changes = []
  for begin, end, name in intervals:
    changes += [(begin, 1, name), (end, -1, name)]
  changes.sort(key=lambda c: (c[0], -c[1]))
  running, seconds = collections.Counter(), collections.Counter()
  before = None
  for at, change, name in changes:
    if before is not None and at > before:
      count = running.total()
      for part_, n in running.items():
        seconds[part_] += (at - before) * n / count
      if not count:
        seconds['idle'] += at - before
    before = at
    where = scope.get(name, 'other')
    running[where] += change
    running += collections.Counter()  # drops what is zero
  return dict(seconds)


def _intervals(path: str, names: frozenset[str]):
  """(begin, end, instruction) in ns of what a trace says has run.

  On GPU a kernel's record names the instruction in a field. On CPU its name is
  the instruction's, and it ends when the work is handed to threads; the record
  'end: ...' of the same name ends with the work. (Fields that link the two are
  not read: jax 0.7.2 dies of some.)

  Args:
    path: of the trace.
    names: of the program's instructions.
  """
  begun, ended = collections.defaultdict(list), collections.defaultdict(list)
  for plane in jax.profiler.ProfileData.from_file(path).planes:
    on_device = plane.name.startswith('/device')
    for line in plane.lines:
      for event in line.events:
        begin, end = event.start_ns, event.start_ns + event.duration_ns
        name = event.name
        if on_device:
          name = dict(event.stats).get('hlo_op', '')
        last = name.removeprefix('end: ')
        if last in names:
          (begun if last == name else ended)[last].append((begin, end))
  for name, first in begun.items():
    ends = sorted(e for _, e in ended[name])
    # An instruction's runs follow one another, those of a loop too.
    if len(ends) != len(first):
      ends = [e for _, e in sorted(first)]
    for (begin, end), last in zip(sorted(first), ends):
      yield begin, max(end, last), name
