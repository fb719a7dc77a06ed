"""Routing health against loops over assignments, and its ends."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

from moe_jax import types
from moe_jax.balancing import base as balancing
from moe_jax.layers import statistics
from moe_jax.training import health


def metrics(load, cause, used, **sums):
  health_ = {'tokens': [sum(used)], 'used': [used + [0] * (17 - len(used))]}
  health_ |= {'bias': [0.0]} | {k: [v] for k, v in sums.items()}
  return {
    'load': np.array([load]),
    'cause': np.array([cause]),
    'entropy': np.array([0.7]),
    'health': health_,
  }


def test_rates_by_hand():
  # 10 real tokens: 8 used two experts, 1 one, 1 none.
  cause = [17, 2, 1, 6, 4, 5]
  m = metrics([10, 6, 4, 0], cause, [1, 1, 8], bias=3.0, square=40.0,
              logsumexp=-5.0)  # fmt: skip
  got = {
    k: v[0] for k, v in health.rates(m, [[0.25, 0.25, 0.25, 0.25]]).items()
  }
  assert got['max_violation'] == pytest.approx(10 / 5 - 1)
  assert got['load_cv'] == pytest.approx(np.std([10, 6, 4, 0]) / 5)
  shares = (0.5, 0.3, 0.2)
  assert got['load_entropy'] == pytest.approx(
    -sum(s * math.log(s) for s in shares)
  )
  assert got['dead'] == 1
  assert got['agreement'] == pytest.approx(0.25 + 0.25 + 0.2)
  assert got['dropped_capacity'] == pytest.approx(2 / 25)
  assert got['dropped_receiver'] == pytest.approx(1 / 25)
  assert got['local'] == pytest.approx(5 / 25)
  assert got['padding'] == pytest.approx(6 / 35)
  assert got['unsent'] == pytest.approx(4 / 35)
  assert got['experts_used'] == pytest.approx(1.7)
  assert got['used'][:4] == pytest.approx([0.1, 0.1, 0.8, 0])
  assert got['router_entropy'] == 0.7
  assert got['bias_norm'] == pytest.approx(0.3)
  assert got['logit_norm'] == 2.0 and got['logsumexp'] == -0.5


def test_balanced_and_empty():
  got = health.rates(metrics([5, 5], [10, 0, 0, 0, 0, 0], [0, 10]))
  assert got['max_violation'] == got['load_cv'] == [0.0]
  assert got['load_entropy'] == pytest.approx([math.log(2)])
  assert 'agreement' not in got and 'logit_norm' not in got
  got = health.rates(metrics([0, 0], [0] * 6, [0]))
  assert all(np.isfinite(np.asarray(v)).all() for v in got.values())


def test_sums_over_real_tokens():
  G, T, E = 2, 3, 4
  mask = np.array([[1, 1, 0], [1, 0, 0]], bool)
  logits = np.random.default_rng(0).normal(size=(G, T, E)).astype(np.float32)
  r = types.Routing(
    token_N=jnp.tile(jnp.arange(T), (G, 2)),
    expert_N=jnp.zeros((G, 2 * T), jnp.int32),
    weight_N=jnp.ones((G, 2 * T)),
    logits_TE=jnp.asarray(logits),
    num_experts=E,
    choices=2,
  )
  K, C, P = types.KEPT, types.CAPACITY, types.PADDING
  cause = jnp.array([[K, K, P, K, C, P], [C, P, P, C, P, P]])
  bias = jnp.array([0.0, 0.0, 3.0, 4.0])
  got = statistics.sums(r, cause, bias, balancing.Sums(r, jnp.asarray(mask), 1))
  assert got['tokens'] == 3
  assert got['used'].tolist() == [1, 1, 1] + [0] * 14
  assert got['used'].dtype == jnp.int32
  np.testing.assert_allclose(got['bias'], 3 * math.sqrt(25 / 4))
  real = logits[mask].astype(np.float64)
  np.testing.assert_allclose(got['square'], (real**2).mean(-1).sum(), rtol=1e-6)
  lse = np.log(np.exp(real).sum(-1)).sum()
  np.testing.assert_allclose(got['logsumexp'], lse, rtol=1e-6)
