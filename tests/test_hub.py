"""Open models' folders: to the last bit, a slice at a time, all accounted."""

import json
import pathlib
import re
import subprocess
import sys
import tracemalloc

import jax
import numpy as np
import pytest

from moe_jax.conversion import hub, reading, tensors, writing
from moe_jax.errors import UserError
from tests import hub_folders as folders

ROOT = pathlib.Path(__file__).parents[1]


def load(directory):
  """Folder, what fills its leaves, and these."""
  found = hub.opened(directory)
  return found, *folders.load(found)


SIZES = {'D': 4, 'H': 2, 'J': 3, 'E': 2, 'F': 5, 'G': 2}
# Theirs, ours, what is picked, and by NumPy the same.
LAYOUTS = {
  'turned': ('F D', 'D F', {}, lambda v: v.T),
  'heads': ('HJ D', 'D H J', {}, lambda v: v.T.reshape(4, 2, 3)),
  'out': ('D HJ', 'H J D', {}, lambda v: v.T.reshape(2, 3, 4)),
  'halves': ('E D GF', 'E D F', {'G': 1}, lambda v: v[..., 5:]),
  'in_turn': ('E D FG', 'E D F', {'G': 1}, lambda v: v[..., 1::2]),
  'memory': (
    *('E GF D', 'E D F', {'G': 0}),
    lambda v: v[:, :5].transpose(0, 2, 1),
  ),
}


@pytest.mark.parametrize('layout', LAYOUTS)
def test_a_slice_of_ours_is_a_slice_of_theirs(layout):
  """Of a leaf, whole and in parts; no more is read than the rows of it."""
  axes, ours, pick, wanted = LAYOUTS[layout]
  part = tensors.Part('x', ours, pick=pick)
  t = tensors.Tensor('x', axes, (part,), SIZES)
  value = np.arange(np.prod(t.shape)).reshape(t.shape)
  asked = []

  def read(slices):
    asked.append(np.prod([s.stop - s.start for s in slices]))
    return value[slices]

  whole = tuple(slice(0, n) for n in t.ours(part))
  np.testing.assert_array_equal(t.read(part, whole, read), wanted(value))
  for axis, n in enumerate(t.ours(part)):
    half = list(whole)
    half[axis] = slice(1, n)
    np.testing.assert_array_equal(
      t.read(part, tuple(half), read), wanted(value)[tuple(half)]
    )
  out = np.full(t.shape, -1)
  t.write(part, out, wanted(value))
  np.testing.assert_array_equal(wanted(out), wanted(value))
  assert (out == value).sum() == wanted(value).size == (out >= 0).sum()
  # The first axis halved: half is read, where nothing is in turn.
  first = asked[1] / asked[0]
  letter = ours.split()[0]
  lies_first = any(w[0] == letter for w in axes.split())
  assert not lies_first or first < 1


@pytest.mark.parametrize('case', folders.CASES)
def test_theirs_to_ours_to_theirs(tmp_path, case):
  """bfloat16 tensors in three files, and again in files of 2 kB."""
  said = folders.config(case)
  old = folders.write(tmp_path / 'a', said, folders.tensors(said), shards=3)
  found, own, leaves = load(old)
  assert found.dtype == 'bfloat16'
  theirs = hub.read(json.loads((old / 'config.json').read_text()))[1]
  new = tmp_path / 'b'
  writing.save(
    *(new, found.table, writing.parts(leaves, own), theirs),
    dtype='bfloat16',
    max_shard=2000,
  )
  folders.same_bits(folders.stored(old), folders.stored(new))
  index = json.loads((new / 'model.safetensors.index.json').read_text())
  assert index['weight_map'].keys() == folders.stored(old).keys()
  sizes = [f.stat().st_size for f in new.glob('*.safetensors')]
  assert len(sizes) > 2 and index['metadata']['total_size'] < sum(sizes)
  # And ours again, from what was written of other numbers in float32.
  rng = np.random.default_rng(1)
  ours = {
    k: rng.standard_normal(v.shape, np.float32) for k, v in leaves.items()
  }
  last = tmp_path / 'c'
  writing.save(last, found.table, writing.parts(ours, own), said)
  folders.same_bits(ours, load(last)[2])


@pytest.mark.parametrize('case', ['olmoe', 'mixtral_8x7b', 'granite_1b_a400m'])
def test_stacked_experts_of_memory_are_read(tmp_path, case):
  said = folders.config(case)
  family, c = hub.read(said)
  values = folders.tensors(said, 'float32', memory=True)
  found, _, leaves = load(folders.write(tmp_path / 'a', said, values))
  whole = values[next(n for n in values if n.endswith('experts.gate_up_proj'))]
  F = whole.shape[1] // 2
  path = next(k for k in leaves if k.endswith('moe/experts/wi_up'))
  np.testing.assert_array_equal(leaves[path], whole[:, F:].swapaxes(1, 2))
  # The hub's layout holds the same numbers.
  assert {p.path for t in family.table(c) for p in t.parts} == {
    p.path for t in found.table for p in t.parts
  }


def test_experts_are_read_one_at_a_time(tmp_path):
  """Beside the result, less than two experts are in memory."""
  said = folders.config(
    'gpt_oss_20b',
    hidden_size=64,
    intermediate_size=64,
    num_local_experts=32,
    num_hidden_layers=1,
  )
  values = folders.tensors(said, 'float16')
  directory = folders.write(tmp_path / 'a', said, values)
  found = hub.opened(directory)
  shapes = folders.shapes(found.table)
  own = reading.fills(found.table, shapes, {})
  path = 'params/decoder/layer_0/moe/experts/wi_up'
  wanted = {path: folders.Leaf(shapes[path])}
  tracemalloc.start()
  leaf = reading.load(found.tensors, own, wanted)[path]
  _, peak = tracemalloc.get_traced_memory()
  tracemalloc.stop()
  assert peak < leaf.nbytes + 2 * leaf[0].nbytes


def test_a_process_reads_the_slices_of_its_devices(tmp_path):
  said = folders.config('mixtral_8x7b', num_local_experts=4)
  directory = folders.write(tmp_path / 'a', said, folders.tensors(said))
  found, own, leaves = load(directory)
  path = 'params/decoder/layer_1/moe/experts/wi_up'
  read = []

  def counted(name, stored):
    def one(slices):
      read.append((name, [s.stop - s.start for s in slices]))
      return stored.read(slices)

    return type(stored)(stored.shape, stored.dtype, one)

  counted_ = {k: counted(k, v) for k, v in found.tensors.items()}
  index = (slice(1, 3), slice(4, 8), slice(0, 6))  # of [E, D, F]
  got = reading.leaf(own[path], counted_, index)
  np.testing.assert_array_equal(got, leaves[path][index])
  at = 'model.layers.1.block_sparse_moe.experts'
  assert sorted(read) == [(f'{at}.{e}.w3.weight', [6, 4]) for e in (1, 2)]


def test_a_large_leaf_is_put_together_on_its_devices(tmp_path, monkeypatch):
  """Of eight, two hold each expert: it is read once, some rows at a time."""
  said = folders.config('mixtral_8x7b', num_local_experts=4)
  directory = folders.write(tmp_path / 'a', said, folders.tensors(said))
  found, own, leaves = load(directory)
  path = 'params/decoder/layer_1/moe/experts/wi_up'
  table = 'params/embedding/table'
  mesh = jax.make_mesh((4, 2), ('x', 'y'), (jax.sharding.AxisType.Auto,) * 2)
  sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec('x'))
  wanted = {
    k: jax.ShapeDtypeStruct(v.shape, v.dtype, sharding=sharding)
    for k, v in leaves.items()
    if k in (path, table)
  }
  read = []

  def counted(stored):
    def one(slices):
      read.append(slices[0].stop - slices[0].start)
      return stored.read(slices)

    return type(stored)(stored.shape, stored.dtype, one)

  tensors_ = {k: counted(v) for k, v in found.tensors.items()}
  monkeypatch.setattr(reading, 'AT_ONCE', 0)
  monkeypatch.setattr(reading, 'STRIP', 3 * said['hidden_size'])
  got = reading.load(tensors_, own, wanted)
  for k, v in got.items():
    assert v.sharding == sharding
    for shard in v.addressable_shards:
      np.testing.assert_array_equal(shard.data, leaves[k][shard.index])
  # Ten rows of the table a device and its twin, and an expert's matrix.
  assert sorted(read) == sorted([3, 3, 3, 1] * 4 + [6] * 4)


# Prints the result's bytes, and the peak of memory beside it.
PEAK = """
import re, sys
import jax
from moe_jax.conversion import hub, reading
from tests import hub_folders

found = hub.opened(sys.argv[1])
shapes = hub_folders.shapes(found.table)
own = reading.fills(found.table, shapes, {})
place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
wanted = {
  k: jax.ShapeDtypeStruct(v, 'float32', sharding=place)
  for k, v in shapes.items()
}
small = {k: v for k, v in wanted.items() if 'experts' not in k}
reading.load(found.tensors, own, small)
def peak():
  # Not of getrusage, which on Linux begins with that of whoever started this.
  status = open('/proc/self/status').read()
  return 1024 * int(re.search(r'VmHWM:\\s*(\\d+)', status)[1])

before = peak()
large = {k: v for k, v in wanted.items() if k not in small}
made = reading.load(found.tensors, own, large)
size = sum(v.nbytes for v in jax.block_until_ready(made).values())
print(size, max(v.nbytes for v in made.values()), peak() - before - size)
"""


@pytest.mark.slow
def test_the_host_holds_no_second_leaf(tmp_path):
  """256 MiB of experts in float32, of tensors of 4 MiB."""
  said = folders.config(
    'olmoe', num_hidden_layers=1, hidden_size=1024, intermediate_size=1024
  )
  said |= {'num_experts': 64, 'num_attention_heads': 8}
  said |= {'num_key_value_heads': 8, 'vocab_size': 50}
  values = folders.tensors(said, 'float16')
  directory = folders.write(tmp_path / 'a', said, values)
  call = [sys.executable, '-c', PEAK, str(directory)]
  out = subprocess.run(
    call, check=True, capture_output=True, text=True, cwd=ROOT
  )
  size, leaf, beside = map(int, out.stdout.split())
  assert size == 3 * leaf == 3 << 28
  # Two tensors, and what the program of `reading._put` takes.
  assert beside < leaf / 4, (beside, leaf)


EXPERT = 'model.layers.1.mlp.experts.3.up_proj.weight'


def dropped(values):
  del values[EXPERT]


def extra(values):
  values[EXPERT.replace('.3.', '.4.')] = values[EXPERT]


def misshapen(values):
  values[EXPERT] = values[EXPERT].T


def typed(values):
  values[EXPERT] = values[EXPERT].astype(np.int32)


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    (dropped, f'{EXPERT} is missing'),
    (extra, f'{EXPERT.replace(".3.", ".4.")} is unexpected'),
    (misshapen, f'{EXPERT} has shape (8, 6), not (6, 8)'),
    (typed, f'{EXPERT} is I32, not one of F32, BF16, F16'),
  ],
)
def test_tensors_that_do_not_fit_are_named(tmp_path, change, message):
  said = folders.config('olmoe')
  values = folders.tensors(said)
  change(values)
  directory = folders.write(tmp_path / 'a', said, values, shards=2)
  with pytest.raises(UserError, match=re.escape(message)) as e:
    hub.opened(directory)
  assert '\n' not in str(e.value)


def test_more_experts_than_tensors_are_told_before_they_are_listed(tmp_path):
  said = folders.config('olmoe')
  values = folders.tensors(said)
  said['num_experts'] = 1 << 39
  directory = folders.write(tmp_path / 'a', said, values)
  with pytest.raises(UserError, match='num_experts is 549755813888, but there'):
    hub.opened(directory)


def test_an_index_is_held_to_what_there_is(tmp_path):
  said = folders.config('olmoe')
  directory = folders.write(
    tmp_path / 'a', said, folders.tensors(said), shards=2
  )
  path = directory / 'model.safetensors.index.json'
  index = json.loads(path.read_text())
  for value, message in (
    ('../model.safetensors', 'is no file beside it'),
    ('model-00009-of-00002.safetensors', 'lacks shards'),
    ('model-00002-of-00002.safetensors', 'is in model-00001-of-00002'),
  ):
    name = next(k for k, v in index['weight_map'].items() if '00001' in v)
    new = index['weight_map'] | {name: value}
    path.write_text(json.dumps({'weight_map': new}))
    with pytest.raises(UserError, match=re.escape(message)):
      hub.opened(directory)
  path.unlink()
  for file in directory.glob('*.safetensors'):
    file.unlink()
  (directory / 'pytorch_model.bin').write_bytes(b'')
  with pytest.raises(UserError, match='pickled'):
    hub.opened(directory)


def test_a_tied_head_may_be_stored_but_not_differ(tmp_path):
  said = folders.config('granite_1b_a400m')
  values = folders.tensors(said)
  table = 'model.embed_tokens.weight'
  values['lm_head.weight'] = values[table].copy()
  hub.opened(folders.write(tmp_path / 'a', said, values))
  values['lm_head.weight'][-1, -1] += 1
  directory = folders.write(tmp_path / 'b', said, values)
  with pytest.raises(UserError, match=f'lm_head.weight differs from {table}'):
    hub.opened(directory)


def test_what_is_left_out_is_counted(tmp_path):
  """V3's layers that predict further tokens; a folder's vision tower."""
  said = folders.config('deepseek_v3')
  values = folders.tensors(said)
  more = {
    k.replace('layers.2.', 'layers.3.'): v
    for k, v in values.items()
    if 'layers.2.' in k
  }
  found = hub.opened(folders.write(tmp_path / 'a', said, values | more))
  assert list(found.skipped.values()) == [len(more)]
  assert 'further tokens' in hub.describe_skipped(found)[0]
  assert found.family.written(found.said)['num_nextn_predict_layers'] == 0

  text = folders.config('llama4_scout')
  values = folders.tensors(text)
  images = {'vision_model.patch_embedding.linear.weight': np.zeros(3)}
  inner = {f'language_model.{k}': v for k, v in values.items()}
  said = {'model_type': 'llama4', 'text_config': text, 'vision_config': {}}
  found = hub.opened(folders.write(tmp_path / 'b', said, inner | images))
  assert found.skipped == {'of images': 1}
  leaf = load(tmp_path / 'b')[2]['params/embedding/table']
  want = values['model.embed_tokens.weight']
  np.testing.assert_array_equal(leaf, want.astype(np.float32))


def test_nothing_is_left_of_a_failure(tmp_path):
  said = folders.config('olmoe')
  found, _, _ = load(folders.write(tmp_path / 'a', said, folders.tensors(said)))

  def part(p):
    raise OSError('full')

  with pytest.raises(OSError, match='full'):
    writing.save(tmp_path / 'b', found.table, part, said)
  assert [p.name for p in tmp_path.iterdir()] == ['a']
  with pytest.raises(UserError, match='exists; a checkpoint needs a new'):
    writing.save(tmp_path / 'a', found.table, part, said)
