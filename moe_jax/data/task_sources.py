"""Classification data as text: JSON-lines files, and TFDS data sets by name."""

import hashlib
import json
import os
import types
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds

from moe_jax import json_files
from moe_jax.data import bad as bad_lib, documents, sources
from moe_jax.errors import UserError

TRAIN, VALIDATION = '_train.jsonl', '_validation.jsonl'
LABEL, LABEL_TEXT = 'label', 'label_text'
# Labels of what is made: one token each in most vocabularies, case folded or
# not.
LETTERS = 'abcdefghijklmnopqrstuvwxyz'


class Example(NamedTuple):
  """The text of each input field, and the index of the right label."""

  texts: tuple[bytes, ...]
  label: int


class Task(NamedTuple):
  """A classification task, in memory.

  Attributes:
    name: what its prompts begin with.
    fields: names of the inputs, in the order of the prompt.
    labels: the text of each label.
    train, validation: the examples.
    known: accuracies of other ways to answer, by name, to stand beside.
    left_out: records that could not be read.
    corpus: that it was made of, a `pipeline.Data`, or None.
  """

  name: str
  fields: tuple[str, ...]
  labels: tuple[str, ...]
  train: Sequence[Example]
  validation: Sequence[Example]
  known: Mapping[str, float] = types.MappingProxyType({})
  left_out: int = 0
  corpus: Any = None


def fingerprint(task: Task, tokenizer: str) -> str:
  """Hash of texts, labels and a tokenizer's key."""
  digest = hashlib.sha256()
  parts = [task.name, task.fields, task.labels, tokenizer]
  parts += [len(task.train), len(task.validation)]
  digest.update(json.dumps(parts).encode())
  for part in (task.train, task.validation):
    for e in part:
      sizes = [e.label, *map(len, e.texts)]
      digest.update(json.dumps(sizes).encode())
      digest.update(b''.join(e.texts))
  return digest.hexdigest()


def with_noise(
  examples: Sequence[Example], classes: int, share: float
) -> list[Example]:
  """With a share of the labels another one's; an example's is always so."""
  rng = np.random.default_rng(23)
  drawn_N2 = rng.random((len(examples), 2))
  out = []
  for e, (wrong, which) in zip(examples, drawn_N2):
    label = e.label
    if wrong < share:
      label = (label + 1 + int(which * (classes - 1))) % classes
    out.append(e._replace(label=label))
  return out


def from_file(path: str, bad: bad_lib.Bad) -> Task:
  """NAME_train.jsonl, with NAME_validation.jsonl beside it.

  A line is a JSON object, in UTF-8. 'label' is a string or a whole number; its
  text is 'label_text' where a record has one, else its value. All other strings
  of the first training record are inputs, in that order; what is no string is
  left out. Labels are those of the training file, sorted by their text.

  Args:
    path: of the training file.
    bad: is told of each record that does not fit, by its line.

  Raises:
    ValueError: a missing file, more bad records than may be, or no good one.
  """
  other = look(path)
  records = _records(path, bad)
  line, first = next(iter(records.items()))
  fields = tuple(
    k
    for k, v in first.items()
    if isinstance(v, str) and k not in (LABEL, LABEL_TEXT)
  )
  if not fields:
    raise UserError(
      f'{path}, line {line}: no input: expected a field that is a string, '
      f'beside {LABEL!r}; it has {", ".join(first)}'
    )
  train = list(_examples(path, records, fields, (), bad))
  labels = tuple(sorted({label for _, label in train}))
  held = list(_examples(other, _records(other, bad), fields, labels, bad))
  parts = (
    [Example(texts, labels.index(label)) for texts, label in part]
    for part in (train, held)
  )
  name = os.path.basename(path).removesuffix(TRAIN)
  return Task(name, fields, labels, *parts)


def _examples(path, records, fields, labels, bad):
  """(inputs, label's text) of the records that fit; any label where ()."""
  none = True
  for n, record in records.items():
    try:
      label = _label(record, path, n)
      if labels and label not in labels:
        raise UserError(
          f'{path}, line {n}: label {label!r} is none of the training labels: '
          f'{", ".join(labels)}'
        )
      texts = tuple(_input(record, f, path, n) for f in fields)
    except UserError as e:
      bad.add(str(e))
      continue
    none = False
    yield texts, label
  if none:
    raise UserError(f'{path} has no examples')


def look(path: str) -> str:
  """The file beside it; raises ValueError where one of them is missing."""
  if not path.endswith(TRAIN):
    raise UserError(
      f'data.task_file={path!r}: expected a path that ends in {TRAIN!r}, with '
      f'NAME{VALIDATION} beside it'
    )
  other = path.removesuffix(TRAIN) + VALIDATION
  for which, p in (('training', path), ('validation', other)):
    if not os.path.isfile(p):
      raise UserError(f'data.task_file: no {which} file at {p!r}')
  return other


def _records(path: str, bad: bad_lib.Bad) -> dict[int, Mapping[str, Any]]:
  """The JSON objects of a file by line, from 1; blank lines are left out."""
  found = {}
  with open(path, 'rb') as f:
    for n, line in enumerate(f, 1):
      if not line.strip():
        continue
      try:
        found[n] = json_files.parse_object(line, f'{path}, line {n}')
      except UserError as e:
        bad.add(str(e))
  if not found:
    raise UserError(f'{path} has no examples')
  return found


def _label(record, path, n) -> str:
  value = record.get(LABEL)
  # True is an int, too.
  if isinstance(value, bool) or not isinstance(value, str | int):
    raise UserError(
      f'{path}, line {n}: {LABEL!r} is {value!r}; expected a string or a whole '
      f'number'
    )
  return str(record.get(LABEL_TEXT, value))


def _input(record, field, path, n) -> bytes:
  value = record.get(field)
  if not isinstance(value, str):
    raise UserError(
      f'{path}, line {n}: {field!r} is {value!r}; expected a string'
    )
  return value.encode('utf-8', 'backslashreplace')


def from_tfds(
  name: str,
  *,
  directory: str,
  splits: tuple[str, str],
  cache_dir: str,
  allow_download: bool,
  bad: bad_lib.Bad,
) -> Task:
  """A data set with a ClassLabel 'label'; all its texts are inputs.

  In alphabetical order: a prepared data set remembers no other.

  Args:
    name: such as 'glue/sst2'; the prompts begin with its last part, 'sst2'.
    directory: its data_dir, as in `sources.locate`.
    splits: for training and validation. All of a split is read into memory:
      name a slice, such as 'train[:1%]', of a huge one.
    cache_dir, allow_download: as in `sources.locate`.
    bad: is told of examples that cannot be read or have no label, as in test
      splits.

  Raises:
    ValueError: no such data set, split or features, or more bad examples than
      may be.
  """
  if name in sources.LOCAL:
    raise UserError(f'data.task={name!r} has no labels')
  found, data_dir = sources.locate(
    name,
    directory=directory,
    cache_dir=cache_dir,
    allow_download=allow_download,
    bad=bad,
  )
  parts = []
  for split in splits:
    source = sources.read(found, data_dir, split, max_bad=bad.most)
    features = source.dataset_info.features
    text = tfds.features.Text
    fields = sorted(k for k, f in features.items() if isinstance(f, text))
    label = dict(features.items()).get(LABEL)
    if not fields or not isinstance(label, tfds.features.ClassLabel):
      raise UserError(
        f'data.task={name!r}: expected texts and a ClassLabel {LABEL!r}; its '
        f'features are {", ".join(features)}'
      )
    labels = tuple(label.names)
    examples = []
    for i, record in bad_lib.readable(source, bad):
      index = int(record[LABEL])
      if not 0 <= index < len(labels):
        bad.add(
          f'{bad_lib.where(source, i)} has label {index}, which is none of '
          f'{", ".join(labels)}'
        )
        continue
      texts = tuple(documents.to_bytes(record[f]) for f in fields)
      examples.append(Example(texts, index))
    if not examples:
      raise UserError(f'{name} {split} has no examples')
    parts.append(examples)
  short = found.split(':')[0].split('/')[-1]
  return Task(short, tuple(fields), labels, *parts)
