"""Planned loads, drops and advice, and their report."""

import dataclasses
import functools
import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import scipy.stats

from moe_jax import registry
from moe_jax.layers import moe
from moe_jax.parallel import mesh as mesh_lib
from moe_jax.planning import advice, comparison, dispatches, layers, loads
from moe_jax.runs import writers
from moe_jax.training import plans, seats
from tests import mains, test_plan_programs, tiny

ROOT = pathlib.Path(__file__).resolve().parents[1]


def moe_layer(E=8, router='switch()', **fields):
  return moe.MoE(
    num_experts=E,
    router=registry.build('routers', router),
    experts=registry.build('experts', 'mlp(d_ff=8)'),
    dispatch=registry.build('dispatch', 'scatter()'),
    **fields,
  )


def test_drops_of_alike_experts_are_binomial():
  """E[(Bin(T, 1 / E) - C)+] E / T."""
  E, T, C = 8, 128, 16
  made = moe_layer(E, capacity_factor=C * E / T)
  kept, wanted, dropped = seats.simulate(made, T, np.zeros((4, E)), seed=0)
  load = np.arange(T + 1)
  chance = scipy.stats.binom.pmf(load, T, 1 / E)
  want = (chance * np.maximum(load - C, 0)).sum() * E / T
  assert wanted.sum() == kept.shape[0] * kept.shape[1] * T
  np.testing.assert_array_equal(kept.sum(2) + dropped, T)
  np.testing.assert_allclose(dropped.mean() / T, want, rtol=0.1)


@pytest.mark.parametrize('K', [1, 2])
def test_recorded_loads_come_back(K):
  share_E = np.array([0.3, 0.25, 0.15, 0.1, 0.1, 0.05, 0.03, 0.02])
  rng = np.random.default_rng(0)
  mean_E = loads.popularity(share_E, K, rng)
  router = f'top_k(k={K})' if K > 1 else 'switch()'
  made = moe_layer(router=router, capacity_factor=None)
  kept, wanted, dropped = seats.simulate(made, 1024, mean_E[None], seed=1)
  np.testing.assert_array_equal(kept, wanted)
  assert not dropped.any()
  got_E = wanted.sum((0, 1)) / wanted.sum()
  np.testing.assert_allclose(got_E, share_E, atol=0.01)


def test_seats_follow_the_config():
  """No token left behind drops less than its first choices alone would."""
  mean_QE = np.linspace(0, 2, 8)[None]
  dropped = {
    router: seats.simulate(moe_layer(router=router), 256, mean_QE, 0)[2].mean()
    for router in ('switch()', 'no_token_left_behind()')
  }
  assert 0 < dropped['no_token_left_behind()'] < 0.8 * dropped['switch()']


def test_fate_by_loops():
  """Two devices of two experts, each with one group; every step is alike."""
  sizes = mesh_lib.exact(expert=2)
  layer = dataclasses.replace(
    test_plan_programs.Case('scatter()', E=4, T=8, K=1, B=1, L=8).planned()[0],
    mesh=sizes,
    capacity=6,
  )
  kept = np.array([[[6, 1, 0, 1]]])
  of = lambda spec: loads.fate(kept, layer, plans.dispatch(spec), seed=0)
  padded = of('scatter(pipeline_degree=4)')
  assert padded['empty'] == padded['unused'] == 1 - 8 / 32
  assert padded['clipped'] == 0
  ragged = of('ragged_all_to_all(buffer_factor=1.0)')
  # 7 rows of each group go to the first device, which has room for 8.
  assert ragged['clipped'] == 6 / 16 and ragged['empty'] == 0
  assert ragged['buffer_factor'] == 14 / 8
  assert ragged['unused'] == 0
  fits = of('ragged_all_to_all(buffer_factor=1.75)')
  assert fits['clipped'] == 0 and fits['unused'] == 1 - 16 / 28


def test_loads_of_a_run(tmp_path):
  """The last tenth of the steps, by layer; a workdir or its file."""
  with writers.Writer(tmp_path) as w:
    for step in range(1, 21):
      load = [[1, 3], [0.5, 0.5]] if step > 18 else [[1, 0], [1, 0]]
      w.write(step, {'loss': 1.0, 'moe/load': load, 'moe/layers': [1, 3]})
    w.write(21, {'eval/loss': 1.0})
  for path in (tmp_path, tmp_path / 'metrics.jsonl'):
    np.testing.assert_allclose(
      loads.read(str(path)), [[0.25, 0.75], [0.5, 0.5]]
    )
  plain = tmp_path / 'plain.json'
  plain.write_text('[[1, 1, 2]]')
  np.testing.assert_allclose(loads.read(str(plain)), [[0.25, 0.25, 0.5]])


@pytest.mark.parametrize(
  ('text', 'message'),
  [
    ('[[1, 2], [3]]', 'entry 1: loads must be a list of lists'),
    ('[[1, -2]]', 'not below 0'),
    ('[[0, 0]]', 'not all 0'),
    ('[1, 2]', 'list of lists'),
    ('{"moe/load": [[1]]}\n{"moe/load": [[1, 2]]}', 'entry 2: loads change'),
    ('{"loss": 1}', 'no loads'),
    ('{"loss": 1}\n{"a', 'line 2: broken JSON'),
  ],
)
def test_loads_that_are_none(tmp_path, text, message):
  path = tmp_path / 'loads.json'
  path.write_text(text)
  with pytest.raises(ValueError, match=message):
    loads.read(str(path))


@pytest.mark.parametrize(
  ('overrides', 'flags', 'message'),
  [
    ({'moe.layers': 'none'}, {}, "moe.layers='none': no layer has experts"),
    ({}, {'skew': -1.0}, 'skew=-1.0 must be'),
    ({}, {'loads': '[[1, 1]]'}, r'loads of 2 experts; .*\.num_experts=4'),
    ({}, {'loads': '[[1, 1, 1, 1], [1, 1, 1, 1]]'}, 'has loads of 2 layers'),
    ({}, {'mesh_spec': 'exact(expert=3)'}, 'num_experts=4 is not divisible'),
  ],
)
def test_comparison_refuses(tmp_path, overrides, flags, message):
  if 'loads' in flags:
    path = tmp_path / 'loads.json'
    path.write_text(flags['loads'])
    flags = {'loads': str(path)}
  with pytest.raises(ValueError, match=message):
    plans.compare(tiny.config(**overrides), **flags)


# Advice, and all of it together.


@functools.cache
def plan(mesh, cpu=False, **overrides):
  return plans.compare(tiny.config(**overrides), mesh, cpu=cpu)


TOP_2 = {'moe.router': 'top_k(k=2)', 'moe.seating': 'token_major()'}
DROPLESS = {'moe.capacity_factor': 0.0}


@pytest.mark.parametrize(
  ('mesh', 'overrides', 'cpu', 'name', 'why'),
  [
    ('exact(data=2)', {}, False, 'gather_reduce', 'size 1 exchanges nothing'),
    ('exact(expert=4)', {}, False, 'scatter', 'no receiver can overflow'),
    ('exact(expert=4)', DROPLESS, False, 'ragged_all_to_all', 'only rows that'),
    ('exact(expert=4)', DROPLESS, True, 'gather_reduce', ''),
    (
      'exact(expert=2)',
      {'moe.router': 'top_k(k=4)', 'moe.capacity_factor': 1.0},
      False,
      'gather_reduce',
      'S = 2, K = 4',
    ),
  ],
)
def test_advice(mesh, overrides, cpu, name, why):
  stack = plan(mesh, cpu, **overrides)['stacks']['decoder']
  assert stack['recommended'] == name and why in stack['because']


def test_advice_names_a_buffer_that_holds_all():
  stack = plan('exact(expert=4)', **DROPLESS)['stacks']['decoder']
  figures = json.loads(json.dumps(stack['algorithms']))
  figures['ragged_all_to_all'] |= {'clipped': 0.01, 'buffer_factor': 2.31}
  layer = layers.Layer(**stack['layer'])
  _, why = advice.recommend(layer, figures, cpu=False)
  assert 'clips 1 % of the rows here: buffer_factor=2.4 holds' in why


def test_comparison_is_that_of_the_config():
  spec = 'ragged_all_to_all(buffer_factor=1.5)'
  made = plan('exact(data=2, expert=2)', **TOP_2, **{'moe.dispatch': spec})
  stack = made['stacks']['decoder']
  found = stack['algorithms']
  assert found['ragged_all_to_all']['options']['buffer_factor'] == 1.5
  # 2 groups of 16 tokens on a device, 2 choices, 8 rows for each expert.
  rows = {k: v['rows']['held'] for k, v in found.items()}
  assert rows == {
    'einsum': 4 * 2 * 8,
    'scatter': 64,
    'gather_reduce': 2 * 2 * 16,
    'ragged_all_to_all': 64,
  }
  worst = {k: v['rows']['worst'] for k, v in found.items()}
  assert worst['scatter'] == 4 * 2 * 16
  assert worst['ragged_all_to_all'] == worst['gather_reduce'] == 2 * 2 * 32
  described = plans.describe(
    tiny.config(**TOP_2, **{'moe.dispatch': spec}), 'exact(data=2, expert=2)'
  )
  wire = found['ragged_all_to_all']['wire']
  assert described['all_to_all'] == wire
  assert described['buffers']['decoder']['rows'] == 64


def test_text_is_aligned():
  made = plan('exact(data=2, expert=2)', **TOP_2)
  text = comparison.text(made)
  assert max(map(len, text.splitlines())) <= 130
  for block in text.split('\n\n'):
    if block.startswith('buffers'):
      _, rule, *rows = block.splitlines()
      assert {len(r) for r in rows} == {len(rule)}, block
  for name in dispatches.ALGORITHMS:
    assert f'\nbuffers of {name} ' in text
  assert 'scatter (config)' in text and 'simulated, skew 0.5' in text
  assert 'Recommended for the decoder' in text
  assert '\nbuffers of einsum' not in comparison.text(made, buffers=False)


def test_program():
  flags = (
    '--config=configs/st_moe.py:32b',
    '--mesh=data=8,expert=16',
    '--json',
  )
  result, out = mains.call('plan', *flags)
  assert not result
  made = json.loads(out)
  assert made['devices'] == 128 and set(made['stacks']) == {
    'encoder',
    'decoder',
  }
  stack = made['stacks']['encoder']
  # Capacity 1.25 of one choice, where two are made.
  assert stack['dropped'] > 1 - 1.25 / 2
  assert stack['algorithms']['scatter']['rows']['held'] == 64 * 2 * 80


def test_program_fails_in_one_line():
  flags = ('--config=configs/quickstart.py', '--mesh=rows=2')
  done = subprocess.run(
    [sys.executable, '-m', 'experiments.plan', *flags],
    cwd=ROOT,
    capture_output=True,
    text=True,
    timeout=120,
  )
  assert done.returncode == 1 and not done.stdout
  assert done.stderr.startswith(
    "error: unknown argument of mesh 'exact' 'rows'"
  )
  assert done.stderr.count('\n') == 1
