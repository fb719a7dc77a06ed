"""Which chain is it: passages, labels, and the best that can be answered."""

import collections
import math

import numpy as np
import pytest

from moe_jax.data import chains, markov, task_sources, tasks
from tests import tiny

TASK = 'chain(examples=12, chains=3, states=4, length=5)'


@pytest.fixture(autouse=True)
def few(monkeypatch):
  monkeypatch.setattr(chains, 'VALIDATION', 300)


def test_bayes_is_that_of_products_and_what_it_expects_of_itself():
  task = chains.chain(examples=4, chains=4, states=3, length=6)
  made = markov.Chains(4, 3, 1.0, seed=0)
  right, expected = 0, []
  for e in task.validation:
    at = ['abc'.index(c) for c in e.texts[0].decode()]
    likely = []
    for c in range(4):
      p = made.start_CS[c][at[0]]
      for i in range(1, 6):
        p *= made.step_CSS[c][at[i - 1]][at[i]]
      likely.append(p)
    right += likely.index(max(likely)) == e.label
    expected.append(max(likely) / sum(likely))
  n = len(task.validation)
  assert task.known == {'bayes': right / n}
  mean = sum(expected) / n
  assert abs(right / n - mean) < 3 * math.sqrt(mean * (1 - mean) / n)
  assert 0.4 < mean < 0.9


def test_what_cannot_be_of_a_chain_is_of_no_likelihood():
  made = markov.Chains(3, 4, 1.0, seed=0)
  made.step_CSS[1, 2] = [0, 0, 0, 1]
  found_C = made.log_likelihood(np.array([2, 0]))
  assert found_C[1] == -math.inf and not np.isnan(found_C).any()
  first_C = made.log_likelihood(np.array([2]))
  np.testing.assert_allclose(first_C, np.log(made.start_CS[:, 2]))


def test_passages_are_of_their_chain():
  """Their pairs are as frequent as its matrix says, in each part."""
  task = chains.chain(examples=300, chains=3, states=4, length=60)
  made = markov.Chains(3, 4, 1.0, seed=0)
  for part in (task.train, task.validation):
    counts = collections.Counter(e.label for e in part)
    assert counts == {0: 100, 1: 100, 2: 100}
    count_CSS = np.zeros((3, 4, 4))
    for e in part:
      x = np.frombuffer(e.texts[0], np.uint8) - ord('a')
      assert len(x) == 60
      np.add.at(count_CSS[e.label], (x[:-1], x[1:]), 1)
    share_CSS = count_CSS / count_CSS.sum(-1, keepdims=True)
    np.testing.assert_allclose(share_CSS, made.step_CSS, atol=0.06)
  assert not {e.texts for e in task.train} & {e.texts for e in task.validation}
  # Every third one is of all chains, too.
  assert len({e.label for e in task.validation[::3]}) == 3


def test_noise_and_fewer_examples():
  clean, noisy = (
    chains.chain(examples=90, chains=3, states=4, length=5, label_noise=share)
    for share in (0.0, 0.3)
  )
  wrong = sum(a != b for a, b in zip(clean.train, noisy.train))
  assert 15 <= wrong <= 40
  assert noisy[4:] == clean[4:]  # validation and what is known
  fewer = chains.chain(examples=12, chains=3, states=4, length=5)
  assert fewer.train == clean.train[:12]
  other = chains.chain(examples=90, chains=3, states=4, length=5, matrices=1)
  assert other.train != clean.train


@pytest.fixture(scope='module')
def vocabulary(tmp_path_factory):
  """A file of the library's, of letters and one pair."""
  tokenizers = pytest.importorskip('tokenizers')
  letters = 'abcdefghijklmnopqrstuvwxyz: '
  ids = {p: i for i, p in enumerate(['<pad>', '</s>', *letters, 'ab'])}
  model = tokenizers.models.BPE(vocab=ids, merges=[('a', 'b')])
  path = tmp_path_factory.mktemp('vocabulary') / 'tokenizer.json'
  tokenizers.Tokenizer(model).save(str(path))
  return path


@pytest.mark.parametrize('kind', ['decoder', 'encoder_decoder'])
@pytest.mark.parametrize('spec', ['bytes()', 'bpe(size=380)', 'hf(path={!r})'])
def test_rows_for_each_tokenizer(vocabulary, tmp_path, kind, spec):
  spec = spec.format(str(vocabulary))
  config = tiny.config(
    **{'data.task': TASK, 'data.tokenizer': spec, 'data.seq_len': 40}
  )
  tasks.look(config.data, False)
  data = tasks.load(config.data, kind=kind, cache_dir=str(tmp_path))
  task = chains.chain(examples=12, chains=3, states=4, length=5)
  assert len(data.label_tokens) == 3  # one row asks for all
  name = 'inputs' if kind == 'decoder' else 'encoder_inputs'
  row = data.validation_row(0)
  shown = data.tokenizer.decode(row[name]).replace(b' ', b'')
  assert shown.startswith(b'chaintext:' + task.validation[0].texts[0])
  scores = data.scores(np.zeros(len(data.documents)))
  assert scores['eval/bayes'] == task.known['bayes']
  assert scores['eval/accuracy'] == pytest.approx(1 / 3)


def test_labels_of_the_same_tokens_are_refused(tmp_path, vocabulary):
  part = [task_sources.Example((b'a',), 0), task_sources.Example((b'b',), 1)]
  task = task_sources.Task('t', ('text',), ('no1', 'no2'), part, part)
  made = tasks.tokenizers.build(f'hf(path={str(vocabulary)!r})')
  with pytest.raises(ValueError, match="'no1' and 'no2' of task 't' are the s"):
    tasks.TaskData(task, kind='decoder', seq_len=40, tokenizer=made)


@pytest.mark.parametrize(
  ('keywords', 'says'),
  [
    ('chains=1', 'chains=1: expected a whole number, 2 to 26'),
    ('states=27', 'states=27: expected a whole number, 2 to 26'),
    ('examples=2', 'examples=2: expected a whole number, 8 or more'),
    ('length=0', 'length=0: expected a whole number, 1 or more'),
    ('label_noise=0.875', 'label_noise=0.875: expected 0 to less than 0.875'),
    ('concentration=0', 'concentration=0: expected more than 0'),
  ],
)
def test_what_does_not_fit_is_one_line(keywords, says):
  config = tiny.config(**{'data.task': f'chain({keywords})'})
  with pytest.raises(ValueError, match=says):
    tasks.find(config.data, cache_dir='')
