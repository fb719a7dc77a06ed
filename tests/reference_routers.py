"""Loop-written routers: (x_TD, params, bias_E, seen) -> oracles.Choice.

`seen` holds what the context brings, as NumPy arrays: mask_T, ids_T, forced_TK,
carry, and the features 'down', 'mean', 'variance'; 'local' is how many of the
experts are zero-computation ones.
"""

import math

import jax
import numpy as np

from tests.oracles import Choice, largest, softmax


def plain(oracle, **options):
  """An oracle (x_TD, params, bias_E, mask_T), which sees nothing else."""
  return lambda x, params, bias, seen, **_: oracle(
    x, params, bias, seen['mask_T'], **options
  )


def _mix(x):
  for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35), (16, 1)):
    x = (x ^ (x >> shift)) * factor % 2**32
  return x


def hash_(x, params, bias, seen, *, k, seed=0):
  """MurmurHash3's finaliser on the ids; the others at hashed distances."""
  E, T = len(bias), len(x)
  expert = np.zeros((T, k), int)
  for t, i in enumerate(seen['ids_T']):
    h = _mix(int(i) ^ _mix(seed))
    expert[t, 0] = h % E
    for j in range(1, k):
      far = 1 + (_mix(h ^ 0x9E3779B9) + j - 1) % (E - 1)
      expert[t, j] = (h % E + far) % E
  return Choice(expert, np.full((T, k), 1 / k), None, None)


def adamoe(x, params, bias, seen, *, k):
  """Weights over the true experts among the chosen."""
  logits = x @ params['kernel']
  probs, (T, E) = softmax(logits), logits.shape
  expert, weight = np.zeros((T, k), int), np.zeros((T, k))
  for t in range(T):
    expert[t] = largest(probs[t] + bias, k)
    true = [e for e in expert[t] if e < E - seen['local']]
    for j, e in enumerate(expert[t]):
      if e in true:
        weight[t, j] = probs[t, e] / sum(probs[t, i] for i in true)
  return Choice(expert, weight, probs, logits)


def moe_plus_plus(x, params, bias, seen, *, k, residual=True):
  """The logits of the layer before, through a matrix of their own."""
  logits = x @ params['kernel']
  if residual:
    for t in range(len(x)):
      for e in range(len(bias)):
        logits[t, e] += seen['carry'][t] @ params['residual'][:, e]
  return _raw(logits, bias, k)


def _raw(logits, bias, k):
  probs = softmax(logits)
  expert = np.array([largest(p + bias, k) for p in probs])
  weight = np.array([p[e] for p, e in zip(probs, expert)])
  return Choice(expert, weight, probs, logits)


def autonomy(x, params, bias, seen, *, k):
  """Lengths of the experts' own projections; softmax over the chosen."""
  down = seen['down']
  bids = np.array(
    [[math.hypot(*(x_D @ down[e])) for e in range(len(bias))] for x_D in x]
  )
  expert = np.array([largest(b + bias, k) for b in bids])
  weight = np.array([softmax(b[e]) for b, e in zip(bids, expert)])
  return Choice(expert, weight, softmax(bids), bids)


def moe_x(x, params, bias, seen, *, k):
  """How few units fire, by the error function."""
  logits = np.zeros((len(x), len(bias)))
  for t, x_D in enumerate(x):
    for e in range(len(bias)):
      mean = seen['mean'][e] @ x_D
      deviation = math.sqrt(2 * sum(seen['variance'][e] * x_D**2))
      logits[t, e] = -math.erf(mean / deviation)
  expert = np.array([largest(v + bias, k) for v in logits])
  weight = np.array([softmax(v[e]) for v, e in zip(logits, expert)])
  return Choice(expert, weight, softmax(logits), logits)


def product_keys(x, params, bias, seen, *, heads, k, normalize=True):
  """All M^2 keys written out, and compared one by one."""
  keys, M = params['keys'], params['keys'].shape[1]
  whole = [np.concatenate([keys[0, a], keys[1, b]])
           for a in range(M) for b in range(M)]  # fmt: skip
  expert, weight = [], []
  for x_D in x:
    query = (x_D @ params['query']).reshape(heads, -1)
    expert.append([]), weight.append([])
    for q in query:
      if normalize:
        q = q / math.sqrt(np.mean(q**2) + 1e-6)
      scores = np.array([q @ key for key in whole])
      best = largest(scores, k)
      expert[-1] += best
      weight[-1] += list(softmax(scores[best]))
  return Choice(np.array(expert), np.array(weight), None, None)


def segment(x, params, bias, seen, *, size, k):
  """One choice for every `size` tokens, laid end to end."""
  parts = []
  for s in range(0, len(x), size):
    one = _raw(x[s : s + size].reshape(1, -1) @ params['kernel'], bias, k)
    if k > 1:
      one.weight /= one.weight.sum()
    parts += [one] * size
  stack = lambda name: np.concatenate([getattr(p, name) for p in parts])
  return Choice(*map(stack, ('expert', 'weight', 'probs', 'logits')))


def replay(x, params, bias, seen, *, renormalize=True):
  """The experts given, with the router's own probabilities."""
  logits = x @ params['kernel']
  probs, E = softmax(logits), len(bias)
  expert = np.array(seen['forced_TK'])
  weight = np.zeros(expert.shape)
  for t, row in enumerate(expert):
    for j, e in enumerate(row):
      if 0 <= e < E:
        weight[t, j] = probs[t, e]
      else:
        expert[t, j] = E
    if renormalize and weight[t].sum():
      weight[t] /= weight[t].sum()
  return Choice(expert, weight, probs, logits)


def round_robin(x, params, bias, seen, *, k):
  """Dealt like cards."""
  expert, E, turn = np.zeros((len(x), k), int), len(bias), 0
  for t in range(len(x)):
    for j in range(k):
      expert[t, j], turn = turn, (turn + 1) % E
  return Choice(expert, np.full(expert.shape, 1 / k), None, None)


def random(x, params, bias, seen, *, k, seed=0, layer=1):
  """Evaluation's draw, a token at a time; the generator is JAX's."""
  key = jax.random.fold_in(jax.random.key(seed), layer)
  expert = []
  for t in range(len(x)):
    level = jax.random.uniform(jax.random.fold_in(key, t), (len(bias),))
    expert.append(largest(np.asarray(level), k))
  return Choice(np.array(expert), np.full((len(x), k), 1 / k), None, None)


def prototype(x, params, bias, seen, *, k, sign=-1, seed=0, layer=1):
  """Distances by their definition; softmax over the chosen ones."""
  key = jax.random.fold_in(jax.random.key(seed), layer)
  center = np.asarray(
    jax.random.normal(key, (len(bias), x.shape[1])), np.float64
  )
  z = np.array([[sign * math.dist(a, c) for c in center] for a in x])
  expert = np.array([largest(v + bias, k) for v in z])
  weight = np.array([softmax(v[e]) for v, e in zip(z, expert)])
  return Choice(expert, weight, softmax(z), z)


def sparse_mixer(x, params, bias, seen, *, eps):
  """Evaluation: the best of those that jitter could make the largest."""
  z = x @ params['kernel']
  expert, weight = np.zeros((len(x), 1), int), np.zeros((len(x), 1))
  for t, v in enumerate(z):
    top = max(v)
    near = [
      e for e in range(len(v)) if (top - v[e]) / max(abs(v[e]), top) <= 2 * eps
    ]
    (i,) = largest(v[near] + bias[near], 1)
    expert[t], weight[t] = near[i], softmax(v[near])[i]
  return Choice(expert, weight, softmax(z), z)


def scheduled_top_k(x, params, bias, seen, *, k, used):
  """k places, of which `used` are."""
  choice = _raw(x @ params['kernel'], bias, k)
  for t in range(len(x)):
    for j in range(used, k):
      choice.expert[t, j], choice.weight[t, j] = len(bias), 0
  return choice


def rexmoe_candidates(N, r, start, end, t):
  """N_t of the paper, in whole numbers."""
  if t <= start:
    return N
  if t > end:
    return r * N
  return ((end - start) + (r - 1) * (t - start)) * N // (end - start)
