"""Writes what an oracle computed to a small .npz file, or compares with it.

The `make_*.py` beside this file run once, where the oracle is installed
(`pip install -e '.[oracle]'`); tests read the files and need no torch.
"""

import pathlib
import sys
from collections.abc import Callable
from importlib import metadata

import numpy as np


def load(name: str) -> dict[str, np.ndarray]:
  """The arrays of `<name>.npz`."""
  with np.load(pathlib.Path(__file__).parent / f'{name}.npz') as f:
    return dict(f)


def main(name: str, packages: tuple[str, ...], make: Callable[[], dict]):
  """Freezes `make()` in `<name>.npz`, with versions and the script's text.

  With --check on the command line it compares instead: floats to 1e-5, all
  else exactly. Either way a second run of the script must agree.
  """
  here = pathlib.Path(__file__).parent
  arrays = {k: np.asarray(v) for k, v in make().items()}
  if sys.argv[1:] == ['--check']:
    frozen = load(name)
    assert set(frozen) - {'versions', 'script'} == set(arrays), name
    for key, value in arrays.items():
      if value.dtype.kind == 'f':
        np.testing.assert_allclose(value, frozen[key], 1e-5, 1e-6, err_msg=key)
      else:
        np.testing.assert_array_equal(value, frozen[key], err_msg=key)
    print(f'{name}: {len(arrays)} arrays agree')
    return
  versions = ' '.join(f'{p}=={metadata.version(p)}' for p in packages)
  script = (here / f'make_{name}.py').read_text()
  path = here / f'{name}.npz'
  np.savez_compressed(path, versions=versions, script=script, **arrays)
  print(f'{path.name}: {path.stat().st_size / 1024:.0f} KiB, {versions}')
