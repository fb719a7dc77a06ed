"""A run's model off the device, layer by layer; and a workdir of one.

A checkpoint holds the blocks of a repeating period stacked, so where a layer's
arrays are depends on which layers are sparse. Here every layer has its own, by
the same names whatever is scanned: what makes one model of others is a function
of such trees.

    model.rest['embedding/table']               [V, D]
    model.layers[3]['moe/experts/wi']           [E, D, F]
    model.balance[3]['moe/state/loss_free_bias']  [E]
    model.moments['opt_state/1/0/mu'].layers[3]['moe/experts/wi']
"""

import dataclasses
import hashlib
import pathlib
import shutil
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from moe_jax.conversion import folders, reading, tokens, workdirs, writing
from moe_jax.errors import UserError
from moe_jax.models import factory, records
from moe_jax.runs import (
  checkpoint,
  configs,
  workdir as workdir_lib,
  writers,
)
from moe_jax.training import session as session_lib

Arrays = dict[str, np.ndarray]
_BALANCE, _OPTIMIZER, _STEP = 'balance/', 'opt_state/', 'step'
LINEAGE = 'lineage.json'


@dataclasses.dataclass(frozen=True)
class Leaves:
  """Arrays like a model's parameters, or of some of them.

  Attributes:
    rest: those of no layer, by name.
    layers: those of each layer, by name inside the block.
  """

  rest: Arrays
  layers: tuple[Arrays, ...]


@dataclasses.dataclass(frozen=True)
class Model:
  """A model, and what goes with it.

  Attributes:
    config: of its run, locked.
    rest: parameters of no layer: 'embedding/table', 'decoder/final_norm/scale'.
    layers: parameters of each layer by name inside the block; where there are
      two stacks, an encoder's layers come first.
    balance: states of the balancing rules, by layer; {} of a dense one.
    moments: of the optimizer, {'opt_state/1/0/mu': ...}; each leaf has its
      parameter's expert axis. None where they are not carried; those that are
      missing are fresh.
    counts: of the optimizer, what belongs to no parameter.
  """

  config: Any
  rest: Arrays
  layers: tuple[Arrays, ...]
  balance: tuple[Arrays, ...]
  moments: Mapping[str, Leaves] | None = None
  counts: Arrays = dataclasses.field(default_factory=dict)

  @property
  def records(self) -> tuple[records.Layer, ...]:
    """What each layer is."""
    stacks = factory.stacks(self.config).values()
    return tuple(layer for stack in stacks for layer in stack.layers)

  @property
  def sparse(self) -> tuple[bool, ...]:
    """By layer, whether it has an MoE."""
    return tuple(layer.moe is not None for layer in self.records)

  def replace(self, **changes: Any) -> 'Model':
    """With other attributes."""
    return dataclasses.replace(self, **changes)


def with_fields(config: Any, fields: Mapping[str, Any]) -> Any:
  """A locked config with these fields, {'moe.num_experts': 8}, changed."""
  new = config.copy_and_resolve_references()
  with new.unlocked(), new.ignore_type():
    for name, value in fields.items():
      group, _, field = name.rpartition('.')
      (new[group] if group else new)[field] = value
  return new.lock()


def digest(model: Model) -> str:
  """sha256 of the parameters, by name: where they lie changes nothing."""
  found = hashlib.sha256()
  for name, value in sorted(_named(model).items()):
    said = f'{name} {value.dtype} {value.shape}\n'
    found.update(said.encode())
    found.update(np.ascontiguousarray(value).data)
  return found.hexdigest()


def session(model: Model) -> session_lib.Session:
  """Of its config on the devices found, whatever mesh that has; no data."""
  fields = {}
  if 'embedding/table' in model.rest:  # of a tokenizer that is elsewhere
    fields['model.vocab_size'] = len(model.rest['embedding/table'])
  config = with_fields(model.config, fields)
  return session_lib.plan(config, 'auto()', splits=())


def read(
  workdir: folders.Path, step: int | None = None, optimizer: bool = False
) -> Model:
  """The model of a run's checkpoint, in host memory.

  Args:
    workdir: of the run.
    step: None is the newest.
    optimizer: its state, too.

  Raises:
    ValueError: no run, no such step.
  """
  directory = pathlib.Path(workdir) / 'checkpoints'
  config = workdir_lib.load_config(workdir)
  shapes = checkpoint.shapes(directory, step)
  groups = (*reading.GROUPS, *((_OPTIMIZER,) if optimizer else ()))
  shapes = {k: v for k, v in shapes.items() if k.startswith(groups)}
  leaves = workdirs.restored(directory, shapes, step)
  return unstacked(config, {k: np.asarray(v) for k, v in leaves.items()})


def unstacked(config: Any, leaves: Arrays) -> Model:
  """The model of the leaves of a train state, by name; their views.

  Args:
    config: of the model, locked.
    leaves: parameters and balancing states, and maybe the optimizer's.
  """
  names = _stack_layers(config)
  params, states, moments, counts = {}, {}, {}, {}
  for name, (group, own, path, at) in _places(list(leaves), config).items():
    value = leaves[path][at]
    if not own:
      counts[name] = value
    elif group in ('', _BALANCE):
      (states if group else params)[own] = value
    else:
      moments.setdefault(group, {})[own] = value
  made, has = _leaves(params, names), any(map(_of_optimizer, leaves))
  return Model(
    config,
    made.rest,
    made.layers,
    _leaves(states, names).layers,
    {k: _leaves(v, names) for k, v in moments.items()} if has else None,
    counts,
  )


def write(
  workdir: folders.Path,
  model: Model,
  lineage: Mapping[str, Any],
  like: folders.Path | None = None,
) -> None:
  """Writes a workdir as of a run at step 0; whole or not at all.

  Its optimizer has seen nothing where the model brings no moments.

  Args:
    workdir: new or empty.
    model: whose config says what the arrays must be.
    lineage: of `lineage.json`.
    like: workdir whose tokenizer, and what it keeps of a folder of the hub, it
      gets.

  Raises:
    ValueError: arrays that the config's model has not, or not in these shapes;
      nothing was written.
  """
  writing.Replaced.check(workdir)
  abstract = session(model).abstract_state
  wanted = checkpoint.named(abstract)
  made = _filled(model, wanted)
  # In host memory: an accelerator may be smaller than what is put together.
  place = jax.sharding.SingleDeviceSharding(jax.local_devices(backend='cpu')[0])
  alone = jax.process_count() == 1
  state = jax.tree.structure(abstract).unflatten(
    jax.device_put(made[k], place if alone else v.sharding)
    for k, v in wanted.items()
  )
  kept = configs.to_dict(model.config)
  data = {'rows': 0, 'fingerprint': '', 'config': kept}
  with writing.Replaced(workdir) as new:
    if jax.process_index() == 0:
      writers.write_json(new / 'config.json', kept)
      writers.write_json(new / LINEAGE, dict(lineage))
      if like is not None:
        _carry(pathlib.Path(like), new)
    with checkpoint.Checkpointer(new / 'checkpoints', keep=1) as saved:
      saved.save(0, state, data)
      saved.wait()


def mapped(
  model: Model, change: Callable[[int, str, np.ndarray], np.ndarray]
) -> Model:
  """Every array of a layer changed, its states and moments as well.

  Args:
    model: to change.
    change: (layer, name inside the block, array) -> array. States have names
      such as 'moe/state/loss_free_bias'; a moment that of its parameter.
  """
  over = lambda layers: tuple(
    {k: change(i, k, v) for k, v in own.items()} for i, own in enumerate(layers)
  )
  moments = model.moments and {
    k: dataclasses.replace(v, layers=over(v.layers))
    for k, v in model.moments.items()
  }
  return model.replace(
    layers=over(model.layers), balance=over(model.balance), moments=moments
  )


def _carry(like: pathlib.Path, new: pathlib.Path) -> None:
  """The tokenizer, and the folder that a model of the hub came from."""
  config = configs.from_dict(workdir_lib.read_config(like))
  began, _ = workdirs.origin(like, config)
  if began:
    shutil.copytree(began, new / workdirs.HUB)
  for path in (like, pathlib.Path(config.train.init_from or like)):
    if (path / tokens.FILE).is_file():
      shutil.copyfile(path / tokens.FILE, new / tokens.FILE)
      break


def _filled(model: Model, wanted: Mapping[str, Any]) -> Arrays:
  """The state's leaves, as `wanted` says."""
  names, given = _stack_layers(model.config), {}
  given[''] = _named(model)
  given[_BALANCE] = _joined({}, model.balance, names)
  for k, v in (model.moments or {}).items():
    given[k] = _joined(v.rest, v.layers, names)
  fresh = model.moments is None
  out = {k: np.zeros(v.shape, v.dtype) for k, v in wanted.items()}
  places, used, wrong = _places(list(wanted), model.config), set(), []
  for name, (group, own, path, at) in places.items():
    if fresh and name.startswith((_OPTIMIZER, _STEP)):
      continue
    if not own:
      value = model.counts.get(name)
    else:
      value = given.get(group, {}).get(own)
      used.add((group, own))
    here = out[path][at].shape
    # The optimizer has seen nothing of what is new.
    if value is None and not name.startswith((_OPTIMIZER, _STEP)):
      wrong.append(f'{name} is missing')
    elif value is not None and value.shape != here:
      wrong.append(f'{name} is {value.shape}, not {here}')
    elif value is not None:
      out[path][at] = value
  wrong += [
    f'{group}{own} is in no layer'
    for group, leaves in given.items()
    for own in leaves
    if (group, own) not in used
  ]
  folders.refuse('what was made is no such model', wrong)
  return out


def _places(leaves: Sequence[str], config: Any):
  """{name: (group, name in it, leaf, place in its leading axes)}.

  Groups are '' of parameters, 'balance/', and the optimizer's trees; what
  belongs to no parameter has no name in a group.
  """
  stacks = {k: s.places for k, s in factory.stacks(config).items()}
  of_params = reading.places(
    [k for k in leaves if k.startswith('params/')], stacks
  )
  params = {p.removeprefix('params/') for p, _ in of_params.values()}
  inside: dict[str, list] = {}
  for own, (path, at) in of_params.items():
    inside.setdefault(path.removeprefix('params/'), []).append((own, at))
  found = {own: ('', own, path, at) for own, (path, at) in of_params.items()}
  states = [k for k in leaves if k.startswith(_BALANCE)]
  for name, (path, at) in reading.places(states, stacks).items():
    found[name] = _BALANCE, name.removeprefix(_BALANCE), path, at
  for leaf in leaves:
    if leaf.startswith(('params/', _BALANCE)):
      continue
    group, of = _parameter(leaf, params)
    if not of:
      found[leaf] = '', '', leaf, ()
    for own, at in inside.get(of, ()):
      found[f'{group}/{own}'] = group, own, leaf, at
  return found


def _of_optimizer(name: str) -> bool:
  return name.startswith(_OPTIMIZER)


def _parameter(leaf: str, params) -> tuple[str, str]:
  """A leaf of the optimizer as its tree and the parameter that it is of."""
  parts = leaf.split('/')
  for i in range(1, len(parts)):
    if '/'.join(parts[i:]) in params:
      return '/'.join(parts[:i]), '/'.join(parts[i:])
  return leaf, ''


def _stack_layers(config: Any) -> list[str]:
  """'decoder/layer_0/', ... of all layers, in order."""
  stacks = factory.stacks(config)
  return [
    f'{name}/layer_{i}/'
    for name, stack in stacks.items()
    for i in range(len(stack.layers))
  ]


def _leaves(named: Arrays, names: Sequence[str]) -> Leaves:
  rest, layers = {}, {n: {} for n in names}
  for path, value in named.items():
    at = next((n for n in names if path.startswith(n)), '')
    (layers[at] if at else rest)[path.removeprefix(at)] = value
  return Leaves(rest, tuple(layers.values()))


def _joined(rest: Arrays, layers, names: Sequence[str]) -> Arrays:
  if len(layers) != len(names):
    raise UserError(f'{len(layers)} layers, but the config has {len(names)}')
  own = {n + k: v for n, d in zip(names, layers) for k, v in d.items()}
  return rest | own


def _named(model: Model) -> Arrays:
  return _joined(model.rest, model.layers, _stack_layers(model.config))
