"""Before hours of training: are all processes there, alike, and connected?

Three looks, each by all processes of a job, in this order: do they run the same
code with the same config and versions; have they equally many devices; does
each axis of the mesh add up and exchange what it is given, and how fast. What
they tell each other goes by JAX's own service, which needs no device, so that a
process that has none can say so.
"""

import collections
import functools
import hashlib
import importlib.metadata
import json
import os
import pathlib
import platform
import socket
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from moe_jax import json_files
from moe_jax.errors import UserError
from moe_jax.parallel import collectives, compat, mesh as mesh_lib
from moe_jax.parallel.axes import MESH_AXES

_PACKAGES = ('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'numpy')
# Seconds until a look is given up: the first collective of a GPU job connects
# all, which takes some; and those between the first and the last who do.
_PATIENCE, _GRACE = 120, 10
_KEY = 'moe_jax/check'
# Bytes a device of the larger message; simulated devices share one memory.
_CPU_BYTES, _BYTES = 2**22, 2**26
_TIMES = 5
# By name: of a block [n, rows], what it gives on an axis of n devices; how
# often its bytes leave a device, in units of (n - 1) / n; what the device at
# place i puts in row j, and what it should get there.
_EXCHANGES = {
  'psum': (
    lambda x, axes: collectives.psum(x, axes, name='check_psum'),
    2,
    lambda i, j, n: (j + 1) * (i == j),
    lambda i, j, n: j + 1,
  ),
  'all_to_all': (
    lambda x, axes: collectives.all_to_all(
      x, axes, split=0, concat=0, name='check_all_to_all'
    ),
    1,
    lambda i, j, n: n * i + j + 1,
    lambda i, j, n: n * j + i + 1,
  ),
}


def run(
  config: dict[str, Any],
  make_mesh: Callable[[], jax.sharding.Mesh],
  say: Callable[[str], None] = print,
) -> None:
  """All three looks; process 0 says what it finds. All processes call it.

  Args:
    config: {dotted name: value} of JSON's types.
    make_mesh: of the devices found; called once they are known to be alike.
    say: is given a line at a time.

  Where a process is not as the others are, fails, hangs, or gets wrong numbers,
  all end with exit code 1, and process 0 says in a line which one.

  Raises:
    ValueError: the line, of a process that has no others.
  """
  _, rank, _ = compat.service()
  told = _together('facts', lambda at: facts(config))
  names = [
    f'process {i}' + (f' ({t["host"]})' if 'host' in t else '')
    for i, t in enumerate(told)
  ]
  _refuse(unlike(told, names))
  devices = _together('devices', lambda at: _devices())
  _refuse(unlike(devices, names))
  mesh = make_mesh()
  rows = _together('collectives', lambda at: measure(mesh, at))
  if not rank:
    total = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    sizes, first = mesh_lib.describe(dict(mesh.shape)), told[0]
    say(
      f'processes: {len(told)}, devices: {mesh.size} ({devices[0]["kind"]}),'
      f' mesh: {sizes}; jax {first["jax"]}, code {first["code"]}, config'
      f' {total.hexdigest()[:8]}'
    )
    for name, found, row in zip(names, devices, rows):
      say(f'{name}: {found["devices"]} devices')
      for line in row.get('lines', ()):
        say(f'  {line}')
  wrong = [f'{n}: {r["error"]}' for n, r in zip(names, rows) if r.get('error')]
  _refuse(wrong)
  if not rank:
    say('all processes are alike, and all sums are right')


def facts(config: dict[str, Any]) -> dict[str, Any]:
  """This host's name, and all that must be the same in all processes."""
  root = pathlib.Path(__file__).parents[1]
  code = hashlib.sha256()
  for path in sorted(root.rglob('*.py')):
    code.update(path.read_bytes())
  return {
    'host': socket.gethostname(),
    'python': platform.python_version(),
    **{name: _version(name) for name in _PACKAGES},
    'code': code.hexdigest()[:8],
    **{f'config.{k}': json.dumps(v) for k, v in config.items()},
  }


def unlike(told: Sequence[dict], names: Sequence[str]) -> list[str]:
  """A line for each process that is not as most are, or says an 'error'."""
  fields = {k: None for t in told for k in t if k not in ('host', 'error')}
  well = [t for t in told if 'error' not in t]
  # Of equally many the first: then process 0 is right.
  count = lambda k: collections.Counter(t.get(k) for t in well)
  usual = {k: count(k).most_common(1)[0][0] for k in fields}
  lines = []
  for name, t in zip(names, told):
    other = [
      f'{k} is {t.get(k)} there, {v} elsewhere'
      for k, v in usual.items()
      if t.get(k) != v
    ]
    if found := t['error'] if 'error' in t else '; '.join(other):
      lines.append(f'{name}: {found}')
  return lines


def measure(mesh: jax.sharding.Mesh, at: list[str]) -> dict[str, Any]:
  """Round trips and rates on each axis with more than one device.

  Args:
    mesh: of all processes.
    at: is given the name of each collective before it begins.

  Returns:
    'lines' to print: the median time of a small message, and the bytes a second
    that leave a device with a large one, as a ring sends them. An 'error' where
    this process got wrong numbers, which names who sent them.
  """
  lines, wrong = [], []
  cpu = mesh.devices.flat[0].platform == 'cpu'
  for axis in (a for a in MESH_AXES if mesh.shape[a] > 1):
    n, parts = mesh.shape[axis], []
    rows = (_CPU_BYTES if cpu else _BYTES) // (4 * n)
    for name, (_, times, *_) in _EXCHANGES.items():
      what = f'{name} over {axis!r}'
      at.append(what)
      short, faults = _time(mesh, axis, name, 1)
      long, more = _time(mesh, axis, name, rows)
      rate = times * 4 * rows * (n - 1) / long
      parts.append(f'{name} {1e3 * short:.3g} ms, {rate / 1e9:.3g} GB/s')
      wrong += [f'{what}: {fault}' for fault in faults + more]
    lines.append(f'{axis}: {"; ".join(parts)}')
  return {'lines': lines} | ({'error': wrong[0]} if wrong else {})


def _time(
  mesh: jax.sharding.Mesh, axis: str, name: str, rows: int
) -> tuple[float, list[str]]:
  """(median seconds, what devices of this process got wrong)."""
  exchange, _, given, wanted = _EXCHANGES[name]
  n, spec = mesh.shape[axis], PartitionSpec(*MESH_AXES)
  region = functools.partial(jax.shard_map, mesh=mesh, out_specs=spec)

  def block():
    j = jnp.arange(n)[:, None]
    x = given(jax.lax.axis_index(axis), j, n).astype(jnp.float32)
    return jnp.broadcast_to(x, (1,) * len(MESH_AXES) + (n, rows))

  def send(x):
    return exchange(x.reshape(n, rows), (axis,)).reshape(x.shape)

  x = jax.jit(region(block, in_specs=()))()
  send = jax.jit(region(send, in_specs=spec))
  y, seconds = jax.block_until_ready(send(x)), []
  for _ in range(_TIMES):
    began = time.perf_counter()
    jax.block_until_ready(send(x))
    seconds.append(time.perf_counter() - began)
  return statistics.median(seconds), list(_wrong(mesh, axis, y, wanted))


def _wrong(mesh, axis: str, y: jax.Array, wanted: Callable) -> Iterator[str]:
  """What this process's devices should not have got, and from whom."""
  at = MESH_AXES.index(axis)
  places = {d: place for place, d in np.ndenumerate(mesh.devices)}
  for shard in y.addressable_shards:
    place, got = places[shard.device], np.asarray(shard.data)[0, 0, 0, 0]
    for j, row in enumerate(got):
      want = wanted(place[at], j, len(got))
      bad = row[row != want]
      if bad.size:
        source = mesh.devices[(*place[:at], j, *place[at + 1 :])]
        yield (
          f'device {shard.device.id} got {bad[0]:g}, not {want}, from device'
          f' {source.id} of process {source.process_index}'
        )


def _together(look: str, make: Callable[[list[str]], dict]) -> list[dict]:
  """What `make` gives in each process, or the 'error' of it there.

  It may wait for other processes, in C++, so it has a thread of its own: where
  another one fails, or the time is over, it is not waited for; its 'error' is
  '' then, or what it was at, the last string of its argument.
  """
  client, rank, count = compat.service()
  if client is None:
    return [make([look])]
  at, found = [f'its {look}'], []

  def try_it():
    try:
      found.append(make(at))
    except Exception as e:  # of whatever kind: the others are to hear of it
      said = str(e).strip().splitlines() or [type(e).__name__]
      found.append({'error': said[0]})

  thread = threading.Thread(target=try_it, daemon=True)
  thread.start()
  key, end = f'{_KEY}/{look}', time.monotonic() + _PATIENCE
  while not found:
    thread.join(0.2)
    if not found and client.key_value_dir_get(f'{key}/failed/'):
      found.append({'error': ''})
    if not found and time.monotonic() > end:
      found.append({'error': f'{at[-1]} took more than {_PATIENCE} s'})
  if found[0].get('error'):
    client.key_value_set(f'{key}/failed/{rank}', '1')
  client.key_value_set(f'{key}/{rank}', json.dumps(found[0]))
  told, end = [], end + _GRACE
  for i in range(count):
    text = _get(client, f'{key}/{i}', end)
    silent = {'error': f'says nothing of its {look}'}
    said = silent if text is None else json_files.parse(text, f'process {i}')
    told.append(said)
  return told


def _get(client: Any, key: str, end: float) -> str | None:
  """What a process has told, or None where it has not by then."""
  left = max(1, int(1000 * (end - time.monotonic())))
  try:
    return client.blocking_key_value_get(key, left)
  except jax.errors.JaxRuntimeError:
    return None


def _devices() -> dict[str, Any]:
  if compat.lacks_gpu():
    asked = jax.config.jax_platforms
    raise UserError(f'JAX_PLATFORMS={asked}, and no NVIDIA GPU is to be seen')
  found = jax.local_devices()
  return {'devices': len(found), 'kind': found[0].device_kind}


def _refuse(faults: Sequence[str]) -> None:
  if not faults:
    return
  more = f'; and {len(faults) - 1} more' if len(faults) > 1 else ''
  client, rank, count = compat.service()
  if client is None:
    raise UserError(f'{faults[0]}{more}')
  # An ordinary exit would wait for whoever hangs. Process 0 has the service
  # and goes last.
  sys.stdout.flush()
  if rank:
    try:
      client.key_value_set(f'{_KEY}/left/{rank}', '1')
    except jax.errors.JaxRuntimeError:
      pass  # read, and its service gone, before the answer was here
  else:
    print(f'error: {faults[0]}{more}', file=sys.stderr, flush=True)
    # Each is here already, but a busy host is slow to say so.
    end = time.monotonic() + _PATIENCE / 2
    for i in range(1, count):
      _get(client, f'{_KEY}/left/{i}', end)
    time.sleep(1)  # who has said it is not yet gone
  os._exit(1)


def _version(package: str) -> str:
  try:
    return importlib.metadata.version(package)
  except importlib.metadata.PackageNotFoundError:
    return 'absent'
