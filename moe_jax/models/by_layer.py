"""Parameters by the number of their layer, whatever the stack scans over.

Where a layer's arrays are depends on which layers are sparse: blocks of the
repeating period lie stacked in one array. Here every leaf has one name,
'decoder/layer_3/attention/query', in a dense and in a sparse model alike.
"""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from flax import traverse_util

from moe_jax.models import pattern

Sparse = Mapping[str, tuple[int, ...]]


def view(params: Any, sparse: Sparse) -> dict[str, Any]:
  """{'decoder/layer_3/attention/query': leaf}; others keep their names.

  Args:
    params: a model's, unboxed: arrays.
    sparse: by stack, `StackConfig.places`.
  """
  found, places = {}, _places(sparse)
  for path, leaf in traverse_util.flatten_dict(params, sep='/').items():
    names, scanned = _names(path, places)
    if scanned:
      found |= {n: leaf[r] for r, n in enumerate(names)}
    else:
      found[names[0]] = leaf
  return found


def replace(params: Any, new: Mapping[str, Any], sparse: Sparse) -> Any:
  """The parameters with some leaves of their `view` replaced."""
  out, places = {}, _places(sparse)
  for path, leaf in traverse_util.flatten_dict(params, sep='/').items():
    names, scanned = _names(path, places)
    if scanned:
      leaf = jnp.stack([new.get(n, leaf[r]) for r, n in enumerate(names)])
    else:
      leaf = new.get(names[0], leaf)
    out[path] = leaf
  return traverse_util.unflatten_dict(out, sep='/')


def _places(sparse: Sparse) -> dict[str, list[str]]:
  """{'decoder/period/block_0': ['decoder/layer_1', 'decoder/layer_3']}."""
  found: dict[str, list[str]] = {}
  for stack, kinds in sparse.items():
    for layer, (module, block, _) in enumerate(pattern.layer_names(kinds)):
      at = '/'.join(n for n in (stack, module, block) if n)
      found.setdefault(at, []).append(f'{stack}/layer_{layer}')
  return found


def _names(path: str, places: dict[str, list[str]]) -> tuple[list[str], bool]:
  """What a leaf is called, by repeat; whether repeats are its first axis."""
  parts = path.split('/')
  for n in (2, 3):
    layers = places.get('/'.join(parts[:n]))
    if layers:
      return ['/'.join([layer, *parts[n:]]) for layer in layers], n == 3
  return [path], False
