"""What the layer and a model cost beside time: memory, compilation, meshes."""

import dataclasses
import functools
import math
import re

import jax
import jax.numpy as jnp

from moe_jax.benchmarks import cases, layers, steps
from moe_jax.dispatch import base as dispatching
from moe_jax.errors import UserError

# Experts, all with as many parameters together: E x F is fixed, as are T, K.
EXPERTS = (8, 32, 64, 256)
CHOICES = 2
HIDDEN = 16384  # E x F
COMPILED = steps.Size(
  layers=24,
  D=64,
  heads=2,
  vocab=256,
  length=64,
  batch=2,
  E=8,
  K=2,
  F=128,
  dtype='float32',
  remat='none',
)
PARALLEL = dataclasses.replace(steps.SMALL, layers=2)
MESHES = ('exact(expert=8)', 'exact(data=2, expert=4)', 'exact(data=8)')
DEVICES = 8


def memory(o: layers.Options) -> list[cases.Case]:
  """XLA's peak of temporaries of the layer's gradient, by number of experts.

  Nothing is run. `beyond_router` is without those of the same layer whose
  experts do nothing, so without its arrays [T, E]; gradients are results, not
  temporaries. An array of all of [T, E, C], or as large, is a failure.
  """
  found = []
  for E in EXPERTS:
    K, F = CHOICES, HIDDEN // E
    whole = dataclasses.replace(o, capacity_factor=None)
    found.append(
      cases.Case(
        'memory',
        f'E={E} K={K} F={F}',
        {'E': E, 'K': K, 'F': F} | dataclasses.asdict(o),
        [
          _memory('dropping', o, E, K, F, 'scatter()'),
          *(
            _memory(name, whole, E, K, F, dispatch)
            for name, dispatch in layers.DROPLESS.items()
          ),
        ],
      )
    )
  return found


@dataclasses.dataclass(frozen=True)
class NoExperts(dispatching.Dispatch):
  """Tokens times the sum of their kept weights, in place of experts."""

  def __call__(self, experts, params, x_GTD, seated, axes, key):
    r = seated.routing
    G, T, _ = x_GTD.shape
    weight_GN = jnp.where(seated.kept_N, r.weight_N, 0)
    group_G1 = jnp.arange(G)[:, None]
    weight_GT = jnp.zeros((G, T), jnp.float32).at[group_G1, r.token_N]
    weight_GT = weight_GT.add(weight_GN)
    return (x_GTD * weight_GT[..., None]).astype(x_GTD.dtype), seated.cause_N


def _memory(name, o, E, K, F, dispatch) -> cases.Candidate:
  def build():
    program = _compile(o, E, K, F, dispatch)
    router = _compile(o, E, K, F, f'{__name__}.NoExperts()')
    temporaries = program.memory_analysis().temp_size_in_bytes
    largest = largest_array(program.as_text())
    T, C = o.group_size or o.tokens, _rows(o, E, K)
    needed = o.tokens * K * max(o.D, 2 * F), E * o.D * 2 * F
    check_arrays(program.as_text(), T, E, C, max(needed))
    return None, {
      'temporaries': temporaries,
      'beyond_router': temporaries
      - router.memory_analysis().temp_size_in_bytes,
      'largest': 'x'.join(map(str, largest)),
    }

  return cases.Candidate(name, build)


def _compile(o, E, K, F, dispatch):
  f, *args = layers.gradient(*layers.setup(o, E, K, F, dispatch))
  return jax.jit(f).lower(*args).compile()


def _rows(o: layers.Options, E: int, K: int) -> int:
  """C, the balanced load where nothing is dropped."""
  T = o.group_size or o.tokens
  return math.ceil((o.capacity_factor or 1.0) * T * K / E)


def arrays(text: str) -> set[tuple[int, ...]]:
  """Shapes of all arrays in a compiled program's text."""
  found = re.findall(r'\b(?:pred|[suf]\d+|bf16|f8\w+)\[([\d,]+)\]', text)
  return {tuple(map(int, dims.split(','))) for dims in found}


def largest_array(text: str) -> tuple[int, ...]:
  """The shape with the most entries."""
  return max(arrays(text), key=math.prod)


def check_arrays(text: str, T: int, E: int, C: int, needed: int = 0) -> None:
  """Raises ValueError where a program has an array [T, E, C], or as large.

  Args:
    text: of the compiled program.
    T, E, C: sizes.
    needed: entries of the largest array that the program must have; where that
      is not less than T E C, large arrays prove nothing, and only those with
      all three axes are looked for.
  """
  size = T * E * C
  for dims in sorted(arrays(text)):
    left = list(dims)
    for n in (T, E, C):
      if n in left:
        left.remove(n)
    whole = len(dims) - len(left) == 3
    if whole or (math.prod(dims) >= size > needed):
      raise UserError(
        f'an array {list(dims)} is as large as [T, E, C] = [{T}, {E}, {C}]'
      )


def compilation(size: steps.Size = COMPILED) -> list[cases.Case]:
  """Tracing and compiling a scanned model, deep and shallow.

  The third candidate takes two steps: compiling anything in the second is a
  failure.
  """
  shallow = dataclasses.replace(size, layers=2)
  candidates = [_compilation(f'{s.layers} layers', s) for s in (shallow, size)]
  return [
    cases.Case(
      'compile',
      f'{size.layers} layers, scanned',
      dataclasses.asdict(size),
      [*candidates, cases.Candidate('two steps', lambda: _twice(shallow))],
      (candidates[0].name,),
    )
  ]


def _compilation(name: str, size: steps.Size) -> cases.Candidate:
  def build():
    def run():
      # A new function each time: nothing is remembered.
      made = steps.make(size, 'scatter()', 1.25, abstract=True)
      step, state, batch, _ = made
      jax.jit(step).lower(state, batch).compile()

    return run, {}

  return cases.Candidate(name, build)


def _twice(size: steps.Size):
  step, state, batch, _ = steps.make(size, 'scatter()', 1.25)
  step = jax.jit(step, donate_argnums=0)
  state, _ = jax.block_until_ready(step(state, batch))
  with _Compilations() as count:
    jax.block_until_ready(step(state, batch))
  if count[0]:
    raise UserError(f'step two compiled {count[0]} programs again')
  return None, {'compiled_again': count[0]}


class _Compilations:
  """Counts the programs that are compiled inside."""

  _running: list[list[int]] = []
  _listening = False

  def __enter__(self):
    if not _Compilations._listening:
      # Listeners cannot be taken away again in public: one for all.
      jax.monitoring.register_event_duration_secs_listener(self._hear)
      _Compilations._listening = True
    self._count = [0]
    _Compilations._running.append(self._count)
    return self._count

  def __exit__(self, *_):
    _Compilations._running.remove(self._count)

  @staticmethod
  def _hear(event: str, seconds: float, **_):
    if event.endswith('backend_compile_duration'):
      for count in _Compilations._running:
        count[0] += 1


def parallel(size: steps.Size = PARALLEL) -> list[cases.Case]:
  """A training step on simulated devices, which share the cores, and on one.

  The global batch is the same: what exceeds 1 is the price of the exchange.
  The process must have started with 8 devices (`distributed.simulate`).
  """
  if jax.device_count() < DEVICES:
    raise UserError(
      f'suite parallel: {jax.device_count()} devices; {DEVICES} are wanted'
    )
  found = []
  for name, dispatch, factor in (
    ('dropping', 'scatter()', 1.25),
    ('dropless', 'ragged_all_to_all()', None),
    ('dropless, gathered', 'gather_reduce()', None),
  ):
    make = functools.partial(
      steps.candidate,
      size=size,
      dispatch=dispatch,
      capacity_factor=factor,
      split=False,
    )
    meshes = {'one device': 'exact()'} | {m: m for m in MESHES}
    found.append(
      cases.Case(
        'parallel',
        name,
        dataclasses.asdict(size) | {'dispatch': dispatch},
        [make(name=n, mesh=m) for n, m in meshes.items()],
        ('one device',),
      )
    )
  return found


# What varies, with what stays fixed.
SCALING = {
  'E': (4, 8, 16, 32, 64, 128, 256),
  'K': (1, 2, 4, 8),
  'T': (1024, 2048, 4096, 8192),
  'capacity factor': (0.5, 1.0, 1.5, 2.0, 4.0),
}
FIXED = {'E': 32, 'K': 2, 'F': 512, 'T': 4096, 'capacity factor': 1.25}


def scaling(o: layers.Options) -> list[cases.Case]:
  """Time of the layer against E, K, T and the capacity factor.

  Args:
    o: options; tokens and capacity factor are those of FIXED and SCALING.
  """
  found = []
  for axis, values in SCALING.items():
    for value in values:
      at = FIXED | {axis: value}
      E, K, F = at['E'], at['K'], at['F']
      mine = dataclasses.replace(
        o, tokens=at['T'], capacity_factor=at['capacity factor']
      )
      whole = dataclasses.replace(mine, capacity_factor=None)
      candidates = [
        layers.dense(mine, K, F),
        layers.sparse('dropping', mine, E, K, F, 'scatter()'),
        layers.sparse('dropless', whole, E, K, F, 'gather_reduce()'),
      ]
      sizes = dataclasses.asdict(mine) | at | {'axis': axis, 'value': value}
      name = f'{axis}={value:g}'
      case = cases.Case('scaling', name, sizes, candidates, ('dense',))
      found.append(case)
  return found
