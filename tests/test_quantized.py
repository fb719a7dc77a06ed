"""MXFP4 and FP8, against loops over bits and blocks."""

import json
import re

import ml_dtypes
import numpy as np
import pytest

from moe_jax.conversion import folders, fp8, hub, mxfp4, quantized, reading
from moe_jax.errors import UserError
from tests import hub_folders


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
