"""Derived files that were damaged are made again, or refused; none is read."""

import os
import pathlib

import numpy as np
import pytest

from moe_jax import manifest
from moe_jax.data import derived, documents, pipeline


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  path = tmp_path_factory.mktemp('text')
  rng = np.random.default_rng(0)
  for domain in 'ab':
    blocks = [bytes(rng.integers(97, 123, 40).tolist()) for _ in range(30)]
    (path / f'{domain}.txt').write_bytes(b'\n\n'.join(blocks))
  return str(path)


def load(folder, cache):
  config = {'name': 'text_files', 'dir': folder, 'seq_len': 16}
  return pipeline.load(config, cache_dir=str(cache))


def tokens(data):
  return data.batch(seed=0, batch_size=32, step=0)['targets'].tolist()


def xor(path, mask, only=None):
  raw = np.frombuffer(path.read_bytes(), np.uint8).copy()
  raw[slice(None) if only is None else only] ^= mask
  path.write_bytes(raw.tobytes())


def largest(cache, pattern):
  return max(cache.glob(pattern), key=lambda p: p.stat().st_size)


DAMAGE = {
  'tokens': lambda c: xor(largest(c, 'index/*/ids.bin'), 4),
  # The lowest bit of the first document's length.
  'lengths': lambda c: [xor(p, 1, 128) for p in c.glob('index/*/tokens.npy')],
  'domains': lambda c: [xor(p, 1, 128) for p in c.glob('index/*/domain.npy')],
  'short': lambda c: os.truncate(largest(c, 'index/*/ids.bin'), 100),
  'gone': lambda c: largest(c, 'index/*/ids.bin').unlink(),
  'fingerprint': lambda c: [xor(p, 1) for p in c.glob('index/*/digest.txt')],
  'of_digests': lambda c: [xor(p, 1, 40) for p in c.glob('index/*/MANIFEST*')],
  'no_digests': lambda c: [p.unlink() for p in c.glob('index/*/MANIFEST.json')],
  # The text itself, as TFDS stores it, and what says how to read it.
  'text': lambda c: xor(
    largest(c, 'tfds/*/*/*/*train*'), 4, slice(70000, None)
  ),
  'features': lambda c: xor(largest(c, 'tfds/*/*/*/dataset_info.json'), 1),
}


@pytest.mark.parametrize('damage', DAMAGE)
def test_damage_is_undone(folder, tmp_path, caplog, damage):
  """The same batches and fingerprint, and a line in the log."""
  whole = load(folder, tmp_path)
  want = tokens(whole)
  # An oracle: every target is a token of the folder's text, in its order.
  text = b'\n\n'.join(p.read_bytes() for p in pathlib.Path(folder).iterdir())
  for row in want:
    for part in bytes(max(t - 3, 0) for t in row).split(b'\0'):
      assert part in text
  DAMAGE[damage](tmp_path)
  caplog.clear()
  again = load(folder, tmp_path)
  assert tokens(again) == want and again.fingerprint == whole.fingerprint
  assert 'is made anew' in caplog.text
  caplog.clear()
  assert tokens(load(folder, tmp_path)) == want  # and stays whole
  assert 'anew' not in caplog.text
  assert not list(tmp_path.glob('*/making_*'))


def test_what_cannot_be_replaced_is_refused(folder, tmp_path, monkeypatch):
  load(folder, tmp_path)
  DAMAGE['tokens'](tmp_path)

  def full(*_):
    raise OSError('No space left on device')

  monkeypatch.setattr(documents, '_index', full)
  with pytest.raises(ValueError, match=r'ids\.bin does not match.*No space'):
    load(folder, tmp_path)


def test_what_another_process_made_meanwhile_is_kept(tmp_path):
  """Whole, it stays; damaged, it is replaced."""
  path = tmp_path / 'a' / 'b'
  count = []

  def make(made):
    count.append(made)
    if len(count) == 1:
      derived.directory(str(path), make)  # ends while the first one writes
      (path / 'x').write_text('theirs')
      if whole:
        manifest.write(path)
    (pathlib.Path(made) / 'x').write_text('ours')

  for whole in (True, False):
    derived.directory(str(path), make)
    assert (path / 'x').read_text() == ('theirs' if whole else 'ours')
    assert not manifest.fault(path) and len(count) == 2
    count.clear()
    (path / 'x').write_text('damaged')
  assert [p.name for p in path.parent.iterdir()] == ['b']
