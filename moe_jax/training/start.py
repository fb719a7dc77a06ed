"""The parameters that a run starts from: those of another run.

`train.init_from` takes all of them, as in fine-tuning. `train.init_dense` takes
only what is no part of an MoE layer, for a student whose teacher is sparse
(Switch Transformer, Fedus et al. 2021, arXiv:2101.03961, section 4.2, table 6:
"non-expert weights"). Layers are matched by number, since where a layer's
arrays are depends on which layers are sparse. FFNs that the other run has no
counterpart of, as it has experts there, keep their initialisation.
"""

import pathlib
from collections.abc import Callable

import jax
from flax import traverse_util

from moe_jax.models import by_layer
from moe_jax.runs import checkpoint
from moe_jax.training import (
  session as session_lib,
  sources,
  state as state_lib,
  tuning,
)

FIELD = 'init_from'
# Sub-layers that a layer may have here and not there.
_FFNS = ('ffn', 'ffn_norm', 'extra', 'extra_norm')

Start = Callable[[state_lib.TrainState], state_lib.TrainState]


def goes_on(workdir: str | pathlib.Path) -> bool:
  """Whether a run has a checkpoint of its own, which it starts from."""
  return bool(checkpoint.steps(pathlib.Path(workdir) / 'checkpoints'))


def load(session: session_lib.Session, workdir: str) -> Start | None:
  """Reads the parameters that a fresh state's are replaced by.

  Args:
    session: of the run that starts.
    workdir: of the run that starts.

  Returns:
    fresh state -> the state to start from, its optimizer state fresh; None
    where the run goes on, or starts from its own initialisation. Balancing
    state comes along where the other run has the same, and not with
    `init_dense`.

  Raises:
    ValueError: parameters of other shapes, the first by name.
  """
  source = None
  if not goes_on(workdir):
    source = sources.find(session.config, FIELD, session.problem)
  if source is None:
    return None
  if session.config.train.init_dense:
    return _dense(session, source)
  return _whole(session, source)


def _whole(session, source) -> Start:
  ours = checkpoint.named(session.abstract_state)
  params = {k: v for k, v in ours.items() if k.startswith('params/')}
  for name, leaf in params.items():
    _check(source, name, source.shapes.get(name), leaf.shape)
  for name in source.shapes:
    if name.startswith('params/') and name not in params:
      raise source.error(f'{name} {source.shapes[name]} is not in this model')
  balance = {
    k: v
    for k, v in ours.items()
    if k.startswith('balance/') and source.shapes.get(k) == v.shape
  }
  read = source.read(params | balance)

  def start(state):
    named = checkpoint.named(state) | read
    return jax.tree.structure(state).unflatten(named.values())

  return start


def _dense(session, source) -> Start:
  model, lay, _ = source.model(session)
  theirs = _sparse(model)
  ours = _sparse(session.model)
  depths = [{k: len(v) for k, v in s.items()} for s in (theirs, ours)]
  if depths[0] != depths[1]:
    raise source.error(f'its layers are {depths[0]}, here {depths[1]}')
  there = jax.eval_shape(lambda p: by_layer.view(p, theirs), lay.params)
  here = jax.eval_shape(lambda p: by_layer.view(p, ours), session.layout.params)
  pairs = {}
  for name, leaf in here.items():
    names = name.split('/')
    if tuning.of_moe(names):
      continue
    other = name if name in there else _other_norm(name)
    if other not in there and set(names) & set(_FFNS):
      continue
    shape = there[other].shape if other in there else None
    _check(source, name, shape, leaf.shape)
    pairs[name] = other
  where = checkpoint.named(state_lib.abstract_variables(lay, session.mesh))
  read = source.read(
    {
      k: v
      for k, v in where.items()
      if k.startswith('params/') and not tuning.of_moe(k.split('/'))
    }
  )

  def replace(params, read):
    tree = traverse_util.unflatten_dict(read, sep='/')['params']
    found = by_layer.view(tree, theirs)
    new = {name: found[other] for name, other in pairs.items()}
    return by_layer.replace(params, new, ours)

  replace = jax.jit(
    replace,
    out_shardings=session.shardings.params,
  )
  return lambda state: state.replace(params=replace(state.params, read))


def _sparse(model) -> by_layer.Places:
  return {name: stack.places for name, stack in model.stacks.items()}


def _other_norm(name: str) -> str:
  """The norm before an FFN has its name by what the layer is."""
  for a, b in (('ffn_norm', 'moe_norm'), ('moe_norm', 'ffn_norm')):
    if f'/{a}/' in name:
      return name.replace(f'/{a}/', f'/{b}/')
  return name


def _check(source, name, there, here) -> None:
  name = name.removeprefix('params/')
  if there is None:
    raise source.error(f'it has no {name}, which is {here} here')
  if there != here:
    raise source.error(f'{name} is {there} there, {here} here')
