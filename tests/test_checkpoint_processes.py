"""Checkpoints by several processes, and saves that a full disk ends."""

import json
import os
import socket
import subprocess
import sys

# In a process of its own: it lowers a limit, and Orbax's threads complain.
FAILED_SAVE = """
import resource, sys
import jax, numpy as np
from moe_jax.runs import checkpoint
state = {'x': jax.random.normal(jax.random.key(0), (512, 512))}
soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
with checkpoint.Checkpointer(sys.argv[1], keep=3) as c:
  c.save(1, state, {})
  c.wait()
  for _ in range(4):
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))
    c.save(2, {'x': state['x'] + 1}, {})
    try:
      c.wait()
    except RuntimeError as e:
      print(str(e).replace(sys.argv[1], 'DIR')[:46])
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    c.wait()
    print('latest', c.latest())
  c.save(2, state, {})
  got, _ = c.restore(state)
  print('latest', c.latest(), bool((got['x'] == state['x']).all()))
"""


def test_a_failed_save_is_told_once_and_harms_nothing(tmp_path):
  """RLIMIT_FSIZE makes the write fail as a full disk does."""
  out = subprocess.run(
    [sys.executable, '-c', FAILED_SAVE, str(tmp_path)],
    capture_output=True,
    text=True,
    timeout=120,
  )
  assert out.returncode == 0, out.stderr
  told = 'checkpoint of step 2 in DIR was not saved: OUT'
  assert out.stdout.splitlines() == [
    *[told, 'latest 1'] * 4,
    'latest 2 True',
  ]


# Two processes of two devices; each writes down what it restored (to a file:
# Gloo writes to stdout from other threads).
PROCESS = """
import json, pathlib, sys, time
import jax, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from moe_jax.runs import checkpoint
directory, port, rank = sys.argv[1], sys.argv[2], int(sys.argv[3])
lines = []
jax.config.update('jax_num_cpu_devices', 2)
jax.distributed.initialize(f'localhost:{port}', 2, rank)
mesh = jax.make_mesh((2, 2), ('x', 'y'), axis_types=(AxisType.Auto,) * 2)

def put(x, *spec):
  sharding = NamedSharding(mesh, P(*spec))
  return jax.make_array_from_callback(x.shape, sharding, lambda i: x[i])

def state(step):
  x = step + np.arange(32, dtype=np.float32).reshape(8, 4)
  return {'x': put(x, 'y', 'x'), 'y': put(x[0]), 'none': put(x[:0])}

def same(got, step):
  pairs = zip(jax.tree.leaves(got), jax.tree.leaves(state(step)))
  return all(
    np.array_equal(a.data, b.data)
    for x, y in pairs
    for a, b in zip(x.addressable_shards, y.addressable_shards)
  )

if rank == 0:  # The other must wait for it.
  write = checkpoint.manifest.write
  checkpoint.manifest.write = lambda path: (time.sleep(0.3), write(path))

with checkpoint.Checkpointer(directory, keep=2) as c:
  for s in (1, 2, 3):
    c.save(s, state(s), {'s': s})
  c.wait()
  lines.append(c.latest())
  got, data = c.restore(state(0))
  lines.append([same(got, 3), data])
  if rank == 0:
    (c.directory / '3' / 'MANIFEST.json').unlink()
  got, data = c.restore(state(0))
  lines.append([same(got, 2), data])
  try:
    c.restore(state(0), step=9)
  except ValueError as e:
    lines.append('refused')
pathlib.Path(f'{directory}.{rank}').write_text(json.dumps(lines))
"""


def test_two_processes_agree(tmp_path):
  directory = tmp_path / 'c'
  with socket.socket() as s:
    s.bind(('localhost', 0))
    port = s.getsockname()[1]
  env = {k: v for k, v in os.environ.items() if k != 'XLA_FLAGS'}
  runs = [
    subprocess.Popen(
      [sys.executable, '-c', PROCESS, str(directory), str(port), str(rank)],
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
      env=env,
    )
    for rank in range(2)
  ]
  try:
    outs = [r.communicate(timeout=120) for r in runs]
  finally:
    for r in runs:
      r.kill()
  want = [3, [True, {'s': 3}], [True, {'s': 2}], 'refused']
  for rank, (r, (_, err)) in enumerate(zip(runs, outs)):
    assert r.returncode == 0, err
    assert json.loads((tmp_path / f'c.{rank}').read_text()) == want
  assert sorted(os.listdir(directory)) == ['2', '_quarantine', '_tmp']
