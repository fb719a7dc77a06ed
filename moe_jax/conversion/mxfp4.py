"""MXFP4, in which the experts of gpt-oss are published.

Open Compute Project, "OCP Microscaling Formats (MX) Specification", v1.0, 2023,
sections 5.3.3 and 6.3: 32 values of FP4 (E2M1) share a scale of 8 bits, a power
of two; as OpenAI's checkpoints and transformers' `integrations/mxfp4.py` lay
them out. `*_blocks`, bytes [E, N, K / 32, 16], hold two values each, the low
half first; `*_scales`, bytes [E, N, K / 32], are exponents plus 127. What they
stand for is a matrix [E, K, N] by the name without the ending: turned, as the
unpacked checkpoints have it. Exact in float32.
"""

import functools

import numpy as np

from moe_jax.conversion import folders
from moe_jax.errors import UserError

BLOCKS, SCALES = '_blocks', '_scales'
_PART = 32  # values that share a scale
# E2M1: a sign, two bits of exponent, one of mantissa.
VALUES = np.array(
  [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
  + [-0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0],
  np.float32,
)


def unpack(blocks: np.ndarray, scales: np.ndarray) -> np.ndarray:
  """float32 [..., G, 32] of bytes [..., G, 16] and [..., G].

  Raises:
    ValueError: a scale of 255, which is no number, or too large a one.
  """
  if (scales == 255).any():
    raise UserError('a scale of 255, which is no number in MXFP4')
  pairs = np.stack([blocks & 15, blocks >> 4], -1)
  values = VALUES[pairs].reshape(*blocks.shape[:-1], _PART)
  try:
    with np.errstate(over='raise'):
      return np.ldexp(values, scales.astype(np.int32)[..., None] - 127)
  except FloatingPointError:
    raise UserError('MXFP4: a number that float32 does not hold') from None


def unpacked(found: dict[str, folders.Stored]) -> dict[str, folders.Stored]:
  """The tensors of a folder, the packed ones as what they stand for.

  Raises:
    ValueError: blocks without scales, scales without blocks, other shapes.
  """
  out, wrong = dict(found), []
  for name, blocks in found.items():
    for ending, other in ((BLOCKS, SCALES), (SCALES, BLOCKS)):
      stem = name.removesuffix(ending)
      if name.endswith(ending) and stem + other not in found:
        wrong.append(f'{name} is there, but no {stem}{other}')
    if not name.endswith(BLOCKS) or wrong:
      continue
    stem = name.removesuffix(BLOCKS)
    scales = found[stem + SCALES]
    shape = (*scales.shape, _PART // 2)
    if len(shape) != 4 or blocks.shape != shape:
      wrong.append(f'{name} has shape {blocks.shape}, not {shape}')
    elif (blocks.dtype, scales.dtype) != ('U8', 'U8'):
      wrong.append(f'{name} is {blocks.dtype}, its scales {scales.dtype}')
    else:
      E, N, G = scales.shape
      read = functools.partial(_read, blocks, scales)
      out[stem] = folders.Stored((E, G * _PART, N), 'F32', read)
    out.pop(name, None)
    out.pop(stem + SCALES, None)
  folders.refuse('MXFP4 weights', wrong)
  return out


def _read(blocks, scales, slices):
  """A slice [E, K, N]: of the scales' groups all that it touches."""
  e, k, n = slices
  first = k.start // _PART
  groups = slice(first, -(-k.stop // _PART))
  values = unpack(
    *(
      v.read((e, n, groups, *(slice(0, m) for m in v.shape[3:])))
      for v in (blocks, scales)
    )
  )
  values = values.reshape(*values.shape[:2], -1)
  start = k.start - first * _PART
  return values[..., start : start + k.stop - k.start].transpose(0, 2, 1)
