"""Loop-written NumPy attention of the kinds of open models, float64.

One token, one head at a time, from the papers that the product's docstrings
name. Nothing here imports moe_jax.
"""

import math

import numpy as np


def softmax(x):
  e = np.exp(x - x.max())
  return e / e.sum()


def rms(x, gain=None, eps=1e-6):
  y = x / math.sqrt(sum(v * v for v in x) / len(x) + eps)
  return y if gain is None else y * gain


def plain(j, J, base):
  return base ** (-2 * j / J)


def yarn(j, J, base, *, factor, original_length, fast, slow, truncate):
  """A pair that turns often in the original length is kept."""
  at = lambda turns: (
    J * math.log(original_length / (turns * 2 * math.pi)) / 2 / math.log(base)
  )
  low, high = at(fast), at(slow)
  if truncate:
    low, high = math.floor(low), math.ceil(high)
  low, high = max(low, 0), min(high, J - 1)
  slowed = min(max((j - low) / ((high - low) or 1e-3), 0), 1)
  own = plain(j, J, base)
  return own * (1 - slowed) + own / factor * slowed


def llama3(j, J, base, *, factor, original_length, low, high):
  own = plain(j, J, base)
  wavelength = 2 * math.pi / own
  if wavelength < original_length / high:
    return own
  if wavelength > original_length / low:
    return own / factor
  smooth = (original_length / wavelength - low) / (high - low)
  return (1 - smooth) * own / factor + smooth * own


def turn(x, position, base, angle=plain, interleaved=False, width=0, by=1.0):
  """A head's vector; the first `width` numbers are turned."""
  J = width or len(x)
  out = x.copy()
  for j in range(J // 2):
    a, b = (2 * j, 2 * j + 1) if interleaved else (j, j + J // 2)
    phi = position * angle(j, J, base)
    out[a] = by * (math.cos(phi) * x[a] - math.sin(phi) * x[b])
    out[b] = by * (math.sin(phi) * x[a] + math.cos(phi) * x[b])
  return out


def heads(
  p,
  x_LD,
  visible,
  turned=None,
  *,
  norm='none',
  clip=math.inf,
  temperature=None,
  scale=None,
):
  """Grouped heads; biases and sinks where `p` has them.

  Args:
    p: parameters by name.
    x_LD: inputs, at positions 0 to L - 1.
    visible: (query, key) -> bool.
    turned: (vector, position) -> vector, or None.
    norm: 'none', 'head', 'width', 'turned'.
  """
  L = len(x_LD)
  (_, H, J), K = p['query'].shape, p['key'].shape[1]

  def project(name, count):
    out = np.zeros((L, count, J))
    for t in range(L):
      for h in range(count):
        out[t, h] = x_LD[t] @ p[name][:, h]
        if f'{name}_bias' in p:
          out[t, h] += p[f'{name}_bias'][h]
    return out

  q, k, v = project('query', H), project('key', K), project('value', K)
  for t in range(L):
    for part, name in ((q, 'query_norm'), (k, 'key_norm')):
      if norm == 'width':
        part[t] = rms(part[t].ravel(), p[name]['scale']).reshape(part[t].shape)
      for h in range(part.shape[1]):
        if norm == 'head':
          part[t, h] = rms(part[t, h], p[name]['scale'])
        part[t, h] = np.clip(part[t, h], -clip, clip)
        if turned:
          part[t, h] = turned(part[t, h], t)
          if norm == 'turned':
            part[t, h] = rms(part[t, h])
    v[t] = np.clip(v[t], -clip, clip)
    if temperature:
      floor, factor = temperature
      q[t] *= 1 + factor * math.log(1 + (t + 1) // floor)
  out = np.zeros_like(x_LD)
  for t in range(L):
    seen = [s for s in range(L) if visible(t, s)]
    for h in range(H):
      g = h // (H // K)
      score = [(scale or J**-0.5) * (q[t, h] @ k[s, g]) for s in seen]
      if 'sinks' in p:
        score.append(p['sinks'][h])
      weight = softmax(np.array(score))
      mixed = sum(w * v[s, g] for w, s in zip(weight, seen))
      out[t] += mixed @ p['out'][h]
    out[t] += p.get('out_bias', 0)
  return out


def latent(p, x_LD, turned, nope, scale=None):
  """Multi-head latent attention; causal."""
  L, H = len(x_LD), p['query'].shape[1]
  R = p['expand'].shape[0]
  out = np.zeros_like(x_LD)
  keys, values = {}, {}
  for s in range(L):
    both = x_LD[s] @ p['latent']
    c = rms(both[:R], p['latent_norm']['scale'])
    shared = turned(both[R:], s)
    for h in range(H):
      made = c @ p['expand'][:, h]
      keys[s, h] = np.concatenate([made[:nope], shared])
      values[s, h] = made[nope:]
  for t in range(L):
    x = x_LD[t]
    if 'query_down' in p:
      x = rms(x @ p['query_down'], p['query_norm']['scale'])
    for h in range(H):
      q = x @ p['query'][:, h]
      q = np.concatenate([q[:nope], turned(q[nope:], t)])
      by = scale or len(q) ** -0.5
      weight = softmax(np.array([by * (q @ keys[s, h]) for s in range(t + 1)]))
      mixed = sum(weight[s] * values[s, h] for s in range(t + 1))
      out[t] += mixed @ p['out'][h]
  return out
