"""Hugging Face checkpoints: reading, checking and writing, without torch.

A family's file (`switch_transformers.py`) says in a table of `Tensor`s which
tensor of a checkpoint is which part of our parameter tree; what is the same for
all families is here. Nothing is lost in silence: a tensor that is missing, left
over or misshapen is an error, in both directions.
"""

import dataclasses
import json
import pathlib
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

# Importing it teaches numpy the name 'bfloat16', which safetensors looks up.
import ml_dtypes
import numpy as np
import safetensors.numpy
from flax import traverse_util

from moe_jax import registry
from moe_jax.conversion import folders
from moe_jax.errors import UserError

Path = folders.Path
DTYPES = {
  'float32': np.float32,
  'bfloat16': ml_dtypes.bfloat16,
  'float16': np.float16,
}


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
  heads = folders.opened(directory)
  wrong = [f'{name} is missing' for name in wanted if name not in heads]
  for name, stored in heads.items():
    shape, dtype = stored.shape, stored.dtype
    t = wanted.get(copies.get(name, name))
    if t is None:
      wrong.append(f'{name} is unexpected')
    elif shape != t.shape:
      wrong.append(f'{name} has shape {shape}, not {t.shape}')
    elif dtype not in folders.STORED:
      wrong.append(f'{name} is {dtype}, not one of {", ".join(folders.STORED)}')
  folders.refuse(f'{directory} is not such a checkpoint', wrong)

  leaves = {t.path: np.empty(t.leaf, np.float32) for t in table}
  for name, t in wanted.items():
    leaves[t.path][t.index] = t.to_ours(heads[name].all())
  for name in [n for n in copies if n in heads]:
    value, t = heads[name].all(), wanted[copies[name]]
    # Compared as bits: a NaN is a copy of itself.
    same = t.to_ours(value).astype(np.float32)
    if same.tobytes() != leaves[t.path][t.index].tobytes():
      wrong.append(f'{name} differs from {t.name}, which it is tied to here')
  folders.refuse(f'{directory} is not such a checkpoint', wrong)
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
  folders.refuse('these are not the parameters of such a model', wrong)
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
      dict(tensors), new / folders.WEIGHTS, metadata={'format': 'pt'}
    )
    text = json.dumps(dict(config), indent=2, sort_keys=True)
    (new / 'config.json').write_text(text + '\n')
    # Only onto nothing or an empty directory: anything else raises OSError.
    new.rename(directory)
