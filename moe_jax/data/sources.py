"""Where text comes from: TFDS datasets, opened by name for random access."""

import os
import re
from collections.abc import Sequence

import tensorflow_datasets as tfds

from moe_jax.data import (
  bad as bad_lib,
  builders,
  packages,
  prepared,
  text_files,
)
from moe_jax.errors import UserError

# name, optional config, optional version; it becomes a path, so no dots alone.
_NAME = re.compile(r'(\w+)(?:/([\w+-][\w.+-]*))?(?::(\d+\.\d+\.\d+))?')
# What `builders` makes.
LOCAL = ('python_stdlib', 'python_packages', 'text_files')
_RANDOM_ACCESS = ('array_record', 'parquet')


def locate(
  name: str,
  *,
  directory: str,
  cache_dir: str,
  allow_download: bool,
  bad: bad_lib.Bad,
) -> tuple[str, str]:
  """Makes sure that a dataset is on disk.

  Args:
    name: of LOCAL, or a TFDS name such as `'c4/en:3.1.0'`; without a version,
      the newest one that is prepared.
    directory: of the .txt files, which take the place of the standard library
      where that is named too; for TFDS names the `data_dir` ('' is TFDS's
      own default). See `prepared` for what is believed of a foreign one.
    cache_dir: where the local corpora are built.
    allow_download: lets TFDS download and prepare what is missing.
    bad: is told of .txt files without text.

  Returns:
    The TFDS name, with its version, and the `data_dir` to read it from.

  Raises:
    ValueError: not prepared (said at once, and where it looked), prepared in a
      format that has no random access, or not a dataset name.
  """
  if name == 'python_stdlib' and not directory:
    return builders.python_stdlib(cache_dir)
  if name == 'python_packages':
    return builders.python_packages(cache_dir)
  if name in LOCAL:
    return builders.from_text_files(directory, cache_dir, bad)
  base, root, version = _prepared(name, directory, allow_download)
  if not version:
    builder = tfds.builder(name, data_dir=root, file_format='array_record')
    builder.download_and_prepare()
    version = str(builder.version)
    base = '/'.join(builder.info.full_name.split('/')[:-1])
  return f'{base}:{version}', root


def look(name: str, *, directory: str, allow_download: bool) -> None:
  """Raises ValueError where `locate` would, as far as a glance tells."""
  if name == 'python_packages':
    if directory:
      raise UserError(
        f'data.name={name!r} is of what is installed: data.dir={directory!r} '
        "must be ''"
      )
    packages.distributions()
  elif name not in LOCAL:
    _prepared(name, directory, allow_download)
  elif directory or name == 'text_files':
    text_files.paths(directory)


def _prepared(name, directory, allow_download) -> tuple[str, str, str]:
  """(name without version, data_dir, the version there; '' is to be made)."""
  match = _NAME.fullmatch(name)
  if not match:
    raise UserError(
      f'data.name={name!r}: expected {", ".join(map(repr, LOCAL))} or a TFDS '
      f"name such as 'c4/en:3.1.0'"
    )
  base = '/'.join(part for part in match.groups()[:2] if part)
  root = os.path.expanduser(directory or str(tfds.core.constants.DATA_DIR))
  version = match[3] or _newest(os.path.join(root, base))
  if version and _has_info(os.path.join(root, base, version)):
    return base, root, version
  if not allow_download:
    raise UserError(
      f'{name!r} is not prepared under {root!r}: prepare it with '
      f'`tfds build {name} --file_format=array_record --data_dir={root}`, '
      f'name its data_dir in data.dir, or pass --allow_download'
    )
  return base, root, ''


def _newest(path: str) -> str:
  """The highest version prepared under `path`, or ''."""
  names = os.listdir(path) if os.path.isdir(path) else []
  found = [n for n in names if re.fullmatch(r'\d+\.\d+\.\d+', n)]
  return max(found, key=lambda n: [int(i) for i in n.split('.')], default='')


def _has_info(path: str) -> bool:
  return os.path.exists(os.path.join(path, 'dataset_info.json'))


def origin(name: str, source: Sequence) -> str:
  """Names and versions of what a local corpus was read from; '' of others."""
  local = name.split(':')[0] in LOCAL
  text = source.dataset_info.description if local else ''
  return text.partition('\n')[2].strip()


def read(
  name: str,
  data_dir: str,
  split: str,
  text_field: str = '',
  max_bad: int = 0,
) -> Sequence:
  """Opens a split of what `locate` returned. A record is a dict of features.

  TFDS reads the features from the prepared directory where the name has a
  version, so the class that wrote it is not needed.

  Args:
    name, data_dir: from `locate`.
    split: of the data set; a slice of one.
    text_field: a feature that there must be; '' is any.
    max_bad: records that may be lost; see `prepared.Source`.

  Raises:
    ValueError: no such split or text field, no random access, or files that
      are not what they should be; see `prepared`.
  """
  base, version = name.split(':')
  path = os.path.join(data_dir, base, version)
  info = prepared.info(path)
  if info.file_format.value not in _RANDOM_ACCESS:
    raise UserError(
      f'{path!r} holds {info.file_format.value} files, which have no random '
      f'access; prepare it with file_format=array_record'
    )
  if re.split(r'[\[+]', split)[0] not in info.splits:
    raise UserError(
      f'{name!r} has no split {split!r}; it has {", ".join(info.splits)}'
    )
  if text_field and text_field not in info.features:
    raise UserError(
      f'{name!r} has no feature {text_field!r} (data.text_field); it has '
      f'{", ".join(info.features)}'
    )
  kind = type(info.features[text_field]) if text_field else tfds.features.Text
  if not issubclass(kind, tfds.features.Text):
    raise UserError(
      f'{name!r}: the feature {text_field!r} (data.text_field) is a '
      f'{kind.__name__}; a Text is wanted'
    )
  return prepared.Source(name, data_dir, split, max_bad)
