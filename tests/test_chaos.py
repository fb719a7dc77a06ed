"""What chaos finds, and that it finds what is there."""

import json
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest

from moe_jax.runs import chaos, checkpoint, writers
from tests import mains

# A run of ten steps, each with a line and some with a checkpoint. Its arrays
# follow from the step, as those of a real one do.
RUN = """
import json, pathlib, signal, sys, time
workdir = pathlib.Path(sys.argv[1])
workdir.mkdir(exist_ok=True)
path = workdir / 'metrics.jsonl'
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
done = len(path.read_text().splitlines()) if path.exists() else 0
time.sleep(0.05)
for step in range(done + 1, 11):
  time.sleep(0.02)
  with path.open('a') as f:
    line = {'step': step, 'loss': 1 / step, 'seconds': time.time()}
    f.write(json.dumps(line) + '\\n')
BROKEN
(workdir / 'summary.json').write_text('{"loss": 0.1}')
"""


def a_run(path, loss=0.5, w=1.0, seconds=1.0, bits=0.1, mesh='a'):
  """A finished run's workdir."""
  state = {'params': {'w': jax.numpy.full((4,), w)}}
  with checkpoint.Checkpointer(path / 'checkpoints', 2) as c:
    c.save(2, state, {})
  line = {'step': 2, 'loss': loss, 'moe/load': [[0.5, 0.5]], 'seconds': seconds}
  (path / 'metrics.jsonl').write_text(json.dumps(line) + '\n')
  (path / 'summary.json').write_text(
    json.dumps({'eval': bits, 'mfu': seconds, 'mesh': mesh})
  )
  return path


def test_every_kind_of_difference_is_found(tmp_path):
  twin = a_run(tmp_path / 'twin')
  same = a_run(tmp_path / 'same', seconds=2.0)
  assert chaos.differences(twin, same) == []
  for name, fields, found in (
    ('line', {'loss': np.nextafter(0.5, 1)}, ['step 2: loss differs']),
    ('summary', {'bits': 0.2}, ['summary: eval differs']),
    ('mesh', {'mesh': 'b'}, ['summary: mesh differs']),
    ('array', {'w': 1 + 1e-6}, ['arrays: params/w differs']),
  ):
    other = a_run(tmp_path / name, **fields)
    assert chaos.differences(twin, other) == found
    close = chaos.differences(twin, other, tolerance=1e-4)
    assert close == ([] if name != 'summary' else found)
  (same / 'metrics.jsonl').write_text('')
  assert chaos.differences(twin, same) == ['1 lines, 0']
  shutil.rmtree(same / 'checkpoints/2')
  assert len(chaos.differences(twin, same)) == 1


def test_no_more_is_told_than_is_read(tmp_path):
  made = chaos.Chaos(None, tmp_path, mismatches=[str(i) for i in range(50)])
  made._start = lambda workdir: subprocess.Popen(['true'])
  told = made.run(1)['mismatches']
  assert told[:2] == ['0', '1'] and told[-2:] == ['19', 'and 30 more']


@pytest.mark.parametrize('broken', [False, True])
def test_kills_are_counted_and_survived(tmp_path, monkeypatch, broken):
  """And what goes wrong in a run that was killed is a mismatch."""
  monkeypatch.setattr(chaos, '_arrays', lambda workdir: {})
  line = "1 / 0 if done and 'run' in sys.argv[1] else 0" if broken else ''
  call = [sys.executable, '-c', RUN.replace('BROKEN', line)]
  made = chaos.Chaos(
    lambda w, _: [*call, str(w)], tmp_path, say=lambda line: None
  )
  found = made.run(4)
  assert 1 <= found['kills'] <= 4
  if broken:
    assert found['survived'] < 4
    assert 'ZeroDivisionError' in found['mismatches'][0]
  else:
    assert found == {'kills': 4, 'survived': 4, 'mismatches': []}


def test_damage_is_done_to_the_newest_alone(tmp_path):
  state = {'w': jax.numpy.ones(4)}
  with checkpoint.Checkpointer(tmp_path / 'checkpoints', 3) as c:
    for step in (1, 2):
      c.save(step, state, {})
  made = chaos.Chaos(None, tmp_path, say=lambda line: None)
  made._random = chaos.random.Random(0)
  made._damage(tmp_path)
  manifest = checkpoint.manifest.fault
  assert manifest(tmp_path / 'checkpoints/2')
  assert not manifest(tmp_path / 'checkpoints/1')
  shutil.rmtree(tmp_path / 'checkpoints/2')
  made._damage(tmp_path)  # the only one
  assert not manifest(tmp_path / 'checkpoints/1')


@pytest.mark.slow
def test_a_run_survives_and_its_bits_are_the_same_twice(tmp_path):
  """Three kills; and two runs that nothing happened to."""
  flags = [f'--workdir={tmp_path}', '--steps=120']
  code, out = mains.call('chaos', *flags, '--kills=3')
  assert json.loads(out.splitlines()[-1]) == {
    'kills': 3,
    'survived': 3,
    'mismatches': [],
  }
  assert code == 0
  again = tmp_path / 'again'
  shutil.move(tmp_path / 'twin', again)
  mains.call('chaos', *flags, '--kills=0')
  assert (tmp_path / 'twin' / writers.METRICS).exists()
  assert chaos.differences(tmp_path / 'twin', again) == []
