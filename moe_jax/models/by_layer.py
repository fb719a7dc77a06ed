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

Places = Mapping[str, tuple[pattern.Place, ...]]


def view(params: Any, places: Places) -> dict[str, Any]:
  """{'decoder/layer_3/attention/query': leaf}; others keep their names.

  Args:
    params: a model's, unboxed: arrays.
    places: by stack, `StackConfig.places`.
  """
  found, layers = {}, _layers(places)
  for path, leaf in traverse_util.flatten_dict(params, sep='/').items():
    names, scanned = _names(path, layers)
    if scanned:
      found |= {n: leaf[r] for r, n in enumerate(names)}
    else:
      found[names[0]] = leaf
  return found


def replace(params: Any, new: Mapping[str, Any], places: Places) -> Any:
  """The parameters with some leaves of their `view` replaced."""
  out, layers = {}, _layers(places)
  for path, leaf in traverse_util.flatten_dict(params, sep='/').items():
    names, scanned = _names(path, layers)
    if scanned:
      leaf = jnp.stack([new.get(n, leaf[r]) for r, n in enumerate(names)])
    else:
      leaf = new.get(names[0], leaf)
    out[path] = leaf
  return traverse_util.unflatten_dict(out, sep='/')


def _layers(places: Places) -> dict[str, list[str]]:
  """{'decoder/period/block_0': ['decoder/layer_1', 'decoder/layer_3']}."""
  found: dict[str, list[str]] = {}
  for stack, own in places.items():
    for layer, (module, block, _) in enumerate(own):
      at = '/'.join(n for n in (stack, module, block) if n)
      found.setdefault(at, []).append(f'{stack}/layer_{layer}')
  return found


def _names(path: str, layers: dict[str, list[str]]) -> tuple[list[str], bool]:
  """What a leaf is called, by repeat; whether repeats are its first axis."""
  parts = path.split('/')
  for n in (2, 3):
    found = layers.get('/'.join(parts[:n]))
    if found:
      return ['/'.join([layer, *parts[n:]]) for layer in found], n == 3
  return [path], False
