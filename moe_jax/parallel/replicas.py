"""Are values that devices hold in copies the same on all of them?

A value that leaves a `shard_map` as replicated without a sum over the devices
is a different one on each, and jax shows that of the first: nothing fails, and
copies drift apart (with check_vma=False; jax's type checker refuses it).
"""

import zlib
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils


def differing(tree: Any) -> list[str]:
  """Paths of the arrays with two devices whose equal parts differ in a bit.

  Fetches every shard of every array to the host; of other processes only
  checksums. All processes must call it.
  """
  paths, arrays = [], []
  for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
    if isinstance(leaf, jax.Array):
      paths.append(jax.tree_util.keystr(path, simple=True, separator='/'))
      arrays.append(leaf)
  place = {d: i for i, d in enumerate(jax.devices())}
  sums = np.zeros((len(arrays), len(place)), np.uint32)
  for leaf, row in zip(arrays, sums):
    for shard in leaf.addressable_shards:
      data = shard.data
      if jax.dtypes.issubdtype(data.dtype, jax.dtypes.prng_key):
        data = jax.random.key_data(data)
      row[place[shard.device]] = zlib.crc32(np.asarray(data).tobytes())
  if jax.process_count() > 1:  # each device has one owner
    sums = multihost_utils.process_allgather(sums).sum(0, dtype=np.uint32)
  bad = []
  for path, leaf, row in zip(paths, arrays, sums):
    parts: dict[str, set[int]] = {}
    for device, index in leaf.sharding.devices_indices_map(leaf.shape).items():
      parts.setdefault(str(index), set()).add(int(row[place[device]]))
    if any(len(found) > 1 for found in parts.values()):
      bad.append(path)
  return bad


def check(tree: Any, step: int) -> None:
  """Raises RuntimeError with the names of arrays that differ after a step."""
  bad = differing(tree)
  if bad:
    raise RuntimeError(
      f'after step {step} devices hold different values of {len(bad)} arrays '
      f'that should be equal: {", ".join(bad[:5])}'
    )
