"""A run's config after the flags: checked, written to JSON, read back.

Values are numbers, strings and tuples. What a model can do with them (sizes
that must divide others) is checked where the model is built.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any

from moe_jax.errors import UserError
from moe_jax.runs import schema

_POSITIVE = frozenset(
  """model.num_layers model.d_model model.num_heads model.d_head model.d_ff
  moe.num_experts moe.d_ff moe.dense_branch_d_ff moe.group_size data.seq_len
  train.steps train.batch_size train.log_every train.keep train.accumulate
  train.max_skips
  eval.batch_size""".split()
)
_NOT_NEGATIVE = frozenset(
  """seed cpu_devices model.vocab_size train.eval_every train.checkpoint_every
  train.check_replicas_every train.clip train.z_loss eval.max_bytes
  eval.max_examples data.max_bytes train.max_minutes
  train.max_step_minutes""".split()
)
# Locks, renames and `fsync` are of file systems; a URL would be a folder `gs:`.
_PATHS = frozenset(
  """data.dir data.cache data.task_file train.init_from train.teacher""".split()
)
# 0 is dropless.
_FACTORS = frozenset({'moe.capacity_factor', 'moe.eval_capacity_factor'})
# Each layer is gone through when a model is built.
_MOST_LAYERS = 10_000


def validate(config: Mapping[str, Any]) -> None:
  """Checks every value of a config (a ConfigDict, or a nested dict).

  Raises:
    ValueError: a number that is not finite, a size that is not positive, a
      value of the wrong type, or fields that contradict each other; the
      message gives the dotted name.
  """
  flat = flatten(config)
  for name, value in flat.items():
    for v in value if isinstance(value, tuple) else (value,):
      if not (v is None or isinstance(v, bool | int | float | str)):
        raise UserError(
          f'config.{name} is {value!r}; a number, a string or a tuple of them'
          ' is wanted'
        )
      if isinstance(v, float) and not math.isfinite(v):
        raise UserError(f'config.{name} is {v}; a finite number is wanted')
    wanted = _wanted(name, value)
    if wanted:
      raise UserError(f'config.{name} is {value!r}; {wanted} is wanted')
  if flat.get('train.init_dense') and not flat.get('train.init_from'):
    raise UserError(
      "config.train.init_dense is True, train.init_from ''; a workdir is wanted"
    )


def to_dict(config: Mapping[str, Any]) -> dict[str, Any]:
  """Nested dict of JSON's types; tuples become lists."""

  def plain(x):
    if hasattr(x, 'items'):
      return {k: plain(v) for k, v in x.items()}
    return [plain(v) for v in x] if isinstance(x, tuple) else x

  return plain(config)


def from_dict(d: Mapping[str, Any]) -> Any:
  """A locked ConfigDict, equal to the one that `to_dict` was given."""
  from ml_collections import config_dict

  def tuples(x):
    if hasattr(x, 'items'):
      return {k: tuples(v) for k, v in x.items()}
    return tuple(map(tuples, x)) if isinstance(x, list) else x

  config = config_dict.ConfigDict(tuples(d))
  config.lock()
  return config


def flatten(config: Mapping[str, Any]) -> dict[str, Any]:
  """{'train.steps': 10}: the leaves by dotted name."""
  return dict(_leaves(config, ''))


def _leaves(config: Any, prefix: str) -> Iterator[tuple[str, Any]]:
  for k, v in config.items():
    if hasattr(v, 'items'):
      yield from _leaves(v, f'{prefix}{k}.')
    else:
      yield f'{prefix}{k}', v


def _is_share(value: Any) -> bool:
  return type(value) in (int, float) and 0 < value <= 1


def _wanted(name: str, value: Any) -> str:
  """What a named field lacks; '' where nothing is wrong."""
  name = name.replace('moe.decoder.', 'moe.')
  kind, number = schema.type_of(name), schema.fits(value, float)
  if kind not in (None, float) and not schema.fits(value, kind):
    return schema.WANTED[kind]
  if name in _POSITIVE and value < 1:
    return 'a number above 0'
  if name in _NOT_NEGATIVE and not (number and value >= 0):
    return 'a number, 0 or above,'
  if name in _PATHS and '://' in str(value):
    return 'a path of a file system, local or mounted, not of an object store,'
  if name in _FACTORS and not (number and value >= 0):
    return 'a number above 0, or 0 for no capacity,'
  if name == 'eval.documents' and value not in ('all', 'even', 'odd'):
    return "'all', 'even' or 'odd'"
  if name == 'train.keep_at' and not all(map(_is_share, value)):
    return 'a tuple of shares of the steps, above 0 and at most 1,'
  if name == 'train.distill' and not (number and 0 <= value <= 1):
    return 'a weight from 0 to 1'
  if name == 'model.num_layers' and value > _MOST_LAYERS:
    return f'a number up to {_MOST_LAYERS}'
  if kind is float and not number:
    return schema.WANTED[kind]
  return ''
