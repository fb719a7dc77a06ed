"""Folders as they lie on the Hugging Face hub: which family, which tensors.

  found = hub.opened(folder)
  fields = found.family.fields(found.config)    # of our config
  own = hub.fills(found, shapes, places)
  leaves = reading.load(found.tensors, own, wanted)

A family is a file of `families/`. What is in a folder and not in the family's
table is an error, but for what the family leaves out by name.
"""

import dataclasses
import importlib
import pkgutil
from collections import Counter
from collections.abc import Mapping
from typing import Any

from moe_jax import registry
from moe_jax.conversion import families, folders, quantized, reading, tensors
from moe_jax.conversion.families import base


@dataclasses.dataclass(frozen=True)
class Folder:
  """A folder that fits its family.

  Attributes:
    family: whose it is.
    said: config.json as it is.
    config: with the family's defaults.
    tensors: by name, not quantised; those of `table`, and copies.
    table: of the family.
    skipped: {what was left out: number of tensors}.
    dtypes: of tensors, where it is not `dtype`; {} of a quantised folder.
    dtype: that most tensors have, in our words.
  """

  family: base.Family
  said: dict[str, Any]
  config: base.Config
  tensors: Mapping[str, folders.Stored]
  table: list[tensors.Tensor]
  skipped: dict[str, int]
  dtypes: dict[str, str]
  dtype: str


def names() -> tuple[str, ...]:
  """The families: their files."""
  found = (m.name for m in pkgutil.iter_modules(families.__path__))
  return tuple(sorted(n for n in found if n != 'base'))


def family(name: str) -> base.Family:
  """The one in a file."""
  module = importlib.import_module(f'{families.__name__}.{name}')
  (found,) = (
    c
    for c in vars(module).values()
    if isinstance(c, type) and c.__module__ == module.__name__
  )
  return found()


def all_families() -> dict[str, base.Family]:
  """By name."""
  return {n: family(n) for n in names()}


def of_type(model_type: Any) -> base.Family:
  """The family that reads such a config.json; a ValueError lists them."""
  every = {t: f for f in all_families().values() for t in f.model_types}
  if not isinstance(model_type, str) or model_type not in every:
    raise registry.unknown('model_type', str(model_type), every)
  return every[model_type]


def read(config: Mapping[str, Any]) -> tuple[base.Family, base.Config]:
  """Family of a config.json, and it with the family's defaults.

  Raises:
    ValueError: a family that is not known, a field that it does not handle.
  """
  found = of_type(config.get('model_type'))
  return found, found.read(dict(config))


def opened(directory: folders.Path) -> Folder:
  """Reads config.json and the heads of all tensors, and checks that they fit.

  Raises:
    ValueError: as `read`, `folders.opened`, `quantized.unpacked` and
      `reading.check`.
  """
  said = folders.read_config(directory)
  own, c = read(said)
  stored = folders.opened(directory)
  reading.guard(stored, own.layers, c)
  why = {n: own.skipped(n, c) for n in stored}
  kept = {n: v for n, v in stored.items() if not why[n]}
  found = quantized.unpacked(said, kept)
  memory = any(n.endswith('.experts.gate_up_proj') for n in kept)
  if own.each and not memory and _is_sparse(own.fields(c)['moe']):
    reading.guard(stored, own.each, c)
  table = own.table(c, memory)
  copies = own.copies(c)
  reading.check(found, table, copies, directory)
  usual, dtypes = _dtypes(table, found if found == kept else {})
  return Folder(
    family=own,
    said=said,
    config=c,
    tensors=found,
    table=table,
    skipped=dict(Counter(w for w in why.values() if w)),
    dtypes=dtypes,
    dtype=usual,
  )


def _is_sparse(moe: Mapping[str, Any]) -> bool:
  every = moe, moe.get('decoder', moe)
  return any(fields['layers'] != 'none' for fields in every)


def _dtypes(table, found) -> tuple[str, dict[str, str]]:
  """What most tensors are stored as, and the others; bfloat16 of unpacked."""
  words = {'F32': 'float32', 'BF16': 'bfloat16', 'F16': 'float16'}
  own = {t.name: words[found[t.name].dtype] for t in table if t.name in found}
  if not own:
    return 'bfloat16', {}
  usual = Counter(own.values()).most_common(1)[0][0]
  return usual, {n: d for n, d in own.items() if d != usual}


def describe_skipped(found: Folder) -> list[str]:
  """Lines for people."""
  return [f'left out: {n} tensors {why}' for why, n in found.skipped.items()]


# Back.


def config_of(
  config: Any, said: Mapping[str, Any] | None = None
) -> tuple[base.Family, dict[str, Any]]:
  """config.json of a model of ours, and the family that it is of.

  Args:
    config: ours, with its `model.vocab_size`.
    said: of the folder that it began as, which is kept where it says the same.

  Raises:
    ValueError: no family can say all of it; in what the nearest differs.
  """
  if said:
    found, c = read(said)
    if not found.unlike(c, config):
      return found, found.written(dict(said))
  kinds = base.Kinds(config)
  nearest: list[str] | None = None
  for own in all_families().values():
    try:
      theirs = own.to_config(config.model, config.moe, kinds)
      theirs['model_type'] = own.model_types[0]
      wrong = own.unlike(own.read(theirs), config)
    except (KeyError, ValueError, TypeError, ZeroDivisionError, StopIteration):
      continue
    if not wrong:
      theirs['architectures'] = [own.architecture]
      return own, _kept(said) | theirs
    wrong = [f'{own.name}: {w}' for w in wrong]
    nearest = wrong if nearest is None or len(wrong) < len(nearest) else nearest
  folders.refuse('no family can say this model', nearest or ['none is near'])
  raise AssertionError


def _kept(said: Mapping[str, Any] | None) -> dict[str, Any]:
  """What a config.json says of its tokens and lengths."""
  names_ = (
    *('bos_token_id', 'eos_token_id', 'pad_token_id'),
    'max_position_embeddings',
  )
  return {k: said[k] for k in names_ if said and k in said}


def markdown() -> str:
  """The table of families in README.md, from the first lines of their files."""
  rows = ['| `model_type` | what it is | file |', '| --- | --- | --- |']
  for name, own in all_families().items():
    module = importlib.import_module(f'{families.__name__}.{name}')
    first = (module.__doc__ or '').partition('\n')[0].rstrip('.')
    types = ', '.join(f'`{t}`' for t in own.model_types)
    rows.append(f'| {types} | {first} | [{name}](families/{name}.py) |')
  return '\n'.join(rows) + '\n'
