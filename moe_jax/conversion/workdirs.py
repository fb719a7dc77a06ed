"""Folders of the hub -> workdirs of ours, and back.

A workdir that comes of a folder is as one of a run at step 0: config.json, a
checkpoint of parameters and balancing state, the tokenizer. Beside them is
`hub/`: the folder's config.json, what its tensors were stored as, and small
files of it that go back with the model. A run that begins with its parameters
(`train.init_from`) finds them there.

The optimizer of its config is plain gradient descent, which keeps nothing: who
trains on names another.
"""

import dataclasses
import pathlib
import shutil
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from moe_jax import json_files
from moe_jax.conversion import (
  folders,
  hub,
  reading,
  rope,
  tensors,
  tokens,
  writing,
)
from moe_jax.errors import UserError
from moe_jax.models import factory
from moe_jax.runs import (
  checkpoint,
  configs,
  meta,
  workdir as workdir_lib,
  writers,
)
from moe_jax.training import session as session_lib

HUB, LINEAGE = 'hub', 'lineage.json'
# Of a folder, what goes back as it was.
_KEPT = (
  'tokenizer_config.json',
  'special_tokens_map.json',
  'generation_config.json',
  'chat_template.jinja',
)
_LENGTH = 1024  # tokens of a row, where the model reads as many


@dataclasses.dataclass(frozen=True)
class Converted:
  """What there is to say.

  Attributes:
    family: its name.
    tensors, numbers: of the folder.
    lines: what else.
  """

  family: str
  tensors: int
  numbers: int
  lines: list[str]


def described(said: dict[str, Any], config: Any, tokenizer: str = '') -> Any:
  """Our config of a config.json: `config` with its fields set; locked.

  Args:
    said: the config.json.
    config: ours, with the fields of the schema; unlocked.
    tokenizer: `data.tokenizer`; '' is one of as many ids as the model has.

  Raises:
    ValueError: as `hub.read`.
  """
  family, c = hub.read(said)
  length = min(c.get('max_position_embeddings', _LENGTH), _LENGTH)
  rows = rope.call('hf', size=c['vocab_size'], sentinels=0)
  config.data.update(seq_len=length, tokenizer=tokenizer or rows)
  config.moe.update(group_size=length, dispatch='gather_reduce()')
  for group, fields in family.fields(c).items():
    config[group].update(fields)
  config.train.update(optimizer='sgd()', schedule='constant(value=1e-5)')
  config.train.batch_size = config.eval.batch_size = 8
  return config.lock()


def from_hub(
  directory: folders.Path, workdir: folders.Path, config: Any, mesh: str = ''
) -> Converted:
  """Writes a workdir; whole or not at all.

  Args:
    directory: config.json, safetensors and, for text, tokenizer.json.
    workdir: new or empty.
    config: as in `described`.
    mesh: on which arrays are made, as `config.mesh`; '' is that.

  Raises:
    ValueError: names what does not fit; nothing was written.
  """
  writing.Replaced.check(workdir)
  found = hub.opened(directory)
  tokenizer = tokens.spec(directory, found)
  config = described(found.said, config, tokenizer)
  session = session_lib.plan(config, mesh, splits=())
  wanted = checkpoint.named(session.abstract_state)
  read = {k: v for k, v in wanted.items() if k.startswith(reading.GROUPS)}
  places = {k: s.places for k, s in session.model.stacks.items()}
  shapes = {k: v.shape for k, v in read.items()}
  own = reading.fills(found.table, shapes, places)
  made = reading.load(found.tensors, own, read)
  rest = {k: v for k, v in wanted.items() if k not in read}
  made |= {k: _zeros(v) for k, v in rest.items()}
  treedef = jax.tree.structure(session.abstract_state)
  state = treedef.unflatten(made[k] for k in wanted)
  kept = configs.to_dict(config)
  data = {'rows': 0, 'fingerprint': '', 'config': kept}
  with writing.Replaced(workdir) as new:
    if jax.process_index() == 0:
      writers.write_json(new / 'config.json', kept)
      _keep(found, pathlib.Path(directory), new)
    with checkpoint.Checkpointer(new / 'checkpoints', keep=1) as saved:
      saved.save(0, state, data)
      saved.wait()
  numbers = sum(v.size for v in jax.tree.leaves(state.params))
  lines = [*hub.describe_skipped(found), *tokens.described(directory, found)]
  rate = found.family.inner(found.said).get('attention_dropout')
  if rate:
    lines.append(
      f'left out: attention_dropout={rate}; model.dropout is of all sub-layers'
    )
  return Converted(found.family.name, len(found.table), numbers, lines)


def _zeros(wanted) -> jax.Array:
  """Of the step, and of an optimizer that has seen none."""
  return jax.device_put(jnp.zeros(wanted.shape, wanted.dtype), wanted.sharding)


def _keep(found: hub.Folder, directory: pathlib.Path, new: pathlib.Path):
  (new / HUB).mkdir()
  writers.write_json(new / HUB / 'config.json', found.said)
  lineage = {
    'family': found.family.name,
    'folder': directory.name,
    'dtype': found.dtype,
    'dtypes': found.dtypes,
    'skipped': found.skipped,
  }
  writers.write_json(new / HUB / LINEAGE, lineage)
  for name in _KEPT:
    if (directory / name).is_file():
      shutil.copyfile(directory / name, new / HUB / name)
  if (directory / tokens.FILE).is_file():
    shutil.copyfile(directory / tokens.FILE, new / tokens.FILE)


def to_hub(
  workdir: folders.Path,
  directory: folders.Path,
  *,
  dtype: str = '',
  step: int | None = None,
  max_shard: int = writing.MAX_SHARD,
) -> Converted:
  """Writes a folder that transformers reads, of a run's checkpoint.

  Args:
    workdir: of the run.
    directory: new or empty.
    dtype: of all tensors, 'float32', 'bfloat16' or 'float16'; '' is as they
      were in the folder that the run goes back to, or else float32.
    step: of the checkpoint; None is the newest.
    max_shard: bytes of a file.

  Raises:
    ValueError: no family that can say all of the model, or several processes;
      nothing was written.
  """
  if jax.process_count() > 1:
    raise UserError('one process writes a folder, whatever trained the model')
  writing.Replaced.check(directory)
  path = pathlib.Path(workdir)
  config = configs.from_dict(workdir_lib.read_config(workdir))
  shapes = checkpoint.shapes(path / 'checkpoints', step)
  shapes = {k: v for k, v in shapes.items() if k.startswith(reading.GROUPS)}
  rows = shapes.get('params/embedding/table', (0,))[0]
  config = config.copy_and_resolve_references()
  with config.unlocked():
    config.model.vocab_size = rows
  began, lineage = origin(path, config)
  said = json_files.read(began / 'config.json') if began else None
  fitting = fitted(config, shapes, said)
  leaves = restored(path / 'checkpoints', shapes, step) | fitting.zeros
  if not dtype:
    dtype = lineage.get('dtype', 'float32')
    own_types = lineage.get('dtypes', {})
  else:
    own_types = {}
  known = {t.name for t in fitting.table}
  writing.save(
    directory,
    fitting.table,
    writing.parts(leaves, fitting.own),
    fitting.config | {'dtype': dtype, 'torch_dtype': dtype},
    dtype=dtype,
    dtypes={k: v for k, v in own_types.items() if k in known},
    copies=fitting.copies,
    files=_files(path, began),
    max_shard=max_shard,
  )
  numbers = sum(v.size for k, v in leaves.items() if k.startswith('params/'))
  lines = []
  if fitting.zeros:
    lines.append(
      f'{len(fitting.zeros)} tensors of zeros: no loss_free_bias in '
      'moe.balance, so that none is added to the scores'
    )
  return Converted(fitting.family, len(fitting.table), numbers, lines)


@dataclasses.dataclass(frozen=True)
class Fitted:
  """A folder that says what a model of ours is.

  Attributes:
    family: its name.
    config: config.json.
    table: its tensors.
    own: which leaves fill them.
    copies: tensors that are stored again, and whose copies they are.
    zeros: leaves that theirs has and ours does without, by path.
  """

  family: str
  config: dict[str, Any]
  table: list[tensors.Tensor]
  own: reading.Fills
  copies: dict[str, str]
  zeros: dict[str, np.ndarray]


def fitted(
  config: Any,
  shapes: Mapping[str, tuple[int, ...]],
  said: dict[str, Any] | None = None,
) -> Fitted:
  """What is to be written of a model.

  Selection without a bias is selection with one of zeros: where theirs has the
  bias and our run no rule that moves it, zeros are written.

  Args:
    config: ours, with its `model.vocab_size`.
    shapes: of the leaves, 'params/...' and 'balance/...'.
    said: the config.json of the folder that the model began as.

  Raises:
    ValueError: as `hub.config_of` and `reading.fills`.
  """
  family, theirs = hub.config_of(config, said)
  c = hub.read(theirs)[1]
  table = family.table(c)
  places = {k: s.places for k, s in factory.stacks(config).items()}
  at = reading.places(list(shapes), places)
  zeros = {
    p.path: np.zeros(t.ours(p), np.float32)
    for t in table
    for p in t.parts
    if p.path.startswith(reading.BALANCE) and p.path not in at
  }
  shapes = dict(shapes) | {k: v.shape for k, v in zeros.items()}
  own = reading.fills(table, shapes, places)
  copies = family.stored_copies(c)
  return Fitted(family.name, theirs, table, own, copies, zeros)


def origin(path: pathlib.Path, config: Any) -> tuple[Any, dict[str, Any]]:
  """`hub/` of the workdir that a run's parameters came from, and lineage."""
  for _ in range(8):
    if (path / HUB / LINEAGE).is_file():
      return path / HUB, json_files.read(path / HUB / LINEAGE)
    if not config.train.init_from:
      break
    path = pathlib.Path(config.train.init_from)
    try:
      config = configs.from_dict(workdir_lib.read_config(path))
    except UserError:
      break
  return None, {}


def _files(path: pathlib.Path, began: pathlib.Path | None) -> dict[str, bytes]:
  found = {}
  own = [path / tokens.FILE] + [began / n for n in _KEPT if began]
  for file in own:
    if file.is_file():
      found[file.name] = file.read_bytes()
  return found


def restored(directory, shapes, step) -> dict[str, jax.Array]:
  """Leaves in host memory, once."""
  cpu = jax.local_devices(backend='cpu')[0]
  place = jax.sharding.SingleDeviceSharding(cpu)
  steps = meta.genuine(directory, checkpoint.steps(directory))
  dtypes = meta.read(directory / str(max(steps) if step is None else step))
  dtypes = {k: dtype for k, (_, dtype) in dtypes['leaves'].items()}
  wanted = {
    k: jax.ShapeDtypeStruct(shape, dtypes[k], sharding=place)
    for k, shape in shapes.items()
  }
  with checkpoint.Checkpointer(directory, keep=1) as saved:
    return saved.restore(wanted, step, partial=True)[0]
