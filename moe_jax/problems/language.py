"""What problems of text share: next-token losses, vocabulary, teachers.

Rows are those of `data.objectives`. This file needs neither TFDS nor Grain.
"""

import copy
import dataclasses
import math
import os
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from moe_jax.data import tokenizers
from moe_jax.errors import NotFiniteError, UserError
from moe_jax.models import factory
from moe_jax.problems import base, losses

# The embedding table, which the vocabulary's size is read from.
TABLE = 'params/embedding/table'
# What a run keeps of a tokenizer that learned from its text.
KEPT = 'tokenizer.json'


@dataclasses.dataclass(frozen=True)
class Language(base.Problem):
  """Cross-entropy of target tokens, in nats.

  Attributes:
    data: the `data` part of a config.
    kind: of the model.
    vocab_size: rows of the embedding table; 0 is the tokenizer's.
    z_loss: factor of the squared log-partition.
  """

  loss_unit = 'cross-entropy, nats per token'
  data: Mapping[str, Any]
  kind: str = 'decoder'
  vocab_size: int = 0
  z_loss: float = 0.0

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

  def model(self, config, mesh, *, cache_length=0, shapes=None):
    if shapes is None:
      rows = self.vocabulary(mesh)
    elif TABLE in shapes:
      rows = shapes[TABLE][0]
    else:
      raise UserError(f'it has no {TABLE}: it is no run on text')
    return factory.make(config, rows, mesh, cache_length)

  def vocabulary(self, mesh) -> int:
    """Rows of the embedding table: `model.vocab_size`, or the tokenizer's.

    The tokenizer's are padded to what the `model` axis divides.

    Raises:
      ValueError: fewer rows than the tokenizer has ids.
    """
    rows = self.vocab_size
    try:
      ids = self.tokenizer().vocab_size
    except UserError:
      if rows:  # the tokenizer's file may be elsewhere
        return rows
      raise
    if not rows:
      parts = mesh.shape['model'] if mesh else 1
      return math.ceil(ids / parts) * parts
    if rows < ids:
      raise UserError(
        f'model.vocab_size={rows} is less than the {ids} ids of '
        f'data.tokenizer={self.data.tokenizer!r}; 0 takes those'
      )
    return rows

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

  def loss(self, out, batch):
    return base.Loss(
      *losses.cross_entropy(
        out, batch['targets'], losses.counted(batch), self.z_loss
      )
    )

  def count(self, batch):
    return losses.counted(batch).sum()

  def logged(self, loss):
    return {'bits_per_token': loss / math.log(2)}

  def check_teacher(self, teacher, student):
    rows, own = teacher.vocab_size, student.vocab_size
    if rows != own:
      raise UserError(f'its vocabulary has {rows} rows, here {own}')

  def distillation(self, out, taught, batch):
    return losses.distillation(out, taught, losses.counted(batch))

  def scores(self, sums, data):
    """'eval/loss', nats a target token, and what `by_document` makes."""
    nats_N = sums['nats'].astype(np.float64)
    bad = np.flatnonzero(~np.isfinite(nats_N))
    if bad.size:
      raise NotFiniteError(
        f'eval/loss is {nats_N[bad].sum()}, by {bad.size} of {nats_N.size} '
        f'documents, such as {data.documents[bad[0]].name!r}'
      )
    loss = float(nats_N.sum() / max(sums['tokens'], 1))
    return {'eval/loss': loss} | self.by_document(nats_N, data)

  def by_document(self, nats_N: np.ndarray, data) -> dict[str, float]:
    """Scores of documents that a model gives these nats, f64 [N]."""
    del nats_N, data
    return {}


def of_documents(out, batch, data) -> dict[str, Any]:
  """What `Problem.judge` gives of documents that are read token by token.

  {'nats': f32 [documents], 'tokens'}; 'document' in a batch says whose.
  """
  nll_BL = losses.token_nll(out, batch['targets'])
  real_BL = losses.counted(batch)
  document_BL = jnp.where(real_BL, batch['document'], -1)
  nats = base.by_unit(nll_BL, document_BL, len(data.documents))
  return {'nats': nats, 'tokens': real_BL.sum(dtype=jnp.int32)}


@dataclasses.dataclass(frozen=True)
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

  def judge(self, out, batch, data):
    return of_documents(out, batch, data)
