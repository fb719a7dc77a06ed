"""What a job finds out of itself before it trains; each fault is seeded."""

import os
import re
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import pytest

from moe_jax.parallel import check, compat, job as job_lib, mesh as mesh_lib

MESH = 'exact(data=2, expert=4)'
SUMMED = 'all processes are alike, and all sums are right'


@pytest.fixture(autouse=True)
def short(monkeypatch):
  """Messages of 4 KiB."""
  monkeypatch.setattr(check, '_CPU_BYTES', 2**12)


def look(config):
  """Lines of a check of this process on 8 devices."""
  lines = []
  check.run(config, lambda: mesh_lib.make(MESH), lines.append)
  return lines


def test_devices_mesh_and_each_axis_are_shown():
  first, process, data, expert, last = look({'seed': 1})
  assert 'processes: 1, devices: 8 (cpu), mesh: data=2 expert=4;' in first
  assert f'jax {jax.__version__}, code ' in first
  assert re.fullmatch(r'process 0 \(\S+\): 8 devices', process)
  number = r'\d\S* ms, \d\S* GB/s'
  for axis, line in (('data', data), ('expert', expert)):
    assert re.fullmatch(f'  {axis}: psum {number}; all_to_all {number}', line)
  assert last == SUMMED
  assert look({'seed': 2})[0] != first  # by the digest


@pytest.mark.parametrize('name', check._EXCHANGES)
def test_wrong_numbers_are_told_with_their_source(monkeypatch, name):
  """One device sends what it should not."""
  exchange, *rest = check._EXCHANGES[name]

  def hurt(x, axes):
    mine = jax.lax.axis_index(('data', 'expert')) == 6
    return exchange(jnp.where(mine, 2 * x, x), axes)

  monkeypatch.setitem(check._EXCHANGES, name, (hurt, *rest))
  with pytest.raises(ValueError, match='process 0') as e:
    look({})
  line = rf"{name} over 'data': device \d got .*, from device 6 of process 0$"
  assert re.search(line, str(e.value))


def test_who_is_not_as_the_others_is_named():
  """By most of them; of two, process 0 is right."""
  a, b = {'jax': '1', 'seed': '2'}, {'jax': '1', 'seed': '3'}
  names = ['p0', 'p1', 'p2']
  assert check.unlike([a, a, a], names) == []
  assert check.unlike([a, b], names) == ['p1: seed is 3 there, 2 elsewhere']
  assert check.unlike([b, a, a], names) == ['p0: seed is 3 there, 2 elsewhere']
  silent = {'error': 'says nothing'}
  assert check.unlike([a, silent, a], names) == ['p1: says nothing']
  found = check.facts({'train.steps': 3})
  assert found['config.train.steps'] == '3' and found['jax'] == jax.__version__
  assert found['flax'] != 'absent'


def test_a_gpu_that_is_asked_for_must_be_there(monkeypatch):
  """JAX goes on with the CPU, where that is named, too."""
  see = lambda: False
  monkeypatch.setattr(compat.hardware_utils, 'has_visible_nvidia_gpu', see)
  assert check._devices()['devices'] == 8
  before = jax.config.jax_platforms
  try:
    jax.config.update('jax_platforms', 'cuda,cpu')
    with pytest.raises(ValueError, match='JAX_PLATFORMS=cuda,cpu, and no NVI'):
      check._devices()
  finally:
    jax.config.update('jax_platforms', before)


class Service:
  """JAX's, of several processes."""

  def __init__(self):
    self.told = {}

  def key_value_set(self, key, value):
    self.told[key] = value

  def key_value_dir_get(self, key):
    return [k for k in self.told if k.startswith(key)]

  def blocking_key_value_get(self, key, milliseconds):
    if key not in self.told:
      time.sleep(milliseconds / 1000)
      raise jax.errors.JaxRuntimeError('DEADLINE_EXCEEDED')
    return self.told[key]


class LeftError(Exception):
  pass


@pytest.fixture
def service(monkeypatch):
  """Makes this process one of three, that of a rank."""

  def leave(code):
    raise LeftError(code)

  def make(rank):
    found = Service()
    monkeypatch.setattr(compat, 'service', lambda: (found, rank, 3))
    return found.told

  monkeypatch.setattr(check.os, '_exit', leave)
  monkeypatch.setattr(check, '_PATIENCE', 0.2)
  monkeypatch.setattr(check, '_GRACE', 0.2)
  return make


@pytest.mark.parametrize('rank', [0, 1])
def test_a_process_that_is_silent_is_named_once(service, capsys, rank):
  told = service(rank)
  if rank:
    told['moe_jax/check/facts/0'] = '{}'
  with pytest.raises(LeftError, match='1'):
    check.run({}, None, None)
  line = 'error: process 1: says nothing of its facts; and 1 more\n'
  assert capsys.readouterr().err == ('' if rank else line)
  assert ('moe_jax/check/left/1' in told) == (rank == 1)


def test_whoever_hangs_is_not_waited_for(service):
  """It says at what; where another has failed, it says nothing."""
  hang = lambda at: at.append("psum over 'data'") or time.sleep(2)
  service(0)
  mine, *others = check._together('x', hang)
  assert mine == {'error': "psum over 'data' took more than 0.2 s"}
  assert others == [{'error': 'says nothing of its x'}] * 2
  service(0)['moe_jax/check/x/failed/1'] = '1'
  mine, *_ = check._together('x', hang)
  assert mine == {'error': ''}
  assert check.unlike([mine, {'error': 'a'}], ['p0', 'p1']) == ['p1: a']


CHILD = """
import sys
import jax
from moe_jax.parallel import check, distributed, mesh
fault, address, rank = sys.argv[1], sys.argv[2], int(sys.argv[3])
mine, config = rank == 1, {'train.steps': 10}
check._CPU_BYTES = 2**12
distributed.start(8, address, 2, rank)
if fault == 'devices' and mine:
  jax.config.update('jax_num_cpu_devices', 3)
if fault == 'version' and mine:
  check._version = lambda name: '0.1'
if fault == 'config' and mine:
  config = {'train.steps': 20}
if fault == 'none at all' and mine:
  check.jax.local_devices = lambda: 1 / 0
if fault == 'sum' and mine:
  send, *rest = check._EXCHANGES['all_to_all']
  twice = lambda x, axes: send(2 * x, axes)
  check._EXCHANGES['all_to_all'] = (twice, *rest)
check.run(config, lambda: mesh.make('auto(expert=4)'))
"""
FAULTS = {
  '': '',
  'devices': 'devices is 3 there, 4 elsewhere',
  'version': 'jax is 0.1 there, ',
  'config': 'config.train.steps is 20 there, 10 elsewhere',
  'none at all': 'division by zero',
  'sum': "all_to_all over 'data': device",
}


@pytest.mark.slow
@pytest.mark.parametrize('fault', FAULTS)
def test_two_processes(fault):
  """One line of one of them, and both end."""
  address = job_lib.calls(['x'], 2)[0][3].partition('=')[2]
  env = {k: v for k, v in os.environ.items() if k != 'XLA_FLAGS'}
  runs = [
    subprocess.Popen(
      [sys.executable, '-c', CHILD, fault, address, str(rank)],
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
  codes, err = [r.returncode for r in runs], ''.join(e for _, e in outs)
  if not fault:
    assert codes == [0, 0], err
    out = outs[0][0]  # C++ speaks between the lines, and in them
    assert 'processes: 2, devices: 8 ' in out, out
    assert out.count(': 4 devices') == 2 and SUMMED in out, out
  else:
    assert codes == [1, 1], err
    (line,) = [x for x in err.splitlines() if 'error: ' in x]
    assert 'error: process ' in line and FAULTS[fault] in line, line
    # Who sent it, not who first saw it.
    guilty = 'of process 1' if fault == 'sum' else 'error: process 1 ('
    assert guilty in line, line
