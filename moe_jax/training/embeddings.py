"""Domain embeddings: the mean hidden state of a domain's documents.

FlexOlmo (Shi et al. 2025, arXiv:2507.07024, section 3.3) begins an owner's row
of the router with the mean embedding of the owner's documents, a thousand of
them. Theirs are of an embedding model of another family, GRIT-7B, of the width
of the model; here they are of the public model itself, which the paper tries,
too, and finds weaker (its table 3). A document is the mean of the hidden states
behind the last norm, of its tokens in a row of training, divided by its length;
so that no document counts more than another. All layers' routers get the same.
"""

import os
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from moe_jax.runs import workdir as workdir_lib
from moe_jax.training import fresh_rules, session as session_lib

DOCUMENTS = 1000


def of_run(
  workdir: str, domains: Sequence[str], documents: int = DOCUMENTS
) -> np.ndarray:
  """f32 [domains, D], a unit vector's mean for each domain.

  Args:
    workdir: of the public model's run; its newest checkpoint.
    domains: of its text; 'code+prose' is one of two, by their tokens.
    documents: parts of documents that stand in a row, at least, of each.

  Raises:
    ValueError: an unknown domain, or a model that is no decoder of text.
  """
  return np.stack([_one(workdir, d.split('+'), documents) for d in domains])


def write(workdir: str, domains: Sequence[str], path) -> None:
  """`of_run` to a .npy file, which `rows=` of conversions read."""
  rows = of_run(workdir, domains)
  os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
  with open(f'{path}.part', 'wb') as f:
    np.save(f, rows)
  os.replace(f'{path}.part', path)


def _one(workdir, domains, documents) -> np.ndarray:
  config = workdir_lib.load_config(workdir).copy_and_resolve_references()
  with config.unlocked():
    config.data.domains, config.data.weights = tuple(domains), ()
  session = session_lib.make(config, workdir, splits=('train',))
  session.problem.check_teacher(session.model, session.model)  # has tokens
  state, _ = fresh_rules.of_run(session, workdir)
  run = jax.jit(_hidden(session.model))
  total, count, row = 0.0, 0, 0
  size = config.train.batch_size
  while count < documents:
    batch = session.data.batch(seed=0, batch_size=size, step=row)
    sums_D, found = run(state.params, state.balance, session.put(batch))
    total, count = total + np.asarray(sums_D, np.float64), count + int(found)
    row += 1
  return (total / count).astype(np.float32)


def _hidden(model):
  """(params, balance, batch) -> sum [D] of unit vectors, how many there are."""
  last = lambda module, _: module.name == 'final_norm'

  def run(params, balance, batch):
    variables = {'params': params} | ({'balance': balance} if balance else {})
    _, seen = model.apply(
      variables,
      batch,
      train=False,
      rngs={'router': jax.random.key(0)},
      capture_intermediates=last,
      mutable=['intermediates'],
    )
    (h_BLD,) = jax.tree.leaves(seen['intermediates'])
    segment_BL = batch['segments']
    most = segment_BL.shape[1]
    own_BLS = jax.nn.one_hot(segment_BL - 1, most)  # of padding nothing
    sum_BSD = jnp.einsum('bls,bld->bsd', own_BLS, h_BLD.astype(jnp.float32))
    norm_BS = jnp.linalg.norm(sum_BSD, axis=-1)
    there_BS = own_BLS.any(1)
    unit_BSD = sum_BSD / jnp.where(norm_BS > 0, norm_BS, 1.0)[..., None]
    return unit_BSD.sum((0, 1)), there_BS.sum()

  return run
