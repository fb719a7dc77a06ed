"""What problems of tokens share, text or not: next-token losses, teachers."""

import abc
import dataclasses
import math
from typing import Any

import jax.numpy as jnp
import numpy as np

from moe_jax.errors import NotFiniteError, UserError
from moe_jax.models import factory
from moe_jax.problems import base, losses

# The embedding table, which the vocabulary's size is read from.
TABLE = 'params/embedding/table'


@dataclasses.dataclass(frozen=True)
class Tokens(base.Problem):
  """Cross-entropy of target tokens, in nats.

  Attributes:
    kind: of the model.
    vocab_size: rows of the embedding table; 0 is as many as there are ids.
    z_loss: factor of the squared log-partition.
  """

  loss_unit = 'cross-entropy, nats per token'
  kind: str = 'decoder'
  vocab_size: int = 0
  z_loss: float = 0.0

  @abc.abstractmethod
  def ids(self) -> tuple[int, str]:
    """How many there are, and whose they are, for messages."""

  def model(self, config, mesh, *, cache_length=0, shapes=None):
    if shapes is None:
      rows = self.vocabulary(mesh)
    elif TABLE in shapes:
      rows = shapes[TABLE][0]
    else:
      raise UserError(f'it has no {TABLE}: it is no run on text')
    return factory.make(config, rows, mesh, cache_length)

  def vocabulary(self, mesh) -> int:
    """Rows of the embedding table: `vocab_size`, or as many as there are ids.

    These are padded to what the `model` axis divides.

    Raises:
      ValueError: fewer rows than ids.
    """
    rows, (ids, whose) = self.vocab_size, self.ids()
    if not rows:
      parts = mesh.shape['model'] if mesh else 1
      return math.ceil(ids / parts) * parts
    if rows < ids:
      raise UserError(
        f'model.vocab_size={rows} is less than the {ids} ids of '
        f'{whose}; 0 takes those'
      )
    return rows

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
    """'eval/loss', nats a target token; `by_document` and `beside`."""
    nats_N = sums['nats'].astype(np.float64)
    bad = np.flatnonzero(~np.isfinite(nats_N))
    if bad.size:
      raise NotFiniteError(
        f'eval/loss is {nats_N[bad].sum()}, by {bad.size} of {nats_N.size} '
        f'documents, such as {data.documents[bad[0]].name!r}'
      )
    loss = float(nats_N.sum() / max(sums['tokens'], 1))
    own = self.by_document(nats_N, data) | self.beside(sums, data)
    return {'eval/loss': loss} | own

  def by_document(self, nats_N: np.ndarray, data) -> dict[str, float]:
    """Scores of documents that a model gives these nats, f64 [N]."""
    del nats_N, data
    return {}

  def beside(self, sums: Any, data) -> dict[str, float]:
    """Scores of other sums that `judge` gives beside the nats."""
    del sums, data
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
