"""Capacity and seating: first come, first served, in groups."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe_jax import types
from moe_jax.dispatch import base
from moe_jax.seating import capacity, orders, seat as seating
from tests import oracles


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
  return r, oracles.Choice(expert_TK, weight_TK, None, None), mask_T


@pytest.mark.parametrize('capacity', [1, 2, 3, 14])
@pytest.mark.parametrize('renormalize', [False, True])
def test_equals_reference(capacity, renormalize):
  for seed in range(5):
    r, choice, mask_T = routing(seed, renormalize_kept=renormalize)
    choice.renormalize_kept = renormalize
    seated = jax.jit(seating.seat, static_argnums=1)(
      r, ((capacity, 5),), mask_T
    )
    kept_TK, weight_TK = oracles.seat(choice, mask_T, capacity)
    got = np.asarray(seated.kept_N).reshape(2, -1).T
    np.testing.assert_array_equal(got, kept_TK)
    weight = np.asarray(seated.routing.weight_N).reshape(2, -1).T
    np.testing.assert_allclose(weight[got], weight_TK[kept_TK], rtol=1e-6)


def test_every_edge_has_one_cause_and_kept_edges_one_row():
  r, _, mask_T = routing(1)
  seated = seating.seat(
    r, tuple((c, 1) for c in (2, 3, 1, 2, 4)), jnp.asarray(mask_T)
  )
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
  kept = np.asarray(seating.seat(reverse, ((1, 5),)).kept_N)
  for e in range(5):
    queue = np.flatnonzero(np.asarray(r.expert_N) == e)
    assert kept[queue].sum() == min(1, len(queue))
    assert not len(queue) or kept[queue[-1]]
  tied = r.replace(priority_N=jnp.zeros(14, jnp.int32))
  np.testing.assert_array_equal(
    seating.seat(tied, ((2, 5),)).cause_N, seating.seat(r, ((2, 5),)).cause_N
  )


@pytest.mark.parametrize(
  ('N', 'E'), [(2047, 2**20), (2047, 1_049_088), (2048, 2**20)]
)
def test_queues_of_a_million_experts(N, E):
  """On either side of what one int32 can hold of expert and place.

  Between them: all experts' edges fit, those of nobody, of number E, do not.
  """
  expert_N = np.random.default_rng(0).integers(E - 9, E + 1, N, dtype=np.int32)
  r = types.Routing(
    token_N=jnp.arange(N),
    expert_N=jnp.asarray(expert_N),
    weight_N=jnp.ones(N),
    num_experts=E,
  )
  seated = seating.seat(r, ((N, E),))
  want = np.argsort(expert_N, kind='stable')
  np.testing.assert_array_equal(seated.order_N, want)
  slot = [(expert_N[:n] == e).sum() for n, e in enumerate(expert_N)]
  np.testing.assert_array_equal(seated.slot_N, slot)


def test_more_capacity_never_loses_an_edge():
  r, _, _ = routing(3)
  kept = [np.asarray(seating.seat(r, ((c, 5),)).kept_N) for c in (1, 2, 4, 8)]
  for small, large in itertools.pairwise(kept):
    assert (large >= small).all() and large.sum() >= small.sum()


WORKED = (
  # (factor, T, K, E), then rows by rule, worked out by hand.
  ((1.25, 1024, 2, 64), dict(per_choice=40, paper=20, lingvo=20)),
  ((1.25, 1024, 2, 64), dict(mesh_tensorflow=20, t5x=20, vmoe=40)),
  ((1.0, 100, 1, 8), dict(mesh_tensorflow=12, t5x=12, vmoe=16, lingvo=12)),
  ((1.0, 100, 1, 8), dict(per_choice=13, paper=13)),
  ((1.25, 100, 1, 8), dict(mesh_tensorflow=15, t5x=16, vmoe=16, lingvo=16)),
  ((1.0, 60, 1, 8), dict(mesh_tensorflow=7, t5x=8, vmoe=8, lingvo=8)),
  ((1.25, 456, 2, 32), dict(mesh_tensorflow=17, t5x=18, vmoe=36, lingvo=20)),
  ((1.0, 12, 2, 8), dict(mesh_tensorflow=4, t5x=4, vmoe=4, lingvo=4)),
  ((1.0, 4096, 1, 2048), dict(mesh_tensorflow=4, t5x=4, vmoe=4, lingvo=4)),
  ((1.0, 4096, 1, 2048), dict(per_choice=2, paper=2, fixed=64)),
  # In floats int(280 / 3 * 1.2) is 111, and ceil(1.1 * 50 / 5) is 12.
  ((1.2, 280, 1, 3), dict(per_choice=112, paper=112)),
  ((1.1, 50, 1, 5), dict(per_choice=11, paper=11)),
  ((0.01, 16, 1, 8), dict(per_choice=1, paper=1)),
  ((1.0, 100, 1.5, 8), dict(per_choice=19, paper=13)),
)


@pytest.mark.parametrize(('sizes', 'rows'), WORKED)
def test_capacity_rules(sizes, rows):
  for name, want in rows.items():
    assert capacity.build(name)(*sizes)[0] == want, name


def test_capacity_rule_options():
  at = lambda spec, *sizes: capacity.build(spec)(*sizes)[0]
  assert at('t5x(min_capacity=2)', 1.0, 4096, 1, 2048) == 2
  assert at('mesh_tensorflow()', 100.0, 16, 1, 4) == 16
  assert at('t5x()', 100.0, 16, 1, 4) == 400  # flaxformer does not clip
  assert at("vmoe(rounding='round', multiple_of=1)", 1.0, 100, 1, 8) == 12
  assert at('vmoe(multiple_of=8)', 1.0, 100, 1, 8) == 16
  assert at('per_choice(min_capacity=5)', 1.0, 16, 1, 8) == 5
  assert at('fixed(rows=3)', 2.0, 100, 2, 8) == 3


def test_capacity_is_at_most_the_group_and_none_is_dropless():
  rows = lambda spec, factor: capacity.rows(
    capacity.build(spec), factor, 16, 2, 4
  )[0]
  assert rows('t5x()', 100.0) == rows('fixed(rows=99)', 1.0) == 16
  assert rows('paper()', None) == rows('fixed(rows=3)', None) == 16


def test_capacity_by_kind():
  """Two kinds of experts; their rows hold factor x T x K assignments."""
  rows = lambda spec, factor, Z: capacity.rows(
    capacity.build(spec), factor, 1000, 2, 8, Z
  )
  # tau E + Z = 8.
  assert rows('moe_plus_plus(tau=0.5)', 1.0, 4) == (125, 250)
  assert rows('moe_plus_plus(tau=0.5)', 1.1, 4) == (138, 275)
  assert rows('moe_plus_plus()', None, 4) == (1000, 1000)
  assert rows('per_choice()', 1.2, 4) == (200, 1000)
  assert rows('per_choice()', 1.2, 0)[0] == 300
  with pytest.raises(ValueError, match='tau=0 must be positive'):
    capacity.build('moe_plus_plus(tau=0)')


@pytest.mark.parametrize('factor', [0, -1.0])
def test_capacity_refuses(factor):
  with pytest.raises(ValueError, match=f'capacity_factor={factor}'):
    capacity.rows(capacity.per_choice(), factor, 16, 1, 8)


@pytest.mark.parametrize(
  ('spec', 'message'),
  [
    ('papers()', "unknown capacity rule 'papers'; .*did you mean 'paper'"),
    ('t5x(min_capacity=0)', 'min_capacity=0 must be a whole number from 1'),
    ("vmoe(rounding='up')", "rounding='up'; valid: ceil, round"),
    ('fixed(rows=2.5)', 'rows=2.5 must be a whole number'),
  ],
)
def test_capacity_rule_errors(spec, message):
  with pytest.raises(ValueError, match=message):
    capacity.build(spec)


ORDERS = {
  'rank_major()': lambda p, t, j: (j, t),
  'token_major()': lambda p, t, j: (t, j),
  'batch_prioritized()': lambda p, t, j: (j, -p[t].max(), t),
  "batch_prioritized(score='sum')": lambda p, t, j: (j, -p[t].sum(), t),
  'highest_weight()': lambda p, t, j: (-p[t, j], j, t),
}


@pytest.mark.parametrize('spec', ORDERS)
@pytest.mark.parametrize('capacity', [1, 2, 3])
def test_orders_equal_loops(spec, capacity):
  """One seat at a time, by a sorted list of who comes next."""
  order = orders.build(spec)
  seat = jax.jit(lambda r: seating.seat(order(r), ((capacity, 5),)))
  for seed in range(20):
    r, choice, mask_T = routing(seed)
    got = seat(r)
    kept_TK, _ = oracles.seat(
      choice,
      mask_T,
      capacity,
      key=functools.partial(ORDERS[spec], choice.weight),
    )
    kept = np.asarray(got.kept_N).reshape(2, -1).T
    np.testing.assert_array_equal(kept, kept_TK)


def test_batch_prioritized_looks_at_probabilities_not_weights():
  """Renormalised weights would rank a token by how far ahead its first is."""
  r, _, _ = routing(0, masked=0)
  probs_TE = jax.nn.softmax(jax.random.normal(jax.random.key(0), (14, 5)))
  r = r.replace(
    probs_TE=probs_TE, expert_N=jnp.argsort(-probs_TE).T[:2].ravel()
  )
  by = orders.build('batch_prioritized()')(r).priority_N[:14]
  np.testing.assert_array_equal(
    np.argsort(by), np.argsort(-probs_TE.max(-1), stable=True)
  )


def test_random_tokens_are_seated_by_lot_and_choices_in_rank():
  """Z-code M3: each of an expert's tokens as often; first choices first."""
  r, _, _ = routing(4, masked=0)
  order, keys = (
    orders.build('random_tokens()'),
    jax.random.split(jax.random.key(0), 3000),
  )

  @jax.jit
  @jax.vmap
  def kept(key):
    return seating.seat(order(r, key), ((2, 5),)).kept_N

  share = np.asarray(kept(keys)).mean(0)
  first, second = np.asarray(r.expert_N).reshape(2, -1)
  for e in range(5):
    queue = np.flatnonzero(first == e)
    # Four deviations of a share of 3000 draws.
    want = min(1, 2 / max(1, len(queue)))
    np.testing.assert_allclose(share[:14][queue], want, atol=0.037)
    left, queue = max(0, 2 - len(queue)), np.flatnonzero(second == e)
    want = min(1, left / max(1, len(queue)))
    np.testing.assert_allclose(share[14:][queue], want, atol=0.037)
  # By position without a key.
  np.testing.assert_array_equal(
    seating.seat(order(r), ((2, 5),)).kept_N,
    seating.seat(r, ((2, 5),)).kept_N,
  )


def test_random_tokens_are_not_causal():
  """A later token that turns to an expert takes an earlier one's seat."""
  r, _, _ = routing(4, K=1, masked=0)
  order = orders.build('random_tokens()')

  @jax.jit
  @jax.vmap
  def past(key, expert_N):
    changed = r.replace(expert_N=expert_N)
    return seating.seat(order(changed, key), ((2, 5),)).kept_N[:7]

  keys = jax.random.split(jax.random.key(0), 20)
  tile = lambda v: jnp.tile(v, (20, 1))
  other_N = r.expert_N.at[7:].set(r.expert_N[0])
  a, b = past(keys, tile(r.expert_N)), past(keys, tile(other_N))
  assert (a != b).any() and not order.causal(1)


def test_orders_that_draw_need_keys_in_training_alone():
  keys_G = jax.random.split(jax.random.key(0), 3)
  for spec in ORDERS:
    assert orders.keys(orders.build(spec), keys_G, True) is None
  order = orders.build('random_tokens()')
  assert orders.keys(order, keys_G, True) is keys_G
  assert orders.keys(order, None, False) is None
  with pytest.raises(
    ValueError, match='RandomTokens seating draws in training'
  ):
    orders.keys(order, None, True)


def test_highest_weights_is_what_each_expert_keeps():
  """Mesh-TensorFlow's switch_max: per expert the C largest gates."""
  r, _, _ = routing(4, masked=0)
  seated = seating.seat(orders.build('highest_weight()')(r), ((2, 5),))
  expert, weight = np.asarray(r.expert_N), np.asarray(r.weight_N)
  for e in range(5):
    mine = np.flatnonzero(expert == e)
    best = mine[np.argsort(-weight[mine])][:2]
    assert set(mine[np.asarray(seated.kept_N)[mine]]) == set(best)


@pytest.mark.parametrize('capacity', [1, 2, 3, 14])
@pytest.mark.parametrize(
  'order', ['rank_major()', 'token_major()', 'batch_prioritized()']
)
def test_first_fit_equals_loops(capacity, order):
  """Switch Transformer, appendix B: in rounds, one seat a token."""
  order_, key = orders.build(order), ORDERS[order]
  seat = jax.jit(lambda r, m: seating.seat(order_(r), ((capacity, 5),), m))
  for seed in range(40):
    r, choice, mask_T = routing(seed, K=3, first_fit=True)
    got = seat(r, mask_T)
    taken, seat_of = {}, {}
    for j in range(3):
      queue = [t for t in range(14) if mask_T[t] and t not in seat_of]
      for t in sorted(queue, key=lambda t: key(choice.weight, t, j)):
        e = choice.expert[t, j]
        if taken.get(e, 0) < capacity:
          taken[e], seat_of[t] = taken.get(e, 0) + 1, j
    kept_TK = np.zeros((14, 3), bool)
    for t, j in seat_of.items():
      kept_TK[t, j] = True
    np.testing.assert_array_equal(
      np.asarray(got.kept_N).reshape(3, -1).T, kept_TK
    )
    # Each real token is kept once or counted as dropped once.
    cause_TK = np.asarray(got.cause_N).reshape(3, -1).T
    assert (cause_TK[~mask_T] == types.PADDING).all()
    wanted = np.isin(cause_TK[mask_T], (types.KEPT, types.CAPACITY))
    assert (wanted.sum(1) == 1).all()
    if capacity == 14:
      assert kept_TK[mask_T, 0].all()


def test_choices_that_are_not_used_are_not_padding():
  r, _, mask_T = routing(5)
  r = r.replace(expert_N=r.expert_N.at[14:20].set(5))
  cause = seating.seat(r, ((14, 5),), jnp.asarray(mask_T)).cause_N
  assert (cause[14:20] == types.UNSENT).all()
  assert (cause[11:14] == types.PADDING).all()
  assert (np.delete(cause, np.r_[11:20, 25:28]) == types.KEPT).all()


def test_order_errors():
  with pytest.raises(ValueError, match="unknown seating 'bpr'; valid: batch_"):
    orders.build('bpr()')
  with pytest.raises(ValueError, match="score='mean'; valid: max, sum"):
    orders.build("batch_prioritized(score='mean')")
  r, _, _ = routing(0)
  with pytest.raises(ValueError, match='no choices to rank'):
    orders.build('batch_prioritized()')(r.replace(choices=None))
  with pytest.raises(ValueError, match='random_tokens: this router has no'):
    orders.build('random_tokens()')(r.replace(choices=None))
