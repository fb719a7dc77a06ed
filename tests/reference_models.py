"""Loop-written NumPy Transformers, float64: one layer, one query at a time.

From the papers: pre-norm blocks (RMSNorm: arXiv:1910.07467), attention
(arXiv:1706.03762, section 3.2), rotary positions (arXiv:2104.09864, section
3.4.2), T5's relative positions (arXiv:1910.10683, section 2.1), ReLU FFNs,
top-1 experts without a capacity (arXiv:2101.03961, equations 1 and 2), an FFN
beside them (arXiv:2202.08906, appendix C). Parameters are one tree a layer.
Nothing here imports moe_jax.
"""

import math

import numpy as np


def softmax(x):
  e = np.exp(x - x.max())
  return e / e.sum()


def rms_norm(x, params, eps=1e-6):
  """Over the last axis."""
  out = np.empty_like(x)
  for at in np.ndindex(x.shape[:-1]):
    mean = sum(v * v for v in x[at]) / x.shape[-1]
    out[at] = x[at] / math.sqrt(mean + eps) * params['scale']
  return out


def rotate(x_LHJ, position_L):
  """Pair (j, j + J / 2) turned by position * 10000 ** (-2 j / J)."""
  out, half = np.empty_like(x_LHJ), x_LHJ.shape[-1] // 2
  for t, position in enumerate(position_L):
    for j in range(half):
      angle = position * 10_000.0 ** (-j / half)
      a, b = x_LHJ[t, :, j], x_LHJ[t, :, j + half]
      out[t, :, j] = math.cos(angle) * a - math.sin(angle) * b
      out[t, :, j + half] = math.sin(angle) * a + math.cos(angle) * b
  return out


def bucket(distance, both_ways, buckets=32, furthest=128):
  """T5's bucket of key position minus query position.

  Half of the buckets are single distances; bucket k after them begins where
  the distance in units of theirs is (furthest / exact) ** (k / their number):
  in whole numbers, without a logarithm.
  """
  first = 0
  if both_ways:
    buckets //= 2
    first = buckets if distance > 0 else 0
    distance = abs(distance)
  else:
    distance = max(-distance, 0)
  exact = buckets // 2
  if distance < exact:
    return first + distance
  count, k = buckets - exact, 0
  while k + 1 < count and distance**count * exact ** (
    k + 1
  ) >= exact**count * furthest ** (k + 1):
    k += 1
  return first + exact + k


def relative_bias(table_NH, query_L, key_S, both_ways):
  bias_HLS = np.empty((table_NH.shape[1], len(query_L), len(key_S)))
  for t, q in enumerate(query_L):
    for s, k in enumerate(key_S):
      bias_HLS[:, t, s] = table_NH[bucket(int(k) - int(q), both_ways)]
  return bias_HLS


def attention(params, x_LD, y_SD, visible, position_L=None, bias_HLS=None):
  """Rotary where there are positions; with a bias products are not scaled."""
  q, k, v = (
    np.einsum('ld,dhj->lhj', w, params[name])
    for w, name in ((x_LD, 'query'), (y_SD, 'key'), (y_SD, 'value'))
  )
  if 'query_norm' in params:
    q, k = rms_norm(q, params['query_norm']), rms_norm(k, params['key_norm'])
  if position_L is not None:
    q, k = rotate(q, position_L), rotate(k, position_L)
    q = q / math.sqrt(q.shape[-1])
  out_LD = np.zeros_like(x_LD)
  for t in range(len(x_LD)):
    seen = [s for s in range(len(y_SD)) if visible(t, s)]
    for h in range(q.shape[1]):
      score = k[seen, h] @ q[t, h]
      if bias_HLS is not None:
        score = score + bias_HLS[h, t, seen]
      out_LD[t] += softmax(score) @ v[seen, h] @ params['out'][h]
  return out_LD


def ffn(params, x_LD):
  return np.maximum(x_LD @ params['wi'], 0) @ params['wo']


def top_1(params, x_LD):
  """Each token's best expert, times its probability."""
  out = np.zeros_like(x_LD)
  for t, x in enumerate(x_LD):
    probs = softmax(x @ params['router']['kernel'])
    e = int(probs.argmax())
    one = {k: v[e] for k, v in params['experts'].items()}
    out[t] = probs[e] * ffn(one, x)
  return out


def block(
  p, x, visible, position_L=None, bias_HLS=None, extra='none', cross=None
):
  """One layer; `cross` is the encoder's output and who may see what of it."""
  h = rms_norm(x, p['attention_norm'])
  x = x + attention(p['attention'], h, h, visible, position_L, bias_HLS)
  if cross is not None:
    h = rms_norm(x, p['cross_norm'])
    x = x + attention(p['cross'], h, *cross)
  if 'ffn' in p:
    return x + ffn(p['ffn']['ffn'], rms_norm(x, p['ffn_norm']))
  aside = lambda x: ffn(p['extra']['ffn'], rms_norm(x, p['extra_norm']))
  experts = lambda x: top_1(p['moe'], rms_norm(x, p['moe_norm']))
  if extra == 'before':
    x = x + aside(x)
    return x + experts(x)
  if extra == 'after':
    x = x + experts(x)
    return x + aside(x)
  return x + experts(x) + (aside(x) if extra == 'parallel' else 0)


def stack(layers, final_norm, x, causal, position_L, segment_L, **options):
  """Layers and the norm behind them, of one row.

  Args:
    layers: a tree each.
    final_norm: its gain.
    x: [L, D].
    causal: whether a token sees no later one.
    position_L, segment_L: of the tokens, who see their own segment.
    **options: 'table' of relative positions, in place of rotary ones; 'extra',
      'cross' as in `block`.
  """
  table = options.pop('table', None)
  visible = lambda t, s: segment_L[t] == segment_L[s] and (s <= t or not causal)
  bias = None
  if table is not None:
    bias = relative_bias(table, position_L, position_L, not causal)
  rotary = position_L if table is None else None
  for p in layers:
    x = block(p, x, visible, rotary, bias, **options)
  return rms_norm(x, final_norm)
