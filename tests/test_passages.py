"""Which domain is this passage from: classes, noise, and one row a question."""

import collections
import math

import jax
import numpy as np
import pytest

from moe_jax.data import passages, task_sources, tasks
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
  counts = collections.Counter(e.label for e in task.train)
  assert counts == {0: 20, 1: 20}
  counts = collections.Counter(e.label for e in task.validation)
  assert min(counts.values()) >= 50
  for part in (task.train, task.validation):
    for e in part:
      assert e.texts[0] in texts[('left', 'right')[e.label]]
      assert len(e.texts[0]) <= 16
  both = [{e.texts[0] for e in p} for p in (task.train, task.validation)]
  assert len(both[0]) == 40 and not both[0] & both[1]
  _, fewer = found(folder, TASK.format(0.0).replace('40', '10'))
  assert fewer.train == task.train[:10]


def test_classes_are_those_that_are_hardest_to_tell_apart(monkeypatch):
  """Of letters of their own or shared; validation is asked for its size."""
  monkeypatch.setattr(passages, 'VALIDATION', 240)
  rng = np.random.default_rng(1)
  drawn = lambda letters, n: [
    bytes(rng.choice(list(letters), 12).tolist()) for _ in range(n)
  ]
  train = {
    'alone': drawn(b'opqrst', 90),
    'first': drawn(b'abcdef', 80),
    'mixed': drawn(b'abcduv', 70),
    'other': drawn(b'uvwxyz', 95),
    'second': drawn(b'bcdefa', 99),
    'short': drawn(b'abcdef', 60),
  }
  held = {d: [b''] * 60 for d in train} | {'short': [b''] * 59}
  choose = lambda classes: passages._choose(list(train), train, held, classes)
  # Three quarters of a third of 240 is 60: 'short' has too few.
  assert choose(3) == ['second', 'first', 'mixed']  # the most text first
  assert choose(6)[-1] == 'short'  # where all are wanted
  by_size = held | {'short': [b''] * 20, 'alone': [b''] * 10}
  chosen = passages._choose(list(train), train, by_size, 5)
  assert 'alone' not in chosen and 'short' in chosen


@pytest.mark.parametrize(
  ('there', 'taken'),
  [
    ((90, 70, 80), (34, 34, 34)),  # no less than asked for
    ((20, 90, 80), (20, 40, 40)),
    ((20, 45, 30), (20, 45, 30)),  # all there is
  ],
)
def test_validation_is_as_even_as_can_be(monkeypatch, there, taken):
  monkeypatch.setattr(passages, 'VALIDATION', 100)
  held = [[b'%d' % i for i in range(n)] for n in there]
  found = passages._shared_out(held)
  counts = collections.Counter(e.label for e in found)
  assert tuple(counts[c] for c in range(3)) == taken
  assert len({(e.label, e.texts[0]) for e in found}) == len(found)
  # Every third one is of all classes, too.
  assert len({e.label for e in found[::3]}) == 3


def test_noise_is_of_training_alone_and_always_the_same(folder):
  _, clean = found(folder, TASK.format(0.0))
  _, noisy = found(folder, TASK.format(0.3))
  wrong = [a.label != b.label for a, b in zip(clean.train, noisy.train)]
  assert 4 <= sum(wrong) <= 20
  assert [e.texts for e in clean.train] == [e.texts for e in noisy.train]
  assert noisy.validation == clean.validation
  assert noisy.train == found(folder, TASK.format(0.3))[1].train
  # Every other class is drawn.
  many = task_sources.with_noise(
    [task_sources.Example((b'',), 1)] * 3000, 4, 0.5
  )
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
