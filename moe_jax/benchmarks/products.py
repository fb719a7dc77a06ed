"""Grouped matrix products beside one plain product of the same FLOPs.

Values, and the gradients of rows and of weights, each by itself; all backends
of `kernels.grouped`, on GPU a peer's too, and loads that are equal or follow a
Zipf law.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from moe_jax.benchmarks import cases, machine
from moe_jax.errors import UserError
from moe_jax.kernels import grouped

LOADS = ('uniform', 'zipf')
PASSES = ('forward', 'rows', 'weights')
# Kernels that are for one platform alone.
ONLY = {'blocked': 'cpu', 'megablox': 'tpu', 'tokamax': 'gpu', 'triton': 'gpu'}
# What multiplies by every expert takes minutes with more of them, and on GPU
# more memory than there is: XLA's product makes E copies of the rows there.
EVERY_EXPERT = {'loop': ('cpu', 'gpu', 'tpu'), 'ragged_dot': ('gpu',)}
LOOP_EXPERTS = 16


@dataclasses.dataclass(frozen=True)
class Shape:
  """Rows of all experts together, and the sizes of each product."""

  E: int
  rows: int
  D: int
  F: int
  dtype: str = 'bfloat16'


GPU = (
  Shape(8, 8 * 8192, 4096, 14336),  # Mixtral 8x7B's, 64k assignments
  Shape(64, 8 * 32768, 2048, 1024),  # OLMoE's, 32k tokens
  Shape(256, 8 * 32768, 7168, 2048),  # DeepSeek-V3's, 32k tokens
)
CPU = (
  Shape(8, 4096, 256, 512, 'float32'),
  Shape(64, 4096, 256, 128, 'float32'),
  Shape(256, 4096, 128, 64, 'float32'),
)


def suite() -> list[cases.Case]:
  """Cases for each shape of this platform, load and pass."""
  shapes = CPU if jax.default_backend() == 'cpu' else GPU
  return [
    case(shape, load, pass_)
    for shape in shapes
    for load in LOADS
    for pass_ in PASSES
  ]


def case(shape: Shape, load: str, pass_: str) -> cases.Case:
  """One pass of one shape by every backend."""
  platform = jax.default_backend()
  named = [
    name
    for name in (*grouped.MATMULS, 'tokamax')
    if name != 'auto' and ONLY.get(name, platform) == platform
    if platform not in EVERY_EXPERT.get(name, ()) or shape.E <= LOOP_EXPERTS
  ]
  return cases.Case(
    'kernel',
    f'E={shape.E} D={shape.D} F={shape.F} {load} {pass_}',
    dataclasses.asdict(shape) | {'load': load, 'pass': pass_},
    [
      machine.matmul(shape.dtype),
      machine.copy(),
      _candidate('plain', shape, load, pass_),
      *(_candidate(name, shape, load, pass_) for name in named),
    ],
    ('plain',),
    tolerance=1e-4 if shape.dtype == 'float32' else 5e-2,
  )


def sizes(shape: Shape, load: str) -> np.ndarray:
  """int32 [E], the rows of each expert; a Zipf law has exponent 1.

  Raises:
    ValueError: an unknown load.
  """
  if load not in LOADS:
    raise UserError(f'load={load!r}; valid: {", ".join(LOADS)}')
  share_E = np.ones(shape.E)
  if load == 'zipf':
    share_E = 1.0 / (1 + np.random.default_rng(0).permutation(shape.E))
  ends = np.cumsum(share_E) / share_E.sum() * shape.rows
  return np.diff(np.round(ends), prepend=0).astype(np.int32)


@functools.lru_cache(maxsize=1)
def _inputs(shape: Shape) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Rows, matrices, cotangent; one copy for all candidates of a shape."""
  S = shape
  key = jax.random.key(0)

  @functools.partial(jax.jit, static_argnums=(0, 1))
  def draw(i, dims):
    return jax.random.normal(jax.random.fold_in(key, i), dims, S.dtype)

  dims = (S.rows, S.D), (S.E, S.D, S.F), (S.rows, S.F)
  return tuple(draw(i, d) for i, d in enumerate(dims))


def _tokamax():
  """A library of kernels, as a peer (`pip install tokamax`, Python 3.12).

  It chooses by the device's name, from its own tables.
  """
  import tokamax

  return lambda x, w, n: tokamax.ragged_dot(
    x, w, n, preferred_element_type=x.dtype
  )


def _candidate(name, shape, load, pass_) -> cases.Candidate:
  S, E = shape, shape.E

  def build():
    x, w, dy = _inputs(S)
    if name == 'plain':
      w, size_E, f = w[0], None, lambda x, w, _: x @ w
    else:
      size_E = jnp.asarray(sizes(S, load))
      f = _tokamax() if name == 'tokamax' else grouped.build(name)
    # The cotangent is an argument, lest it be a constant of the program.
    passes = {
      'forward': lambda x, w, n, dy: f(x, w, n),
      'rows': lambda x, w, n, dy: jax.vjp(lambda x: f(x, w, n), x)[1](dy)[0],
      'weights': lambda x, w, n, dy: jax.vjp(lambda w: f(x, w, n), w)[1](dy)[0],
    }
    return cases.compiled(passes[pass_], x, w, size_E, dy)

  item = jnp.dtype(S.dtype).itemsize
  # Each pass reads two of the three arrays and writes the third.
  numbers = S.rows * (S.D + S.F) + E * S.D * S.F
  return cases.Candidate(
    name,
    build,
    flops=2.0 * S.rows * S.D * S.F,
    bytes=float(item * numbers),
    result=None if name == 'plain' else lambda y: y,
  )
