"""Which domain is this passage from: classes, noise, and one row a question."""

import collections
import math

import jax
import numpy as np
import pytest

from moe_jax.data import passages, tasks
from moe_jax.problems import base as problems
from tests import tiny

TASK = 'domain(examples=40, classes=2, length=16, label_noise={})'


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """Three domains of documents, of letters of their own; one is small."""
  root, rng = tmp_path_factory.mktemp('text'), np.random.default_rng(0)
  for name, letters, count in (
    ('few', 'xyz', 4),
    ('left', 'abcdefgh ', 320),
    ('right', 'fghijklm ', 290),
  ):
    made = [''.join(rng.choice(list(letters), 130)) for _ in range(count)]
    (root / f'{name}.txt').write_text('\n\n'.join(made))
  return root


def found(folder, spec, **fields):
  config = tiny.config(
    **{'data.task': spec, 'data.dir': str(folder), 'data.seq_len': 64},
    **{f'data.{k}': v for k, v in fields.items()},
  )
  return config, tasks.find(config.data, cache_dir=str(folder / 'cache'))


def test_passages_are_of_their_domain_and_split(folder):
  _, task = found(folder, TASK.format(0.0))
  texts = {
    'left': (folder / 'left.txt').read_bytes(),
    'right': (folder / 'right.txt').read_bytes(),
  }
  assert task.labels == ('a', 'b')  # left has the most text
  for part in (task.train, task.validation):
    counts = collections.Counter(e.label for e in part)
    assert len(set(counts.values())) == 1
    for e in part:
      assert e.texts[0] in texts[('left', 'right')[e.label]]
      assert len(e.texts[0]) <= 16
  both = [{e.texts[0] for e in p} for p in (task.train, task.validation)]
  assert len(both[0]) == 40 and not both[0] & both[1]
  _, fewer = found(folder, TASK.format(0.0).replace('40', '10'))
  assert fewer.train == task.train[:10]


def test_noise_is_of_training_alone_and_always_the_same(folder):
  _, clean = found(folder, TASK.format(0.0))
  _, noisy = found(folder, TASK.format(0.3))
  wrong = [a.label != b.label for a, b in zip(clean.train, noisy.train)]
  assert 4 <= sum(wrong) <= 20
  assert [e.texts for e in clean.train] == [e.texts for e in noisy.train]
  assert noisy.validation == clean.validation
  assert noisy.train == found(folder, TASK.format(0.3))[1].train
  # Every other class is drawn.
  many = passages._noisy([passages.Example((b'',), 1)] * 3000, 4, 0.5)
  counts = collections.Counter(e.label for e in many)
  assert counts[1] == pytest.approx(1500, abs=100)
  assert all(counts[k] == pytest.approx(500, abs=80) for k in (0, 2, 3))


def test_naive_bayes_is_that_of_counts(folder):
  """By dictionaries of trigrams, in logarithms of Laplace's rule."""
  _, task = found(folder, TASK.format(0.0))
  counts = [collections.Counter(), collections.Counter()]
  for e in task.train:
    t = e.texts[0]
    counts[e.label].update(t[i : i + 3] for i in range(len(t) - 2))
  right = 0
  for e in task.validation:
    t, score = e.texts[0], []
    for c in counts:
      total = sum(c.values()) + 0.1 * 2**18
      grams = [t[i : i + 3] for i in range(len(t) - 2)]
      score.append(sum(math.log((c[g] + 0.1) / total) for g in grams))
    right += score.index(max(score)) == e.label
  known = task.known['naive_bayes']
  # Hashed bins may hold two trigrams.
  assert known == pytest.approx(right / len(task.validation), abs=0.03)
  assert 0.75 < known <= 1


@pytest.mark.parametrize('kind', ['decoder', 'encoder_decoder'])
def test_a_row_that_asks_for_all_labels_answers_as_a_row_for_each(folder, kind):
  """Nats of the first tokens, of logits that depend on inputs alone."""
  config, _ = found(folder, TASK.format(0.0))
  config.model.kind, config.eval.max_examples = kind, 10
  problem = problems.of(config)
  data = problem.open(cache_dir=str(folder / 'cache'))
  assert data.label_tokens == (3 + ord('a'), 3 + ord('b'))
  assert data.validation_rows * 2 == len(data.documents)
  table = jax.random.normal(jax.random.key(0), (384, 384))

  def nats(data, batch_size):
    total = 0
    for batch in data.validation(batch_size=batch_size):
      # A bigram model, which sees the label no more than the real one does.
      total += problem.judge(table[batch['inputs']], batch, data)['nats']
    return np.asarray(total)

  one = nats(data, 7)
  data.label_tokens, data._rows_each = (), 2
  data.validation_rows = len(data.documents)
  each = nats(data, 8)
  # A row for each has EOS after the label, too.
  eos = jax.nn.log_softmax(table[3 + np.array([ord('a'), ord('b')])])[:, 1]
  np.testing.assert_allclose(
    one.reshape(-1, 2), each.reshape(-1, 2) + np.asarray(eos), atol=1e-4
  )


@pytest.mark.parametrize(
  ('spec', 'says'),
  [
    ('domain(examples=1)', 'examples=1: expected a whole number, 8 or more'),
    ('domain(classes=40, examples=99)', 'classes=40: 26 at most'),
    ('domain(label_noise=1.0)', 'label_noise=1.0: expected 0 to 1'),
    ('domain(examples=40, classes=3, length=16)', '2 of the 3 domains have 14'),
  ],
)
def test_what_does_not_fit_is_one_line(folder, spec, says):
  with pytest.raises(ValueError, match=says):
    found(folder, spec)


def test_a_missing_corpus_is_seen_before_anything_is_read(tmp_path):
  config = tiny.config(
    **{'data.task': 'domain()', 'data.dir': str(tmp_path / 'none')}
  )
  with pytest.raises(ValueError, match='is not a directory'):
    tasks.look(config.data, False)
