"""A case of a benchmark: candidates that do the same work, timed in turn.

Beside the candidates stand two that measure the machine in the same rounds, a
plain matrix product and a copy. The floor of a candidate is the time that its
necessary FLOPs or its necessary bytes take at the rates of the same round,
whichever is longer.
Candidates that must compute the same are compared too: a fast one that computes
something else has failed.
"""

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from moe_jax.benchmarks import scopes, timing

MATMUL, COPY = 'matmul', 'copy'

Build = Callable[[], tuple[Callable[[], Any] | None, dict[str, Any]]]


@dataclasses.dataclass(frozen=True)
class Candidate:
  """One way to do a case's work.

  Attributes:
    name: in tables.
    build: returns a function that does the work once and returns when it is
      done (None where only the facts are wanted), and facts about it (JSON
      values), such as the fraction kept.
    flops, bytes: that the work needs, however it is done.
    result: takes an array out of what the function returns, to be compared with
      that of the case's first candidate that has one; None is not compared.
  """

  name: str
  build: Build
  flops: float = 0.0
  bytes: float = 0.0
  result: Callable[[Any], Any] | None = None
  reference: bool = False


@dataclasses.dataclass(frozen=True)
class Case:
  """Candidates to be compared.

  Attributes:
    suite, name: in tables and for --cases.
    sizes: JSON values.
    candidates: all names different.
    baselines: names of candidates that the others' ratios are to.
    tolerance: of the results, as a share of the largest entry.
  """

  suite: str
  name: str
  sizes: dict[str, Any]
  candidates: Sequence[Candidate]
  baselines: tuple[str, ...] = ()
  tolerance: float = 1e-3


def compiled(
  f: Callable, *args: Any, split: bool = False
) -> tuple[Callable[[], Any], dict]:
  """What `Candidate.build` returns, for a function of JAX arrays.

  The facts are seconds to compile, XLA's peak of temporaries in bytes, and with
  `split` the time by part.
  """
  start = time.perf_counter()
  run = jax.jit(f).lower(*args).compile()
  took = time.perf_counter() - start
  memory = run.memory_analysis()
  facts = {'compile_seconds': round(took, 2)}
  if memory is not None:
    facts['temporaries'] = memory.temp_size_in_bytes
  once = lambda: jax.block_until_ready(run(*args))
  if split:
    once()
    facts |= scopes.facts(run.as_text(), once)
  return once, facts


def run(
  case: Case,
  repeats: int,
  warmup: int = 2,
  clock: Callable[[], float] = time.perf_counter,
  trace: str = '',
) -> dict[str, Any]:
  """Builds, times and compares; the row of bench.json.

  A candidate that cannot be built or run is listed under 'failed' with its
  message, and the others go on. `seconds` hold median, low and high (quartiles)
  and all rounds; `ratios` the same by baseline; `over_floor` is the median
  ratio to the floor, None where the machine's rates are not measured.

  Args:
    case: what to run.
    repeats, warmup, clock: as in `timing.alternate`.
    trace: folder for a profile of one more run of every candidate, after the
      timing; '' is none.
  """
  functions, facts, failed = {}, {}, {}
  for c in case.candidates:
    try:
      functions[c.name], facts[c.name] = c.build()
    except Exception as e:  # the others go on
      failed[c.name] = message(e)
  timed = {name: f for name, f in functions.items() if f is not None}
  rounds, raised = timing.alternate(timed, repeats, warmup, clock)
  failed |= {name: message(e) for name, e in raised.items()}
  alive = {name: timed[name] for name in rounds}
  for name, difference in _differences(case, alive).items():
    facts[name]['difference'] = difference
    if not difference <= case.tolerance:
      failed[name] = (
        f'its result differs by {difference:.1e} of the largest entry'
      )
  if trace:
    profile(alive, trace)
  by_name = {c.name: c for c in case.candidates}
  # Seconds of one FLOP and of one byte, by round.
  unit = {
    name: np.array(rounds[name]) / getattr(by_name[name], count)
    for name, count in ((MATMUL, 'flops'), (COPY, 'bytes'))
    if name in rounds
  }
  rows = {}
  for name in functions:
    if name not in raised:
      rows[name] = {'facts': facts[name]}
    if name in rounds:
      rows[name] |= _timed(by_name[name], case, rounds, unit)
  return {
    'suite': case.suite,
    'case': case.name,
    'sizes': case.sizes,
    'baselines': list(case.baselines),
    'rates': {
      'flops_per_second': _rate(unit.get(MATMUL)),
      'bytes_per_second': _rate(unit.get(COPY)),
    },
    'candidates': rows,
    'failed': failed,
  }


def _rate(seconds) -> float | None:
  return None if seconds is None else float(1 / np.median(seconds))


def _timed(c: Candidate, case: Case, rounds, unit) -> dict[str, Any]:
  seconds = rounds[c.name]
  needs = [
    count * unit[name]
    for name, count in ((MATMUL, c.flops), (COPY, c.bytes))
    if name in unit and count
  ]
  floor = np.max(needs, axis=0) if needs else None
  against = () if c.reference else case.baselines
  return {
    'seconds': dataclasses.asdict(timing.spread(seconds)) | {'rounds': seconds},
    'ratios': {
      b: dataclasses.asdict(timing.ratio(seconds, rounds[b]))
      for b in against
      if b in rounds and b != c.name
    },
    'flops': c.flops,
    'bytes': c.bytes,
    'floor_seconds': None if floor is None else float(np.median(floor)),
    'over_floor': None
    if floor is None
    else timing.ratio(seconds, floor).median,
  }


def profile(functions: dict[str, Callable[[], Any]], folder: str) -> None:
  """Runs each once under `jax.profiler`, marked by its name.

  The folder opens in TensorBoard, and `perfetto_trace.json.gz` under it in
  Perfetto.
  """
  with jax.profiler.trace(folder, create_perfetto_trace=True):
    for name, run in functions.items():
      with jax.profiler.TraceAnnotation(name):
        run()


def _differences(case, functions) -> dict[str, float]:
  """Largest difference to the first result, by candidate."""
  found, first = {}, None
  for c in case.candidates:
    if c.result is None or c.name not in functions:
      continue
    # A JAX array stays on its device: gradients of weights are gigabytes.
    result = c.result(functions[c.name]())
    if not isinstance(result, jax.Array):
      result = np.asarray(result)
    if first is None:
      first = result
    else:
      found[c.name] = float(_off(result, first))
  return found


@jax.jit
def _off(result, first):
  result, first = (v.astype(jnp.float32) for v in (result, first))
  return jnp.abs(result - first).max() / jnp.abs(first).max()


def message(e: Exception) -> str:
  """One line."""
  text = ' '.join(str(e).split())
  return f'{type(e).__name__}: {text}'[:300]
