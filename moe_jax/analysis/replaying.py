"""A record happens again: its choices, under any router that chooses.

The model's routers become `forced`, and batches bring 'forced', a stack's
experts for each token and MoE layer. Weights stay the live router's, so that
the same weights give the same logits, and gradients flow through them.
"""

import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from moe_jax import registry, types
from moe_jax.analysis import recording, records
from moe_jax.data import batches
from moe_jax.errors import UserError
from moe_jax.models import stack as stack_lib
from moe_jax.training import session as session_lib


def forcing(model: Any) -> Any:
  """The model with routers that take the experts a batch brings.

  Its batches must have int32 'forced' [B, L, M, K], as `types.Tokens` has it,
  and those of an encoder-decoder 'encoder_forced'.
  """
  forced = registry.method_class('routers', 'forced')
  force = lambda m: dataclasses.replace(m, router=forced(m.router))
  return stack_lib.with_moe(model, force)


def opened(
  config: Any,
  workdir: str | os.PathLike,
  path: str | os.PathLike,
  *,
  mesh_spec: str = '',
) -> session_lib.Session:
  """A session whose validation is a record's text, routed as the record says.

  Args:
    config, workdir: of a run; of the model that was recorded, or another.
    path: of the record, as `recording.record` took it.
    mesh_spec: in place of the config's mesh.

  Raises:
    ValueError: no record, or of a model with other MoE layers.
  """
  schema = records.Record.open(path).schema
  made = recording.opened(
    config,
    workdir,
    mesh_spec=mesh_spec,
    text=schema.text,
    max_bytes=schema.max_bytes,
  )
  found = recording.of_stacks(path, made.model)
  for name, record in found.items():
    stack, own = made.model.stacks[name], record.schema
    numbers = tuple(i for i, sparse in enumerate(stack.sparse) if sparse)
    experts = tuple(stack.layers[i].moe.num_routed for i in numbers)
    if (own.layers, own.experts) != (numbers, experts):
      raise UserError(
        f'{record.path} is of MoE layers {own.layers} with {own.experts} '
        f'experts; the {name} has {numbers} with {experts}'
      )
  data = Replayed(made.data, found)
  return dataclasses.replace(
    made, model=forcing(made.model), data=data, programs={}
  )


class Replayed:
  """Data whose validation brings the choices of records; else as they are.

  Attributes:
    records: by stack.
  """

  def __init__(
    self, data: batches.HeldOut, found: Mapping[str, records.Record]
  ):
    self._data, self.records = data, found

  def __getattr__(self, name):
    return getattr(self._data, name)

  def validation(
    self, *, batch_size: int, process_index: int = 0, process_count: int = 1
  ) -> Iterator[dict[str, np.ndarray]]:
    """All rows in order, as `HeldOut.validation`, with 'forced'.

    Raises:
      ValueError: other tokens than the record's.
    """
    readers = {k: _Reader(v) for k, v in self.records.items()}
    mine = batches.rows_of(batch_size, process_index, process_count)
    first = 0
    for batch in self._data.validation(batch_size=batch_size):
      for stack, reader in readers.items():
        prefix = recording.PREFIX[stack]
        domain_BL = self._domains(batch, prefix, first)
        forced = reader.take(batch[f'{prefix}inputs'], domain_BL)
        batch[f'{prefix}forced'] = forced
      first += batch_size
      yield {k: v[mine.start : mine.stop] for k, v in batch.items()}
    for reader in readers.values():
      reader.finish()

  def _domains(self, batch, prefix, first):
    """[B, L], the domain of each token by name, '' on padding."""
    real_BL = batch[f'{prefix}segments'] > 0
    none_BL = np.full(real_BL.shape, -1)
    number_BL = batch.get(f'{prefix}document', none_BL)
    of_row_B1 = batch.get('document', none_BL).max(1, keepdims=True)
    number_BL = np.where(number_BL < 0, of_row_B1, number_BL)
    rows_B1 = first + np.arange(len(real_BL))[:, None]
    number_BL = np.where(number_BL < 0, rows_B1, number_BL)
    documents = self._data.documents
    names = np.array([getattr(d, 'domain', 'text') for d in documents] + [''])
    return np.where(real_BL, names[np.where(real_BL, number_BL, -1)], '')


class _Reader:
  """Hands out a record's choices, each domain's in order."""

  def __init__(self, record: records.Record):
    self._record = record
    schema = record.schema
    counts_D = np.zeros(len(schema.domains), np.int64)
    for part in record.parts():
      counts_D += np.bincount(part.domain, minlength=len(counts_D))
    ends_D = np.cumsum(counts_D)
    self._at = dict(zip(schema.domains, (ends_D - counts_D).tolist()))
    self._end = dict(zip(schema.domains, ends_D.tolist()))
    self._starts = np.cumsum((0, *schema.parts))
    self._read: dict[str, tuple[int, np.ndarray, np.ndarray]] = {}

  def take(self, ids_BL: np.ndarray, domain_BL: np.ndarray) -> np.ndarray:
    """int32 [B, L, M, K], the next tokens' experts; -1 on padding."""
    M, K = self._record.schema.shape
    forced = np.full((*ids_BL.shape, M, K), -1, np.int32)
    for d in np.unique(domain_BL[domain_BL != '']):
      mine_BL = domain_BL == d
      token_n, expert_nMK = self._next(str(d), int(mine_BL.sum()))
      if not np.array_equal(token_n, ids_BL[mine_BL]):
        raise self._differs(d)
      forced[mine_BL] = expert_nMK
    return forced

  def finish(self) -> None:
    """Raises ValueError where the record has more tokens than there were."""
    for d, at in self._at.items():
      if at < self._end[d]:
        raise self._differs(d)

  def _next(self, d, n):
    if self._at.get(d, 0) + n > self._end.get(d, 0):
      raise self._differs(d)
    found = []
    while n:
      i = int(np.searchsorted(self._starts, self._at[d], 'right')) - 1
      if self._read.get(d, (-1,))[0] != i:
        part = self._record.part(i)
        self._read[d] = i, part.token, part.expert
      _, token, expert = self._read[d]
      start = self._at[d] - int(self._starts[i])
      stop = min(start + n, len(token))
      found.append((token[start:stop], expert[start:stop]))
      self._at[d] += stop - start
      n -= stop - start
    return tuple(np.concatenate(v) for v in zip(*found))

  def _differs(self, d):
    return UserError(
      f'{self._record.path} is of other tokens than are read now, in domain '
      f'{str(d)!r}: another text, tokenizer or data.seq_len'
    )


def routed_experts(
  arrays: Sequence[np.ndarray], length: int, layers: Sequence[int]
) -> np.ndarray:
  """vLLM's routing records of sequences, as 'forced' of a batch.

  A request's `routed_experts` is int [tokens, layers, k], -1 where nothing was
  set (recalled): a token that was never run, such as the last of an answer, or
  a dense layer. Such tokens are routed by the live router.

  Args:
    arrays: of each row.
    length: L, of the rows; what a row has more of is left out.
    layers: number of each MoE layer of the model. Arrays have as many, or all
      layers of the model.

  Returns:
    int32 [rows, L, M, k].

  Raises:
    ValueError: arrays of another shape, or of different k.
  """
  layers = np.asarray(layers)
  arrays = [np.asarray(a) for a in arrays]
  shown = ', '.join(str(a.shape) for a in arrays[:4])
  if {a.ndim for a in arrays} != {3} or len({a.shape[2] for a in arrays}) > 1:
    raise UserError(f'routed experts of shapes {shown}; [tokens, layers, k]')
  rows = len(arrays), length, len(layers), arrays[0].shape[2]
  forced = np.full(rows, types.OWN, np.int32)
  for row, a in zip(forced, arrays):
    if a.shape[1] != len(layers):
      if a.shape[1] <= layers.max():
        raise UserError(
          f'routed experts of {a.shape[1]} layers; the model has MoE layers '
          f'{layers.tolist()}'
        )
      a = a[:, layers]
    a = np.where((a < 0).all(-1, keepdims=True), types.OWN, a)[:length]
    row[: len(a)] = a
  return forced
