"""Tasks as batches: rows and scores by hand, and their order."""

import json

import numpy as np
import pytest

from moe_jax.data import intervals, task_sources, tasks
from tests import tiny

KINDS = ('decoder', 'encoder_decoder')


def write(path, records):
  path.write_text(''.join(json.dumps(r) + '\n' for r in records))


@pytest.fixture
def files(tmp_path):
  """Two training and three validation examples."""
  write(
    tmp_path / 'x_train.jsonl',
    [
      {'a': 'one', 'n': 3, 'b': 'two', 'label': 'yes'},
      {'b': 'four', 'a': 'three', 'label': 'no'},
    ],
  )
  write(
    tmp_path / 'x_validation.jsonl',
    [
      {'a': 'p', 'b': 'q', 'label': 'no'},
      {'a': 'r', 'b': 's', 'label': 'no'},
      {'a': 't', 'b': 'u', 'label': 'yes'},
    ],
  )
  return str(tmp_path / 'x_train.jsonl')


def load(path='', kind='decoder', seq_len=48, max_examples=0, **fields):
  config = tiny.config(
    **{'data.task_file': path, 'data.seq_len': seq_len},
    **{f'data.{k}': v for k, v in fields.items()},
  )
  return tasks.load(
    config.data, kind=kind, cache_dir='', max_examples=max_examples
  )


def task(examples=5):
  """A task of numbered texts, whose labels go round."""
  part = [task_sources.Example((b'%d' % i,), i % 2) for i in range(examples)]
  return task_sources.Task('t', ('x',), ('a', 'b'), part, part)


def ids(text):
  """ByT5's ids, with | for EOS."""
  return [1 if c == '|' else 3 + ord(c) for c in text]


def pad(x, length, value=0):
  return np.array(list(x) + [value] * (length - len(x)), np.int32)


def test_rows_of_a_decoder_by_hand(files):
  data = load(files)
  by_label = {}
  for row in range(2):
    batch = data.batch(seed=0, batch_size=1, step=row)
    by_label[int(batch['targets'][0].sum())] = batch
  for text, answer in (
    ('x a: one b: two label: ', 'yes|'),
    ('x a: three b: four label: ', 'no|'),
  ):
    tokens = ids(text + answer)
    n, m = len(text), len(tokens)
    want = {
      'targets': pad(tokens, 48),
      'inputs': pad([0, *tokens[:-1]], 48),
      'positions': pad(range(m), 48),
      'segments': pad([1] * m, 48),
      'loss': pad([0] * n + [1] * (m - n), 48),
    }
    got = by_label[sum(tokens)]
    assert got.keys() == want.keys()
    for k, v in want.items():
      np.testing.assert_array_equal(got[k], v[None], err_msg=k)
      assert got[k].dtype == np.int32


def test_rows_of_an_encoder_decoder_by_hand(files):
  data = load(files, kind='encoder_decoder')
  batch = data.batch(seed=0, batch_size=2, step=0)
  order = [0, 1] if batch['targets'][0, 0] == ids('y')[0] else [1, 0]
  prompts = [ids('x a: one b: two|'), ids('x a: three b: four|')]
  answers = [ids('yes|'), ids('no|')]
  rows = lambda f, L: np.stack([pad(f(i), L) for i in order])
  want = {
    'encoder_inputs': rows(lambda i: prompts[i], 48),
    'encoder_positions': rows(lambda i: range(len(prompts[i])), 48),
    'encoder_segments': rows(lambda i: [1] * len(prompts[i]), 48),
    'targets': rows(lambda i: answers[i], 16),
    'inputs': rows(lambda i: [0, *answers[i][:-1]], 16),
    'positions': rows(lambda i: range(len(answers[i])), 16),
    'segments': rows(lambda i: [1] * len(answers[i]), 16),
  }
  assert batch.keys() == want.keys()
  for k, v in want.items():
    np.testing.assert_array_equal(batch[k], v, err_msg=k)


@pytest.mark.parametrize('kind', KINDS)
def test_validation_has_a_row_for_each_label(files, kind):
  data = load(files, kind=kind)
  batches = list(data.validation(batch_size=4))
  assert len(batches) == 2 and len(data.documents) == 6
  assert data.labels == ('no', 'yes')
  joined = {k: np.concatenate([b[k] for b in batches]) for k in batches[0]}
  for row in range(6):
    mine = joined['document'][row] >= 0
    assert set(joined['document'][row][mine]) == {row}
    got = joined['targets'][row][mine]
    np.testing.assert_array_equal(got, ids(('no|', 'yes|')[row % 2]))
    prompt = joined['encoder_inputs' if kind != 'decoder' else 'inputs'][row]
    assert data.tokenizer.decode(prompt).startswith(
      b'x a: %s b: %s' % ((b'p', b'q'), (b'r', b's'), (b't', b'u'))[row // 2]
    )
  for k, v in joined.items():  # and two rows of padding
    assert (v[6:] == (-1 if k == 'document' else 0)).all(), k


def test_scores_by_hand(files):
  data = load(files)
  # 'no' is 3 tokens and 'yes' 4: right are the first and the third.
  nats = np.array([1.0, 2.0, 5.0, 4.0, 9.0, 8.0])
  scores = data.scores(nats)
  assert scores['eval/accuracy'] == pytest.approx(2 / 3)
  assert scores['eval/loss'] == pytest.approx((1 + 5 + 8) / (3 + 3 + 4))
  # Each label has one training example: the first of them, 'yes'.
  assert scores['eval/majority'] == pytest.approx(1 / 3)
  assert scores['eval/examples'] == 3
  assert scores['eval/accuracy_low'] < 2 / 3 < scores['eval/accuracy_high']


def test_wilson_interval():
  # The two shares p at which (2/3 - p)^2 = z^2 p (1 - p) / n.
  found = intervals.wilson(20, 30)
  for p in (found.low, found.high):
    z2 = (2 / 3 - p) ** 2 * 30 / (p * (1 - p))
    assert z2 == pytest.approx(1.959964**2, rel=1e-5)
  # Of 10 right ones of 10: 10 / (10 + z^2), known as 0.7225.
  assert intervals.wilson(10, 10).low == pytest.approx(0.72246, abs=1e-4)
  assert intervals.wilson(10, 10).high == 1.0 == intervals.wilson(9, 9).value
  assert intervals.wilson(0, 7)[:2] == (0.0, 0.0)
  with pytest.raises(ValueError, match='right=3 <= total=2'):
    intervals.wilson(3, 2)


def made(n=5, kind='decoder', seq_len=32, **kw):
  return tasks.TaskData(
    task(n), kind=kind, seq_len=seq_len, tokenizer=BYTES, **kw
  )


BYTES = tasks.tokenizers.build('bytes()')


def names(data, batch):
  """The number in each row's prompt."""
  texts = [data.tokenizer.decode(row) for row in batch['targets']]
  return [int(t.split(b'x: ')[1].split(b' ')[0]) for t in texts]


def test_epochs_are_permutations_of_seed_and_epoch():
  data = made()
  seen = [
    n
    for step in range(10)
    for n in names(data, data.batch(seed=3, batch_size=2, step=step))
  ]
  epochs = [seen[i : i + 5] for i in range(0, 20, 5)]
  assert all(sorted(e) == list(range(5)) for e in epochs)
  assert len(set(map(tuple, epochs))) > 1
  other = [
    n
    for step in range(10)
    for n in names(data, data.batch(seed=4, batch_size=2, step=step))
  ]
  assert other != seen
  # Another batch size cuts the same rows; a start goes on where it would be.
  wide = data.train(seed=3, batch_size=5, first_row=10)
  assert names(data, next(wide)) == epochs[2]
  assert names(data, next(wide)) == epochs[3]


def test_processes_get_slices_of_the_same_batch():
  data = made()
  whole = data.batch(seed=0, batch_size=4, step=1)
  parts = [
    next(
      data.train(
        seed=0, batch_size=4, first_row=4, process_index=p, process_count=2
      )
    )
    for p in range(2)
  ]
  for k, v in whole.items():
    np.testing.assert_array_equal(np.concatenate([p[k] for p in parts]), v)
  halves = [
    list(data.validation(batch_size=4, process_index=p, process_count=2))
    for p in range(2)
  ]
  for i, batch in enumerate(data.validation(batch_size=4)):
    for k, v in batch.items():
      got = np.concatenate([h[i][k] for h in halves])
      np.testing.assert_array_equal(got, v)


def test_validation_examples_are_spread(files):
  assert len(made(10, max_examples=99).documents) == 20
  few = made(10, max_examples=5)
  (batch,) = few.validation(batch_size=5)  # a row asks for both labels
  assert names(few, batch) == [0, 2, 4, 6, 8]
  assert few.scores(np.zeros(10))['eval/examples'] == 5
  assert few.fingerprint == made(10).fingerprint


def test_long_prompts_lose_the_start_of_the_longest_field():
  whole = '0123456789é-end'
  long = task_sources.Example((b'short', whole.encode()), 0)
  t = task_sources.Task('t', ('x', 'y'), ('a', 'bcd'), [long], [long])

  def prompt(L, kind='encoder_decoder'):
    data = tasks.TaskData(t, kind=kind, seq_len=L, tokenizer=BYTES)
    row = data.batch(seed=0, batch_size=1, step=0)
    row = row['encoder_inputs' if kind == 'encoder_decoder' else 'targets'][0]
    text = BYTES.decode(row).decode()
    at = len(text.encode()) if kind == 'encoder_decoder' else np.argmax(row < 2)
    assert row[at] == BYTES.eos_id
    # Of training and of validation.
    cut = 2 * (f'y: {whole}' not in text)
    assert f'{cut} prompts cut' in data.describe()
    return text

  # 't x: short y: ' is 14 bytes, the rest 16; an encoder's row ends with EOS.
  assert prompt(31) == f't x: short y: {whole}'
  assert prompt(30) == f't x: short y: {whole[1:]}'
  assert prompt(21) == 't x: short y: é-end'
  assert prompt(20) == prompt(19) == 't x: short y: -end'  # no half of an é
  # The next field goes on where it is the longest; the names must fit.
  assert prompt(12) == 't x: t y: d'
  assert prompt(10) == 't x:  y: '
  with pytest.raises(
    ValueError, match=r'seq_len=9 .* their texts they need 10'
  ):
    prompt(9)
  # A decoder's row has room for ' label: ', the LONGEST label and EOS.
  assert prompt(42, 'decoder') == f't x: short y: {whole} label: a'
  assert prompt(41, 'decoder') == f't x: short y: {whole[1:]} label: a'
