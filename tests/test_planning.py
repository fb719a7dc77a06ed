"""Parameters, FLOPs and bytes by hand and against real arrays."""

import dataclasses
import json
import pathlib
import re
import subprocess
import sys

import jax
import numpy as np
import pytest

from moe_jax.parallel import mesh as mesh_lib, rules
from moe_jax.planning import (
  counts,
  layers as planned_layers,
  memory,
  report,
  traffic,
)
from moe_jax.training import plans, state as state_lib
from tests import mains, tiny

ROOT = pathlib.Path(__file__).resolve().parents[1]
ENCODER_DECODER = {
  'model.kind': 'encoder_decoder',
  'model.positions': 'relative',
  'model.qk_norm': False,
  'data.objective': 'span_corruption()',
  'data.seq_len': 32,
}
DECODER = 'moe.decoder.'


def small(**overrides):
  """tiny.config; 'moe.decoder.x' gives the decoder a field of its own."""
  own = {k: v for k, v in overrides.items() if k.startswith(DECODER)}
  config = tiny.config(**{k: v for k, v in overrides.items() if k not in own})
  with config.unlocked():
    for k, v in own.items():
      config.moe.decoder[k.removeprefix(DECODER)] = v
  return config


def test_flops_of_a_decoder_by_hand():
  """PaLM's 6 N + 12 n H J L; N = n (4 D H J + 2 D F) + D V."""
  session = plans.make(small(**{'moe.layers': 'none'}), 'exact()')
  D, HJ, F, n, L, V = 16, 16, 32, 2, 16, 384
  want = 6 * (n * (4 * D * HJ + 2 * D * F) + D * V) + 12 * n * HJ * L
  assert session.flops_per_token() == want
  plan = plans.describe(session.config)
  assert plan['flops_per_token'] == plan['flops_per_target_token'] == want


def test_flops_by_token_of_two_stacks():
  plan = plans.describe(small(**ENCODER_DECODER | {'moe.layers': 'none'}))
  assert plan['tokens_per_sequence'] == {'encoder': 32, 'decoder': 8}
  step = 3 * plan['flops_per_sequence_forward']
  assert plan['flops_per_token'] == step / 40
  assert plan['flops_per_target_token'] == step / 8
  assert plan['flops_per_step'] == step * 8


def test_dense_twin_has_the_same_active_flops():
  flops = []
  for layers in ('every_2', 'none'):
    session = plans.make(small(**{'moe.layers': layers}), 'exact()')
    leaves = [w for w in session.leaves() if w.part != 'router']
    flops.append(counts.forward_flops(leaves, session.work(), True))
  assert flops[0] == flops[1]


def test_active_parameters_by_hand():
  overrides = {'moe.decoder.router': 'top_k(k=3)', 'moe.capacity_factor': 0.0}
  session = plans.make(small(**ENCODER_DECODER | overrides), 'exact()')
  share = session.expert_share()
  assert share == {'encoder': 0.25, 'decoder': 0.75}
  leaves = session.leaves()
  one = 4 * 2 * 16 * 32  # the experts of the one sparse layer of a stack
  dense = counts.parameters(leaves) - 2 * one
  assert counts.active_parameters(leaves, share) == dense + one
  parts = counts.parts(leaves, share)
  assert parts['experts'] == {'total': 2 * one, 'active': one}
  assert sum(p['total'] for p in parts.values()) == counts.parameters(leaves)
  assert parts['cross-attention']['total'] == 2 * 4 * 16 * 16
  assert parts['norms']['total'] == (2 * 2 + 2 * 3 + 2) * 16
  assert 'other' not in parts


SCATTER, GATHER = 'scatter()', 'gather_reduce()'


def test_no_expert_axis_no_exchange():
  plan = plans.describe(small(), 'exact(data=2)')
  assert plan['buffers'] and set(plan['all_to_all'].values()) == {0}


def test_micro_batches_add_up():
  moved, groups = [], []
  for n in (1, 4):
    config = small(**{'train.accumulate': n})
    moved.append(plans.describe(config, 'exact(expert=2)')['all_to_all'])
    layer = plans.layers(plans.make(config, 'exact(expert=2)'))['decoder']
    groups.append((layer.micro_batches, layer.groups))
  assert moved[0] == moved[1] and groups == [(1, 4), (4, 1)]


def planned(mesh, **fields):
  """3 layers of 4 experts, 2 groups of 10 tokens and edges, 6 wide."""
  sizes = {'data': 3, 'fsdp': 2, 'expert': 4, 'model': 5} | mesh
  found = planned_layers.Layer(
    **dict(layers=3, micro_batches=1, groups=2, tokens=10, edges=10),
    **dict(choices=1.0, experts=4, capacity=5, most=10, width=6, hidden=8),
    **dict(products=96, inner=48, outer=48, kept=2, made=1),
    **dict(itemsize=2, mesh=sizes),
  )
  return dataclasses.replace(found, **fields)


def test_bytes_by_hand():
  mesh = {'data': 3, 'fsdp': 2, 'expert': 4, 'model': 5}
  spec = ('expert', None, ('fsdp', 'model'))
  assert memory.shard_bytes((8, 7, 20), 2, spec, mesh) == 8 * 7 * 20 * 2 // 40
  assert memory.shard_bytes((8, 7), 4, (), mesh) == 8 * 7 * 4
  # 3 layers of 4 x 2 x 5 rows of 6 x 2 bytes, four or six times.
  rows = planned({}), plans.dispatch('scatter()')
  moved = traffic.wire([rows, rows], recomputed=False)
  assert moved['payload_per_device'] == 2 * 4 * 3 * 40 * 12
  assert moved['leaving_per_device'] == moved['payload_per_device'] * 3 // 4
  assert moved['worst_per_device'] == moved['leaving_per_device']
  assert moved['leaving_total'] == moved['leaving_per_device'] * 120
  again = traffic.wire([rows, rows], recomputed=True)
  assert again['payload_per_device'] == moved['payload_per_device'] * 3 // 2


def test_bytes_of_stages_and_chunks_by_hand():
  """Rows are padded to whole chunks; a stage leaves out one of its devices."""
  of = lambda spec, layer: traffic.wire([(layer, plans.dispatch(spec))], False)
  once = 3 * 4 * 2 * 6 * 12  # 3 layers of 4 experts x 2 groups x 6 rows
  chunks = of('scatter(pipeline_degree=3)', planned({}))
  assert chunks['payload_per_device'] == 4 * once
  layer = planned({'expert': 8}, experts=8, capacity=6)
  stages = of('scatter(host=2)', layer)
  assert stages['payload_per_device'] == 2 * 4 * 2 * once
  assert stages['leaving_per_device'] == 4 * 2 * once * (1 / 2 + 3 / 4)
  whole, plain = of('scatter(host=8)', layer), of('scatter()', layer)
  assert whole == plain


def test_worst_bytes_are_of_the_fallback_where_it_is_more():
  wide = planned({'expert': 4}, width=64)
  gather = traffic.wire([(wide, plans.dispatch('gather_reduce()'))], True)
  spec = "ragged_all_to_all(buffer_factor=1.0, overflow='{}')"
  moved = {
    k: traffic.wire([(wide, plans.dispatch(spec.format(k)))], False)
    for k in ('drop', 'gather_reduce')
  }
  assert moved['drop']['worst_per_device'] < gather['worst_per_device']
  worst = moved['gather_reduce'].pop('worst_per_device')
  assert worst == gather['worst_per_device']
  del moved['drop']['worst_per_device']
  assert moved['drop'] == moved['gather_reduce']


def test_bytes_per_device_are_those_of_real_arrays():
  config = small(
    **{
      'train.optimizer': 'adafactor(min_dim=16)',
      'moe.balance': ('loss_free_bias()',),
    }
  )
  spec = 'exact(fsdp=2, expert=2, model=2)'
  plan, session = plans.describe(config, spec), plans.make(config, spec)
  mesh = mesh_lib.make(dict(session.mesh.shape))
  where = rules.shardings(
    mesh, state_lib.specs(session.tx, session.layout, mesh)
  )
  zeros = lambda x, s: jax.device_put(np.zeros(x.shape, x.dtype), s)
  state = jax.tree.map(zeros, session.abstract_state, where)
  held = lambda tree: sum(
    x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(tree)
  )
  found = plan['bytes_per_device']
  assert found['parameters'] == found['gradients'] == held(state.params)
  assert found['optimizer_state'] == held(state.opt_state)
  assert found['balance_state'] == held(state.balance) > 0
  listed = [p['bytes_per_device'] for p in plan['parameters']]
  assert sum(listed) == found['parameters']
  shapes = [tuple(p['shape']) for p in plan['parameters']]
  assert shapes == [x.shape for x in jax.tree.leaves(state.params)]


@pytest.mark.parametrize(
  ('overrides', 'mesh', 'message'),
  [
    ({}, 'exact(data=3)', 'train.batch_size=8 is not divisible by 3'),
    ({}, 'exact(expert=8)', 'num_experts=4 is not divisible'),
    ({}, 'exact(model=3)', 'model.num_heads=2 is not divisible'),
    ({}, 'auto()', "unknown mesh 'auto'; valid: exact"),
    ({'moe.group_size': 24}, 'exact()', 'moe.group_size=24 does not divide'),
    ({'moe.router': 'swich()'}, 'exact()', "did you mean 'switch'?"),
  ],
)
def test_what_does_not_fit_is_named(overrides, mesh, message):
  with pytest.raises(ValueError, match=re.escape(message)):
    plans.describe(small(**overrides), mesh)


def test_text_is_aligned_and_complete():
  plan = plans.describe(small(), 'exact(data=2, expert=4)')
  lines = report.text(plan, parameters=True).splitlines()
  assert max(map(len, lines)) <= 140
  blocks = report.text(plan).split('\n\n')
  assert len(blocks) == 4
  for block in blocks:
    _, rule, *rows = block.splitlines()
    assert set(rule) == {'-'} and {len(r) for r in rows} == {len(rule)}, block
  total = f'{plan["params_total"]:,}'
  assert re.search(rf'^all +{total} +100\.00', blocks[0], re.M)
  for name in plan['parts']:
    assert f'\n{name}  ' in blocks[0]
  assert '8 devices: data=2 fsdp=1 expert=4 model=1' in blocks[2]
  assert re.search(r'decoder \(scatter\) +16 x D 16 x 4 B', blocks[3])
  row = next(r for r in lines if 'experts/wi ' in r)
  assert re.search(r'4 x 16 x 32 +float32 +.*expert embed mlp .*expert', row)


@pytest.mark.parametrize(
  ('value', 'si', 'binary'),
  [
    (1536, '0.001536 M', '1.5 KiB'),
    (2.5e12, '2.5 T', '2.274 TiB'),
    (1e3, '0.001 M', '1000 B'),
  ],
)
def test_units(value, si, binary):
  assert (report.si(value), report.binary(value)) == (si, binary)


def test_program():
  """One JSON object on stdout; on a mesh of 512 devices that are not there."""
  result, out = mains.call(
    *('describe', '--config=configs/st_moe.py:32b', '--json'),
    '--mesh=exact(data=8, expert=16, model=4)',
  )
  assert not result
  plan = json.loads(out)
  assert plan['params_total'] == 269_104_613_376
  assert plan['mesh'] == {'data': 8, 'fsdp': 1, 'expert': 16, 'model': 4}
  wi = [p for p in plan['parameters'] if p['path'].endswith('experts/wi_up')]
  assert [p['shape'] for p in wi] == [[6, 64, 5120, 20480]] * 2
  assert wi[0]['spec'] == [None, 'expert', None, 'model']
  assert wi[0]['bytes_per_device'] == 6 * 64 * 5120 * 20480 * 4 // 64
  # Two stacks of 6 layers, 16 sequences a device; capacities are 1.25 T / 64.
  rows = 64 * 6 * 5120 * (2 * 80 + 2 * 18)
  assert plan['all_to_all']['payload_per_device'] == 6 * 2 * rows
  found = 6 * 2 * rows * 15 // 16 * 512
  assert plan['all_to_all_bytes_per_step'] == found


def test_program_fails_in_one_line():
  flags = ('--config=configs/quickstart.py', '--mesh=exact(data=3)')
  done = subprocess.run(
    [sys.executable, '-m', 'experiments.describe', *flags],
    cwd=ROOT,
    capture_output=True,
    text=True,
    timeout=120,
  )
  assert done.returncode == 1 and not done.stdout
  assert re.fullmatch(r'error: train\.batch_size=64 is not .*\n', done.stderr)


def test_traffic_of_unknown_dispatches_is_not_counted():
  """Those of other rooms, and the oracle, which gathers weights."""
  found = {}
  for spec in ('ragged_all_to_all()', 'scatter(host=2)', GATHER, 'dense()'):
    config = tiny.config(**{'moe.dispatch': spec})
    plan = plans.describe(config, 'exact(data=2, expert=4)')
    found[spec] = plan['all_to_all_bytes_per_step']
    assert ('not counted' in report.text(plan)) == (found[spec] is None)
  assert found.pop('dense()') is None and all(found.values())
