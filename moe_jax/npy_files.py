"""Arrays out of .npy files: numbers, as many as the file has, or one line.

What is pickled is not read. The header is believed only as far as the file's
size goes: memory is taken for what is there.
"""

import os

import numpy as np

from moe_jax.errors import UserError


def read(path: str | os.PathLike, ndim: int) -> np.ndarray:
  """The array of a file.

  Args:
    path: of a regular file, made by `np.save`.
    ndim: how many axes it must have.

  Raises:
    ValueError: no such array.
    OSError: it is not there, or cannot be read.
  """
  if os.path.exists(path) and not os.path.isfile(path):
    raise UserError(f'{path} is no regular file')
  try:
    mapped = np.lib.format.open_memmap(path, mode='r')
  except OSError:
    raise
  except Exception as e:  # its parser of headers raises what Python's does
    said = ' '.join(str(e).split())[:200]
    raise UserError(f'{path} is no array of numbers: {said}') from None
  if mapped.dtype.kind not in 'biuf' or mapped.ndim != ndim:
    raise UserError(
      f'{path} holds {mapped.dtype} of shape {mapped.shape}; numbers with'
      f' {ndim} axes are wanted'
    )
  return np.array(mapped)
