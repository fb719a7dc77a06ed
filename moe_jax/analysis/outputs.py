"""What experts compute: how alike, and how large.

Every expert of a layer computes the same tokens, as the layer is fed them, be
they routed to it or not. Of their outputs Y_i [T, D]:

  cka        linear CKA, |Y_i' Y_j|^2 / (|Y_i' Y_i| |Y_j' Y_j|), columns centred
             (Kornblith et al., "Similarity of Neural Network Representations
             Revisited", 2019, arXiv:1905.00414, equations 1 and 4); 1 for equal
             up to rotation and scale. What computes the same input is alike
             without having learned a thing, and few tokens for the width raise
             it: as null the experts are drawn anew
  distance   |Y_i - Y_j| / sqrt((|Y_i|^2 + |Y_j|^2) / 2): 0 for equal, 1.41 for
             unrelated ones; below `DOUBLE` they are doubles
  weights    cosine of their parameters, unit by unit: of upcycled experts what
             is left of their common start; of others 0 is expected, whatever
             they compute, since the order of hidden units is arbitrary

and over the tokens that were routed to an expert and kept

  largest    the largest |entry| of its output, before its combine weight
  norm       root mean square of its output's entries
  super      super experts: Su et al., "Unveiling Super Experts in Mixture-of-
             Experts Large Language Models", 2025, arXiv:2507.23279 (recalled):
             `largest` above the 99.5th percentile of all experts and above a
             tenth of the largest of all. The largest of all always is; so here
             it must be TIMES their median, too, which is ours

Zero-computation experts have no outputs. A weight that multiplies the input
(Llama 4) is left out.
"""

import dataclasses
import functools
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from moe_jax import types
from moe_jax.analysis import inside
from moe_jax.experts import base as experts_base

DOUBLE = 0.1
TIMES = 10.0
CHUNK = 256  # tokens that all experts compute at once


def measure(
  model: Any,
  variables: dict[str, Any],
  batches: Iterable[Any],
  tokens: int = 8192,
  compared: int = 512,
  seed: int = 0,
) -> dict[str, Any]:
  """Similarity and size of the outputs of all experts.

  Args:
    model: with MoE layers.
    variables: 'params', and 'balance' where it has any.
    batches: of the text, read until there are enough tokens.
    tokens: real ones of each stack that sizes are of, the first ones.
    compared: of these the most, at even distances, that outputs are compared
      on.
    seed: of the null.

  Returns:
    By layer: 'cka', 'distance', 'weights' [M][E][E], 'cka_mean' and 'cka_null'
    [M], the mean over pairs; 'doubles' [M] of pairs; 'largest', 'norm' [M][E],
    nan where no token was routed; 'tokens' and those 'compared' [M]; 'super' of
    (layer, expert); 'layers', names.
  """
  recorded = inside.changed(
    model, lambda m: dataclasses.replace(m, record=True)
  )
  places = inside.places(recorded)
  # Parameters may be spread over devices, and devices over processes.
  jit = functools.partial(jax.jit, out_shardings=inside.everywhere(model))
  feed = jit(functools.partial(_fed, recorded))
  found = [
    _Layer(place, variables['params'], compared, jit) for place in places
  ]
  for batch in batches:
    short = [f for f in found if f.count < tokens]
    if not short:
      break
    fed = jax.device_get(feed(variables, batch))
    for layer, (x_TD, is_TE, real_T) in zip(found, fed, strict=True):
      if layer.count < tokens:
        layer.add(x_TD[real_T], is_TE[real_T])
  out = [layer.result(jax.random.key(seed)) for layer in found]
  out = {k: [v[k] for v in out] for k in out[0]}
  out['layers'] = [p.name for p in places]
  return out | {'super': supers(out['largest'])}


def supers(largest: list[np.ndarray]) -> list[tuple[int, int]]:
  """(number of the layer among those measured, expert), the largest first."""
  cells = [(m, e) for m, v in enumerate(largest) for e in range(len(v))]
  size = np.concatenate(largest)
  known = size[np.isfinite(size)]
  if not known.size:
    return []
  bar = max(known.max() / 10, TIMES * np.median(known))
  high = np.percentile(known, 99.5)
  big = [i for i in np.argsort(-size) if size[i] >= high and size[i] > bar]
  return [cells[i] for i in big]


def siblings(distance: list[np.ndarray]) -> list[np.ndarray]:
  """Of each expert the one whose outputs are nearest, by layer; from `measure`.

  A layer of one expert has it for a sibling of itself.
  """
  apart = [np.array(d) + np.diag(np.full(len(d), 1e9)) for d in distance]
  return [d.argmin(-1) for d in apart]


def cka(y_ETD: np.ndarray) -> np.ndarray:
  """f64 [E, E], linear CKA of all pairs."""
  y_ETD = np.asarray(y_ETD, np.float64)
  y_ETD = y_ETD - y_ETD.mean(1, keepdims=True)
  gram_EF = (y_ETD @ y_ETD.transpose(0, 2, 1)).reshape(len(y_ETD), -1)
  size_E = np.linalg.norm(gram_EF, axis=1)
  scale_EE = np.outer(size_E, size_E)
  return gram_EF @ gram_EF.T / np.where(scale_EE > 0, scale_EE, np.nan)


def distances(y_ETD: np.ndarray) -> np.ndarray:
  """f64 [E, E], |Y_i - Y_j| over the root mean square of |Y_i| and |Y_j|."""
  y_EF = np.asarray(y_ETD, np.float64).reshape(len(y_ETD), -1)
  product_EE = y_EF @ y_EF.T
  square_E = np.diag(product_EE)
  sum_EE = square_E[:, None] + square_E
  apart_EE = np.maximum(sum_EE - 2 * product_EE, 0)
  return np.sqrt(apart_EE / np.where(sum_EE > 0, sum_EE / 2, np.nan))


class Thinned:
  """Rows of a stream at even distances, at most so many, and half at least."""

  def __init__(self, most: int):
    self.rows, self._most, self._every, self._seen = [], most, 1, 0

  def add(self, more: np.ndarray) -> None:
    self.rows += [*more[-self._seen % self._every :: self._every]]
    self._seen += len(more)
    while len(self.rows) > self._most:
      self.rows, self._every = self.rows[::2], 2 * self._every


class _Layer:
  """The tokens of a layer, and what they have shown."""

  def __init__(self, place: inside.Place, params: Any, compared: int, jit: Any):
    self.place, self.count = place, 0
    # Experts are cut out of all parameters inside, or there would be copies.
    own = lambda fn: jit(lambda w, *args: fn(place.moe, place.of(w), *args))
    self._params, self._outputs = params, own(inside.dense)
    self._sizes, self._cosines = own(_sizes), own(_cosines)
    self._drawn = jit(functools.partial(inside.dense, place.moe))
    E = place.moe.num_experts
    self._largest, self._square = np.zeros(E), np.zeros(E)
    self._routed, self._compared = np.zeros(E), Thinned(compared)

  def add(self, x_TD: np.ndarray, is_TE: np.ndarray) -> None:
    self.count += len(x_TD)
    self._compared.add(x_TD)
    for start in range(0, len(x_TD), CHUNK):
      x, routed = (v[start : start + CHUNK] for v in (x_TD, is_TE))
      pad = ((0, CHUNK - len(x)), (0, 0))
      sizes = self._sizes(self._params, np.pad(x, pad), np.pad(routed, pad))
      largest_E, square_E = jax.device_get(sizes)
      self._largest = np.maximum(self._largest, largest_E)
      self._square += square_E
    self._routed += is_TE.sum(0)

  def result(self, key: jax.Array) -> dict[str, Any]:
    x_TD = np.stack(self._compared.rows)
    moe, (E, D) = self.place.moe, (self.place.moe.num_experts, x_TD.shape[1])
    y_ETD = np.asarray(self._outputs(self._params, x_TD))
    drawn = experts_base.initialise(moe.experts, key, E, D)
    null_EE = cka(np.asarray(self._drawn(drawn, x_TD)))
    apart_EE = distances(y_ETD)
    cka_EE = cka(y_ETD)
    pairs = ~np.eye(E, dtype=bool)
    mean = lambda v_EE: float(v_EE[pairs].mean()) if E > 1 else np.nan
    none_E = self._routed == 0
    routed_E = np.where(none_E, np.nan, self._routed)
    return {
      'tokens': self.count,
      'compared': len(x_TD),
      'cka': cka_EE,
      'cka_mean': mean(cka_EE),
      'cka_null': mean(null_EE),
      'distance': apart_EE,
      'doubles': np.argwhere(np.triu(apart_EE < DOUBLE, 1)).tolist(),
      'weights': np.asarray(self._cosines(self._params)),
      'largest': np.where(none_E, np.nan, self._largest),
      'norm': np.sqrt(self._square / (routed_E * D)),
    }


def _fed(model, variables, batch):
  """(x [T, D] of the whole batch, bool [T, E] kept at, bool [T]) by place."""
  out = []
  for place, (x_BLD, aux) in zip(
    inside.places(model), inside.fed(model, variables, batch), strict=True
  ):
    x_TD = x_BLD.reshape(-1, x_BLD.shape[-1])
    record, T = aux.record, len(x_TD)
    token_GN = record['token']
    G = token_GN.shape[0]
    token_GN = token_GN + jnp.arange(G)[:, None] * (T // G)
    E = place.moe.num_experts
    expert_GN = jnp.where(record['cause'] == types.KEPT, record['expert'], E)
    none_TE = jnp.zeros((T, E), bool)
    is_TE = none_TE.at[token_GN, expert_GN].set(True, mode='drop')
    prefix = 'encoder_' if place.stack == 'encoder' else ''
    out.append((x_TD, is_TE, batch[f'{prefix}segments'].reshape(-1) > 0))
  return out


def _sizes(moe, w_experts, x_TD, is_TE):
  """f32 [E]: the largest entry of a routed token's output; sum of squares."""
  y_ETD = jnp.where(is_TE.T[..., None], inside.dense(moe, w_experts, x_TD), 0)
  return jnp.abs(y_ETD).max((1, 2)), (y_ETD**2).sum((1, 2))


def _cosines(moe, w_experts):
  """f32 [E, E], of the experts' own parameters, all in a row."""
  axes, stacked = moe.experts.axes, experts_base.is_stacked
  own = [v for k, v in w_experts.items() if stacked(axes[k])]
  flat_EW = jnp.concatenate([v.reshape(len(v), -1) for v in own], 1)
  size_E1 = jnp.linalg.norm(flat_EW, axis=1, keepdims=True)
  flat_EW /= jnp.where(size_E1 > 0, size_E1, jnp.nan)
  return jnp.matmul(flat_EW, flat_EW.T, precision=jax.lax.Precision.HIGHEST)
