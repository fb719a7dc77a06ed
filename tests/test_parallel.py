"""Meshes, sharding rules, several processes."""

import json
import os
import pathlib
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from moe_jax.models import factory
from moe_jax.parallel import (
  axes,
  distributed,
  mesh as mesh_lib,
  rules,
)
from moe_jax.problems import base as problems
from moe_jax.training import session as session_lib
from tests import tiny


@pytest.mark.parametrize(
  ('spec', 'devices', 'experts', 'sizes'),
  [
    ('auto()', 8, 8, (1, 1, 8, 1)),
    ('auto()', 8, 4, (2, 1, 4, 1)),
    ('auto()', 8, 6, (4, 1, 2, 1)),
    ('auto()', 8, 0, (8, 1, 1, 1)),
    ('auto', 1, 8, (1, 1, 1, 1)),
    ('auto(expert=4)', 8, 8, (2, 1, 4, 1)),
    ('auto(expert=4)', 1, 8, (1, 1, 1, 1)),
    ('auto(expert=4)', 6, 8, (3, 1, 2, 1)),
    ('auto(expert=2, fsdp=2, model=2)', 8, 8, (1, 2, 2, 2)),
    ('exact(data=2, expert=4)', 8, 8, (2, 1, 4, 1)),
    ('exact(expert=8)', 8, 0, (1, 1, 8, 1)),
  ],
)
def test_mesh_shapes(spec, devices, experts, sizes):
  got = mesh_lib.shape(spec, devices, experts)
  assert tuple(got[a] for a in axes.MESH_AXES) == sizes


@pytest.mark.parametrize(
  ('spec', 'experts', 'message'),
  [
    ('exact(data=3)', 8, 'needs 3 devices, found 8'),
    ('exact(expert=8)', 4, 'num_experts=4 .* size 8; sizes that do: 1, 2, 4'),
    ('auto(expert=4)', 6, 'num_experts=6 .* size 4; sizes that do: 1, 2'),
    ('auto(expert=-1)', 8, 'expert=-1 must be a whole number'),
    ('auto(tensor=2)', 8, "'tensor'; valid: expert, fsdp, model"),
    ('ring()', 8, "unknown mesh 'ring'; valid: auto, exact"),
  ],
)
def test_mesh_errors(spec, experts, message):
  with pytest.raises(ValueError, match=message):
    mesh_lib.shape(spec, 8, experts)


def test_a_mesh_that_need_not_exist_takes_any_size():
  sizes = mesh_lib.shape('exact(data=3, expert=16)', None, 32)
  assert sizes == mesh_lib.exact(data=3, expert=16)
  with pytest.raises(ValueError, match=r'sizes that do: 1, 2, 4, 8, 16, 32$'):
    mesh_lib.shape('exact(expert=5)', None, 32)
  with pytest.raises(ValueError, match="unknown mesh 'auto'; valid: exact"):
    mesh_lib.shape('auto()', None, 32)


def test_one_mesh_axis_shards_one_dimension():
  shape = dict(data=2, fsdp=2, expert=2, model=1)
  assert rules.spec(('batch', None), shape) == P(
    ('data', 'fsdp', 'expert'), None
  )
  assert rules.spec(('expert', 'embed', 'mlp'), shape) == P(
    'expert', 'fsdp', None
  )
  assert rules.spec(('embed', 'embed'), shape) == P('fsdp', None)


def test_parameters_live_where_the_table_says():
  config = tiny.config(mesh='auto(expert=2, fsdp=2, model=2)')
  mesh = mesh_lib.make(mesh_lib.shape(config.mesh, 8, 4))
  model = factory.make(config, 384, mesh)
  from moe_jax.training import state

  problem = problems.of(config)
  lay = state.layout(model, session_lib.dummy(config, problem, mesh))
  where = rules.specs(lay.axes, lay.params, mesh.shape)
  moe = where['decoder'][
    'suffix_0' if 'suffix_0' in where['decoder'] else 'prefix_1'
  ]['moe']
  assert moe['experts']['wi'] == P('expert', 'fsdp', 'model')
  assert moe['experts']['wo'] == P('expert', 'model', 'fsdp')
  assert moe['router']['kernel'] == P(None, None)
  assert where['embedding']['table'] == P('model', 'fsdp')


def test_indivisible_parameter_is_named():
  shapes = {'wi': jax.ShapeDtypeStruct((4, 16, 30), 'float32')}
  logical = {'wi': ('expert', 'embed', 'mlp')}
  mesh_shape = dict(data=2, fsdp=1, expert=1, model=4)
  with pytest.raises(ValueError, match=r"'wi'.*\(mlp, 30\) is not divisible"):
    rules.specs(logical, shapes, mesh_shape)


@pytest.mark.parametrize(
  ('overrides', 'message'),
  [
    ({'train.batch_size': 12}, 'train.batch_size=12 .* by 8 .* 8, 16, 32'),
    ({'train.accumulate': 2}, 'train.batch_size=8 .* by 16'),
    ({'eval.batch_size': 4}, 'eval.batch_size=4 is not divisible by 8'),
    ({'moe.group_size': 12}, 'group_size=12 does not divide the 16 tokens'),
    ({'moe.num_experts': 6}, 'num_experts=6 is not divisible'),
    (
      {'moe.d_ff': 31, 'mesh': 'auto(expert=4, model=2)'},
      "moe.d_ff=31 is not divisible by the mesh axis 'model' of size 2",
    ),
    (
      {'model.num_heads': 3, 'mesh': 'auto(expert=4, model=2)'},
      "model.num_heads=3 is not divisible by the mesh axis 'model'",
    ),
    ({'model.kind': 'encoder'}, "unknown model.kind 'encoder'; valid: decoder"),
    ({'model.kind': 'encoder_decoder'}, "wants 'span_corruption'"),
    ({'model.d_head': 7}, 'd_head=7 must be even'),
    ({'model.remat': 'some'}, "remat='some'; valid: none, full"),
    ({'model.positions': 'learned'}, "'learned'; valid: none, relative, rope"),
    ({'model.dtype': 'float16'}, "'float16'; valid: bfloat16, float32"),
    ({'moe.dense_branch': 'x'}, "'x'; valid: gated, none, shared"),
    ({'moe.router': 'top_k(k=5)'}, 'k=5 exceeds num_experts=4'),
    ({'moe.layers': 'every_3'}, "'every_3' makes none of 2 layers sparse"),
    ({'moe.capacity_factor': -1.0}, 'moe.capacity_factor is -1.0'),
    ({'moe.balance': ('z_loss()', 'z_loss()')}, 'z_loss twice'),
    (
      {'train.optimizer': 'adam()'},
      "unknown optimizer 'adam'; valid: adaf",
    ),
    ({'train.schedule': 'linear()'}, "unknown schedule 'linear'"),
    ({'data.tokenizer': 'words()'}, "unknown tokenizer 'words'"),
    (
      {'model.vocab_size': 100},
      r'vocab_size=100 is less than the 384 ids of data.tokenizer=.bytes',
    ),
    ({'moe.seating': 'first()'}, "unknown seating 'first'; valid: batch_"),
    ({'moe.capacity_rule': 'x()'}, "unknown capacity rule 'x'; valid: fixed"),
    ({'moe.router': 'top_k()'}, 'this MoE layer is not causal'),
  ],
)
def test_plan_refuses(overrides, message):
  """Before any data is read and anything is written."""
  with pytest.raises(ValueError, match=message):
    session_lib.plan(tiny.config(**overrides))


@pytest.mark.parametrize(
  ('rows', 'model', 'want'), [(0, 1, 384), (0, 5, 385), (400, 1, 400)]
)
def test_vocabulary(rows, model, want):
  """The tokenizer's ids, padded for the `model` axis, or as many as asked."""
  config = tiny.config(**{'model.vocab_size': rows})
  mesh = mesh_lib.abstract(mesh_lib.exact(model=model))
  assert problems.of(config).vocabulary(mesh) == want


def test_process_flags_go_together():
  for given in (('a:1', 0, -1), ('', 2, 0), ('a:1', 2, -1)):
    with pytest.raises(ValueError, match='go together'):
      distributed.start(8, *given)
  with pytest.raises(ValueError, match='process_id=2; valid: 0 to 1'):
    distributed.start(8, 'a:1', 2, 2)
  with pytest.raises(ValueError, match='cpu_devices=7 is not divisible'):
    distributed.start(7, 'a:1', 2, 0)


CHILD = """
import sys
import jax
from moe_jax.parallel import distributed
from moe_jax.problems import base as problems
distributed.start(8, *sys.argv[1:2], *map(int, sys.argv[2:4]))
sys.path.insert(0, sys.argv[4])
from moe_jax.training import loop
from tests import tiny
config = tiny.config(**{
  'data.name': 'text_files', 'data.dir': sys.argv[5], 'data.cache': sys.argv[6],
  'train.steps': 3, 'train.checkpoint_every': 3,
  'train.check_replicas_every': 1})
summary = loop.train(config, sys.argv[7])
if jax.process_index() == 0:
  print('RESULT', summary['eval/loss'], summary['eval/bits_per_byte'])
"""


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path):
  """Three steps on two processes of four devices: the same losses and loads."""
  (tmp_path / 'text').mkdir()
  rng = np.random.default_rng(0)
  for domain in 'ab':
    text = [bytes(rng.choice(list(b'abcde '), 200).tolist()) for _ in range(60)]
    (tmp_path / 'text' / f'{domain}.txt').write_bytes(b'\n\n'.join(text))
  with socket.socket() as s:
    s.bind(('localhost', 0))
    address = f'localhost:{s.getsockname()[1]}'
  root = str(pathlib.Path(__file__).parents[1])
  common = [root, str(tmp_path / 'text'), str(tmp_path / 'cache')]

  def start(address, count, index, workdir):
    env = {k: v for k, v in os.environ.items() if k != 'XLA_FLAGS'}
    return subprocess.Popen(
      [sys.executable, '-c', CHILD, address, str(count), str(index), *common,
       str(tmp_path / workdir)],
      stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env,
      cwd=root,
    )  # fmt: skip

  results = []
  for workdir, jobs in (
    ('one', [('', 0, -1)]),
    ('two', [(address, 2, 0), (address, 2, 1)]),
  ):
    running = [start(*job, workdir) for job in jobs]
    for p in running:
      out, err = p.communicate(timeout=300)
      assert p.returncode == 0, err[-3000:]
      for line in out.splitlines():
        if line.startswith('RESULT'):
          results.append([float(v) for v in line.split()[1:]])
  np.testing.assert_allclose(results[0], results[1], rtol=1e-6)
  rows = []
  for workdir in ('one', 'two'):
    lines = (tmp_path / workdir / 'metrics.jsonl').read_text().splitlines()
    rows.append([json.loads(line) for line in lines])
  for one, two in zip(*rows):
    assert one['moe/load'] == two['moe/load']
    assert one['moe/dropped'] == two['moe/dropped']
    np.testing.assert_allclose(one['loss'], two['loss'], rtol=1e-6)
  assert jax.process_count() == 1
