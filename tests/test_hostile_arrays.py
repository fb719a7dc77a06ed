"""Arrays of a cache made to do harm: nothing unpickled, no size believed."""

import io
import json
import pickle
import struct

import numpy as np
import pytest

from moe_jax import manifest, npy_files
from moe_jax.data import index
from moe_jax.errors import UserError
from moe_jax.routers import prototype


def npy(x):
  out = io.BytesIO()
  np.save(out, x, allow_pickle=True)
  return out.getvalue()


def header(text):
  text = text.ljust(118) + '\n'
  return b'\x93NUMPY\x01\x00' + struct.pack('<H', len(text)) + text.encode()


class Evil:
  def __reduce__(self):
    return pytest.fail, ('unpickled',)


WORDS = "{{'descr': {}, 'fortran_order': False, 'shape': {}, }}"
CASES = {
  'empty': (b'', 'is no array of numbers'),
  'pickle': (pickle.dumps(Evil()), 'is no array of numbers'),
  'objects': (npy(np.array([Evil()], object)), 'is no array of numbers'),
  'texts': (npy(np.array(['a'])), 'holds <U1 of shape'),
  'complex': (npy(np.array([1j])), 'holds complex128 of shape'),
  'matrix': (
    npy(np.ones((2, 2))),
    r'float64 of shape \(2, 2\); numbers with 1',
  ),
  'short': (npy(np.arange(9))[:-1], 'is no array of numbers: mmap length'),
  'huge': (header(WORDS.format("'<i8'", (1 << 60,))), 'is no array of numbers'),
  'negative': (header(WORDS.format("'<i8'", (-3,))), 'is no array of numbers'),
  'deep': (header('(' * 110), 'is no array of numbers'),
  'call': (header("__import__('os').abort()"), 'is no array of numbers'),
  'zip': (b'PK\x03\x04' + bytes(99), 'is no array of numbers'),
}


@pytest.mark.parametrize('case', CASES)
def test_no_array(tmp_path, case):
  data, message = CASES[case]
  (tmp_path / 'x.npy').write_bytes(data)
  with pytest.raises(UserError, match=message) as e:
    npy_files.read(tmp_path / 'x.npy', 1)
  assert '\n' not in str(e.value) and len(str(e.value)) < 500


def test_an_array(tmp_path):
  (tmp_path / 'x.npy').write_bytes(npy(np.arange(3)))
  assert npy_files.read(tmp_path / 'x.npy', 1).tolist() == [0, 1, 2]
  (tmp_path / 'zero').symlink_to('/dev/zero')
  with pytest.raises(UserError, match='zero is no regular file'):
    npy_files.read(tmp_path / 'zero', 1)
  with pytest.raises(FileNotFoundError):
    npy_files.read(tmp_path / 'none', 1)
  (tmp_path / 'c.npy').write_bytes(pickle.dumps(Evil()))
  with pytest.raises(UserError, match='is no array of numbers'):
    prototype.load(str(tmp_path / 'c.npy'))


def made(root, **changed):
  """The files of three documents of two domains, 9 tokens in all."""
  files = {
    'record': np.array([0, 2, 3]),
    'domain': np.array([0, 1, 0], np.int32),
    'bytes': np.array([3, 0, 4]),
    'tokens': np.array([4, 1, 4]),
    'hash': np.array([5, 6, 7], np.uint64),
  }
  for name, x in (files | changed).items():
    if isinstance(x, np.ndarray):
      (root / f'{name}.npy').write_bytes(npy(x))
  (root / 'ids.bin').write_bytes(bytes(changed.get('ids', 18)))
  (root / 'digest.txt').write_text('d' * changed.get('digest', 64))
  texts = {
    'domains': {'domains': ['a', 'b']},
    'names': ['x', 'y', 'z'],
    'bad': {'count': 1, 'lines': ['r 1']},
  }
  for name, value in texts.items():
    text = json.dumps(changed.get(f'{name}.json', value))
    (root / f'{name}.json').write_text(text)
  manifest.write(root)
  return index.read(str(root), 4, ('a', 'b'), np.uint16)


@pytest.mark.parametrize(
  ('changed', 'message'),
  [
    ({'domain': np.array([0, 2, 0])}, 'names more than 2 domains'),
    ({'domain': np.array([0, -1, 0])}, 'of 3 documents: 3 of int64, the le'),
    ({'bytes': np.array([3, 4])}, 'is not that of 3 documents: 2 of int64'),
    ({'tokens': np.array([4.0, 1.0, 4.0])}, '3 documents: 3 of float64'),
    ({'tokens': np.array([4, 0, 5])}, 'is not that of 3 documents'),
    ({'tokens': np.array([1 << 62, 1 << 62, 1])}, 'its documents have 184467'),
    ({'ids': 17}, 'ids.bin has 17 bytes; its documents have 18'),
    ({'ids': 0}, 'ids.bin has 0 bytes; its documents have 18'),
    ({'record': np.array([0, 2, 4])}, 'names more than 4 records'),
    ({'domains.json': {'domains': ['a', 'c']}}, 'has other domains'),
    ({'domains.json': {'domains': 'ab'}}, 'domains.json is no list'),
    ({'names.json': ['x', 'y']}, 'names.json is no list of 3 names'),
    ({'bad.json': {'count': '1', 'lines': []}}, "count='1' is no number"),
    ({'bad.json': {'count': 1}}, 'bad.json is no list'),
    ({'digest': 65}, 'has 65 bytes; at most 64 are read'),
  ],
)
def test_an_index_of_other_documents(tmp_path, changed, message):
  """Its manifest is whole: who made it meant it so."""
  assert made(tmp_path).stored.shape == (9,)
  with pytest.raises(UserError, match=message):
    made(tmp_path, **changed)
