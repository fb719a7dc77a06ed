"""Batches: pure in (seed, step), complete, however they are split."""

import collections
import subprocess
import sys
import types

import numpy as np
import pytest

from moe_jax.data import documents, pipeline, splitting, streams


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """Three domains of random bytes whose documents all differ."""
  path = tmp_path_factory.mktemp('text')
  rng = np.random.default_rng(0)
  for domain, count in (('long', 60), ('mid', 120), ('short', 200)):
    blocks = []
    for i in range(count):
      body = rng.integers(128, 256, rng.integers(20, 6000 // (count // 20)))
      blocks.append(b'%d %s ' % (i, domain.encode()) + bytes(body.tolist()))
    (path / f'{domain}.txt').write_bytes(b'\n\n'.join(blocks))
  return path


@pytest.fixture(scope='module')
def cache(tmp_path_factory):
  return str(tmp_path_factory.mktemp('cache'))


@pytest.fixture
def load(folder, cache):
  def load(
    validation_max_bytes=0, validation_documents='all', cache=cache, **fields
  ):
    config = {'name': 'text_files', 'dir': str(folder), 'seq_len': 32}
    return pipeline.load(
      {**config, **fields},
      cache_dir=cache,
      validation_documents=validation_documents,
      validation_max_bytes=validation_max_bytes,
    )

  return load


def _equal(a, b):
  assert a.keys() == b.keys()
  for k in a:
    np.testing.assert_array_equal(a[k], b[k], err_msg=k)


def _take(iterator, n):
  return [next(iterator) for _ in range(n)]


OBJECTIVES = ('causal_lm()', 'span_corruption()')


@pytest.mark.parametrize('objective', OBJECTIVES)
def test_a_batch_is_a_function_of_seed_and_step(load, tmp_path, objective):
  data = load(objective=objective)
  other = load(objective=objective, cache=str(tmp_path))  # built apart
  stream = _take(data.train(seed=5, batch_size=8), 30)
  for step in (29, 0, 7):  # in any order
    _equal(other.batch(seed=5, batch_size=8, step=step), stream[step])
  for changed in (dict(seed=6, step=7), dict(seed=5, step=8)):
    batch = data.batch(batch_size=8, **changed)
    assert (batch['targets'] != stream[7]['targets']).any()
  for k, v in stream[0].items():
    assert v.dtype == np.int32 and v.shape[0] == 8, k
  assert 'document' not in stream[0]
  assert other.fingerprint == data.fingerprint


@pytest.mark.parametrize('processes', [1, 2, 4])
def test_processes_hold_slices_of_the_same_batch(load, processes):
  data = load(objective='span_corruption()')
  parts = [
    data.train(seed=1, batch_size=8, process_index=i, process_count=processes)
    for i in range(processes)
  ]
  for step in range(6):
    slices = [next(p) for p in parts]
    whole = {k: np.concatenate([s[k] for s in slices]) for k in slices[0]}
    _equal(whole, data.batch(seed=1, batch_size=8, step=step))
  # Rows are numbered through: twice the batch holds two steps' rows.
  twice = data.batch(seed=1, batch_size=16, step=1)
  two = [data.batch(seed=1, batch_size=8, step=s) for s in (2, 3)]
  _equal(twice, {k: np.concatenate([b[k] for b in two]) for k in two[0]})


def test_resuming_equals_running_through(load):
  data = load()
  through = _take(data.train(seed=2, batch_size=4), 12)
  resumed = _take(data.train(seed=2, batch_size=4, first_row=36), 3)
  for a, b in zip(through[9:], resumed):
    _equal(a, b)


def test_noise_goes_by_seed_and_row(load):
  data = load(objective='span_corruption()', seq_len=256)
  noise = [
    data.batch(seed=seed, batch_size=8, step=0)['encoder_inputs'] > 258
    for seed in (0, 1)
  ]
  rows = np.concatenate(noise)
  assert len(np.unique(rows, axis=0)) == 16


class _Fake:
  """Documents in which each token is like no other: 1000 * document + place."""

  def __init__(self, lengths):
    self.tokens_N = np.array(lengths)

  def tokens(self, n, start, stop):
    assert 0 <= start < stop <= self.tokens_N[n]
    return np.arange(start, stop, dtype=np.int32) + 1000 * n


def test_an_epoch_holds_each_token_once_less_the_tail():
  lengths = [1, 7, 300, 12, 1, 64, 2, 90]
  members = np.array([0, 1, 2, 4, 5, 7])  # the others are another domain's
  stream = streams.Stream(_Fake(lengths), members, 32, domain=3)
  total = sum(lengths[n] for n in members)
  assert (stream.tokens, stream.windows, stream.lost) == (
    total,
    *divmod(total, 32),
  )
  epochs = []
  for epoch in range(3):
    rows = [
      stream.window(0, epoch * stream.windows + i)
      for i in range(stream.windows)
    ]
    tokens = np.concatenate([r.tokens_N for r in rows])
    assert len(set(tokens.tolist())) == len(tokens) == total - stream.lost
    assert set((tokens // 1000).tolist()) <= set(members.tolist())
    for r in rows:
      assert len(r.tokens_N) == 32
      assert (r.tokens_N // 1000 == r.document_N).all()
      for a, b in zip(r.tokens_N, r.tokens_N[1:]):
        place = b % 1000
        assert b == a + 1 or (place == 0 and a % 1000 == lengths[a // 1000] - 1)
    epochs.append(tokens.tolist())
  assert epochs[0] != epochs[1] != epochs[2]
  assert set(epochs[0]) != set(epochs[1]) or set(epochs[1]) != set(epochs[2])


def test_windows_of_one_document_do_not_come_in_a_row():
  stream = streams.Stream(_Fake([900] * 30), np.arange(30), 30, domain=0)
  of = [stream.window(0, i).document_N[0] for i in range(stream.windows)]
  assert np.mean(np.diff(of) == 0) < 0.1  # 0.97 if they did


@pytest.mark.parametrize(
  'weights', [(1,), (1, 1), (0.5, 0, 0.5), (7, 2, 1), (1e-6, 1, 3), (0, 0, 2)]
)
def test_rows_of_a_mixture_against_counting(weights):
  share_D = streams.shares(weights)
  assert [s > 0 for s in share_D] == [w > 0 for w in weights]
  seen = collections.Counter()
  total = sum(weights)
  for row in range(3000):
    domain, n = streams.place(row, share_D)
    assert n == seen[domain]  # counts up, without gaps
    seen[domain] += 1
    for d, w in enumerate(weights):
      assert abs(seen[d] - (row + 1) * w / total) < len(weights)
  assert all(not seen[d] for d, w in enumerate(weights) if not w)
  assert streams.place(10**15, share_D)[1] > 10**8  # far rows cost the same


def test_batches_hold_training_text_of_their_domain_only(load):
  data = load()
  texts = {d: set(data.train_texts(d)) for d in data.domains}
  whole = {d: b'\x00'.join(t) for d, t in texts.items()}
  counts = collections.Counter()
  for batch in _take(data.train(seed=0, batch_size=16), 20):
    for row in range(16):
      segment, target = batch['segments'][row], batch['targets'][row]
      domains = set()
      for s in range(1, segment.max() + 1):
        ids = target[segment == s]
        piece = data.tokenizer.decode(ids)
        assert len(piece) == len(ids) - (ids[-1] == 1)
        holds = [d for d in data.domains if piece in whole[d]]
        assert holds
        if s < segment.max():  # only the window's edge cuts a document
          assert ids[-1] == 1
        if len(piece) > 8:
          assert len(holds) == 1
          domains.update(holds)
        counts[holds[0]] += len(ids)
      assert len(domains) == 1 and (segment > 0).all()
  # By default rows follow the domains' tokens.
  for d, weight in zip(data.domains, data.weights):
    tokens = sum(len(t) + 1 for t in texts[d])
    every = sum(len(t) + 1 for ts in texts.values() for t in ts)
    assert weight == pytest.approx(tokens / every)
    assert counts[d] / sum(counts.values()) == pytest.approx(weight, abs=0.02)


def test_weights_and_domains_choose_the_rows(load):
  data = load(domains=('short', 'long'), weights=(3, 1))
  assert data.domains == ('short', 'long') and data.weights == (0.75, 0.25)
  tokens = data.batch(seed=0, batch_size=64, step=0)['targets']
  whole = b'\x00'.join(data.train_texts('short'))
  rows = sum(
    data.tokenizer.decode(t[:12]).strip(b'\n') in whole for t in tokens
  )
  assert rows >= 48 - 1
  assert {d.domain for d in data.documents} == {'short', 'long'}
  assert load(domains='mid').domains == ('mid',)
  assert load().fingerprint != data.fingerprint


@pytest.mark.parametrize('objective', OBJECTIVES)
def test_large_corpora_are_tokenised_as_they_are_read(
  load, tmp_path, monkeypatch, objective
):
  kept = load(objective=objective)
  assert kept._train._stored is not None
  monkeypatch.setattr(documents, 'TOKENS_KEPT', 1000)
  read = load(objective=objective, cache=str(tmp_path))
  assert read._train._stored is None
  for step in (0, 11):
    args = dict(seed=3, batch_size=16, step=step)
    _equal(kept.batch(**args), read.batch(**args))
  assert kept.fingerprint == read.fingerprint


def test_corpus_and_index_are_made_once(load, monkeypatch):
  load()
  monkeypatch.setattr(splitting, 'split', None)
  monkeypatch.setattr(documents, '_index', None)
  load()
  with pytest.raises(TypeError):
    load(text_field='name')  # another key: it would have to index


def test_two_processes_may_index_at_once(load, tmp_path, monkeypatch):
  index, other = documents._index, []

  def race(*args):
    if not other:
      other.append(None)
      other[0] = load(cache=str(tmp_path)).fingerprint
    index(*args)

  monkeypatch.setattr(documents, '_index', race)
  assert load(cache=str(tmp_path)).fingerprint == other[0]
  assert not list(tmp_path.glob('index/making_*'))


def test_configs_are_mappings_or_objects(load, folder, cache):
  fields = {'name': 'text_files', 'dir': str(folder), 'seq_len': 32}
  made = pipeline.load(types.SimpleNamespace(**fields), cache_dir=cache)
  assert made.fingerprint == load().fingerprint
  lines = made.describe().splitlines()
  assert len(lines) == 4
  for d, line in zip(made.domains, lines[1:]):
    tokens = sum(len(t) + 1 for t in made.train_texts(d))
    assert f'{d}: weight' in line and f'({tokens % 32} lost' in line


@pytest.mark.parametrize(
  'fields, message',
  [
    (dict(domains=('lond',)), "unknown domain 'lond'; valid: long, mid, short"),
    (dict(domains=('mid', 'mid')), 'names a domain twice'),
    (dict(weights=(1, 2)), 'has 2 weights for 3 domains: long, mid, short'),
    (dict(weights=(1, -2, 1)), '-2 is not a finite number'),
    (dict(weights=(1, float('nan'), 1)), 'nan is not a finite number'),
    (dict(weights=(1, float('inf'), 1)), 'inf is not a finite number'),
    (dict(weights=(0, 0, 0)), 'all are 0'),
    (dict(seq_len=0), 'seq_len=0'),
    (dict(seq_len=10**6), "'long' has .* less than one window of 1000000"),
    (dict(seqlen=8), "unknown field of data 'seqlen'.*did you mean 'seq_len'"),
    (dict(train_split='training'), 'no split .training.; it has train, valid'),
    (dict(text_field='body'), "no feature 'body'.*text"),
    (dict(validation_max_bytes=-1), 'validation_max_bytes=-1'),
    (dict(validation_documents='od'), "validation 'od'; valid: all, ev"),
    (
      dict(objective='span_corruption()', seq_len=8192),
      'tokenizer has 125 sentinels',
    ),
  ],
)
def test_bad_configs_are_one_clear_line(load, fields, message):
  with pytest.raises(ValueError, match=message) as e:
    load(**fields)
  assert '\n' not in str(e.value)


def test_bad_calls_are_errors(load):
  data = load()
  with pytest.raises(ValueError, match='batch_size=6 is not divisible by 4'):
    data.train(seed=0, batch_size=6, process_count=4)
  with pytest.raises(ValueError, match='batch_size=0'):
    data.validation(batch_size=0)
  with pytest.raises(ValueError, match='process_index=2: expected 0 to 1'):
    data.train(seed=0, batch_size=6, process_index=2, process_count=2)
  with pytest.raises(ValueError, match='seed=-1'):
    data.train(seed=-1, batch_size=6)
  with pytest.raises(ValueError, match='step=-1'):
    data.batch(seed=0, batch_size=6, step=-1)


SCRIPT = """
import sys
from moe_jax.data import bigram, intervals, pipeline
config = {'name': 'text_files', 'dir': sys.argv[1], 'seq_len': 32}
data = pipeline.load(config, cache_dir=sys.argv[2])
data.batch(seed=0, batch_size=4, step=0)
bigram.floor(data)
assert 'jax' not in sys.modules
next(data.train(seed=0, batch_size=4))
next(data.validation(batch_size=4))
assert 'tensorflow' not in sys.modules
"""


def test_neither_jax_nor_tensorflow_is_imported(folder, tmp_path):
  subprocess.run(
    [sys.executable, '-c', SCRIPT, str(folder), str(tmp_path)], check=True
  )
