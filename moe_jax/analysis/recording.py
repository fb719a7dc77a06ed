"""Runs a model over text and writes down who every token went to.

In evaluation, as `experiments.evaluate` runs it: the same batches, no noise,
and the drops of the evaluation's capacity factor. Rows of domains take turns
there; on their way to the record they wait on the disk, a domain each, so that
no memory grows with the text.
"""

import dataclasses
import os
import pathlib
import tempfile
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P

from moe_jax import types
from moe_jax.analysis import records, waiting
from moe_jax.errors import UserError
from moe_jax.models import stack as stack_lib
from moe_jax.problems import losses
from moe_jax.training import checks, session as session_lib, step as step_lib

PREFIX = {'encoder': 'encoder_', 'decoder': ''}  # of a stack's arrays
_MOST = np.iinfo(np.int16).max  # experts


def opened(
  config: Any,
  workdir: str | os.PathLike,
  *,
  mesh_spec: str = '',
  text: str = '',
  max_bytes: int = 0,
) -> session_lib.Session:
  """A session on the text that is to be looked at.

  Args:
    config: of the run.
    workdir: of the run.
    mesh_spec: in place of the config's mesh.
    text: folder of .txt files, a domain each; '' is the validation text.
    max_bytes: of the text, shared evenly by its domains; 0 is all.

  Raises:
    ValueError: no MoE layers, text that is not there, or as `session.make`.
  """
  if not checks.sparse_stacks(config):
    raise UserError(f'{workdir}: the model has no MoE layers to look at')
  if max_bytes < 0:
    raise UserError(f'max_bytes={max_bytes}; valid: 0 (all) or more')
  made = session_lib.plan(config, mesh_spec, ('eval',))
  if text:
    train = config.train
    problem = made.problem.with_kept(
      str(workdir), train.init_from, train.teacher
    )
    cache = config.data.cache or str(pathlib.Path(workdir) / 'data')
    data = problem.read(text, cache_dir=cache, max_bytes=max_bytes)
    return dataclasses.replace(made, problem=problem, data=data)
  made = made.open(workdir)
  documents = made.data.documents
  if max_bytes and sum(getattr(d, 'num_bytes', 0) for d in documents) > (
    max_bytes
  ):
    config = config.copy_and_resolve_references()
    with config.unlocked():
      domains = len({d.domain for d in documents})
      config.eval.max_bytes = max(max_bytes // domains, 1)
    return opened(config, workdir, mesh_spec=mesh_spec)
  return made


def record(
  session: session_lib.Session,
  state: Any,
  path: str | os.PathLike,
  *,
  tell: Callable[[int, int], None] = lambda row, rows: None,
  **known: Any,
) -> dict[str, records.Record]:
  """Runs all of a session's validation, and writes a record of each stack.

  Args:
    session: from `opened`.
    state: whose `params` and `balance` are looked at.
    path: the folder to write; of a second stack, `PATH_<stack>`.
    tell: is given the rows that are done, and all.
    **known: further fields of `Schema`: step, text, max_bytes.

  Returns:
    By stack that has MoE layers, the decoder's first; of one process of
    several only the first one's are written.

  Raises:
    ValueError: the model reads no token ids, has too many experts to write
      down, or there is no text.
  """
  run = session.program('record', lambda: _jitted(session))
  path, data = pathlib.Path(path), session.data
  path.parent.mkdir(parents=True, exist_ok=True)
  size, done = session.config.eval.batch_size, 0
  with tempfile.TemporaryDirectory(dir=path.parent, prefix='.waiting_') as tmp:
    held: dict[str, waiting.Waiting] = {}
    for batch in session.validation():
      out = run(state.params, state.balance, session.put(batch))
      for name, arrays in jax.device_get(out).items():
        if name not in held:
          held[name] = waiting.Waiting(pathlib.Path(tmp) / name, data)
        held[name].add(arrays, done)
      done += size
      tell(min(done, data.validation_rows), data.validation_rows)
    if not any(len(h) for h in held.values()):
      raise UserError('the text is empty: there is no token to look at')
    made = {}
    for name in sorted(held):
      target = folder(path, name, list(sorted(held)))
      schema = _schema(session, name, held[name], known)
      if jax.process_index() == 0:
        made[name] = records.write(target, schema, held[name].parts())
    return made


def folder(path: pathlib.Path, stack: str, stacks: list[str]) -> pathlib.Path:
  """Where a stack's record is, among those that have MoE layers."""
  own = stack == min(stacks)  # the decoder, or all there is
  return path if own else path.with_name(f'{path.name}_{stack}')


def of_stacks(path: str | os.PathLike, model: Any) -> dict[str, records.Record]:
  """The records that `record` wrote of a model, opened; see `Record.open`."""
  stacks = [k for k, v in model.stacks.items() if any(v.sparse)]
  path = pathlib.Path(path)
  return {k: records.Record.open(folder(path, k, stacks)) for k in stacks}


def _jitted(session):
  example = session.problem.example()
  for name, config in session.model.stacks.items():
    ids = example[PREFIX[name] + 'inputs']
    if not np.issubdtype(ids.dtype, np.integer):
      raise session.problem.lacks('a record of routing', 'tokens with ids')
    for E in (m.num_routed for m in config.moes):
      if E > _MOST:
        raise UserError(f'num_experts={E}: a record holds up to {_MOST}')
  everywhere = NamedSharding(session.mesh, P())  # each process has it all
  return jax.jit(of_batch(session.model), out_shardings=everywhere)


def of_batch(model: Any) -> Callable[[Any, Any, Any], dict[str, Any]]:
  """(params, balance, batch) -> by stack the arrays of a `Part`, [B, L, ...].

  With 'real', bool, and without positions and domains; 'document' is -1 where
  the batch does not say, and the row's where it says it of some tokens.
  """
  recorded = lambda m: dataclasses.replace(m, record=True)
  model = stack_lib.with_moe(model, recorded)

  def run(params, balance, batch):
    variables = {'params': params} | ({'balance': balance} if balance else {})
    out, aux = step_lib.evaluated(model, variables, batch)
    found = {}
    for name, config in model.stacks.items():
      layers = stack_lib.aux_by_layer(aux[name], config.places)
      if not layers:
        continue
      tokens = _tokens(batch, PREFIX[name], out)
      shape = tokens['token'].shape
      routed = [
        _routed(a.record, config.layers[i].moe.num_routed, tokens['token'].size)
        for i, a in layers
      ]
      K = max(r['expert'].shape[-1] for r in routed)
      for field in routed[0]:
        parts = [_widened(r[field], K, field) for r in routed]
        v = jnp.stack(parts, 1)
        tokens[field] = v.reshape(*shape, *v.shape[1:])
      found[name] = tokens
    return found

  return run


def _tokens(batch, prefix, out):
  """What is known of the tokens of a stack, beside their routing."""
  ids_BL = batch[f'{prefix}inputs']
  none_BL = jnp.full_like(ids_BL, -1)
  real_BL = batch[f'{prefix}segments'] > 0
  document_BL = batch.get(f'{prefix}document', none_BL)
  of_row_B1 = batch.get('document', none_BL).max(1, keepdims=True)
  found = {
    'real': real_BL,
    'token': ids_BL,
    'next': none_BL,
    'predicted': none_BL,
    'loss': jnp.full(ids_BL.shape, jnp.nan),
    'document': jnp.where(document_BL < 0, of_row_B1, document_BL),
  }
  if not prefix and 'targets' in batch:
    targets_BL = batch['targets']
    found['next'] = jnp.where(real_BL, targets_BL, -1)
    found['predicted'] = jnp.argmax(out, -1).astype(jnp.int32)
    found['loss'] = losses.token_nll(out, targets_BL)
  return found


def _routed(record, E, tokens):
  """A layer's [tokens, K] and [tokens], out of its edges."""
  token_GN = record['token']
  G, N = token_GN.shape
  T = tokens // G
  nobody_GN = record['expert'] >= E
  values = {
    'expert': jnp.where(nobody_GN, -1, record['expert']).astype(jnp.int16),
    'weight': record['weight'],
    'cause': record['cause'].astype(jnp.int8),
  }
  if 'rank' in record:
    empty = {'expert': -1, 'weight': 0.0, 'cause': types.UNSENT}
    at_GN = jnp.arange(G)[:, None] * T + token_GN
    place = lambda v_GN, k: (
      jnp.full((tokens, min(E, N)), empty[k], v_GN.dtype)
      .at[at_GN, record['rank']]
      .set(v_GN, mode='drop')
    )
  else:
    place = lambda v_GN, k: (
      v_GN.reshape(G, N // T, T).swapaxes(1, 2).reshape(tokens, -1)
    )
  found = {k: place(v, k) for k, v in values.items()}
  for name in ('entropy', 'margin'):
    unknown = jnp.full((G, T), jnp.nan)
    found[name] = record.get(name, unknown).reshape(-1)
  return found


def _widened(v, K, field):
  if v.ndim == 1:
    return v
  empty = {'expert': -1, 'weight': 0.0, 'cause': types.UNSENT}
  more = ((0, 0), (0, K - v.shape[1]))
  return jnp.pad(v, more, constant_values=empty[field])


def _schema(session, name, held, known):
  config = session.model.stacks[name]
  numbers = [i for i, sparse in enumerate(config.sparse) if sparse]
  moes = [config.layers[i].moe for i in numbers]
  rows = session.config.eval.batch_size * session.lengths[name]
  devices = (
    session.batch_sharding.mesh.size
    // (session.batch_sharding.mesh.shape['model'])
  )
  return records.Schema(
    layers=tuple(numbers),
    experts=tuple(m.num_routed for m in moes),
    choices=held.choices,
    vocab=session.model.vocab_size,
    domains=held.domains,
    documents=held.documents,
    names=tuple(f'{name}/{i}' for i in numbers),
    local=tuple(m.num_local for m in moes),
    tokenizer=str(getattr(session.problem, 'data', {}).get('tokenizer', '')),
    capacity_factor=moes[0].factor(False),
    group_size=moes[0].tokens_of_group(rows // devices, False),
    stack=name,
    top_score=held.top_score,
    **known,
  )
