"""TFDS builders of the local corpora: library, packages, a folder of files.

Examples are `text` (bytes, kept exactly), `name` and `domain`; splits `train`
and `validation`. Files are ArrayRecord, the format that TFDS writes and reads
without TensorFlow.
"""

import contextlib
import hashlib
import io
import os

import tensorflow_datasets as tfds
from absl import logging

from moe_jax.data import (
  bad as bad_lib,
  derived,
  packages,
  splitting,
  stdlib,
  text_files,
)

# They last for tenths of a second.
tfds.disable_progress_bar()


class _LocalText(tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """Documents that were read before the builder was made."""

  # Part of the directory: raise it with any change of what is extracted.
  VERSION = tfds.core.Version('1.0.0')
  # Nothing is downloaded. To find this out TFDS 4.9.10 imports
  # importlib_resources, which it does not declare.
  url_infos = {}

  def __init__(
    self, *, train=(), validation=(), domains=(), origin='', **kwargs
  ):
    self._of_split = {'train': train, 'validation': validation}
    self._domains, self._origin = list(domains), origin
    super().__init__(file_format='array_record', **kwargs)

  def _info(self):
    features = {
      'text': tfds.features.Text(),
      'name': tfds.features.Text(),
      'domain': tfds.features.ClassLabel(names=self._domains),
    }
    return tfds.core.DatasetInfo(
      builder=self,
      description=f'{self.__doc__}\n{self._origin}'.strip(),
      features=tfds.features.FeaturesDict(features),
      disable_shuffling=True,  # stored in order: the pipeline shuffles
    )

  def _split_generators(self, dl_manager):
    return {
      split: self._generate_examples(examples)
      for split, examples in self._of_split.items()
    }

  def _generate_examples(self, examples):
    for i, e in enumerate(examples):
      yield i, {'text': e.text, 'name': e.name, 'domain': e.domain}


class PythonStdlib(_LocalText):
  """The running interpreter's standard library; see `moe_jax.data.stdlib`."""


class PythonPackages(_LocalText):
  """What moe_jax needs, as it is installed; see `moe_jax.data.packages`."""


class TextFiles(_LocalText):
  """A folder of text files, one a domain; see `moe_jax.data.text_files`."""


def python_stdlib(cache_dir: str) -> tuple[str, str]:
  """Builds the corpus unless it is there; returns its TFDS name and data_dir.

  Takes about 10 s. Built twice the documents and their order are the same, and
  in one process the files' bytes; another one's protobuf may order a record's
  fields anew.
  """
  sources = stdlib.files()
  odd = sum(not text_files.is_utf8(text) for _, _, text in sources)
  logging.info(
    'python_stdlib: %d files, %d of them not UTF-8 (bytes kept)',
    *(len(sources), odd),
  )

  def split():
    return splitting.split(
      stdlib.documents(sources),
      fraction=stdlib.VALIDATION,
      min_bytes=stdlib.MIN_BYTES,
    )

  parts = [f'{kind} {name}'.encode() for kind, name, _ in sources]
  parts += [text for _, _, text in sources]
  return _build(PythonStdlib, stdlib.DOMAINS, parts, split, cache_dir)


def python_packages(cache_dir: str) -> tuple[str, str]:
  """As `python_stdlib`, of the packages; other versions build anew.

  Takes half a minute of a core.
  """
  found = packages.distributions()
  sources = packages.files(found)
  domains = sorted({s.family for s in sources})

  def split():
    return splitting.split(
      packages.documents(sources),
      fraction=dict.fromkeys(domains, packages.VALIDATION),
      min_bytes=packages.MIN_BYTES,
    )

  versions = packages.versions(found)
  parts = [versions.encode()]
  for s in sources:
    parts += [f'{s.family} {s.name}'.encode(), s.text]
  return _build(
    PythonPackages, tuple(domains), parts, split, cache_dir, versions
  )


def from_text_files(
  directory: str, cache_dir: str, bad: bad_lib.Bad
) -> tuple[str, str]:
  """As `python_stdlib`, for a folder; a change of a file builds anew.

  Args:
    directory, cache_dir: of the files, and for what is built.
    bad: is told of files without text, which are no domains then.

  Raises:
    ValueError: see `text_files.files` and `splitting.split`.
  """
  found = text_files.files(directory, bad)

  def split():
    return splitting.split(
      text_files.documents(found),
      fraction=dict.fromkeys(found, text_files.VALIDATION),
      min_bytes=1,
    )

  parts = [name.encode() for name in found] + list(found.values())
  return _build(TextFiles, tuple(found), parts, split, cache_dir)


def _build(cls, domains, parts, split, cache_dir, origin='') -> tuple[str, str]:
  """Builds in a directory that is named by a hash of what is read."""
  digest = hashlib.sha256()
  for part in parts:
    digest.update(hashlib.sha256(part).digest())
  root = os.path.join(cache_dir, 'tfds', digest.hexdigest()[:16])
  name = f'{cls.name}:{cls.VERSION}'

  def make(made):
    train, validation = split()
    builder = cls(
      train=train,
      validation=validation,
      domains=domains,
      origin=origin,
      data_dir=made,
    )
    with contextlib.redirect_stdout(io.StringIO()):  # six lines, two bars
      builder.download_and_prepare()

  derived.directory(root, make)
  return name, root
