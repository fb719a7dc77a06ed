"""MXFP4 and FP8, against loops over bits and blocks."""

import json
import re

import ml_dtypes
import numpy as np
import pytest

from moe_jax.conversion import folders, fp8, hub, mxfp4, quantized, reading
from moe_jax.errors import UserError
from tests import hub_folders, mains


def fp4(nibble):
  """E2M1 by its bits: a sign, two of exponent (bias 1), one of mantissa."""
  sign = -1.0 if nibble & 8 else 1.0
  exponent, mantissa = (nibble >> 1) & 3, nibble & 1
  if exponent == 0:
    return sign * mantissa * 0.5
  return sign * (1 + mantissa / 2) * 2.0 ** (exponent - 1)


def test_mxfp4_is_that_of_a_loop():
  """All bytes, scales from 2^-127; [E, N, K] there is [E, K, N] here."""
  rng = np.random.default_rng(0)
  blocks = rng.permutation(np.arange(2 * 5 * 4 * 16) % 256)
  blocks = blocks.reshape(2, 5, 4, 16).astype(np.uint8)
  scales = rng.integers(100, 140, (2, 5, 4)).astype(np.uint8)
  scales[0, 0] = 0, 252, 127, 128
  want = np.zeros((2, 4 * 32, 5))
  for e, n, g, b in np.ndindex(blocks.shape):
    byte, scale = int(blocks[e, n, g, b]), 2.0 ** (int(scales[e, n, g]) - 127)
    want[e, g * 32 + 2 * b, n] = fp4(byte & 15) * scale
    want[e, g * 32 + 2 * b + 1, n] = fp4(byte >> 4) * scale
  stored = lambda v: folders.Stored(v.shape, 'U8', lambda s: v[s])
  found = mxfp4.unpacked(
    {'a_blocks': stored(blocks), 'a_scales': stored(scales)}
  )
  assert list(found) == ['a'] and found['a'].shape == want.shape
  got = found['a'].all()
  assert got.dtype == np.float32
  np.testing.assert_array_equal(got, want)
  cut = (slice(1, 2), slice(30, 71), slice(2, 5))
  np.testing.assert_array_equal(found['a'].read(cut), want[cut])
  scales[1, 1, 1], blocks[1, 1, 1] = 254, 7
  with pytest.raises(UserError, match='float32 does not hold'):
    found['a'].all()
  scales[1, 1, 1] = 255
  with pytest.raises(UserError, match='scale of 255'):
    found['a'].all()


@pytest.mark.parametrize('shape', [(256, 128), (576, 200), (7, 300)])
def test_fp8_is_that_of_a_loop(shape):
  """Blocks of 128 x 128, cut at the edges, as the 576 rows of a latent."""
  rng = np.random.default_rng(0)
  values = rng.standard_normal(shape).astype(ml_dtypes.float8_e4m3fn)
  R, C = (-(-n // 128) for n in shape)
  scales = rng.uniform(0.5, 2, (R, C)).astype(np.float32)
  want = np.zeros(shape, np.float32)
  for i in range(R):
    for j in range(C):
      block = slice(128 * i, 128 * i + 128), slice(128 * j, 128 * j + 128)
      want[block] = values[block].astype(np.float32) * scales[i, j]
  found = fp8.unpacked(
    {
      'a': folders.Stored(shape, 'F8_E4M3', lambda s: values[s]),
      'a_scale_inv': folders.Stored((R, C), 'F32', lambda s: scales[s]),
    }
  )
  assert list(found) == ['a']
  np.testing.assert_array_equal(found['a'].all(), want)
  cut = slice(shape[0] // 3, shape[0] - 1), slice(101, shape[1] - 3)
  np.testing.assert_array_equal(found['a'].read(cut), want[cut])


def fp8_value(byte):
  """E4M3 by its bits: a sign, four of exponent (bias 7), three of mantissa."""
  sign = -1.0 if byte & 128 else 1.0
  exponent, mantissa = (byte >> 3) & 15, byte & 7
  if exponent == 0:
    return sign * mantissa / 8 * 2.0**-6
  return sign * (1 + mantissa / 8) * 2.0 ** (exponent - 7)


def bfloat16_bits(value):
  """Of float32, rounded to nearest even by its bits."""
  bits = value.view(np.uint32)
  return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def through_the_command(tmp_path, said, packed, want):
  """Folder -> workdir -> folders in float32 and as by default.

  Args:
    tmp_path: an empty folder.
    said: config.json, which says how `packed` is quantised.
    packed: tensors, some of them quantised.
    want: all of them as float32, by their own names.

  Returns:
    What was said of the first conversion.
  """
  old = hub_folders.write(tmp_path / 'old', said, packed, shards=3)
  run, full, half = (tmp_path / n for n in ('run', 'full', 'half'))
  convert = lambda *args: mains.call('convert', f'--workdir={run}', *args)[1]
  mesh = '--cpu_devices=8', '--mesh=exact(data=4, expert=2)'
  said_of_it = convert(f'--from_hf={old}', *mesh)
  convert(f'--to_hf={full}', '--dtype=float32', '--cpu_devices=8')
  convert(f'--to_hf={half}', '--cpu_devices=8')
  hub_folders.same_bits(want, hub_folders.stored(full))
  out = hub_folders.stored(half)
  assert out.keys() == want.keys()
  for name, value in out.items():
    if name.endswith('e_score_correction_bias'):
      assert value.tobytes() == want[name].tobytes()
      continue
    assert value.dtype == ml_dtypes.bfloat16
    wanted = bfloat16_bits(want[name])
    np.testing.assert_array_equal(value.view(np.uint16), wanted, name)
  new = json.loads((half / 'config.json').read_text())
  assert 'quantization_config' not in new
  assert new['dtype'] == new['torch_dtype'] == 'bfloat16'
  return said_of_it


@pytest.mark.slow
def test_fp8_through_the_command(tmp_path):
  """As DeepSeek-V3 lies on the hub, its layer of further tokens included.

  Matrices are larger than a block and cut: 132 rows of the latent.
  """
  own = {'quant_method': 'fp8', 'weight_block_size': [128, 128], 'fmt': 'e4m3'}
  said = hub_folders.config(
    'deepseek_v3',
    kv_lora_rank=130,
    num_nextn_predict_layers=1,
    quantization_config=own | {'activation_scheme': 'dynamic'},
  )
  rng = np.random.default_rng(0)
  decoded = np.array([fp8_value(b) for b in range(256)], np.float32)
  finite = np.array([b for b in range(256) if b & 127 != 127], np.uint8)
  packed = hub_folders.tensors(said)
  want = {k: v.astype(np.float32) for k, v in packed.items()}
  for name, value in want.items():
    if not re.search(r'_(proj|proj_with_mqa)\.weight$', name):
      continue
    low = rng.choice(finite, value.shape)
    R, C = (-(-n // 128) for n in value.shape)
    scale = rng.uniform(0.5, 2, (R, C)).astype(np.float32)
    blocks = scale.repeat(128, 0).repeat(128, 1)
    want[name] = decoded[low] * blocks[: value.shape[0], : value.shape[1]]
    packed[name] = low.view(ml_dtypes.float8_e4m3fn)
    packed[f'{name}_scale_inv'] = scale
  latent = 'model.layers.1.self_attn.kv_a_proj_with_mqa.weight'
  assert packed[f'{latent}_scale_inv'].shape == (2, 1)
  further = {
    name.replace('layers.2.', 'layers.3.'): value
    for name, value in packed.items()
    if 'layers.2.' in name
  }
  told = through_the_command(tmp_path, said, packed | further, want)
  assert f'left out: {len(further)} tensors layers that predict' in told


@pytest.mark.slow
def test_mxfp4_through_the_command(tmp_path):
  """As gpt-oss lies on the hub: the experts' matrices, not their biases."""
  own = {'quant_method': 'mxfp4', 'modules_to_not_convert': ['lm_head']}
  said = hub_folders.config(
    'gpt_oss_20b',
    hidden_size=64,
    intermediate_size=32,
    num_local_experts=4,
    quantization_config=own,
  )
  rng = np.random.default_rng(0)
  packed = hub_folders.tensors(said)
  want = {k: v.astype(np.float32) for k, v in packed.items()}
  names = [n for n in packed if n.endswith('experts.down_proj')]
  names += [n for n in packed if n.endswith('experts.gate_up_proj')]
  assert len(names) == 2 * said['num_hidden_layers']
  for name in names:
    E, K, N = packed.pop(name).shape
    blocks = rng.integers(0, 256, (E, N, K // 32, 16), 'u1')
    scales = rng.integers(118, 136, (E, N, K // 32), 'u1')
    for e, n, g in np.ndindex(scales.shape):
      row = [fp4(b >> h & 15) for b in blocks[e, n, g].tolist() for h in (0, 4)]
      by = 2.0 ** (int(scales[e, n, g]) - 127)
      want[name][e, 32 * g : 32 * g + 32, n] = np.array(row) * by
    packed |= {f'{name}_blocks': blocks, f'{name}_scales': scales}
  through_the_command(tmp_path, said, packed, want)


def test_a_folder_in_fp8(tmp_path):
  """Its bytes go through the files, which the library cannot read."""
  own = {'quant_method': 'fp8', 'weight_block_size': [4, 4], 'fmt': 'e4m3'}
  said = hub_folders.config('deepseek_v3')
  values = hub_folders.tensors(said, 'float32')
  packed, want = dict(values), dict(values)
  for name in [n for n in values if '.mlp.experts.' in n]:
    low = values[name].astype(ml_dtypes.float8_e4m3fn)
    scale = np.full([-(-n // 4) for n in low.shape], 2.0, np.float32)
    packed |= {name: low, f'{name}_scale_inv': scale}
    want[name] = low.astype(np.float32) * 2
  said |= {'quantization_config': own}
  directory = hub_folders.write(tmp_path / 'a', said, packed)
  found = hub.opened(directory)
  assert (found.dtype, found.dtypes) == ('bfloat16', {})
  for name, value in want.items():
    np.testing.assert_array_equal(found.tensors[name].all(), value)
  assert 'quantization_config' not in found.family.written(found.said)


def test_a_folder_in_mxfp4(tmp_path):
  said = hub_folders.config('gpt_oss_20b', hidden_size=64, intermediate_size=32)
  values = hub_folders.tensors(said)
  rng = np.random.default_rng(0)
  packed = dict(values)
  for name in [n for n in values if n.endswith('_proj') and 'experts' in n]:
    E, K, N = packed.pop(name).shape
    packed[f'{name}_blocks'] = rng.integers(0, 256, (E, N, K // 32, 16), 'u1')
    packed[f'{name}_scales'] = rng.integers(120, 130, (E, N, K // 32), 'u1')
  said |= {'quantization_config': {'quant_method': 'mxfp4'}}
  directory = hub_folders.write(tmp_path / 'a', said, packed, shards=2)
  found = hub.opened(directory)
  shapes = hub_folders.shapes(found.table)
  own = reading.fills(found.table, shapes, {})
  path = 'params/decoder/layer_1/moe/experts/wi_up'
  got = reading.leaf(
    own[path], found.tensors, (slice(0, 3), slice(0, 64), slice(0, 32))
  )
  name = 'model.layers.1.mlp.experts.gate_up_proj'
  whole = mxfp4.unpack(packed[f'{name}_blocks'], packed[f'{name}_scales'])
  whole = whole.reshape(3, 64, 64).swapaxes(1, 2)
  np.testing.assert_array_equal(got, whole[..., 1::2])
  del packed[f'{name}_scales']
  directory = hub_folders.write(tmp_path / 'b', said, packed)
  with pytest.raises(
    UserError, match=f'{name}_blocks is there, but no {name}_s'
  ):
    hub.opened(directory)


@pytest.mark.parametrize(
  ('own', 'message'),
  [
    (
      {'quant_method': 'gptq'},
      "unknown quant_method 'gptq'; valid: fp8, mxfp4",
    ),
    ({}, "unknown quant_method 'None'; valid: fp8, mxfp4"),
    ([], 'quantization_config=[] is no object'),
    ({'quant_method': 'fp8', 'fmt': 'e5m2'}, "fmt='e5m2'"),
    ({'quant_method': 'mxfp4', 'bits': 3}, 'cannot read: bits=3'),
    (
      {'quant_method': 'fp8', 'weight_block_size': [0, 1]},
      'weight_block_size=[0, 1]',
    ),
  ],
)
def test_methods_that_are_not_known(own, message):
  with pytest.raises(UserError, match=re.escape(message)):
    quantized.unpacked(json.loads(json.dumps({'quantization_config': own})), {})
