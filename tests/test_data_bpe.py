"""A BPE that is learned from the training text, and stays with its run."""

import shutil
import sys

import numpy as np
import pytest

from moe_jax.data import documents, pipeline, tokenizers
from moe_jax.training import generation, loop, session as session_lib, sources
from tests import tiny

SPEC = 'bpe(size=400, sentinels=20)'
TEXTS = [
  tiny.WORDS * 9,
  b'def f(x):\n    return x  # caf\xc3\xa9 <pad> </s> \xff\x00\x80\n' * 9,
]


@pytest.fixture
def library():
  """The package is optional."""
  return pytest.importorskip('tokenizers')


@pytest.fixture
def learned(library, tmp_path):
  return tokenizers.build(SPEC).fitted(TEXTS, str(tmp_path / 'cache'))


@pytest.fixture
def forbidden(monkeypatch):
  def learn(self, sample):
    raise AssertionError('learned again')

  return lambda: monkeypatch.setattr(tokenizers.Bpe, '_learn', learn)


def test_all_bytes_come_back_and_text_is_no_special_token(learned):
  rng = np.random.default_rng(0)
  strings = [bytes([i]) for i in range(256)] + TEXTS
  strings += [b'', b'<pad></s><unk>', 'é€𝄞'.encode(), b'\xc3(\xa9\xed\xa0\x80']
  strings += [rng.bytes(n) for n in range(1, 200)]
  for text in strings:
    ids = learned.encode(text)
    assert ids.dtype == np.int32 and learned.decode(ids) == text
    # No pad, no EOS, no sentinel.
    assert all(2 <= i < 380 for i in ids)
  assert learned.sentinel_ids == tuple(range(399, 379, -1))
  ids = learned.encode(TEXTS[0])
  assert 5 * len(ids) < len(TEXTS[0])
  assert learned.decode([0, *ids, 1, *learned.sentinel_ids]) == TEXTS[0]


def test_no_piece_crosses_a_word(learned):
  pieces = [learned.decode([i]) for i in range(258, 380)]
  assert b' router' in pieces and b'\n   ' in pieces
  for piece in filter(None, pieces):
    assert len(piece) > 1
    if not piece.isspace():
      rest = piece[1:] if piece[:1] == b' ' else piece
      assert not rest.strip() == b'' and b' ' not in rest and b'\n' not in rest


def test_the_same_text_gives_the_same_one(learned, forbidden, tmp_path):
  unlearned = tokenizers.build(SPEC)
  again = unlearned.fitted(TEXTS, str(tmp_path / 'other'))
  assert again.content == learned.content and again.key == learned.key
  cache = str(tmp_path / 'cache')
  others = [unlearned.fitted(TEXTS[:1], cache)]
  for spec in ('bpe(size=390, sentinels=20)', 'bpe(size=400, sentinels=21)'):
    others.append(tokenizers.build(spec).fitted(TEXTS, cache))
  assert len({t.key for t in (unlearned, learned, *others)}) == 5
  assert [t.vocab_size for t in others] == [400, 390, 400]
  forbidden()
  assert unlearned.fitted(TEXTS, cache).key == learned.key
  assert learned.fitted(TEXTS[:1], cache) is learned


def test_as_much_text_is_read_as_is_learned_from(
  library, tmp_path, monkeypatch
):
  monkeypatch.setattr(tokenizers, '_SAMPLE', len(TEXTS[0]) + 10)

  def texts():
    yield TEXTS[0]
    yield TEXTS[1][:10] + b'never seen'
    raise AssertionError('read on')

  t = tokenizers.build(SPEC)
  whole = t.fitted([TEXTS[0], TEXTS[1][:10]], str(tmp_path / 'a'))
  assert t.fitted(texts(), str(tmp_path / 'b')).content == whole.content


@pytest.mark.parametrize('n', [1, 2, 5, 144, 1000])
def test_texts_are_spread_and_none_comes_twice(n):
  source = [{'text': b'%d' % i} for i in range(n)]
  found = [int(t) for t in documents.spread(source, 'text')]
  assert sorted(found) == list(range(n))
  if n > 100:  # of each quarter, some of the first dozen
    assert {4 * i // n for i in found[:12]} == {0, 1, 2, 3}


def test_what_is_wrong_is_told(monkeypatch, tmp_path):
  with pytest.raises(ValueError, match=r'size=300.*size of at least 358'):
    tokenizers.build('bpe(size=300)')
  with pytest.raises(ValueError, match=r'has learned from no text.*path='):
    tokenizers.build(SPEC).encode(b'a')
  with pytest.raises(ValueError, match='no tokenizer file at'):
    tokenizers.build("bpe(path='nowhere')")
  path = "hf(path='nowhere')"
  assert tokenizers.at(path, 'x') == path
  spec = tokenizers.at(SPEC, 'a/x.json')
  assert spec == "bpe(size=400, sentinels=20, path='a/x.json')"
  assert tokenizers.at(spec, 'y') == spec
  monkeypatch.setitem(sys.modules, 'tokenizers', None)
  problem = session_lib.choose_problem(
    tiny.config(**{'data.tokenizer': SPEC, 'model.vocab_size': 0})
  )
  assert problem.vocabulary(None) == 400  # is known without the package
  with pytest.raises(ValueError, match='pip install tokenizers'):
    problem.find()


def test_a_file_that_is_no_such_tokenizer(library, learned, tmp_path):
  path = tmp_path / 'kept.json'
  path.write_bytes(b'{}')
  with pytest.raises(ValueError, match="no BPE in '"):
    tokenizers.build(tokenizers.at(SPEC, str(path)))
  with pytest.raises(ValueError, match="no tokenizer in '") as e:
    tokenizers.build(f'hf(path={str(path)!r})')
  assert '\n' not in str(e.value)
  path.write_bytes(learned.content)
  assert tokenizers.build(tokenizers.at(SPEC, str(path))).key == learned.key
  with pytest.raises(ValueError, match='and 278 pieces at most'):
    tokenizers.build(f'bpe(size=300, sentinels=20, path={str(path)!r})')


def test_a_run_keeps_its_tokenizer(library, forbidden, tmp_path):
  fields = tiny.corpus(tmp_path) | {
    'data.tokenizer': SPEC,
    'mesh': 'auto()',
    'model.num_layers': 1,
    'moe.layers': 'none',
    'train.steps': 1,
  }
  run = tmp_path / 'run'
  loop.train(tiny.config(**fields), str(run))
  data = session_lib.make(tiny.config(**fields), str(run)).data
  # Bits per byte count the documents' own bytes.
  sizes = [len(t) for t in data.validation_texts()]
  assert [d.num_bytes for d in data.documents] == sizes
  # A prompt and its continuation, where neither text nor cache is left.
  shutil.rmtree(tmp_path / 'cache')
  forbidden()
  generator = generation.Generator(str(run), mesh_spec='auto()')
  assert generator.tokenizer.key == data.tokenizer.key
  assert generator(b'the router', length=3, temperature=0)
  # The text is read anew, and the tokenizer that the run kept tokenizes it.
  again = session_lib.make(tiny.config(**fields), str(run))
  assert again.data.fingerprint == data.fingerprint
  # So does a run that begins with its parameters, on whatever text.
  config = tiny.config(**fields | {'train.init_from': str(run)})
  assert sources.find(config, 'init_from')
  begun = session_lib.make(config, str(tmp_path / 'new'))
  assert begun.data.tokenizer.key == data.tokenizer.key
  for spec, message in (
    ('bytes()', 'its data.tokenizer is .bpe.size=400'),
    ('bpe(size=500, sentinels=20)', 'its data.tokenizer is .bpe.size=400'),
  ):
    config.data.tokenizer = spec
    with pytest.raises(ValueError, match=message):
      sources.find(config, 'init_from')
  config.data.tokenizer = SPEC
  (run / 'tokenizer.json').unlink()
  with pytest.raises(ValueError, match=r'it keeps no tokenizer\.json'):
    sources.find(config, 'init_from')


def test_a_corpus_in_pieces(library, tmp_path):
  fields = tiny.corpus(tmp_path)
  given = {k[5:]: v for k, v in fields.items() if k.startswith('data.')}
  given |= {'tokenizer': SPEC, 'seq_len': 16}
  load = lambda name, **kw: pipeline.load(
    given | kw, cache_dir=str(tmp_path / name)
  )
  data = load('one')
  assert load('two').fingerprint == data.fingerprint
  assert load('one', tokenizer='bytes()').fingerprint != data.fingerprint
  batch = data.batch(seed=0, batch_size=4, step=0)
  whole = b'\0'.join(t for d in data.domains for t in data.train_texts(d))
  for row in batch['targets']:
    parts = np.split(row, np.flatnonzero(row == data.tokenizer.eos_id))
    assert all(data.tokenizer.decode(part) in whole for part in parts)
