"""Hugging Face checkpoints: reading, checking and writing, without torch.

A family's file (`switch_transformers.py`) says in a table of `Tensor`s which
tensor of a checkpoint is which part of our parameter tree; what is the same for
all families is here. Nothing is lost in silence: a tensor that is missing, left
over or misshapen is an error, in both directions.
"""

import contextlib
import dataclasses
import json
import os
import pathlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

# Importing it teaches numpy the name 'bfloat16', which safetensors looks up.
import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy
from flax import traverse_util

from moe_jax import json_files, registry
from moe_jax.errors import UserError

Path = str | os.PathLike
DTYPES = {
  'float32': np.float32,
  'bfloat16': ml_dtypes.bfloat16,
  'float16': np.float16,
}
# What may be read, in the names of the file's header; float32 holds them all.
STORED = ('F32', 'BF16', 'F16')
WEIGHTS = 'model.safetensors'
LISTED = 10


@dataclasses.dataclass(frozen=True)
class Tensor:
  """A tensor of a checkpoint and its place in our parameters.

  Attributes:
    name, shape: in the checkpoint.
    path: keys of the leaf in our tree.
    leaf: shape of that leaf.
    index: place in the leaf's leading axes, such as (repeat, expert).
    transpose: the checkpoint holds the transpose of our matrix, as
      torch.nn.Linear does; reshaped where our leaf has an axis of heads.
  """

  name: str
  shape: tuple[int, ...]
  path: tuple[str, ...]
  leaf: tuple[int, ...]
  index: tuple[int, ...] = ()
  transpose: bool = False

  def to_ours(self, value: np.ndarray) -> np.ndarray:
    value = value.T if self.transpose else value
    return value.reshape(self.leaf[len(self.index) :])

  def to_theirs(self, leaf: np.ndarray) -> np.ndarray:
    if self.transpose:
      return leaf[self.index].reshape(self.shape[::-1]).T
    return leaf[self.index].reshape(self.shape)


def read_config(directory: Path) -> dict[str, Any]:
  """config.json of a checkpoint."""
  path = pathlib.Path(directory) / 'config.json'
  if not path.is_file():
    raise UserError(f'{directory} has no config.json')
  return json_files.read(path)


def load(
  directory: Path,
  table: Sequence[Tensor],
  copies: Mapping[str, str] | None = None,
) -> dict[str, Any]:
  """Reads model.safetensors, whole or sharded, into our parameter tree.

  One tensor at a time is in memory beside the result.

  Args:
    directory: of the checkpoint.
    table: the tensors that there must be.
    copies: tensors that there may be beside them, and which tensor each must
      equal to the last bit (tied weights that were stored twice).

  Returns:
    Nested dict of float32 numpy arrays; bfloat16 and float16 fit exactly.

  Raises:
    ValueError: names the tensors that are missing, unexpected, stored twice,
      misshapen, of another type, or unlike what they should be a copy of; or
      the checkpoint is pickled.
  """
  copies = copies or {}
  wanted = {t.name: t for t in table}
  heads, wrong = _heads(pathlib.Path(directory))
  wrong += [f'{name} is missing' for name in wanted if name not in heads]
  for name, (_, shape, dtype) in heads.items():
    t = wanted.get(copies.get(name, name))
    if t is None:
      wrong.append(f'{name} is unexpected')
    elif shape != t.shape:
      wrong.append(f'{name} has shape {shape}, not {t.shape}')
    elif dtype not in STORED:
      wrong.append(f'{name} is {dtype}, not one of {", ".join(STORED)}')
  refuse(f'{directory} is not such a checkpoint', wrong)

  leaves = {t.path: np.empty(t.leaf, np.float32) for t in table}
  for name, value in _tensors(heads, list(wanted)):
    t = wanted[name]
    leaves[t.path][t.index] = t.to_ours(value)
  for name, value in _tensors(heads, [n for n in copies if n in heads]):
    t = wanted[copies[name]]
    # Compared as bits: a NaN is a copy of itself.
    same = t.to_ours(value).astype(np.float32)
    if same.tobytes() != leaves[t.path][t.index].tobytes():
      wrong.append(f'{name} differs from {t.name}, which it is tied to here')
  refuse(f'{directory} is not such a checkpoint', wrong)
  return traverse_util.unflatten_dict(leaves)


def export(
  params: Mapping[str, Any], table: Sequence[Tensor], dtype: str = 'float32'
) -> dict[str, np.ndarray]:
  """Our parameters as a checkpoint's tensors.

  Args:
    params: nested dict of arrays, without Flax's boxes.
    table: as in `load`.
    dtype: of the result, a key of DTYPES; float32 loses nothing, the others
      round to nearest even.

  Raises:
    ValueError: names the parameters that are missing, unexpected or misshapen.
  """
  if dtype not in DTYPES:
    raise registry.unknown('dtype', dtype, DTYPES)
  leaves = traverse_util.flatten_dict(params)
  wanted = {t.path: t.leaf for t in table}
  wrong = [f'{"/".join(p)} is missing' for p in wanted if p not in leaves]
  for path, leaf in leaves.items():
    if path not in wanted:
      wrong.append(f'{"/".join(path)} is unexpected')
    elif np.shape(leaf) != wanted[path]:
      wrong.append(
        f'{"/".join(path)} has shape {np.shape(leaf)}, not {wanted[path]}'
      )
  refuse('these are not the parameters of such a model', wrong)
  leaves = {path: np.asarray(leaf) for path, leaf in leaves.items()}
  return {
    t.name: np.ascontiguousarray(t.to_theirs(leaves[t.path]), DTYPES[dtype])
    for t in table
  }


def save(
  directory: Path,
  tensors: Mapping[str, np.ndarray],
  config: Mapping[str, Any],
) -> None:
  """Writes model.safetensors and config.json.

  Both appear together: they are written beside `directory`, which is then put
  in place by one rename.

  Raises:
    ValueError: `directory` exists and is not empty.
  """
  directory = pathlib.Path(directory)
  if directory.exists() and (
    not directory.is_dir() or any(directory.iterdir())
  ):
    raise UserError(f'{directory} exists; a checkpoint needs a new directory')
  directory.parent.mkdir(parents=True, exist_ok=True)
  with tempfile.TemporaryDirectory(dir=directory.parent) as scratch:
    new = pathlib.Path(scratch) / directory.name
    new.mkdir()
    # Transformers refuses a file that does not say which framework's it is.
    safetensors.numpy.save_file(
      dict(tensors), new / WEIGHTS, metadata={'format': 'pt'}
    )
    text = json.dumps(dict(config), indent=2, sort_keys=True)
    (new / 'config.json').write_text(text + '\n')
    # Only onto nothing or an empty directory: anything else raises OSError.
    new.rename(directory)


def _files(directory: pathlib.Path) -> list[pathlib.Path]:
  """The files that hold the weights; a whole one goes before shards."""
  if (directory / WEIGHTS).is_file():
    return [directory / WEIGHTS]
  index = directory / f'{WEIGHTS}.index.json'
  if index.is_file():
    names = _shards(index)
    lost = [n for n in names if not (directory / n).is_file()]
    refuse(f'{directory} lacks shards', lost)
    return [directory / n for n in names]
  if any(directory.glob('pytorch_model*.bin')):
    raise UserError(
      f'{directory} holds pickled weights, and unpickling runs any code in '
      'them; where you trust them, convert with: python -c "import '
      'transformers as t; t.AutoModelForSeq2SeqLM.from_pretrained('
      f"{str(directory)!r}).save_pretrained('NEW_DIRECTORY')\""
    )
  raise UserError(f'{directory} has no {WEIGHTS}, whole or sharded')


def _shards(index: pathlib.Path) -> list[str]:
  """The files that an index names, all of them beside it."""
  named = json_files.read(index).get('weight_map')
  if not isinstance(named, dict) or not named:
    raise UserError(f'{index} has no weight_map, {{tensor: file}}')
  wrong = [
    f'{n!r} is no file beside it'
    for n in named.values()
    if not isinstance(n, str) or not n or n != os.path.basename(n) or '\0' in n
  ]
  refuse(str(index), wrong)
  return sorted(set(named.values()))


@contextlib.contextmanager
def _opened(file: pathlib.Path) -> Iterator[Any]:
  """A file's tensors; its header is checked against its size on opening."""
  try:
    with safetensors.safe_open(file, 'numpy') as f:
      yield f
  except safetensors.SafetensorError as e:
    raise UserError(f'cannot read {file}: {e}') from None


def count(directory: Path) -> int:
  """Tensors in the files of a checkpoint, whatever they are."""
  return len(_heads(pathlib.Path(directory))[0])


def _heads(directory: pathlib.Path) -> tuple[dict[str, tuple], list[str]]:
  """(file, shape, type) by tensor name, and complaints about duplicates."""
  heads, twice = {}, []
  for file in _files(directory):
    with _opened(file) as f:
      for name in list(f.keys()):
        if name in heads:
          twice.append(f'{name} is stored twice')
        stored = f.get_slice(name)
        heads[name] = file, tuple(stored.get_shape()), stored.get_dtype()
  return heads, twice


def _tensors(heads, names: list[str]):
  """(name, array) of these tensors, file by file."""
  for file in sorted({heads[n][0] for n in names}):
    with _opened(file) as f:
      for name in names:
        if heads[name][0] == file:
          yield name, f.get_tensor(name)


def refuse(what: str, wrong: list[str]) -> None:
  """ValueError that lists the first complaints, if there are any."""
  if wrong:
    more = len(wrong) - LISTED
    tail = f'; and {more} more' if more > 0 else ''
    raise UserError(f'{what}: {"; ".join(wrong[:LISTED])}{tail}')
