"""Tokenizers by call string: `bytes()`, `sentencepiece(path=)`, `hf(path=)`.

A tokenizer has `vocab_size`, `pad_id`, `eos_id`, `sentinel_ids` (in the order
of use), `key` (what a cache of its tokens is named by), `encode(bytes)` ->
int32 [N] without EOS, and `decode(ids)` -> bytes without special ids. Bits per
byte count a document's own bytes, so they compare across tokenizers.
"""

import dataclasses
import hashlib
import importlib
import os
from collections.abc import Sequence

import numpy as np

from moe_jax import registry
from moe_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Bytes:
  """One token a byte, with the ids of ByT5.

  Pad 0, EOS 1, unknown 2 (never made), byte b at 3 + b, then 125 sentinels,
  used from the last id down: 384 ids. Lossless.

  Xue et al., "ByT5: Towards a Token-Free Future with Pre-trained Byte-to-Byte
  Models", TACL 2022, arXiv:2105.13626, section 3.
  """

  vocab_size = 384
  pad_id = 0
  eos_id = 1
  sentinel_ids = tuple(range(383, 258, -1))
  key = 'bytes'

  def encode(self, text: bytes) -> np.ndarray:
    return np.frombuffer(text, np.uint8).astype(np.int32) + 3

  def decode(self, ids: Sequence[int]) -> bytes:
    ids = np.asarray(ids, np.int32)
    return (ids[(ids >= 3) & (ids < 259)] - 3).astype(np.uint8).tobytes()


class _Vocabulary:
  """What the tokenizers of a vocabulary file share.

  T5 puts its sentinels above the vocabulary and uses them from the last id
  down; so do these. Bytes that are not UTF-8 reach the tokenizer as U+FFFD.
  """

  def __init__(self, name, path, content, size, pad_id, eos_id, sentinels):
    for what, value in (('pad', pad_id), ('EOS', eos_id)):
      if value is None or value < 0:
        raise UserError(f'{name} vocabulary {path!r} has no {what} token')
    self.vocab_size = size + sentinels
    self.pad_id = pad_id
    self.eos_id = eos_id
    self.sentinel_ids = tuple(range(self.vocab_size - 1, size - 1, -1))
    self.key = f'{name}-{hashlib.sha256(content).hexdigest()}-{sentinels}'
    self._special = {pad_id, eos_id, *self.sentinel_ids}

  def _plain(self, ids):
    return [int(i) for i in ids if int(i) not in self._special]


class SentencePiece(_Vocabulary):
  """A SentencePiece model file, such as T5's.

  Kudo and Richardson, EMNLP 2018 (demo), arXiv:1808.06226.
  """

  def __init__(self, path: str, sentinels: int = 100):
    content = _read(path)
    module = _optional('sentencepiece')
    self._model = module.SentencePieceProcessor(model_proto=content)
    size, pad = self._model.get_piece_size(), self._model.pad_id()
    super().__init__(
      *('sentencepiece', path, content, size, pad),
      *(self._model.eos_id(), sentinels),
    )

  def encode(self, text: bytes) -> np.ndarray:
    ids = self._model.encode(text.decode(errors='replace'))
    return np.asarray(ids, np.int32)

  def decode(self, ids: Sequence[int]) -> bytes:
    return self._model.decode(self._plain(ids)).encode()


class HuggingFace(_Vocabulary):
  """A tokenizer.json of Hugging Face's `tokenizers`, without its templates."""

  def __init__(
    self,
    path: str,
    pad: str = '<pad>',
    eos: str = '</s>',
    sentinels: int = 100,
  ):
    content = _read(path)
    module = _optional('tokenizers')
    self._model = module.Tokenizer.from_str(content.decode())
    size = self._model.get_vocab_size()
    pad_id, eos_id = (self._model.token_to_id(t) for t in (pad, eos))
    super().__init__('hf', path, content, size, pad_id, eos_id, sentinels)

  def encode(self, text: bytes) -> np.ndarray:
    encoded = self._model.encode(
      text.decode(errors='replace'), add_special_tokens=False
    )
    return np.asarray(encoded.ids, np.int32)

  def decode(self, ids: Sequence[int]) -> bytes:
    return self._model.decode(self._plain(ids)).encode()


def _read(path: str) -> bytes:
  if not os.path.isfile(path):
    raise UserError(f'no tokenizer file at {path!r}')
  with open(path, 'rb') as f:
    return f.read()


def _optional(package: str):
  try:
    return importlib.import_module(package)
  except ImportError:
    raise UserError(
      f'this tokenizer needs the package {package!r}: pip install {package}'
    ) from None


TOKENIZERS = {'bytes': Bytes, 'sentencepiece': SentencePiece, 'hf': HuggingFace}


def build(spec: str) -> Bytes | SentencePiece | HuggingFace:
  """`'bytes()'` -> a tokenizer; a ValueError lists the names there are."""
  return registry.call(spec, TOKENIZERS, 'tokenizer')
