"""Which value of a step was the first that is not finite, and in which layer.

The step's program is read as JAX traced it, forward and backward, and run once
more with a mark at each value that leaves the module it was made in. Operations
come in the order in which they run and know their module, so no layer has to be
asked, and a new method needs nothing. What XLA fuses there and not here may
overflow in one alone: then nothing is found again, which is said.

Infinities are also what masks are made of: what a fresh state makes of the same
batch in the same places is none of the fault.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from moe_jax.models import by_layer
from moe_jax.runs import checkpoint
from moe_jax.training import run as run_lib

# 0 is finite.
_KINDS = {1: 'an infinity', 2: 'a nan'}
# Their program is run as a part of the one around it.
_CALLS = frozenset(
  """jit pjit closed_call core_call remat remat2 checkpoint custom_jvp_call
  custom_vjp_call custom_vjp_call_jaxpr custom_lin""".split()
)
_WRAPPED = re.compile(r'(transpose|jvp|vmap|remat\w*|checkpoint)\(')


class Place(NamedTuple):
  """Where a value was made.

  Attributes:
    scope: as JAX names it, 'transpose(jvp(Decoder))/decoder/final_norm'.
    primitive: what made it.
    loops: (scope of a loop, its iteration) around it, the outer first.
  """

  scope: str
  primitive: str
  loops: tuple[tuple[str, int], ...]

  @property
  def backward(self) -> bool:
    return 'transpose(' in self.scope or any(
      'transpose(' in scope for scope, _ in self.loops
    )


class _Loop(NamedTuple):
  scope: str
  reverse: bool
  length: int
  inside: list


def marks(
  f: Callable[..., Any], *args: Any
) -> tuple[list[tuple[Place, int]], list[int]]:
  """What of a function's values is not finite.

  Args:
    f: traced; of arrays.
    args: its arguments.

  Returns:
    (place, 1 with an infinity or 2 with a nan), in the order in which they are
    made; and of each leaf of what `f` returns, 0, 1 or 2.
  """
  closed = jax.make_jaxpr(f)(*args)
  places: list[Any] = []

  def run(leaves):
    del places[:]  # it may be traced twice
    outs, made = _evaluate(closed.jaxpr, closed.consts, leaves, '', places)
    return [_code([v]) for v in outs], made

  codes, made = jax.device_get(jax.jit(run)(jax.tree.leaves(args)))
  return list(_found(places, made, ())), [int(v) for v in codes]


def _found(places, made, loops) -> Iterator[tuple[Place, int]]:
  """The marks that are set, in order."""
  for place, mark in zip(places, made):
    if not isinstance(place, _Loop):
      if mark:
        yield Place(*place, loops), int(mark)
      continue
    order = range(place.length)
    for i in reversed(order) if place.reverse else order:
      inside = jax.tree.map(lambda v, i=i: v[i], mark)
      yield from _found(place.inside, inside, (*loops, (place.scope, i)))


def _code(values: Sequence[jax.Array]) -> jax.Array:
  """0, 1 or 2: the worst that is in one of some arrays."""
  code = jnp.int8(0)
  for x in values:
    if jnp.issubdtype(jnp.result_type(x), jnp.inexact):
      nan, finite = jnp.isnan(x).any(), jnp.isfinite(x).all()
      code = jnp.maximum(code, jnp.where(nan, 2, ~finite).astype(jnp.int8))
  return code


def _evaluate(jaxpr, consts, args, scope, places, leaving=()):
  """Runs a program; returns its results, and the marks that `places` names.

  Args:
    jaxpr, consts, args: the program and what it is run on.
    scope: around it.
    places: is given (scope, primitive), or a `_Loop`, for each mark.
    leaving: which of the program's results are marked.
  """
  literal = lambda v: not hasattr(v, 'count') and hasattr(v, 'val')
  env, made = {}, []
  read = lambda v: v.val if literal(v) else env[v]
  env |= zip(jaxpr.constvars, consts)
  env |= zip(jaxpr.invars, args)
  scopes = [
    '/'.join(p for p in (scope, str(eqn.source_info.name_stack)) if p)
    for eqn in jaxpr.eqns
  ]
  used: dict[Any, set] = {}
  for eqn, own in zip(jaxpr.eqns, scopes):
    for v in eqn.invars:
      if not literal(v):
        used.setdefault(v, set()).add(tuple(_parts(own)))
  for i in leaving:
    if not literal(jaxpr.outvars[i]):
      used.setdefault(jaxpr.outvars[i], set()).add(None)
  for eqn, own in zip(jaxpr.eqns, scopes):
    name, ins = eqn.primitive.name, [read(v) for v in eqn.invars]
    called = eqn.params.get('jaxpr', eqn.params.get('call_jaxpr'))
    if name in _CALLS and called is not None:
      # Closed, or without constants.
      consts = getattr(called, 'consts', ())
      program = getattr(called, 'jaxpr', called)
      outs, more = _evaluate(program, consts, ins, own, places)
      made += more
    elif name == 'scan':
      outs, more = _scan(eqn.params, ins, own, places)
      made.append(more)
    else:
      bound = eqn.primitive.get_bind_params(eqn.params)
      # Older releases of JAX give functions beside.
      functions, params = bound if isinstance(bound, tuple) else ((), bound)
      outs = eqn.primitive.bind(*functions, *ins, **params)
      outs = outs if eqn.primitive.multiple_results else [outs]
    env |= zip(eqn.outvars, outs)
    leave = used.get
    left = [
      out
      for v, out in zip(eqn.outvars, outs)
      if leave(v, set()) - {tuple(_parts(own))}
    ]
    if not _parts(own):
      # Around the model the loss is made, which no module is given.
      left += [v for v in outs if not jnp.ndim(v)]
    if left and name != 'scan':
      places.append((own, name))
      made.append(_code(left))
  return [read(v) for v in jaxpr.outvars], made


def _scan(params, ins, scope, places):
  """A loop, whose marks have an axis of iterations."""
  closed, C, K = params['jaxpr'], params['num_consts'], params['num_carry']
  inside: list[Any] = []
  # What a loop forward gives beside its state is kept for the loop backward;
  # what that gives are gradients of parameters.
  results = len(closed.jaxpr.outvars) if 'transpose(' in scope else K

  def body(carry, xs):
    del inside[:]
    outs, made = _evaluate(
      *(closed.jaxpr, closed.consts, [*ins[:C], *carry, *xs], scope, inside),
      leaving=range(results),
    )
    return outs[:K], (outs[K:], made)

  carry, (ys, made) = jax.lax.scan(
    body,
    ins[C : C + K],
    ins[C + K :],
    length=params['length'],
    reverse=params['reverse'],
  )
  places.append(_Loop(scope, params['reverse'], params['length'], inside))
  return [*carry, *ys], made


def describe(place: Place, places: by_layer.Places) -> str:
  """'in decoder/layer_3/attention, backward'.

  Args:
    place: of `marks`.
    places: by stack, `StackConfig.places`.
  """
  parts = _parts(place.scope)
  for stack, own in places.items():
    if stack not in parts:
      continue
    at = parts.index(stack)
    repeats = [i for s, i in place.loops if _parts(s)[-1:] == [stack]]
    for layer, (module, block, repeat) in enumerate(own):
      names = [n for n in (module, block) if n]
      here = parts[at + 1 : at + 1 + len(names)] == names
      if here and (block is None or [repeat] == repeats[:1]):
        rest = parts[at + 1 + len(names) :]
        parts = [*parts[: at + 1], f'layer_{layer}', *rest]
        break
  where = '/'.join(parts) if parts else 'what is around the model'
  back = ', backward' if place.backward else ''
  return f'in {where}{back}'


def _parts(scope: str) -> list[str]:
  """Names of modules, without what JAX wraps around and einsums write."""
  inner = _WRAPPED.sub('', scope).replace(')', '')
  parts = [p for p in inner.split('/') if p and not re.search('[,>]', p)]
  # The model's own class comes first, and again in what backward recomputes.
  return [p for p in parts if not p[0].isupper()]


def first(
  bad: Sequence[tuple[Place, int]], fresh: Sequence[tuple[Place, int]]
) -> tuple[Place, int] | None:
  """The first mark that a fresh state has not; of all, where it has each."""
  usual = set(fresh)
  own = [mark for mark in bad if mark not in usual]
  return next(iter(own or bad), None)


def report(
  run: run_lib.Run, step: int, state: Any, batch: Mapping[str, jax.Array]
) -> str:
  """A line about the step that is about to run; every process calls it.

  Costs a compilation of the step, and memory for a second state.

  Args:
    run: whose step it is.
    step: its number.
    state: from before it; not given away.
    batch: of the step.
  """
  f = run.plain_step()
  bad, codes = marks(f, state, batch)
  if not bad and not any(codes):
    return (
      f'step {step}: all values are finite, operation by operation; what was'
      ' not is made where XLA computes several as one'
    )
  fresh, _ = marks(f, run.fresh(), batch)
  found = first(bad, fresh)
  stacks = run.session.model.stacks
  places = {name: stack.places for name, stack in stacks.items()}
  if found is None:
    line = f'step {step}: the state or the batch has it already'
  else:
    place, code = found
    line = f'step {step}: {_KINDS[code]} is first made '
    line += describe(place, places)
  out = jax.tree.structure(jax.eval_shape(f, state, batch))
  after, metrics = out.unflatten(codes)
  if not (metrics['loss'] or metrics['total_loss']):
    line += '; the loss is finite, its gradient or the update is not'
  leaves = [k for k, code in checkpoint.named(after.params).items() if code]
  if leaves:
    more = f' and {len(leaves) - 1} more' if len(leaves) > 1 else ''
    line += f'; after the update not finite: params/{leaves[0]}{more}'
  return line
