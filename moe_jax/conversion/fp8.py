"""FP8 with a scale a block, in which DeepSeek-V3 is published.

DeepSeek-AI, "DeepSeek-V3 Technical Report", 2024, arXiv:2412.19437, section
3.3.2, and its released `kernel.py`: a matrix is E4M3 times `weight_scale_inv`,
which has an entry for each block of 128 x 128; blocks at the lower and right
edge are cut (`kv_a_proj_with_mqa` has 576 rows). The product is made in
float32.
"""

import functools

import numpy as np

from moe_jax.conversion import folders

SCALES = '_scale_inv'
BLOCK = (128, 128)


def scaled(
  values: np.ndarray, scales: np.ndarray, block, rows: slice, columns: slice
) -> np.ndarray:
  """float32 of a slice of a matrix.

  Args:
    values: [rows, columns] of the slice, float8.
    scales: of the whole matrix.
    block: rows and columns of a block.
    rows, columns: where the slice is.
  """
  out = values.astype(np.float32)
  across = np.arange(columns.start, columns.stop) // block[1]
  # By rows of blocks, so that nothing else is as large as the result.
  for i in range(rows.start // block[0], -(-rows.stop // block[0])):
    first = max(i * block[0] - rows.start, 0)
    last = min((i + 1) * block[0], rows.stop) - rows.start
    out[first:last] *= scales[i, across]
  return out


def unpacked(
  found: dict[str, folders.Stored], block: tuple[int, int] = BLOCK
) -> dict[str, folders.Stored]:
  """The tensors of a folder, the scaled ones as what they stand for.

  Raises:
    ValueError: a scale without a matrix, a matrix without a scale, or scales
      of another number of blocks.
  """
  out, wrong = dict(found), []
  for name, scales in found.items():
    if not name.endswith(SCALES):
      continue
    stem = name.removesuffix(SCALES)
    values = found.get(stem)
    out.pop(name)
    if values is None or values.dtype != 'F8_E4M3':
      what = 'no' if values is None else values.dtype
      wrong.append(f'{name} is there, but {what} {stem} in F8_E4M3')
      continue
    shape = tuple(-(-n // b) for n, b in zip(values.shape, block))
    if len(values.shape) != 2 or scales.shape != shape:
      wrong.append(f'{name} has shape {scales.shape}, not {shape}')
    elif scales.dtype not in folders.STORED:
      wrong.append(f'{name} is {scales.dtype}')
    else:
      read = functools.partial(_read, values, scales, block)
      out[stem] = folders.Stored(values.shape, 'F32', read)
  folders.refuse('FP8 weights', wrong)
  return out


def _read(values, scales, block, slices):
  all_scales = scales.all().astype(np.float32)
  return scaled(values.read(slices), all_scales, block, *slices)
