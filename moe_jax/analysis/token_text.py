"""What ids of a vocabulary read, and what kind of token each is.

Kinds are a rule over the text of one token, after those by which Zoph et al.,
"ST-MoE", 2022, arXiv:2202.08906, section 7 and tables 13 and 15, read experts:
sentinels, punctuation, conjunctions and articles, proper names, numbers. Names
are seen by their capital here; their verbs and visual descriptions cannot be
told without a tagger and are among the words. Code has kinds of its own: white
space and identifiers.
"""

import functools
import unicodedata

import numpy as np

from moe_jax.data import tokenizers
from moe_jax.errors import UserError

CLASSES = (
  'sentinel',
  'special',  # no text: padding, the end of a document, ids without a piece
  'space',
  'number',  # in figures or in words
  'punctuation',
  'conjunction_article',
  'identifier',  # with an underscore or a figure, or a capital inside
  'capitalised',
  'word',  # small letters behind a space
  'fragment',  # small letters without one
  'other',  # mixed, or part of a character
)
_NUMBERS = frozenset(
  'zero one two three four five six seven eight nine ten eleven twelve hundred '
  'thousand million first second third once twice'.split()
)
_JOINING = frozenset(
  'a an the and or but nor so yet for because although though if unless while '
  'when than that whether'.split()
)


@functools.lru_cache(maxsize=4)
def texts(tokenizer: str, V: int) -> tuple[bytes, ...]:
  """The text of each of V ids; b'' where an id has none.

  Args:
    tokenizer: its call string.
    V: ids, which may be more than the tokenizer has.

  Raises:
    ValueError: no tokenizer, or one without its file.
  """
  if not tokenizer:
    raise UserError('the record names no tokenizer: its ids have no text')
  made = tokenizers.build(tokenizer)
  known = min(V, made.vocab_size)
  none = {made.pad_id, made.eos_id, *made.sentinel_ids}
  read = lambda i: b'' if i in none else made.decode([i])
  return (*(read(i) for i in range(known)), *[b''] * (V - known))


@functools.lru_cache(maxsize=4)
def classes(tokenizer: str, V: int) -> np.ndarray:
  """int [V], into CLASSES; arguments as of `texts`."""
  read = texts(tokenizer, V)
  sentinels = set(tokenizers.build(tokenizer).sentinel_ids)
  # A vocabulary that drops spaces cannot tell a word from a part of one.
  spaced = any(t[:1] == b' ' and t[1:].isalpha() for t in read)
  kinds = (
    'sentinel' if i in sentinels else kind(t, spaced)
    for i, t in enumerate(read)
  )
  return np.array([CLASSES.index(k) for k in kinds])


def kind(text: bytes, spaced: bool = True) -> str:
  """The class of a token's text, but for sentinels.

  Args:
    text: of one token.
    spaced: whether words of the vocabulary have their space before them.
  """
  if not text:
    return 'special'
  read = text.decode(errors='replace')
  bare = read.strip()
  if not bare:
    return 'space'
  if '\ufffd' in bare:
    return 'other'
  if bare.lower() in _NUMBERS or bare.replace('.', '').isdigit():
    return 'number'
  if all(unicodedata.category(c)[0] in 'PS' for c in bare):
    return 'identifier' if bare.strip('_') == '' else 'punctuation'
  if bare.lower() in _JOINING and (read[0].isspace() or not spaced):
    return 'conjunction_article'
  inside = any(c.isupper() for c in bare[1:]) and not bare.isupper()
  if bare.isidentifier() and (inside or not bare.isalpha()):
    return 'identifier'
  if not bare.isalpha():
    return 'other'
  if bare[0].isupper():
    return 'capitalised'
  return 'word' if read[0].isspace() or not spaced else 'fragment'


def shown(text: bytes) -> str:
  """A token's text for a table: what does not print is escaped."""
  read = text.replace(b'\\', b'\\\\').decode(errors='backslashreplace')
  escape = lambda c: c.encode('unicode_escape').decode()
  return ''.join(c if c.isprintable() else escape(c) for c in read)
