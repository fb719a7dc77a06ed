"""Rows of causal LM and span corruption, against loops and by inversion."""

import collections

import numpy as np
import pytest

from moe_jax.data import objectives, tokenizers

BYTES = tokenizers.build('bytes()')


def _window(lengths, seed=0):
  rng = np.random.default_rng(seed)
  tokens = rng.integers(3, 259, sum(lengths)).astype(np.int32)
  document = np.repeat(np.arange(len(lengths)) + 7, lengths).astype(np.int32)
  return objectives.Window(tokens, document)


def _example(spec, window, seq_len, seed=0):
  return objectives.build(spec).example(
    window,
    seq_len=seq_len,
    tokenizer=BYTES,
    rng=np.random.default_rng(seed),
  )


@pytest.mark.parametrize(
  'lengths, seq_len',
  [([5, 1, 6], 12), ([12], 12), ([3, 4], 12), ([1], 1), ([], 4)],
)
def test_causal_rows_against_a_loop(lengths, seq_len):
  window = _window(lengths)
  want = collections.defaultdict(list)
  segment, previous, position = 0, None, 0
  for i in range(seq_len):
    if i < len(window.tokens_N):
      token, document = int(window.tokens_N[i]), int(window.document_N[i])
      if document != previous:
        segment, position, before = segment + 1, 0, 0
      row = (before, token, position, segment, document)
      previous, before, position = document, token, position + 1
    else:
      row = (0, 0, 0, 0, -1)
    for key, value in zip(
      ('inputs', 'targets', 'positions', 'segments', 'document'), row
    ):
      want[key].append(value)
  got = _example('causal_lm()', window, seq_len)
  assert {k: v.tolist() for k, v in got.items()} == want
  assert all(v.dtype == np.int32 for v in got.values())


def test_t5s_own_lengths():
  """568 raw tokens give 512 inputs and 114 targets (Raffel et al.'s setup)."""
  o = objectives.build('span_corruption()')
  assert (o.window(512), o.targets_length(512)) == (568, 114)


@pytest.mark.parametrize('seq_len', [3, 16, 100, 512])
@pytest.mark.parametrize('density, mean', [(0.15, 3.0), (0.5, 2.0), (0.3, 8.0)])
def test_span_corruption_is_undone(seq_len, density, mean):
  spec = f'span_corruption(noise_density={density}, mean_span={mean})'
  o = objectives.build(spec)
  window = _window([o.window(seq_len)], seed=seq_len)
  # The test's own sentinels: the formula may ask for more than 125.
  row = o.example(
    window,
    seq_len=seq_len,
    tokenizer=_Many,
    rng=np.random.default_rng(1),
  )
  encoder, target = row['encoder_inputs'], row['targets']
  assert len(encoder) == seq_len and encoder[-1] == 1  # filled to the last
  assert (row['encoder_segments'] == 1).all()
  assert row['encoder_positions'].tolist() == list(range(seq_len))
  assert len(target) == o.targets_length(seq_len) and target[-1] == 1
  assert row['segments'].tolist() == [1] * len(target)
  assert row['positions'].tolist() == list(range(len(target)))
  assert row['inputs'].tolist() == [0, *target[:-1]]
  spans = collections.defaultdict(list)
  for t in target[:-1]:
    if t >= 1000:
      current = int(t)
    else:
      spans[current].append(int(t))
  assert list(spans) == list(_Many.sentinel_ids[: len(spans)])  # in order
  whole = []
  for t in encoder[:-1]:
    whole += spans[int(t)] if t >= 1000 else [int(t)]
  assert [t for t in encoder if t >= 1000] == list(spans)
  assert whole == window.tokens_N.tolist()
  assert encoder[0] < 1000  # starts with kept tokens


class _Many:
  pad_id, eos_id = 0, 1
  sentinel_ids = tuple(range(2000, 1000, -1))


def test_noise_has_the_asked_density_and_span():
  o = objectives.build('span_corruption(noise_density=0.15, mean_span=3.0)')
  rng = np.random.default_rng(0)
  masks = np.array([o.noise_mask(568, rng) for _ in range(400)])
  assert masks.sum(1).tolist() == [85] * 400  # round(568 * 0.15)
  starts = masks & ~np.pad(masks, ((0, 0), (1, 0)))[:, :-1]
  assert starts.sum(1).tolist() == [28] * 400  # round(85 / 3)
  # No place is favoured, but for the first token, which is always kept.
  share = masks[:, 20:-20].mean(0)
  assert abs(share.mean() - 0.15) < 0.005
  assert share.max() < 0.3 and share.min() > 0.05


def test_span_lengths_are_a_uniform_composition():
  rng = np.random.default_rng(0)
  draws = collections.Counter(
    tuple(objectives._composition(5, 3, rng).tolist()) for _ in range(6000)
  )
  assert len(draws) == 6 and all(sum(d) == 5 and min(d) > 0 for d in draws)
  assert max(abs(n - 1000) for n in draws.values()) < 150  # 5 sigma


def test_short_windows_are_padded():
  row = _example('span_corruption()', _window([1]), 16)
  assert row['encoder_inputs'][1] == 1 and not row['encoder_inputs'][2:].any()
  assert row['encoder_segments'].tolist() == [1, 1] + [0] * 14
  assert row['targets'][0] == 1 and row['segments'].sum() == 1
  assert row['document'].tolist() == [7] + [-1] * (len(row['document']) - 1)
  for spec in ('span_corruption()', 'causal_lm()'):
    row = _example(spec, _window([]), 16)
    assert all(
      (v == (-1 if k.endswith('document') else 0)).all() for k, v in row.items()
    )


def test_a_targets_document_is_its_tokens():
  window = _window([9, 9, 9])
  window = window._replace(tokens_N=np.arange(50, 77, dtype=np.int32))
  spec = 'span_corruption(noise_density=0.5)'
  row = _example(spec, window, 30)
  of = dict(zip(window.tokens_N.tolist(), window.document_N.tolist()))
  assert len(of) == 27
  for i, token in enumerate(row['targets'].tolist()):
    if token in of:
      assert row['document'][i] == of[token]
    elif token > 258:  # a sentinel goes with its first token
      assert row['document'][i] == of[int(row['targets'][i + 1])]
  seen = zip(row['encoder_inputs'].tolist(), row['encoder_document'])
  kept = [(token, document) for token, document in seen if token in of]
  assert len(kept) == 13  # 14 are noise
  assert all(document == of[token] for token, document in kept)


def test_noise_depends_on_the_generator_alone():
  window = _window([64])
  rows = [_example('span_corruption()', window, 64, seed=s) for s in (1, 1, 2)]
  assert (rows[0]['targets'] == rows[1]['targets']).all()
  assert (rows[0]['targets'] != rows[2]['targets']).any()


def test_bad_objectives_are_errors():
  with pytest.raises(ValueError, match=r'noise_density=1\.5'):
    objectives.build('span_corruption(noise_density=1.5)')
  with pytest.raises(ValueError, match=r'mean_span=0\.5'):
    objectives.build('span_corruption(mean_span=0.5)')
  with pytest.raises(
    ValueError, match="unknown objective 'mlm'; valid: causal"
  ):
    objectives.build('mlm()')
  o = objectives.build('span_corruption()')
  o.check(2048, 125)
  with pytest.raises(ValueError, match='tokenizer has 125 sentinels'):
    o.check(4096, 125)
  with pytest.raises(ValueError, match='seq_len=2'):
    o.check(2, 125)
