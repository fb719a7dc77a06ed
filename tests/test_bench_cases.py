"""The benchmarks' cases at toy sizes: layer, products, steps, costs."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe_jax.benchmarks import (
  cases,
  costs,
  layers,
  products,
  steps,
)

TOY = layers.Options(tokens=64, D=16)
FEW = ('dense', 'own_matmuls', 'dropping')
ALL = (*FEW, *layers.DROPLESS, 'ragged_dot', 'naive')


@pytest.mark.parametrize(
  'names', [FEW, pytest.param(ALL, marks=pytest.mark.slow)]
)
def test_layer_case(names):
  """The candidates agree, keep what they should, and share a floor."""
  case = layers.case(TOY, 4, 2, 8, ('dense', 'ragged_dot'), naive=True)
  assert {c.name for c in case.candidates} == {*ALL, cases.MATMUL, cases.COPY}
  mine = [c for c in case.candidates if c.name in names]
  row = cases.run(dataclasses.replace(case, candidates=mine), 1, 0)
  assert not row['failed']
  found = row['candidates']
  assert set(found) == set(names)
  assert {'dense', 'own_matmuls'} <= found['dropping']['ratios'].keys()
  assert 0.5 < found['dropping']['facts']['kept'] < 1
  assert found['dropping']['facts']['load'] >= 1
  assert 'difference' not in found['dropping']['facts']
  shares = found['dropping']['facts']['parts_percent']
  assert {'experts', 'routing', 'permutation'} <= shares.keys()
  assert sum(shares.values()) == pytest.approx(100, abs=1)
  for name in set(names) - set(FEW):
    assert found[name]['facts']['kept'] == 1
    assert found[name]['facts'].get('difference', 0) < 1e-5
  assert len(names) == 3 or 'difference' in found['naive']['facts']
  # Both FFNs of two products, forward and twice backward.
  flops = 3 * 64 * 2 * 2 * 2 * 16 * 8
  assert {v['flops'] for v in found.values()} == {flops}


def test_work_counts_seats_where_they_are_fewer():
  half = dataclasses.replace(TOY, capacity_factor=0.5)
  assert layers.work(half, 4, 2, 8)[0] * 2 == layers.work(TOY, 4, 2, 8)[0]
  gated = dataclasses.replace(TOY, experts='glu()')
  flops, moved = layers.work(gated, 4, 2, 8)
  assert flops == layers.work(TOY, 4, 2, 8)[0] * 1.5
  assert moved == 3 * 4 * (3 * 4 * 16 * 8) + 4 * 4 * 64 * 16


def test_zipf_makes_the_load_follow_the_law():
  """Top-1 loads of 4096 tokens against rank^-s, whatever the router."""
  E, s = 8, 1.0
  o = dataclasses.replace(TOY, tokens=4096)
  x, _ = layers.tokens(o)
  w = jax.random.normal(jax.random.key(9), (16, E)) / 4
  logits = layers.skew(x, {'w': w}, E, s) @ w
  np.testing.assert_allclose(
    logits, layers.zipf_logits(x.shape[:2], E, s), atol=1e-4
  )
  load = np.bincount(np.asarray(logits.argmax(-1)).ravel(), minlength=E)
  law = 1.0 / np.arange(1, E + 1)
  np.testing.assert_allclose(
    np.sort(load)[::-1] / 4096, law / law.sum(), atol=0.03
  )
  with pytest.raises(ValueError, match='needs E <= D, got E=32, D=16'):
    layers.skew(x, {'w': jnp.zeros((16, 32))}, 32, s)


@pytest.mark.parametrize(
  'pass_',
  [
    pytest.param('forward', marks=pytest.mark.slow),
    pytest.param('rows', marks=pytest.mark.slow),
    'weights',
  ],
)
def test_product_case(pass_):
  shape = products.Shape(4, 64, 8, 4, 'float32')
  row = cases.run(products.case(shape, 'zipf', pass_), 1, 0)
  assert not row['failed']
  found = row['candidates']
  assert {'plain', 'blocked', 'ragged_dot', 'loop'} <= set(found)
  assert found['blocked']['flops'] == 2 * 64 * 8 * 4
  assert found['blocked']['bytes'] == 4 * (64 * 12 + 4 * 32)


@pytest.mark.parametrize(
  ('platform', 'E', 'names'),
  [
    ('cpu', 8, {'blocked', 'loop', 'ragged_dot'}),
    ('cpu', 64, {'blocked', 'ragged_dot'}),
    ('gpu', 8, {'loop', 'ragged_dot', 'tokamax', 'triton'}),
    # Copies of the rows for 64 experts would not fit.
    ('gpu', 64, {'tokamax', 'triton'}),
    ('tpu', 64, {'megablox', 'ragged_dot'}),
  ],
)
def test_products_of_a_platform(monkeypatch, platform, E, names):
  monkeypatch.setattr(jax, 'default_backend', lambda: platform)
  case = products.case(products.Shape(E, 64, 8, 4), 'uniform', 'forward')
  plain = {cases.MATMUL, cases.COPY, 'plain'}
  assert {c.name for c in case.candidates} == names | plain


def test_product_sizes():
  shape = products.Shape(4, 50, 8, 4)
  assert products.sizes(shape, 'uniform').tolist() == [12, 13, 13, 12]
  zipf = products.sizes(shape, 'zipf')
  assert zipf.sum() == 50 and sorted(zipf)[::-1] == [24, 12, 8, 6]
  with pytest.raises(ValueError, match="load='even'; valid: uniform, zipf"):
    products.sizes(shape, 'even')


@pytest.mark.slow
def test_memory_without_the_router_and_no_array_of_all():
  """The one-hot dispatch has the array that the others lack."""
  (case, *_) = costs.memory(TOY)
  assert [c.name for c in case.candidates] == ['dropping', *layers.DROPLESS]
  _, facts = costs._memory('dropping', TOY, 4, 2, 8, 'scatter()').build()
  assert 0 < facts['beyond_router'] < facts['temporaries']
  message = r'as large as \[T, E, C\] = \[64, 4, 32\]'
  with pytest.raises(ValueError, match=message):
    costs._memory('einsum', TOY, 4, 2, 8, 'einsum()').build()


def test_step_flops_by_hand():
  """OLMoE: 6 FLOPs a token and active weight, and attention's products."""
  size = steps.OLMOE
  attention = 4 * 2048 * 2048
  experts = 8 * 3 * 2048 * 1024
  layer = attention + experts + 2048 * 64
  weights = 16 * layer + 2048 * 50304
  tokens = size.batch * 4096
  by_hand = 6 * tokens * weights + 3 * 4 * 16 * 2048 * 4096 * tokens
  assert steps.flops(size) == by_hand
  # "About 1.3B active, 7B total".
  *_, lay = steps.make(size, 'scatter()', 1.25, abstract=True)
  total = sum(leaf.size for leaf in lay.leaves())
  assert abs(total - 6.9e9) < 0.1e9 and abs(weights - 1.2e9) < 0.1e9


@pytest.mark.slow
def test_step_case():
  size = dataclasses.replace(
    steps.SMALL, layers=2, D=16, length=16, batch=2, E=4, K=2, F=8, vocab=32
  )
  row = cases.run(steps.suite(size)[0], 1, 0)
  assert not row['failed']
  for name in ('dropless', 'dropping'):
    facts = row['candidates'][name]['facts']
    assert abs(sum(facts['parts_percent'].values()) - 100) < 1
    assert {'experts', 'routing', 'attention'} <= facts['parts_percent'].keys()
  assert 'experts' not in row['candidates']['dense']['facts']['parts_percent']


@pytest.mark.slow
def test_compile_and_parallel_cases():
  tiny = dataclasses.replace(costs.COMPILED, layers=3, D=16, length=16, F=8)
  row = cases.run(costs.compilation(tiny)[0], 1, 0)
  assert not row['failed']
  assert row['candidates']['two steps']['facts'] == {'compiled_again': 0}
  with costs._Compilations() as count:
    jax.jit(lambda x: x * 3.25)(jnp.ones(5)).block_until_ready()
  assert count[0] > 0
  batch = dataclasses.replace(tiny, batch=8)
  case = costs.parallel(batch)[1]
  assert [c.name for c in case.candidates] == ['one device', *costs.MESHES]
  few = [case.candidates[0], case.candidates[2]]
  row = cases.run(dataclasses.replace(case, candidates=few), 1, 0)
  assert not row['failed'], row['failed']
  losses = [c['facts']['loss'] for c in row['candidates'].values()]
  np.testing.assert_allclose(losses, losses[0], rtol=1e-4)
