"""Capacity and seating: first come, first served, in groups."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe_jax import types
from moe_jax.dispatch import base
from tests import reference


def routing(seed, T=14, E=5, K=2, masked=3, **rest):
  rng = np.random.default_rng(seed)
  # Skewed, so that seats are short.
  expert_TK = np.array(
    [
      rng.choice(E, K, replace=False, p=np.arange(1, E + 1) / 15)
      for _ in range(T)
    ]
  )
  weight_TK = rng.uniform(0.1, 1, (T, K))
  mask_T = np.arange(T) < T - masked
  chosen = np.where(mask_T[:, None], expert_TK, E)
  r = types.Routing(
    token_N=jnp.tile(jnp.arange(T), K),
    expert_N=jnp.asarray(chosen.T.reshape(-1), jnp.int32),
    weight_N=jnp.asarray(weight_TK.T.reshape(-1), jnp.float32),
    num_experts=E,
    choices=K,
    **rest,
  )
  return r, reference.Choice(expert_TK, weight_TK, None, None), mask_T


@pytest.mark.parametrize('capacity', [1, 2, 3, 14])
@pytest.mark.parametrize('renormalize', [False, True])
def test_equals_reference(capacity, renormalize):
  for seed in range(5):
    r, choice, mask_T = routing(seed, renormalize_kept=renormalize)
    choice.renormalize_kept = renormalize
    seated = jax.jit(base.seat, static_argnums=1)(r, (capacity,) * 5)
    kept_TK, weight_TK = reference.seat(choice, mask_T, capacity)
    got = np.asarray(seated.kept_N).reshape(2, -1).T
    np.testing.assert_array_equal(got, kept_TK)
    weight = np.asarray(seated.routing.weight_N).reshape(2, -1).T
    np.testing.assert_allclose(weight[got], weight_TK[kept_TK], rtol=1e-6)


def test_every_edge_has_one_cause_and_kept_edges_one_row():
  r, _, mask_T = routing(1)
  seated = base.seat(r, (2, 3, 1, 2, 4))
  cause = np.asarray(seated.cause_N)
  assert ((cause == types.PADDING) == ~np.tile(mask_T, 2)).all()
  places = list(
    zip(
      np.asarray(r.expert_N)[cause == types.KEPT],
      np.asarray(seated.slot_N)[cause == types.KEPT],
    )
  )
  assert len(set(places)) == len(places)
  capacity = (2, 3, 1, 2, 4)
  assert all(slot < capacity[e] for e, slot in places)
  rows = np.asarray(base.buffer_edges(seated))
  assert rows.shape == (5, 4)
  for n in np.flatnonzero(cause == types.KEPT):
    assert rows[r.expert_N[n], seated.slot_N[n]] == n
  assert (rows < 28).sum() == (cause == types.KEPT).sum()


def test_priority_decides_and_ties_keep_storage_order():
  r, _, _ = routing(2, K=1, masked=0)
  reverse = r.replace(priority_N=-jnp.arange(14, dtype=jnp.int32))
  kept = np.asarray(base.seat(reverse, (1,) * 5).kept_N)
  for e in range(5):
    queue = np.flatnonzero(np.asarray(r.expert_N) == e)
    assert kept[queue].sum() == min(1, len(queue))
    assert not len(queue) or kept[queue[-1]]
  tied = r.replace(priority_N=jnp.zeros(14, jnp.int32))
  np.testing.assert_array_equal(
    base.seat(tied, (2,) * 5).cause_N, base.seat(r, (2,) * 5).cause_N
  )


def test_more_capacity_never_loses_an_edge():
  r, _, _ = routing(3)
  kept = [np.asarray(base.seat(r, (c,) * 5).kept_N) for c in (1, 2, 4, 8)]
  for small, large in itertools.pairwise(kept):
    assert (large >= small).all() and large.sum() >= small.sum()


@pytest.mark.parametrize(
  ('factor', 'edges', 'E', 'T', 'rows'),
  [
    (1.0, 1024, 64, 1024, 16),
    (1.25, 1024, 64, 1024, 20),
    (1.2, 280, 3, 280, 112),
    (1.1, 50, 5, 50, 11),  # ceil() of the float is 12
    (1.0, 100, 8, 100, 13),
    (0.01, 16, 8, 16, 1),
    (100.0, 16, 8, 16, 16),
    (None, 32, 8, 16, 16),
  ],
)
def test_capacity(factor, edges, E, T, rows):
  assert base.capacity(factor, edges, E, T) == rows


@pytest.mark.parametrize('factor', [0, -1.0])
def test_capacity_refuses(factor):
  with pytest.raises(ValueError, match=f'capacity_factor={factor}'):
    base.capacity(factor, 16, 8, 16)
