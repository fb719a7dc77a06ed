"""Tokenizers by call string: `bytes()`, `bpe(size=2048)`, `hf(path=)`, ...

A tokenizer has `vocab_size`, `pad_id`, `eos_id`, `sentinel_ids` (in the order
of use), `key` (what a cache of its tokens is named by), `encode(bytes)` ->
int32 [N] without EOS, and `decode(ids)` -> bytes without special ids. Bits per
byte count a document's own bytes, so they compare across tokenizers.

One that learns from text has its sizes before, and `fitted(texts, cache_dir)`
gives the one that can encode; `content` is what a run then keeps, for it is in
no call string. `look()` raises where a package is missing.
"""

import dataclasses
import hashlib
import importlib
import json
import os
import pathlib
from collections.abc import Iterable, Sequence

import numpy as np

from moe_jax import registry
from moe_jax.data import derived
from moe_jax.errors import UserError


class _Fixed:
  """One that its call string, or a file named there, says whole."""

  learns = False
  content = b''

  def look(self) -> None:
    """All has been looked at when it was made."""

  def fitted(self, texts: Iterable[bytes], cache_dir: str):
    del texts, cache_dir
    return self


@dataclasses.dataclass(frozen=True)
class Bytes(_Fixed):
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


class _Vocabulary(_Fixed):
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
    try:
      self._model = module.SentencePieceProcessor(model_proto=content)
    except RuntimeError as e:
      raise UserError(f'no SentencePiece model in {path!r}: {e}') from None
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
  """A tokenizer.json of Hugging Face's `tokenizers`, without its templates.

  A run keeps a copy. With sentinels=0 those are T5's own, where the file has
  them. Without a path it is the one that a run has kept, and
  `size`, ids that it has, is given instead.
  """

  learns = True  # elsewhere

  def __init__(
    self,
    path: str = '',
    pad: str = '<pad>',
    eos: str = '</s>',
    sentinels: int = 100,
    size: int = 0,
  ):
    """Raises ValueError for no such file, or another than `size` says."""
    self._model = None
    if not path and size > 0:
      super().__init__('hf', path, b'', size, 0, 0, sentinels)
      return
    self.content = _read(path)
    self._model = _tokenizer('tokenizer', path, self.content)
    there = max(self._model.get_vocab().values(), default=-1) + 1
    if size and there != size:
      raise UserError(f'{path!r} has {there} ids; size={size} is given')
    pad_id, eos_id = (self._model.token_to_id(t) for t in (pad, eos))
    own = there, pad_id, eos_id, sentinels
    super().__init__('hf', path, self.content, *own)
    if not sentinels:
      named = (self._model.token_to_id(f'<extra_id_{i}>') for i in range(100))
      self.sentinel_ids = tuple(i for i in named if i is not None)

  def look(self) -> None:
    _optional('tokenizers')

  def fitted(self, texts, cache_dir):
    del texts, cache_dir
    self._check()
    return self

  def _check(self) -> None:
    if not self._model:
      raise UserError(
        'there is no tokenizer.json: the model came without one; put one into '
        "its workdir, or name one, data.tokenizer='hf(path=...)'"
      )

  def encode(self, text: bytes) -> np.ndarray:
    self._check()
    encoded = self._model.encode(
      text.decode(errors='replace'), add_special_tokens=False
    )
    return np.asarray(encoded.ids, np.int32)

  def decode(self, ids: Sequence[int]) -> bytes:
    return self._model.decode(self._plain(ids)).encode()


# Bytes of text that are learned from: more change few of the pieces.
_SAMPLE = 8 << 20
_FORMAT = 1  # of what is learned; part of its name in the cache
_SPACE = ' \t\r\n\f\v'
# No piece crosses these: a word or a name, a number, signs, each with one space
# before it, and white space. Of characters 128 and up UTF-8 makes words.
_CUTS = (
  r' ?[A-Za-z_\x{80}-\x{FF}]+| ?[0-9]+'
  rf'| ?[^A-Za-z_\x{{80}}-\x{{FF}}0-9{_SPACE}]+'
  rf'|[{_SPACE}]+(?![^{_SPACE}])|[{_SPACE}]+'
)


class Bpe:
  """Pairs of bytes merged by their frequency in the training text.

  `size` ids in all: pad 0, EOS 1, the 256 bytes, pieces of several bytes, and
  `sentinels` from the last id down. Lossless, of any bytes, UTF-8 or not: each
  byte is a character to the library, and no text is a special token.

  Gage, "A New Algorithm for Data Compression", C Users Journal 1994; Sennrich
  et al., ACL 2016, arXiv:1508.07909; on bytes as in Radford et al., "Language
  Models are Unsupervised Multitask Learners", 2019, section 2.2.
  """

  pad_id, eos_id = 0, 1
  learns = True

  def __init__(self, size: int = 2048, sentinels: int = 100, path: str = ''):
    """One that has learned nothing yet, or that of a file kept before.

    Raises:
      ValueError: no room for all bytes; a missing or another tokenizer's file.
    """
    pieces = size - 2 - sentinels
    if pieces < 256 or sentinels < 0:
      raise UserError(
        f'bpe(size={size}, sentinels={sentinels}): expected a size of at least '
        f'{258 + max(sentinels, 0)}: pad, EOS, 256 bytes and the sentinels'
      )
    self.vocab_size, self._sentinels, self._pieces = size, sentinels, pieces
    self.sentinel_ids = tuple(range(size - 1, size - 1 - sentinels, -1))
    self.key, self.content, self._model = 'bpe of no text', b'', None
    if path:
      self.content = _read(path)
      self._load(path)

  def look(self) -> None:
    _optional('tokenizers')

  def fitted(self, texts: Iterable[bytes], cache_dir: str) -> 'Bpe':
    """Learned from the first 8 MiB of texts, once for a cache directory."""
    if self._model:
      return self
    digest = hashlib.sha256(
      json.dumps([_FORMAT, self.vocab_size, self._sentinels]).encode()
    )
    sample, total = [], 0
    for text in texts:
      sample.append(text[: _SAMPLE - total])
      digest.update(hashlib.sha256(sample[-1]).digest())
      total += len(sample[-1])
      if total >= _SAMPLE:
        break
    root = pathlib.Path(cache_dir) / 'tokenizers' / digest.hexdigest()[:32]
    path = lambda made: pathlib.Path(made) / 'tokenizer.json'
    make = lambda made: path(made).write_bytes(self._learn(sample))
    derived.directory(str(root), make)
    return Bpe(self.vocab_size, self._sentinels, str(path(root)))

  def _learn(self, sample: list[bytes]) -> bytes:
    """The library's file."""
    module = _optional('tokenizers')
    model = module.Tokenizer(module.models.BPE())
    model.pre_tokenizer = module.pre_tokenizers.Split(
      module.Regex(_CUTS), 'isolated'
    )
    trainer = module.trainers.BpeTrainer(
      vocab_size=self._pieces,
      initial_alphabet=[chr(b) for b in range(256)],
      show_progress=False,
    )
    model.train_from_iterator((t.decode('latin-1') for t in sample), trainer)
    return model.to_str().encode()

  def _load(self, path: str) -> None:
    self._model = _tokenizer('BPE', path, self.content)
    there = self._model.get_vocab()
    try:
      self._bytes = [b''] * len(there)
      for piece, i in there.items():
        self._bytes[i] = piece.encode('latin-1')
    except (IndexError, UnicodeEncodeError) as e:
      raise UserError(f'no BPE in {path!r}: {e}') from None
    # A short text has fewer pieces than there is room for.
    if len(there) > self._pieces or not set(map(chr, range(256))) <= set(there):
      raise UserError(
        f'{path!r} holds {len(there)} pieces; expected all 256 bytes and '
        f'{self._pieces} pieces at most: bpe(size={self.vocab_size}, '
        f'sentinels={self._sentinels})'
      )
    digest = hashlib.sha256(self.content).hexdigest()
    self.key = f'bpe-{digest}-{self.vocab_size}-{self._sentinels}'

  def encode(self, text: bytes) -> np.ndarray:
    if not self._model:
      raise UserError(
        f'bpe(size={self.vocab_size}) has learned from no text: a run keeps '
        'what it learned as tokenizer.json, to be named with path='
      )
    encoded = self._model.encode(
      text.decode('latin-1'), add_special_tokens=False
    )
    return np.asarray(encoded.ids, np.int32) + 2

  def decode(self, ids: Sequence[int]) -> bytes:
    there = self._bytes
    return b''.join(there[i - 2] for i in ids if 2 <= i < len(there) + 2)


def learns(spec: str) -> bool:
  """Whether what a call string names is yet to learn from text."""
  name, keywords = registry.parse(spec)
  cls = TOKENIZERS.get(name, Bytes)
  return cls.learns and not keywords.get('path')


def at(spec: str, path: str) -> str:
  """The call string of what such a tokenizer learned and kept in a file.

  The same where nothing is to be learned.
  """
  if not learns(spec):
    return spec
  name, keywords = registry.parse(spec)
  given = {**keywords, 'path': path}.items()
  return f'{name}({", ".join(f"{k}={v!r}" for k, v in given)})'


def _read(path: str) -> bytes:
  if not os.path.isfile(path):
    raise UserError(f'no tokenizer file at {path!r}')
  with open(path, 'rb') as f:
    return f.read()


def _tokenizer(what: str, path: str, content: bytes):
  """The library's object of a tokenizer.json."""
  module = _optional('tokenizers')
  try:
    return module.Tokenizer.from_str(content.decode())
  except Exception as e:  # the library raises no narrower ones
    said = ' '.join(str(e).split())
    raise UserError(f'no {what} in {path!r}: {said}') from None


def _optional(package: str):
  try:
    return importlib.import_module(package)
  except ImportError:
    raise UserError(
      f'this tokenizer needs the package {package!r}: pip install {package}'
    ) from None


TOKENIZERS = {
  'bytes': Bytes,
  'bpe': Bpe,
  'sentencepiece': SentencePiece,
  'hf': HuggingFace,
}


def build(spec: str) -> Bytes | Bpe | SentencePiece | HuggingFace:
  """`'bytes()'` -> a tokenizer; a ValueError lists the names there are."""
  return registry.call(spec, TOKENIZERS, 'tokenizer')
