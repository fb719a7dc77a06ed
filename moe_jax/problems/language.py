"""What problems of text share: their tokenizer, and what a run keeps of it.

Rows are those of `data.objectives`. This file needs neither TFDS nor Grain.
"""

import copy
import dataclasses
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from moe_jax.data import tokenizers
from moe_jax.errors import UserError
from moe_jax.problems import tokens

# What a run keeps of a tokenizer that learned from its text.
KEPT = 'tokenizer.json'


@dataclasses.dataclass(frozen=True, kw_only=True)
class Language(tokens.Tokens):
  """Tokens are those of a tokenizer.

  Attributes:
    data: the `data` part of a config.
  """

  data: Mapping[str, Any]

  def ids(self):
    whose = f'data.tokenizer={self.data.tokenizer!r}'
    try:
      return self.tokenizer().vocab_size, whose
    except UserError:
      if self.vocab_size:  # the tokenizer's file may be elsewhere
        return self.vocab_size, whose
      raise

  def target_length(self) -> int:
    """Of a decoder's row."""
    return self.data.seq_len

  def example(self):
    lengths = {'': self.target_length()}
    if self.kind == 'encoder_decoder':
      lengths['encoder_'] = self.data.seq_len
    return {
      prefix + name: np.ones(length, np.int32)
      for prefix, length in lengths.items()
      for name in ('inputs', 'positions', 'segments')
    }

  def tokenizer(self):
    return tokenizers.build(self.data.tokenizer)

  def keep(self, data, workdir):
    """Of a tokenizer that learned from text what it learned."""
    path = os.path.join(workdir, KEPT)
    if data.tokenizer.content and not os.path.exists(path):
      with open(f'{path}.part', 'wb') as f:
        f.write(data.tokenizer.content)
      os.replace(f'{path}.part', path)

  def with_kept(self, *workdirs):
    found = (os.path.join(w, KEPT) for w in workdirs if w)
    path = next(filter(os.path.isfile, found), '')
    if not path:
      return self
    data = copy.deepcopy(self.data)
    data.tokenizer = tokenizers.at(data.tokenizer, path)
    return dataclasses.replace(self, data=data)

  def differs(self, other):
    if not isinstance(other, Language):
      return f'its problem is {other.name}, here {self.name}'
    there, here = other.data.tokenizer, self.data.tokenizer
    if tokenizers.learns(there):
      return f'it keeps no {KEPT} of its data.tokenizer, {there!r}'
    if there == here or other.tokenizer().key == self.tokenizer().key:
      return ''
    return f'its data.tokenizer is {there!r}, here {here!r}'


@dataclasses.dataclass(frozen=True, kw_only=True)
class Corpus(Language):
  """All tokens of running text, under `data.objective`.

  Attributes:
    documents: of validation: 'all', or those at 'even' or 'odd' places.
    max_bytes: of each domain's validation text; 0 is all.
  """

  documents: str = 'all'
  max_bytes: int = 0

  def check(self, config):
    wanted = {'decoder': 'causal_lm', 'encoder_decoder': 'span_corruption'}
    kind = config.model.kind
    if kind not in self.kinds:
      raise UserError(
        f'data.objective={self.data.objective!r} does not go with model.kind='
        f"'{kind}', which wants {wanted[kind]!r}"
      )

  def find(self, allow_download=False):
    # Benchmarks train on no data, and where TFDS is not installed.
    from moe_jax.data import sources

    self.tokenizer().look()
    where = {'directory': self.data.dir, 'allow_download': allow_download}
    sources.look(self.data.name, **where)

  def open(self, *, cache_dir, allow_download=False):
    from moe_jax.data import pipeline

    return pipeline.load(
      self.data,
      cache_dir=cache_dir,
      allow_download=allow_download,
      validation_documents=self.documents,
      validation_max_bytes=self.max_bytes,
    )

  def read(self, directory, *, cache_dir, max_bytes=0):
    from moe_jax.data import held_out

    spec = self.data.tokenizer
    if tokenizers.learns(spec):
      raise UserError(
        f'the run keeps no {KEPT} of its data.tokenizer, {spec!r}'
      )
    tokenizer = self.tokenizer().fitted((), cache_dir)
    return held_out.Folder(
      self.data,
      directory,
      tokenizer,
      cache_dir=cache_dir,
      max_bytes=max_bytes,
    )

  def judge(self, out, batch, data):
    return tokens.of_documents(out, batch, data)
