"""Kinds of tokens by their text, and text that can be shown."""

import pytest

from moe_jax.analysis import token_text
from moe_jax.data import tokenizers
from moe_jax.errors import UserError

KINDS = {
  'special': [b''],
  'space': [b' ', b'\n\n    ', b'\t'],
  'number': [b'12', b' 3.5', b' seven', b'First'],
  'punctuation': [b'.', b' ("', b'...', b' ->', '\u2014'.encode()],
  'conjunction_article': [b' the', b' and', b' The'],
  'identifier': [b'_', b' my_name', b'x2', b'fooBar', b' self_'],
  'capitalised': [b' Berlin', b'HTTP', b'The'],
  'word': [b' house', ' gr\u00fcn'.encode()],
  'fragment': [b'ing', b'house', b'the'],
  'other': [b'\xc3', b"don't", b' a.b', b'ab\xff'],
}


@pytest.mark.parametrize('kind', KINDS)
def test_the_kind_of_a_text(kind):
  assert {t: token_text.kind(t) for t in KINDS[kind]} == dict.fromkeys(
    KINDS[kind], kind
  )


def test_all_kinds_are_there():
  assert set(KINDS) | {'sentinel'} == set(token_text.CLASSES)


def test_without_spaces_in_the_vocabulary_words_are_words():
  assert token_text.kind(b'house', spaced=False) == 'word'
  assert token_text.kind(b'the', spaced=False) == 'conjunction_article'


def test_the_ids_of_bytes():
  made = tokenizers.Bytes()
  text = token_text.texts('bytes()', 400)
  assert text[made.encode(b'a')[0]] == b'a'
  assert text[made.eos_id] == text[399] == b''
  named = [token_text.CLASSES[c] for c in token_text.classes('bytes()', 400)]
  at = lambda byte: named[made.encode(byte)[0]]
  assert named[383] == named[259] == 'sentinel'
  assert named[0] == named[1] == named[399] == 'special'
  assert [at(b) for b in (b'\n', b'7', b';', b'Q', b'q', b'\xe2')] == [
    *('space', 'number', 'punctuation', 'capitalised', 'word', 'other')
  ]


def test_a_record_without_a_tokenizer_has_no_text():
  with pytest.raises(UserError, match='names no tokenizer'):
    token_text.texts('', 9)


def test_what_is_shown_prints_and_is_unambiguous():
  assert token_text.shown(b' a\n\xff') == r' a\n\xff'
  assert token_text.shown(rb'a\n') == r'a\\n'
  assert token_text.shown('\u00fc\u200b'.encode()) == '\u00fc\\u200b'
