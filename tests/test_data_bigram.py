"""The bigram floor and the interval, against loops and resampling."""

import itertools
import math

import numpy as np
import pytest

from moe_jax.data import bigram, intervals, pipeline

TEXTS = [b'abracadabra', b'', b'banana\x00\xff', b'ab', b'cadab' * 3] * 4


def _loop_bits(fitted, text, s, u):
  """The formula of the module, symbol by symbol, with dicts."""
  pair, before, after, total = {}, {}, {}, 0
  for t in fitted:
    symbols = ['edge', *t, 'edge']
    for a, b in itertools.pairwise(symbols):
      pair[a, b] = pair.get((a, b), 0) + 1
      before[a] = before.get(a, 0) + 1
      after[b] = after.get(b, 0) + 1
      total += 1
  bits = 0.0
  for a, b in itertools.pairwise(['edge', *text, 'edge']):
    unigram = (after.get(b, 0) + u) / (total + 257 * u)
    p = (pair.get((a, b), 0) + s * unigram) / (before.get(a, 0) + s)
    bits -= math.log2(p)
  return bits


@pytest.mark.parametrize('s, u', [(0.5, 1.0), (64.0, 0.01)])
@pytest.mark.parametrize('text', [b'', b'abba', b'zzz\x80', b'banana'])
def test_bits_against_a_loop(s, u, text):
  table = bigram.bits(bigram.pair_counts(TEXTS), s, u)
  np.testing.assert_allclose((2.0**-table).sum(1), 1)  # distributions
  got = (bigram.pair_counts([text]) * table).sum()
  assert got == pytest.approx(_loop_bits(TEXTS, text, s, u), rel=1e-9)


def test_smoothing_is_the_best_on_a_held_out_tenth_of_training():
  rng = np.random.default_rng(0)
  texts = [
    bytes(rng.choice([97, 98, 99, 200], 30, p=[0.6, 0.2, 0.1, 0.1]).tolist())
    for _ in range(25)
  ]
  held, rest = texts[::10], [t for i, t in enumerate(texts) if i % 10]
  grid = itertools.product(bigram._STRENGTHS, bigram._UNIGRAM)
  best = min(grid, key=lambda p: sum(_loop_bits(rest, t, *p) for t in held))
  table, smoothing = bigram.fit(texts)
  assert smoothing == best
  np.testing.assert_allclose(  # refitted on all of it
    table, bigram.bits(bigram.pair_counts(texts), *best)
  )


def test_floor_is_by_document_and_by_domain(tmp_path):
  rng = np.random.default_rng(0)
  draw = lambda a, b, n: bytes(rng.integers(a, b, n).tolist())
  for name, a, b in (('low', 97, 100), ('high', 97, 123)):
    blocks = [draw(a, b, rng.integers(100, 300)) for _ in range(150)]
    (tmp_path / f'{name}.txt').write_bytes(b'\n\n'.join(blocks))
  data = pipeline.load(
    {'name': 'text_files', 'dir': str(tmp_path), 'seq_len': 16},
    cache_dir=str(tmp_path / 'cache'),
  )
  floor = bigram.floor(data)
  assert len(floor.bits_N) == len(data.documents) > 8
  for i, text in enumerate(data.validation_texts()):
    domain = data.documents[i].domain
    want = _loop_bits(
      list(data.train_texts(domain)), text, *floor.smoothing[domain]
    )
    assert floor.bits_N[i] == pytest.approx(want, rel=1e-9)
    assert floor.bytes_N[i] == len(text)
  domain_N = np.array([d.domain for d in data.documents])
  for domain, letters in (('low', 3), ('high', 26)):
    mine = domain_N == domain
    got = intervals.ratio(floor.bits_N[mine], floor.bytes_N[mine])
    # The source's entropy, and the end of a document of about 200 bytes.
    assert 0 < got.value - math.log2(letters) < 0.15


def _documents(rng, n, rate):
  size = np.ceil(rng.gamma(2.0, 500.0, n))
  return size * rate + rng.normal(0, 20 * np.sqrt(size)), size


def test_interval_against_a_bootstrap():
  rng = np.random.default_rng(0)
  bits, size = _documents(rng, 150, 2.0)
  got = intervals.ratio(bits, size)
  assert got.value == bits.sum() / size.sum()
  pick = rng.integers(0, 150, (4000, 150))
  low, high = np.quantile(bits[pick].sum(1) / size[pick].sum(1), (0.025, 0.975))
  assert got.high - got.low == pytest.approx(high - low, rel=0.1)
  assert got.low == pytest.approx(low, abs=0.1 * (high - low))


def test_pooled_interval_against_a_bootstrap_within_domains():
  rng = np.random.default_rng(1)
  parts = [_documents(rng, n, rate) for n, rate in ((90, 1.0), (60, 6.0))]
  bits, size = (np.concatenate(x) for x in zip(*parts))
  domain = np.repeat(['a', 'b'], [90, 60])
  got = intervals.ratio(bits, size, domain)
  draws = []
  for _ in range(4000):
    a, b = rng.integers(0, 90, 90), 90 + rng.integers(0, 60, 60)
    pick = np.concatenate([a, b])
    draws.append(bits[pick].sum() / size[pick].sum())
  low, high = np.quantile(draws, (0.025, 0.975))
  assert got.high - got.low == pytest.approx(high - low, rel=0.1)
  plain = intervals.ratio(bits, size)
  assert plain.value == got.value
  assert plain.high - plain.low > 1.2 * (got.high - got.low)
  alone = np.where(np.arange(150) == 0, 'c', domain)  # a domain of one
  assert intervals.ratio(bits, size, alone) == plain


def test_interval_covers_as_often_as_it_says():
  rng = np.random.default_rng(2)
  inside = 0
  for _ in range(600):
    got = intervals.ratio(*_documents(rng, 12, 3.0))
    inside += got.low < 3.0 < got.high
  assert 0.92 < inside / 600 < 0.985


def test_interval_of_two_and_of_one_document():
  # Residuals are -+5 bits of 30 bytes; t(0.975, 1) is 12.706.
  got = intervals.ratio([15.0, 35.0], [12.0, 18.0])
  half = 12.7062 * math.sqrt(2 * (2 * 5.0**2)) / 30
  assert got.value == pytest.approx(50 / 30)
  assert got.high - got.value == pytest.approx(half, rel=1e-4)
  one = intervals.ratio([8.0], [4.0])
  assert one == (2.0, -math.inf, math.inf)
  same = intervals.ratio([8.0, 16.0], [4.0, 8.0])
  assert same == (2.0, 2.0, 2.0)


def test_bad_documents_are_errors():
  with pytest.raises(ValueError, match=r'shapes \(2,\) and \(1,\)'):
    intervals.ratio([1.0, 2.0], [1.0])
  with pytest.raises(ValueError, match='one or more'):
    intervals.ratio([], [])
  with pytest.raises(ValueError, match='no size'):
    intervals.ratio([1.0, 1.0], [0, 0])
