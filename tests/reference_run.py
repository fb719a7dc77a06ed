"""What a layer routes and a corpus weighs, by loops: of `test_recomputed`."""

import itertools
import math

import numpy as np
from scipy import stats

from tests.test_same_records import TIMINGS


def softmax(x):
  p = np.exp(x - x.max(-1, keepdims=True))
  return p / p.sum(-1, keepdims=True)


def logsumexp(x):
  top = x.max(-1)
  return top + np.log(np.exp(x - top[..., None]).sum(-1))


def routed(x_GTD, mask_GT, kernel_DE, bias_E, K):
  """An MoE layer's numbers, by loops over groups and assignments."""
  T, E = x_GTD.shape[1], len(bias_E)
  C = math.ceil(T * K / E)
  load, want = np.zeros(E), {'kept': 0, 'capacity': 0, 'padding': 0}
  entropy = square = lse = z = 0.0
  used, switch, tokens = np.zeros(17), 0.0, 0
  for x_TD, mask_T in zip(x_GTD, mask_GT):
    logits_TE = x_TD @ kernel_DE
    probs_TE = softmax(logits_TE)
    order_TE = np.argsort(-(probs_TE + bias_E), axis=-1)
    held, of_token = np.zeros(E, int), np.zeros(T, int)
    for k in range(K):
      for t in range(T):
        if not mask_T[t]:
          want['padding'] += 1
          continue
        e = order_TE[t, k]
        load[e] += 1
        fits = held[e] < C
        want['kept' if fits else 'capacity'] += 1
        held[e] += fits
        of_token[t] += fits
    real = logits_TE[mask_T], probs_TE[mask_T]
    n = len(real[0])
    tokens += n
    entropy -= (real[1] * np.log(real[1])).sum()
    square += (real[0] ** 2).mean(-1).sum()
    lse += logsumexp(real[0]).sum()
    z += (logsumexp(real[0]) ** 2).sum()
    first_E = np.bincount(order_TE[mask_T, 0], minlength=E)
    switch += E * (first_E * real[1].sum(0)).sum() / max(n, 1)
    used += np.bincount(of_token[mask_T], minlength=17)
  sent = want['kept'] + want['capacity']
  share = load / load.sum()
  return want | {
    'load': share,
    'max': load.max() / load.mean(),
    'cv': load.std() / load.mean(),
    'load_entropy': -(share * np.log(np.where(share > 0, share, 1))).sum(),
    'dead': (load == 0).sum(),
    'lost': want['capacity'] / sent,
    'padded': want['padding'] / (sent + want['padding']),
    'entropy': entropy / tokens,
    'square': math.sqrt(square / tokens),
    'lse': lse / tokens,
    'z': z / tokens,
    'switch': switch / tokens,
    'used': used / tokens,
    'mean_used': (used * np.arange(17)).sum() / tokens,
    'bias': math.sqrt((bias_E**2).mean()),
    'seats': len(x_GTD) * E * C,
  }


def by_domain(data, bits, name):
  """Ratios, and 95 % intervals of a ratio, pooled over the domains."""
  documents, out = data.documents, {}
  for domain in ('', 'a', 'b'):
    mine = [i for i, d in enumerate(documents) if domain in ('', d.domain)]
    size = sum(documents[i].num_bytes for i in mine)
    value = sum(bits[i] for i in mine) / size
    parts = {}
    for i in mine:
      r = (bits[i] - value * documents[i].num_bytes) / size
      parts.setdefault(documents[i].domain, []).append(r)
    variance = [len(p) * np.var(p, ddof=1) for p in parts.values()]
    freedom = sum(variance) ** 2 / sum(
      v**2 / (len(p) - 1) for v, p in zip(variance, parts.values())
    )
    half = stats.t.ppf(0.975, freedom) * math.sqrt(sum(variance))
    at = f'eval/{domain}/' if domain else 'eval/'
    out |= {
      f'{at}{name}': value,
      f'{at}{name}_low': value - half,
      f'{at}{name}_high': value + half,
      f'{at}documents': len(mine),
      f'{at}bytes': size,
    }
  return out


def bigram_bits(data):
  """Each validation document's under its domain's pairs."""
  tables = {}
  for domain in data.domains:
    texts = list(data.train_texts(domain))
    parts = texts[::10], [t for i, t in enumerate(texts) if i % 10]
    held, fitted = (
      sum((pairs(t) for t in p), np.zeros((257, 257))) for p in parts
    )
    tried = [
      (s, u)
      for s in 2.0 ** np.arange(-6, 13, 2)
      for u in 4.0 ** np.arange(-4, 5, 2)
    ]
    best = min(tried, key=lambda p: (held * surprise(fitted, *p)).sum())
    tables[domain] = surprise(fitted + held, *best)
  texts = zip(data.documents, data.validation_texts())
  return np.array([(pairs(t) * tables[d.domain]).sum() for d, t in texts])


def pairs(text):
  counts, symbols = np.zeros((257, 257)), [256, *text, 256]
  for a, b in itertools.pairwise(symbols):
    counts[a, b] += 1
  return counts


def surprise(counts, s, u):
  p = (counts.sum(0) + u) / (counts.sum() + 257 * u)
  return -np.log2((counts + s * p) / (counts.sum(1, keepdims=True) + s))


def compare(found, want):
  """Every field but the timings, each to 1e-5; the gradient's norm to 1e-4."""
  assert found.keys() - TIMINGS == want.keys()
  for name, value in want.items():
    if isinstance(value, str):
      assert found[name] == value, name
      continue
    close = 1e-4 if name == 'grad_norm' else 1e-5
    np.testing.assert_allclose(
      np.asarray(found[name], float), value, rtol=close, atol=1e-7, err_msg=name
    )
