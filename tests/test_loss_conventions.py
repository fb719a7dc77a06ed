"""Balancing losses as other codebases compute them, against loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe_jax import registry, types
from moe_jax.analysis import conventions
from moe_jax.balancing import base
from tests import oracles
from tests.golden import freeze

T, E, K = 40, 8, 3
Z = 2


def counts(expert_TK):
  """Assignments to each expert."""
  c_E = np.zeros(E)
  for t in range(len(expert_TK)):
    for e in expert_TK[t]:
      c_E[e] += 1
  return c_E


def of_first(f):
  return lambda p, expert, K: f(p, expert[:, :1], K)


def gshard(p, expert, K):
  """Mean over experts of (c / S) m, c of first choices."""
  S = len(p)
  return np.mean([c / S * m for c, m in zip(counts(expert), p.mean(0))])


def st_moe_pytorch(p, expert, K):
  """E^2 times the mean over experts of density times proxy."""
  return E**2 * gshard(p, expert, K)


def t5x(p, expert, K):
  """E^2 times the mean over experts of 'any of k' and probability."""
  chosen = [[float(e in row) for e in range(E)] for row in expert]
  return E**2 * np.mean(np.mean(chosen, 0) * p.mean(0))


def hugging_face(p, expert, K):
  """E times the sum over K x E of the mean masks and probabilities."""
  one_hot = np.eye(E)[expert]  # [T, K, E]
  return E * np.sum(one_hot.mean(0) * p.mean(0)[None])


def megablocks(p, expert, K):
  """E / (T K) dot(counts, mean p)."""
  return E / (len(p) * K) * np.dot(counts(expert), p.mean(0))


def megatron(p, expert, K):
  """E / (K T^2) sum of (sum of p) counts."""
  return E / (K * len(p) ** 2) * np.sum(p.sum(0) * counts(expert))


def deepseek_v3(p, expert, K):
  """f of the largest affinities, P of affinities over their sum."""
  relative = p / p.sum(-1, keepdims=True)
  best = np.argsort(-p, -1)[:, :K]
  f = E / (K * len(p)) * counts(best)
  return np.sum(f * relative.mean(0))


def moe_plus_plus(p, expert, K):
  """eta f P with f over tokens, and no E in front."""
  eta = np.where(np.arange(E) < E - Z, 1.0, 0.75)
  return np.sum(eta * counts(expert) / len(p) * p.mean(0))


def adamoe(p, expert, K):
  """All experts times f~ P, null experts' f~ their mean."""
  f = counts(expert) / len(p)
  f[-Z:] = f[-Z:].mean()
  return E * np.sum(f * p.mean(0))


PUBLISHED = {
  'switch': of_first(st_moe_pytorch),
  'gshard': of_first(gshard),
  't5x': t5x,
  'st_moe_pytorch': of_first(st_moe_pytorch),
  'hugging_face': hugging_face,
  'megablocks': megablocks,
  'megatron': megatron,
  'olmo_core': megablocks,
  'deepseek_moe': megablocks,
  'deepseek_v3': deepseek_v3,
  'moe_plus_plus': moe_plus_plus,
  'adamoe': adamoe,
}


def value(rule, logits_TE, expert_TK, local=Z):
  """A rule's loss of one group."""
  (T, K), E = expert_TK.shape, logits_TE.shape[1]
  r = types.Routing(
    token_N=jnp.tile(jnp.arange(T), (1, K)),
    expert_N=jnp.asarray(expert_TK.T.reshape(1, -1), jnp.int32),
    weight_N=jnp.ones((1, T * K)),
    logits_TE=jnp.asarray(logits_TE, jnp.float32)[None],
    probs_TE=jax.nn.softmax(jnp.asarray(logits_TE, jnp.float32))[None],
    num_experts=E,
    num_local=local,
    choices=K,
  )
  rule = registry.build('balancing', rule)
  _, losses, _ = base.evaluate([rule], r, jnp.ones((1, T), bool), 1, (), {})
  return float(losses[base.name(rule)])


def test_every_source_has_a_loop():
  assert set(PUBLISHED) == set(conventions.BALANCE_LOSSES)


@pytest.mark.parametrize('source', PUBLISHED)
def test_our_weight_does_what_theirs_does(source):
  """Two weights, one of ours and one of theirs, of uneven choices."""
  rng = np.random.default_rng(0)
  logits = rng.normal(size=(T, E)) + np.linspace(0, 2, E)
  expert = np.argsort(-logits, -1)[:, :K]
  want = 0.3 * PUBLISHED[source](oracles.softmax(logits), expert, K)
  rule, weight = conventions.weight_here(source, 0.3, E, K, Z)
  np.testing.assert_allclose(weight * value(rule, logits, expert), want, 1e-5)


def test_sources_are_listed():
  with pytest.raises(ValueError, match="'openmoe'; valid: adamoe, deepseek"):
    conventions.weight_here('openmoe', 1.0, E, K)


def test_hugging_face_is_theirs_for_one_layer_and_pools_two():
  """transformers' own function, frozen."""
  frozen = freeze.load('hf_moe_blocks')
  values = []
  for logits in frozen['balance/logits']:
    expert = np.argsort(-logits, -1)[:, :K]
    rule, weight = conventions.weight_here('hugging_face', 1.0, E, K)
    values.append(weight * value(rule, logits, expert, 0))
  np.testing.assert_allclose(values[0], frozen['balance/one'], rtol=1e-6)
  pooled = frozen['balance/logits'].reshape(-1, E)
  pooled = value(rule, pooled, np.argsort(-pooled, -1)[:, :K], 0)
  np.testing.assert_allclose(weight * pooled, frozen['balance/two'], rtol=1e-6)
  assert abs(np.mean(values) - frozen['balance/two']) > 0.001
