"""What cannot be read is not damaged, what is not on the disk is not there."""

import builtins
import errno
import io
import json
import logging
import os
import pathlib
import shutil

import pytest

from moe_jax.runs import (
  checkpoint,
  quarantine,
  resume,
  workdir as workdir_lib,
)
from tests.test_checkpoint import abstract, fill, small, value_of

REASONS = (errno.EACCES, errno.EIO, errno.ESTALE)


@pytest.fixture
def locked(monkeypatch):
  """{part of a path: (errno, how many more times)} that cannot be opened."""
  out, opened = {}, io.open

  def open_(path, *args, **kwargs):
    for part, (number, left) in out.items():
      if part in str(path) and left:
        out[part] = number, left - 1
        raise OSError(number, os.strerror(number), str(path))
    return opened(path, *args, **kwargs)

  for where in (io, builtins):  # pathlib has its own
    monkeypatch.setattr(where, 'open', open_)
  monkeypatch.setattr(quarantine, '_PAUSES', (0, 0))
  return out


def said(caplog, what):
  return [m for m in caplog.messages if what in m]


@pytest.mark.parametrize('number', REASONS)
@pytest.mark.parametrize('name', ['meta.json', 'MANIFEST.json'])
def test_unreadable_is_passed_over_and_stays(
  tmp_path, locked, caplog, name, number
):
  fill(tmp_path, [1, 2, 3])
  locked[f'3/{name}'] = number, 99
  with checkpoint.Checkpointer(tmp_path, keep=3) as c:
    with caplog.at_level(logging.WARNING, 'absl'):
      assert value_of(c.restore(abstract(small()))[0]) == 2
    assert len(said(caplog, f'cannot be read: {os.strerror(number)}; pa')) == 1
    for part in ('1/', '2/'):
      locked[f'{part}{name}'] = number, 99
    with pytest.raises(ValueError, match='no usable checkpoint: 3 cannot be r'):
      c.restore(abstract(small()))
    with pytest.raises(ValueError, match='3 cannot be read: '):
      c.restore(abstract(small()), step=3)
    locked.clear()
    assert value_of(c.restore(abstract(small()))[0]) == 3
  assert sorted(os.listdir(tmp_path)) == ['1', '2', '3', '_tmp']


def test_unreadable_for_a_moment_is_read(tmp_path, locked):
  fill(tmp_path, [1, 2])
  locked['2/meta.json'] = errno.ESTALE, 2
  with checkpoint.Checkpointer(tmp_path, keep=3) as c:
    assert value_of(c.restore(abstract(small()))[0]) == 2


def test_what_was_passed_over_harms_no_later_save(tmp_path, locked, caplog):
  """Neither its name, nor that it counts among the newest."""
  fill(tmp_path, [1, 4, 6])
  for part in ('4/meta', '6/meta'):
    locked[part] = errno.EIO, 99
  with checkpoint.Checkpointer(tmp_path, keep=1) as c:
    c.restore(abstract(small()))
    c.save(4, small(44), {})
    c.wait()
    locked.clear()
    assert checkpoint.steps(tmp_path) == [4]
    assert value_of(c.restore(abstract(small()))[0]) == 44
    c.save(6, small(66), {})
    c.wait()
    assert checkpoint.steps(tmp_path) == [6]
  aside = tmp_path / '_quarantine'
  assert sorted(os.listdir(aside)) == ['4', '6']
  assert json.loads((aside / '6/meta.json').read_text())['data'] == {
    'data_step': 6
  }


def lose(workdir):
  """The checkpoints are gone, their folder is there."""
  shutil.rmtree(workdir / 'checkpoints')
  (workdir / 'checkpoints').mkdir()


def lines(workdir, steps):
  text = ''.join(f'{{"step": {n}}}\n' for n in range(1, steps + 1))
  (workdir / 'metrics.jsonl').write_text(text + '{"st')


@pytest.mark.parametrize(
  ('left', 'said'),
  [
    (lambda w: lines(w, 5), 'metrics of 5 steps, a checkpoint every 2'),
    (lambda w: (w / 'summary.json').write_text('{}'), 'the summary of a run'),
    (lambda w: (w / 'summary_1.json').write_text('{}'), 'the summary of a run'),
    (
      lambda w: (w / 'checkpoints/_quarantine/2').mkdir(parents=True),
      'damaged checkpoints in checkpoints/_quarantine/',
    ),
  ],
)
def test_a_history_does_not_begin_anew(tmp_path, left, said):
  config = {'train': {'steps': 9, 'checkpoint_every': 2}}
  workdir_lib.prepare(tmp_path, config, restart=False, allow=())
  workdir_lib.release(tmp_path)
  lines(tmp_path, 4)  # what dies while it saves for the first time has as many
  assert resume.check(str(tmp_path), config) == {}
  left(tmp_path)
  with pytest.raises(ValueError, match=f'has {said}.*; --restart moves'):
    resume.check(str(tmp_path), config)


class Disk:
  """What was written through, and every rename with what was not."""

  def __init__(self, monkeypatch):
    self.synced, self.renames = {}, []
    fsync, rename = os.fsync, os.rename

    def synced(fd):
      fsync(fd)
      path = os.readlink(f'/proc/self/fd/{fd}')
      self.synced[path] = os.stat(path).st_mtime_ns

    def renamed(source, target):
      lacking = [str(p) for p in self.tree(source) if not self.has(p)]
      self.renames.append((str(source), str(target), lacking))
      rename(source, target)

    monkeypatch.setattr(os, 'fsync', synced)
    monkeypatch.setattr(os, 'rename', renamed)

  def tree(self, path):
    return [pathlib.Path(path), *pathlib.Path(path).rglob('*')]

  def has(self, path):
    """Whether it is on the disk as it is now."""
    return self.synced.get(str(path)) == os.stat(path).st_mtime_ns


def test_a_step_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
  """And its name, before an older step leaves; `keep=1` has no other."""
  fill(tmp_path, [1], keep=1)
  disk = Disk(monkeypatch)
  rmtree, at_deletion = shutil.rmtree, []

  def removed(path, **kwargs):
    if os.path.basename(path).endswith('_old'):
      at_deletion.append(disk.synced.get(str(tmp_path)))
    rmtree(path, **kwargs)

  monkeypatch.setattr(shutil, 'rmtree', removed)
  names = []
  rename = os.rename

  def named(source, target):
    if str(target).endswith('_old'):
      names.append(disk.has(tmp_path))  # the name '2' is on the disk
    rename(source, target)

  monkeypatch.setattr(os, 'rename', named)
  fill(tmp_path, [2], keep=1)
  (made,) = [r for r in disk.renames if r[1] == str(tmp_path / '2')]
  assert made[2] == []
  assert names == [True] and len(at_deletion) == 1
  assert checkpoint.steps(tmp_path) == [2]


def test_a_config_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
  disk, replace, at = Disk(monkeypatch), os.replace, []

  def replaced(source, target):
    at.append((os.path.basename(target), disk.has(source)))
    replace(source, target)

  monkeypatch.setattr(os, 'replace', replaced)
  workdir_lib.prepare(tmp_path, {'seed': 0}, restart=False, allow=())
  workdir_lib.release(tmp_path)
  assert at == [('config.json', True)]
  assert str(tmp_path) in disk.synced


def test_a_finished_run_looks_at_its_checkpoint(tmp_path, locked):
  """At names and sizes, without reading what is large."""
  assert resume.damage(tmp_path) == ''
  where = tmp_path / 'checkpoints'
  fill(where, [1, 2])
  files = [p for p in (where / '2/state').rglob('*') if p.is_file()]
  largest = max(files, key=lambda p: p.stat().st_size)
  locked[str(largest)] = errno.EIO, 99
  assert resume.damage(tmp_path) == ''
  locked.clear()
  size = largest.stat().st_size
  os.truncate(largest, size - 1)
  found = resume.damage(tmp_path)
  assert 'checkpoint of step 2 is damaged (' in found
  assert f' has {size - 1} bytes, not {size}): without' in found
  locked['MANIFEST.json'] = errno.EACCES, 99
  assert 'cannot be read, Permission denied' in resume.damage(tmp_path)
  locked.clear()
  shutil.rmtree(where)  # to save space
  assert resume.damage(tmp_path) == ''
