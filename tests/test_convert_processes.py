"""A folder read by several processes: each the slices that its devices hold."""

import json
import os
import pathlib
import re
import socket
import subprocess
import sys

import pytest

from tests import hub_folders, mains

# Runs the command, counts bytes by tensor, and what is written by path.
PROCESS = """
import json, math, pathlib, sys
from experiments import cli, convert
from moe_jax.conversion import folders
from moe_jax.runs import writers

counts, written, rank = {}, [], sys.argv[-1].rpartition('=')[2]
opened, write_json = folders.opened, writers.write_json

def counted(name, stored):
  def read(slices):
    n = math.prod(s.stop - s.start for s in slices)
    counts[name] = counts.get(name, 0) + n
    return stored.read(slices)
  return folders.Stored(stored.shape, stored.dtype, read)

def write(path, value):
  written.append(pathlib.Path(path).name)
  write_json(path, value)

folders.opened = lambda d: {k: counted(k, v) for k, v in opened(d).items()}
writers.write_json = write

def main(argv):
  convert.main(argv)
  out = pathlib.Path(convert._WORKDIR.value).parent / f'counts.{rank}'
  out.write_text(json.dumps([counts, written]))

cli.run(main)
"""


@pytest.mark.slow
def test_two_processes_read_half_each(tmp_path):
  """Experts over four devices of two processes."""
  said = hub_folders.config('mixtral_8x7b', num_local_experts=4)
  values = hub_folders.tensors(said)
  old = hub_folders.write(tmp_path / 'old', said, values, shards=3)
  run = tmp_path / 'two'
  with socket.socket() as s:
    s.bind(('localhost', 0))
    address = f'localhost:{s.getsockname()[1]}'
  env = {k: v for k, v in os.environ.items() if k != 'XLA_FLAGS'}
  call = [sys.executable, '-c', PROCESS, f'--from_hf={old}', f'--workdir={run}']
  call += ['--mesh=exact(expert=4)', '--cpu_devices=4', '--num_processes=2']
  call += [f'--coordinator_address={address}']
  processes = [
    subprocess.Popen(
      [*call, f'--process_id={i}'],
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
      env=env,
      cwd=pathlib.Path(__file__).parents[1],
    )
    for i in range(2)
  ]
  try:
    outs = [p.communicate(timeout=300) for p in processes]
  finally:
    for p in processes:
      p.kill()
  assert [p.returncode for p in processes] == [0, 0], outs[0][1] + outs[1][1]
  # One of them speaks, and writes what is not of arrays.
  assert [f'{run}\n' in out for out, _ in outs] == [True, False]
  counts, written = zip(
    *(json.loads((tmp_path / f'counts.{i}').read_text()) for i in range(2))
  )
  assert written == (['config.json', 'config.json', 'lineage.json'], [])
  experts = {k for k in values if '.experts.' in k}
  for i, own in enumerate(counts):
    mine = {
      k for k in experts if re.search(rf'experts\.[{2 * i}{2 * i + 1}]', k)
    }
    assert own.keys() & experts == mine and len(mine) == len(experts) / 2
    assert all(own[k] == values[k].size for k in mine)
    # The rest is on all devices, and read once.
    rest = values.keys() - experts
    assert {k: own[k] for k in rest} == {k: values[k].size for k in rest}
  for name in ('one', 'two'):
    if name == 'one':
      one = f'--workdir={tmp_path / name}', '--cpu_devices=8'
      mains.call('convert', f'--from_hf={old}', *one)
    new = tmp_path / f'{name}_back'
    mains.call(
      *('convert', f'--to_hf={new}', f'--workdir={tmp_path / name}'),
      '--cpu_devices=8',
    )
    hub_folders.same_bits(values, hub_folders.stored(new))
  for file in ('config.json', 'hub/config.json', 'hub/lineage.json'):
    assert (run / file).read_bytes() == (tmp_path / 'one' / file).read_bytes()
