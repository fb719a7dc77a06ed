"""Placement: what it would save to keep experts together that tokens choose so.

No paper's number: what co-activation (OLMoE, Niklas Muennighoff et al., 2024,
arXiv:2409.02060, section 5.2) is worth on the wire, to a dispatch that sends a
token once to a device, however many of its experts are there. Of `devices` with
as many experts each,

  saved = 1 - sum_t devices(t) / sum_t k_t

for a token's k_t experts on devices(t) of them; no saving is 0. Three
placements: as given (experts in order of their numbers), random (the null: the
mean over all, in closed form), and greedy: a device begins with the busiest
expert that has none and takes those that most of its tokens choose, too. It is
made from one half of the documents and looked at on the other, both ways, so
that noise saves nothing. Loads may be uneven then: `max_load` is that of the
busiest device over the mean. Zero-computation experts are on no device. nan
where devices do not divide a layer's experts.
"""

import dataclasses

import numpy as np

from moe_jax import registry
from moe_jax.analysis import nulls, placements
from moe_jax.analysis.metrics import base


@registry.register
@dataclasses.dataclass(frozen=True)
class Placement(base.Metric):
  """Results: value (greedy), null (random), given; halves, max loads, places.

  `place` [M][E] is the device of each expert, made from all documents.

  Attributes:
    devices: how many.
    sample: tokens of each half that placements are looked at on, at most.
    seed: of the sample.
  """

  devices: int = 4
  sample: int = 16_384
  seed: int = 0

  def start(self, schema):
    M, E = len(schema.layers), base.width(schema)
    rngs = [base.generator(self.seed, h) for h in (0, 1)]
    samples = [nulls.Sample(self.sample, rng) for rng in rngs]
    return schema, np.zeros((2, M, E, E), np.int64), samples

  def add(self, state, part):
    schema, pair, samples = state
    half_n = base.halves(schema, part)
    for h, sample in enumerate(samples):
      expert_nMK = part.expert[half_n == h]
      sample.add(expert_nMK)
      for i, j in np.ndindex(schema.choices, schema.choices):
        for m in range(len(schema.layers)):
          own_nK = expert_nMK[:, m]  # the diagonal has the loads
          base.cross(pair[h, m], own_nK[:, i], own_nK[:, j])
    return state

  def result(self, state, schema):
    _, pair, samples = state
    M, E = len(schema.layers), base.width(schema)
    out = {k: np.full(M, np.nan) for k in ('null', 'given')}
    out |= {k: np.full(M, np.nan) for k in ('max_load', 'given_max_load')}
    halves_M2, place_ME = np.full((M, 2), np.nan), np.full((M, E), -1)
    for m in range(M):
      placed = schema.experts[m] - schema.local[m]
      if placed % self.devices or not pair[:, m].any():
        continue
      on_E = np.arange(E) < placed
      given_E = np.where(on_E, np.arange(E) * self.devices // placed, -1)
      for h, sample in enumerate(samples):
        if sample.value_R is not None:
          greedy_E = self._greedy(pair[1 - h, m], on_E)
          own_RK = sample.value_R[:, m]
          halves_M2[m, h] = placements.saved(own_RK, greedy_E)
      place_ME[m] = self._greedy(pair[:, m].sum(0), on_E)
      own = [s.value_R[:, m] for s in samples if s.value_R is not None]
      own_RK = np.concatenate(own)
      out['given'][m] = placements.saved(own_RK, given_E)
      out['null'][m] = placements.saved_by_chance(own_RK, on_E, self.devices)
      load_E = np.diagonal(pair[:, m].sum(0))[on_E]
      for k, p in (('max_load', place_ME[m]), ('given_max_load', given_E)):
        load = np.bincount(p[on_E], load_E)
        out[k][m] = load.max() / load.mean() if load.any() else np.nan
    out |= {'halves': halves_M2, 'place': place_ME}
    return {'value': halves_M2.mean(-1)} | out

  def _greedy(self, pair_EE, on_E):
    place_E = np.full(len(on_E), -1)
    place_E[on_E] = placements.greedy(pair_EE[on_E][:, on_E], self.devices)
    return place_E
