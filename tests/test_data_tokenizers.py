"""Tokenizers: ids, round trips, and what is said when one is missing."""

import sys
import types

import numpy as np
import pytest

from moe_jax.data import tokenizers


def test_bytes_are_byt5s_ids():
  t = tokenizers.build('bytes()')
  assert (t.vocab_size, t.pad_id, t.eos_id) == (384, 0, 1)
  assert t.encode(b'\x00A\xff').tolist() == [3, 68, 258]
  assert t.encode(b'A').dtype == np.int32
  assert len(t.sentinel_ids) == 125
  assert t.sentinel_ids[0] == 383 and t.sentinel_ids[-1] == 259


def test_bytes_round_trip_and_special_ids_are_dropped():
  t = tokenizers.build('bytes')
  text = np.random.default_rng(0).integers(0, 256, 5000, np.uint8).tobytes()
  ids = t.encode(text)
  assert t.decode(ids) == text
  assert t.decode([0, *ids[:3], 1, 2, 383, 259]) == text[:3]
  assert t.decode([]) == b'' and t.encode(b'').shape == (0,)


class _Model:
  """Stands for both libraries' models: words by first letter, pad 0, EOS 1."""

  def __init__(self, model_proto=None, pad=0):
    self.pad = pad

  from_str = classmethod(lambda cls, text: cls())
  get_piece_size = get_vocab_size = lambda self: 30
  get_vocab = lambda self: {'z': 29}
  pad_id = lambda self: self.pad
  eos_id = lambda self: 1
  token_to_id = lambda self, t: {'<pad>': 0, '</s>': 1}.get(t)

  def encode(self, text, add_special_tokens=True):
    ids = [ord(w[0]) - 97 + 4 for w in text.split()]
    if add_special_tokens:
      return ids
    return types.SimpleNamespace(ids=ids)

  def decode(self, ids):
    return ' '.join(chr(i + 93) for i in ids)


@pytest.mark.parametrize(
  'spec, module, attribute',
  [
    ('sentencepiece', 'sentencepiece', 'SentencePieceProcessor'),
    ('hf', 'tokenizers', 'Tokenizer'),
  ],
)
def test_vocabulary_files(tmp_path, monkeypatch, spec, module, attribute):
  path = tmp_path / 'v'
  path.write_bytes(b'vocabulary')
  fake = types.SimpleNamespace(**{attribute: _Model})
  monkeypatch.setitem(sys.modules, module, fake)
  t = tokenizers.build(f'{spec}(path={str(path)!r}, sentinels=3)')
  assert (t.vocab_size, t.pad_id, t.eos_id) == (33, 0, 1)
  assert t.sentinel_ids == (32, 31, 30)
  ids = t.encode(b'ape bee cat')
  assert ids.dtype == np.int32 and ids.tolist() == [4, 5, 6]
  assert t.decode([0, *ids, 32, 1]) == b'a b c'
  key = t.key
  path.write_bytes(b'another')
  assert tokenizers.build(f'{spec}(path={str(path)!r}, sentinels=3)').key != key


def test_missing_packages_files_and_tokens(tmp_path, monkeypatch):
  path = tmp_path / 'v'
  with pytest.raises(ValueError, match='no tokenizer file at'):
    tokenizers.build(f'hf(path={str(path)!r})')
  path.write_bytes(b'{}')
  for spec, module in (
    ('sentencepiece', 'sentencepiece'),
    ('hf', 'tokenizers'),
  ):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ValueError, match=f'pip install {module}'):
      tokenizers.build(f'{spec}(path={str(path)!r})')
  monkeypatch.setitem(
    sys.modules, 'tokenizers', types.SimpleNamespace(Tokenizer=_Model)
  )
  with pytest.raises(ValueError, match='has no EOS token'):
    tokenizers.build(f"hf(path={str(path)!r}, eos='<end>')")
  with pytest.raises(
    ValueError, match=r"tokenizer 'byte'.*did you mean 'bytes'"
  ):
    tokenizers.build('byte()')
