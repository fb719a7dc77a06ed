"""One MoE layer in every variant, on every mesh: the same numbers?

Each cell of the grid (grid.py) runs a layer, forward and backward, and is
compared with

  loops   a NumPy float64 reference that knows nothing of this code (loops.py):
          outputs, who has a seat, losses, loads, causes of drops, and the slope
          of the objective in a direction of every array, by central differences
  dense   the dispatch `dense` on one device: the same, and every gradient

Integers must be equal; of floats the largest error counts, relative to the
largest entry of the wanted leaf.
"""

import dataclasses
import functools
import math
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from moe_jax import registry, types
from moe_jax.dispatch import base as dispatching
from moe_jax.errors import UserError
from moe_jax.layers import moe
from moe_jax.parallel import compat, mesh as mesh_lib
from moe_jax.parity import grid, loops
from moe_jax.parity.grid import B, D, E, F, L, T
from moe_jax.seating import orders

TOLERANCE = 2e-5
EXPERTS = f"mlp(d_ff={F}, activation='gelu', bias=True)"


@dataclasses.dataclass(frozen=True)
class Result:
  """What became of a cell.

  Attributes:
    cell: that was run.
    errors: by leaf, as 'dense: gradient/x'.
    failed: the leaves that are off by more than they may, worst first.
    seconds: compilation and run.
    raised: the exception that ended it, or None.
  """

  cell: grid.Cell
  errors: dict[str, float]
  failed: tuple[str, ...]
  seconds: float
  raised: Exception | None = None

  @property
  def worst(self) -> str:
    """The leaf with the largest error, '' where the cell raised."""
    return max(self.errors, key=self.errors.get, default='')

  @property
  def error(self) -> float:
    """The largest of the errors, inf where the cell raised."""
    return self.errors.get(self.worst, math.inf)

  @property
  def ok(self) -> bool:
    return not (self.failed or self.raised)

  @property
  def message(self) -> str:
    """The exception in one line, or ''."""
    if self.raised is None:
      return ''
    return f'{type(self.raised).__name__}: {" ".join(str(self.raised).split())}'


def run(cells: Sequence[grid.Cell]) -> Iterator[Result]:
  """Runs the cells one after the other, on simulated CPU devices.

  Raises:
    ValueError: there are less than 8 devices.
  """
  if jax.device_count() < grid.DEVICES:
    raise UserError(
      f'parity needs {grid.DEVICES} devices, found {jax.device_count()}; '
      f'JAX_NUM_CPU_DEVICES={grid.DEVICES} simulates them'
    )
  return map(_run, cells)


def _run(cell: grid.Cell) -> Result:
  began = time.monotonic()
  errors, failed, raised = {}, (), None
  try:
    errors, failed = check(cell)
  except Exception as e:  # a variant that does not run fails alone
    raised = e
  return Result(cell, errors, failed, time.monotonic() - began, raised)


def check(cell: grid.Cell) -> tuple[dict[str, float], tuple[str, ...]]:
  """Errors of a cell by leaf, and the leaves that fail, worst first."""
  got = _evaluate(cell)
  slopes, directions = _slopes(cell.router, cell.capacity)
  for name, direction in directions.items():
    gradient = got[f'gradient/{name}'].astype(np.float64)
    got[f'slope/{name}'] = (gradient * direction).sum()
  wanted = {
    'loops': _loops(cell.router, cell.capacity) | slopes,
    'dense': _dense(cell.router, cell.capacity),
  }
  errors, failed = {}, []
  for oracle, leaves in wanted.items():
    for name, want in leaves.items():
      leaf = f'{oracle}: {name}'
      errors[leaf] = error(got[name], want)
      exact = np.issubdtype(np.asarray(want).dtype, np.integer)
      if not errors[leaf] <= (0 if exact else TOLERANCE):
        failed.append(leaf)
  return errors, tuple(sorted(failed, key=lambda k: -errors[k]))


def error(got: Any, want: Any) -> float:
  """Largest difference relative to the largest entry; inf for nan.

  Raises:
    ValueError: the shapes differ.
  """
  got, want = (np.asarray(v, np.float64) for v in (got, want))
  if got.shape != want.shape:
    raise UserError(f'shape {got.shape}, expected {want.shape}')
  found = np.abs(got - want).max() / (np.abs(want).max() or 1.0)
  return float(found) if math.isfinite(found) else math.inf


@functools.cache
def inputs() -> tuple[loops.Arrays, np.ndarray, np.ndarray]:
  """Arrays of the layer, the mask [B, L] and the cotangent of y; f32.

  The router is decided, biases are not zero, and one sequence is all padding.
  """
  rng = np.random.default_rng(0)
  normal = lambda *shape: rng.standard_normal(shape).astype(np.float32)
  arrays = {
    'x': normal(B, L, D),
    'router': 2 * normal(D, E) / D**0.5,
    'bias': np.linspace(-0.1, 0.1, E, dtype=np.float32),
    'wi': normal(E, D, F) / D**0.5,
    'bi': normal(E, F),
    'wo': normal(E, F, D) / F**0.5,
    'bo': normal(E, D),
  }
  lengths_B1 = np.array([32, 32, 20, 32, 31, 0, 32, 9])[:, None]
  return arrays, np.arange(L) < lengths_B1, normal(B, L, D)


def _objective(y, loss, out_BLD):
  # The losses' weights are small: without a factor their gradients would drown.
  return (y.reshape(out_BLD.shape) * out_BLD).sum() + 100 * loss


def _run_loops(arrays: loops.Arrays, router: str, capacity: str):
  """The reference's output, and its objective."""
  _, mask_BL, out_BLD = inputs()
  arrays = {k: v.astype(np.float64) for k, v in arrays.items()}
  arrays['x'] = arrays['x'].reshape(-1, T, D)
  rules = grid.ROUTERS[router].rules
  rows = rules.rows(grid.CAPACITIES[capacity], T, E)
  out = loops.layer(arrays, mask_BL.reshape(-1, T), rules, rows)
  return out, _objective(out['y'], out['aux']['loss'], out_BLD)


@functools.cache
def _loops(router: str, capacity: str) -> dict[str, np.ndarray]:
  """What the NumPy reference computes, by leaf."""
  out, _ = _run_loops(inputs()[0], router, capacity)
  for k in ('y', 'kept'):
    out[k] = out[k].reshape(B, L, -1)
  return _leaves(out)


@functools.cache
def _slopes(router: str, capacity: str) -> tuple[loops.Arrays, loops.Arrays]:
  """Slopes of the reference's objective by leaf, and their directions.

  The directions are random but for their signs, which are those of `dense`'s
  gradients: the slope does not cancel, so that its error is relative to all of
  the gradient.
  """
  arrays, rng, step = inputs()[0], np.random.default_rng(1), 1e-4
  slopes, directions = {}, {}
  for name, gradient in _dense(router, capacity).items():
    name = name.removeprefix('gradient/')
    if name not in arrays:
      continue
    direction = rng.uniform(0.5, 1.5, gradient.shape)
    direction *= np.where(gradient < 0, -1, 1)
    directions[name] = direction / np.linalg.norm(direction)
    ends = [
      _run_loops(
        {**arrays, name: arrays[name] + h * directions[name]}, router, capacity
      )[1]
      for h in (step, -step)
    ]
    slopes[f'slope/{name}'] = np.float64((ends[0] - ends[1]) / (2 * step))
  return slopes, directions


@functools.cache
def _dense(router: str, capacity: str) -> dict[str, np.ndarray]:
  """What `dense` on one device computes, by leaf."""
  return _evaluate(grid.Cell('dense', '', 'one', router, capacity))


def _evaluate(cell: grid.Cell) -> dict[str, np.ndarray]:
  """Runs the layer of a cell, forward and backward: NumPy arrays by leaf."""
  arrays, mask_BL, out_BLD = inputs()
  arrays = dict(arrays)
  state = {'loss_free_bias': arrays.pop('bias')}
  layer = _layer(cell)
  kept_layer = dataclasses.replace(layer, dispatch=_Kept(layer.dispatch))

  def apply(layer, arrays):
    experts = {k: v for k, v in arrays.items() if k not in ('x', 'router')}
    params = {'router': {'kernel': arrays['router']}, 'experts': experts}
    tokens = types.Tokens(mask_BL)
    return layer(params, state, arrays['x'], tokens, train=True)

  def loss(arrays):
    y, _, aux = apply(layer, arrays)
    leaves = {'y': y, 'aux': aux, 'aux/entropy': aux.entropy}
    return _objective(y, aux.loss, out_BLD), leaves

  def everything(arrays):
    gradients, values = jax.grad(loss, has_aux=True)(arrays)
    kept = apply(kept_layer, arrays)[0].astype(jnp.int32)
    return {**values, 'kept': kept, 'gradient': gradients}

  run = jax.jit(everything, compiler_options=_compiler_options())
  return _leaves(jax.device_get(run(arrays)))


@functools.cache
def _compiler_options() -> dict[str, Any]:
  """Less work on the code of each loop: cells take a third of the time.

  Neither the program nor its partitioning and collectives are touched.
  """
  options = {'xla_backend_optimization_level': 0}
  more = {'xla_cpu_use_fusion_emitters': False}
  try:
    jax.jit(jnp.negative, compiler_options=more)(0.0)
  except jax.errors.JaxRuntimeError:  # jax 0.12 has no such option
    return options
  return options | more


def _leaves(tree) -> dict[str, np.ndarray]:
  leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
  name = functools.partial(jax.tree_util.keystr, simple=True, separator='/')
  return {name(path): np.asarray(v) for path, v in leaves}


def _layer(cell: grid.Cell) -> moe.MoE:
  routing = grid.ROUTERS[cell.router]
  sizes = cell.sizes
  devices = jax.devices()[: math.prod(sizes.values())]
  count = 'all' if routing.rules.count_all else 'first'
  balance = (f"switch_loss(count='{count}')", 'z_loss()', 'loss_free_bias()')
  matmul = {'matmul': cell.matmul} if cell.matmul else {}
  return moe.MoE(
    num_experts=E,
    router=registry.build('routers', routing.router),
    experts=registry.build('experts', EXPERTS),
    dispatch=registry.build('dispatch', cell.spec, **matmul),
    balance=tuple(registry.build('balancing', s) for s in balance),
    group_size=T,
    capacity_factor=grid.CAPACITIES[cell.capacity],
    seating=orders.build(routing.seating),
    mesh=mesh_lib.make(sizes, devices),
  )


@dataclasses.dataclass(frozen=True)
class _Kept(dispatching.Dispatch):
  """Puts out, in place of y, a 1 where an expert computes a token: D = E."""

  of: dispatching.Dispatch

  def __call__(self, experts, params, x_GTD, seated, axes, key):
    _, cause_GN = self.of(experts, params, x_GTD, seated, axes, key)
    r = seated.routing

    def one_group(token_N, expert_N, cause_N):
      kept_N = (cause_N == types.KEPT).astype(jnp.float32)
      empty_TE = jnp.zeros((T, E), jnp.float32)
      return empty_TE.at[token_N, expert_N].add(kept_N, mode='drop')

    kept_GTE = jax.vmap(one_group)(r.token_N, r.expert_N, cause_GN)
    kept_GTE /= axes.size(axes.model)  # the layer sums over this axis
    return compat.device_varying(kept_GTE, axes.model), cause_GN
