"""What a model learns from a window of tokens: causal LM or span corruption.

An objective has `window(seq_len)`, the tokens that one row takes, and
`example(window, ...)`, the row: a dict of int32 arrays. Rows hold, for the
decoder, `inputs`, `targets`, `positions` (within the segment), `segments` (1,
2, ... and 0 on padding) and `document` (an index, -1 on padding).
"""

import dataclasses
import functools
from typing import NamedTuple

import numpy as np

from moe_jax import registry
from moe_jax.errors import UserError


class Window(NamedTuple):
  """Tokens of a row with their document's index; both int32 [N]."""

  tokens_N: np.ndarray
  document_N: np.ndarray


@dataclasses.dataclass(frozen=True)
class CausalLM:
  """Predicts each token from those before it in its segment.

  Every stretch of one document in the window is a segment. Inputs are the
  targets one to the right, the pad id first: the first token is predicted too.
  """

  def window(self, seq_len: int) -> int:
    return seq_len

  def check(self, seq_len: int, sentinels: int) -> None:
    """Any length will do."""

  def example(self, window, *, seq_len, tokenizer, rng) -> dict:
    """Rows of [seq_len]; `rng` is not used."""
    del rng
    tokens_N, document_N = window
    starts_N = np.ones(len(tokens_N), bool)
    starts_N[1:] = document_N[1:] != document_N[:-1]
    return decoder_row(
      tokens_N, document_N, starts_N, seq_len, tokenizer.pad_id
    )


@dataclasses.dataclass(frozen=True)
class SpanCorruption:
  """T5's denoising: spans of the input are replaced by sentinels, then told.

  A window is ONE segment, in which documents follow one another with an EOS
  between them, as in T5. `encoder_inputs` are the kept tokens, a sentinel for
  each span, and EOS: exactly seq_len for a full window (one less may be left
  where spans are of one token and half of all are noise). `targets` are each
  sentinel with its span, then EOS, `targets_length(seq_len)` long. Adds
  `encoder_inputs`, `encoder_positions`, `encoder_segments` and
  `encoder_document`.

  Raffel et al., "Exploring the Limits of Transfer Learning with a Unified
  Text-to-Text Transformer", JMLR 2020, arXiv:1910.10683, sections 3.1.4 and
  3.3.4. Differs: EOS stands between documents, and noise is drawn by (seed,
  row), so that a row is the same wherever it is made.
  """

  noise_density: float = 0.15
  mean_span: float = 3.0

  def __post_init__(self):
    if not 0 < self.noise_density < 1:
      raise UserError(
        f'noise_density={self.noise_density}: expected between 0 and 1'
      )
    if self.mean_span < 1:
      raise UserError(f'mean_span={self.mean_span}: expected 1 or more')

  def window(self, seq_len: int) -> int:
    """Raw tokens whose corrupted form is `seq_len` long, EOS included."""
    return _raw_length(self, seq_len)

  def targets_length(self, seq_len: int) -> int:
    """Longest targets of a window of `seq_len`, EOS included."""
    noise, spans = self._counts(self.window(seq_len))
    return noise + spans + 1

  def check(self, seq_len: int, sentinels: int) -> None:
    """Raises ValueError where spans outnumber the tokenizer's sentinels."""
    if seq_len < 3:
      raise UserError(f'seq_len={seq_len}: span corruption needs 3 or more')
    spans = self._counts(self.window(seq_len))[1]
    if spans > sentinels:
      raise UserError(
        f'span_corruption makes {spans} spans of {seq_len} tokens, but the '
        f'tokenizer has {sentinels} sentinels: lower seq_len or noise_density, '
        f'or raise mean_span'
      )

  def example(self, window, *, seq_len, tokenizer, rng) -> dict:
    """Encoder rows of [seq_len], decoder rows of [targets_length]."""
    tokens_N, document_N = window
    eos, pad = tokenizer.eos_id, tokenizer.pad_id
    noise_N = self.noise_mask(len(tokens_N), rng)
    first_N = noise_N & ~np.concatenate([[False], noise_N[:-1]])
    at = np.flatnonzero(first_N)
    sentinels = np.asarray(tokenizer.sentinel_ids[: len(at)], np.int32)
    kept = tokens_N.copy()
    kept[at] = sentinels
    told = np.insert(tokens_N, at, sentinels)
    of = np.insert(document_N, at, document_N[at])
    told_mask, seen = np.insert(noise_N, at, True), document_N
    if len(tokens_N):  # a row of padding stays one
      kept = np.append(kept[~noise_N | first_N], eos)
      seen = np.append(seen[~noise_N | first_N], document_N[-1])
      told = np.append(told[told_mask], eos)
      of = np.append(of[told_mask], document_N[-1])
    one_segment = np.arange(len(told)) == 0
    length = self.targets_length(seq_len)
    return {
      **encoder_row(kept, seq_len, pad),
      'encoder_document': pad_to(seen, seq_len, -1),
      **decoder_row(told, of, one_segment, length, pad),
    }

  def noise_mask(self, length: int, rng: np.random.Generator) -> np.ndarray:
    """Where the noise is, bool [length]; it starts with kept tokens.

    Kept and noisy stretches alternate, and each way to cut the two totals into
    that many stretches is as likely as any other.
    """
    noise, spans = self._counts(length)
    if not noise:
      return np.zeros(length, bool)
    lengths = np.empty((spans, 2), int)
    lengths[:, 0] = _composition(length - noise, spans, rng)
    lengths[:, 1] = _composition(noise, spans, rng)
    return np.repeat(np.arange(2 * spans) % 2 == 1, lengths.ravel())

  def _counts(self, length: int) -> tuple[int, int]:
    """(noise tokens, spans) of a window; none where it is shorter than 2."""
    if length < 2:
      return 0, 0
    noise = min(max(round(length * self.noise_density), 1), length - 1)
    spans = max(round(noise / self.mean_span), 1)
    return noise, min(spans, length - noise)

  def encoder_length(self, length: int) -> int:
    """Kept tokens, sentinels and EOS of a window of `length` raw tokens."""
    noise, spans = self._counts(length)
    return length - noise + spans + 1


@functools.cache
def _raw_length(objective: SpanCorruption, seq_len: int) -> int:
  raw = 1  # each token more makes the encoder's row longer by 0 or 1
  while objective.encoder_length(raw + 1) <= seq_len:
    raw += 1
  return raw


def _composition(total: int, parts: int, rng) -> np.ndarray:
  """A uniform draw of `parts` positive integers that sum to `total`."""
  cuts = 1 + np.sort(rng.choice(total - 1, parts - 1, replace=False))
  return np.diff(cuts, prepend=0, append=total)


def decoder_row(targets_N, document_N, starts_N, length, pad_id) -> dict:
  """The decoder's arrays of a row; see the top of the file.

  Args:
    targets_N, document_N: of the row, int32.
    starts_N: True where a segment starts.
    length: of the row, padded.
    pad_id: of the tokenizer; the first input of each segment.
  """
  inputs_N = np.concatenate([targets_N[:1] * 0, targets_N[:-1]])
  inputs_N[starts_N] = pad_id
  index_N = np.arange(len(targets_N))
  start_N = np.maximum.accumulate(np.where(starts_N, index_N, 0))
  return {
    'inputs': pad_to(inputs_N, length, pad_id),
    'targets': pad_to(targets_N, length, pad_id),
    'positions': pad_to(index_N - start_N, length, 0),
    'segments': pad_to(np.cumsum(starts_N), length, 0),
    'document': pad_to(document_N, length, -1),
  }


def encoder_row(tokens_N, length: int, pad_id: int) -> dict:
  """The encoder's arrays of a row of one segment, padded to `length`."""
  return {
    'encoder_inputs': pad_to(tokens_N, length, pad_id),
    'encoder_positions': pad_to(np.arange(len(tokens_N)), length, 0),
    'encoder_segments': pad_to(np.ones(len(tokens_N)), length, 0),
  }


def pad_to(x_N, length: int, value: int) -> np.ndarray:
  """int32 [length]: `x_N`, then `value`."""
  padded = np.full(length, value, np.int32)
  padded[: len(x_N)] = x_N
  return padded


OBJECTIVES = {'causal_lm': CausalLM, 'span_corruption': SpanCorruption}


def build(spec: str) -> CausalLM | SpanCorruption:
  """`'causal_lm()'` -> an objective; a ValueError lists the names there are."""
  return registry.call(spec, OBJECTIVES, 'objective')
