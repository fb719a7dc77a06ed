"""Records that are made up, for tests of what is measured in them."""

import functools
import itertools

import numpy as np

from moe_jax.analysis import metrics, records

# Cut at odd places: how parts are cut must make no difference.
CUTS = 0.13, 0.14, 0.61


def write(path, expert, schema=None, cuts=CUTS, **fields):
  """A record of arrays [n, M, K] and [n]; its schema made from them."""
  expert = np.asarray(expert)
  n, M, K = expert.shape
  whole = records.part(expert, **fields)
  most = lambda v: int(v.max(initial=0))
  sizes = {
    'layers': tuple(range(M)),
    'experts': (most(expert) + 1,) * M,
    'choices': K,
    'vocab': 1 + max(map(most, (whole.token, whole.next, whole.predicted))),
    'domains': tuple(f'domain_{i}' for i in range(most(whole.domain) + 1)),
    'documents': documents(whole),
    'fingerprint': 'made up',
  }
  at = [0, *(int(c * n) for c in cuts), n]
  parts = [whole.cut(a, b) for a, b in itertools.pairwise(at)]
  made = records.Schema(**(sizes | (schema or {})))
  return records.write(path, made, [p for p in parts if len(p)])


def documents(part):
  """(domain, name) of each document of a part."""
  first = np.unique(part.document, return_index=True)[1]
  return tuple((int(part.domain[i]), f'text_{i}') for i in first)


def measured(record, spec, other=None):
  """What one metric says, by name without its own; lists as arrays."""
  found = metrics.measure(record, (spec,), other)
  numbers = lambda v: isinstance(v, list) and not isinstance(v[0], str)
  cast = lambda v: np.array(v, float) if numbers(v) else v
  return {k.partition('/')[2]: cast(v) for k, v in found.items()}


def choose(rng, p_nE, K=1):
  """int [n, K]: K different experts of each token, by shares p_nE."""
  noise = np.log(np.maximum(p_nE, 1e-300)) + rng.gumbel(size=p_nE.shape)
  return np.argsort(-noise, -1)[:, :K]


def zipf(rng, n, V):
  """int [n]: ids drawn with shares of 1 / rank."""
  share = 1 / np.arange(1, V + 1)
  return rng.choice(V, n, p=share / share.sum())


@functools.cache
def small(seed=0, K=2, n=240):
  """Arrays of a little of everything: 12 documents, 3 domains, 5 experts."""
  rng = np.random.default_rng(seed)
  expert = rng.permuted(np.tile(np.arange(5), (n, 2, 1)), axis=-1)[..., :K]
  if K > 1:
    expert[rng.random((n, 2)) < 0.2, -1] = -1
  document = np.sort(rng.integers(0, 12, n))
  return {
    'expert': expert,
    'document': document,
    'domain': document // 4,
    'position': np.concatenate(
      [np.arange((document == d).sum()) for d in range(12)]
    ),
    'token': zipf(rng, n, 9),
    'predicted': zipf(rng, n, 9),
    'next': rng.integers(-1, 9, n),
  }
