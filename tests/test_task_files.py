"""Task files, TFDS sets and sources: what is read, what is refused by name."""

import numpy as np
import pytest
import tensorflow_datasets as tfds

from moe_jax.data import bad, docstrings, task_sources
from moe_jax.training import session as session_lib
from tests import test_data_tasks, tiny

files = test_data_tasks.files  # the fixture


def test_fingerprint_tells_data_apart(files, tmp_path):
  first = test_data_tasks.load(files).fingerprint
  assert test_data_tasks.load(files).fingerprint == first
  assert (
    test_data_tasks.load(files, kind='encoder_decoder', seq_len=64).fingerprint
    == first
  )
  path = tmp_path / 'x_validation.jsonl'
  text = path.read_text()
  path.write_text(text.replace('"p"', '"P"'))
  second = test_data_tasks.load(files).fingerprint
  path.write_text(text.replace('"label": "yes"', '"label": "no"'))
  assert len({first, second, test_data_tasks.load(files).fingerprint}) == 3


def test_labels_of_a_file(tmp_path):
  path = str(tmp_path / 'n_train.jsonl')
  for name in ('n_train.jsonl', 'n_validation.jsonl'):
    test_data_tasks.write(
      tmp_path / name, [{'a': 'x', 'label': 1}, {'a': 'y', 'label': 0}]
    )
  found = task_sources.from_file(path, bad.Bad(0))
  assert found.labels == ('0', '1') and found.fields == ('a',)
  assert [e.label for e in found.train] == [1, 0]
  for name in ('n_train.jsonl', 'n_validation.jsonl'):
    test_data_tasks.write(
      tmp_path / name,
      [
        {'label_text': 'bad', 'a': 'x', 'label': 1},
        {'a': 'y', 'label': 0, 'label_text': 'good'},
      ],
    )
  found = task_sources.from_file(path, bad.Bad(0))
  assert found.labels == ('bad', 'good') and found.fields == ('a',)
  assert [e.label for e in found.train] == [0, 1]


BAD_RECORDS = [
  ('{"a": "x"}', r"line 3: 'label' is None; expected a string or a whole"),
  ('{"a": "x", "label": 0.5}', r"line 3: 'label' is 0\.5"),
  ('{"a": "x", "label": true}', r"line 3: 'label' is True"),
  ('{"a": "x", "label": "m"}', r"line 3: label 'm' is none of .*: no, yes"),
  ('{"a": "x", "b": 4, "label": "no"}', r"line 3: 'b' is 4; expected a str"),
  ('{"b": "x", "label": "no"}', r"line 3: 'a' is None; expected a string"),
  ('{"a": ', r'line 3: broken JSON'),
  ('[1]', r'line 3: expected a JSON object'),
]


@pytest.mark.parametrize(('line', 'message'), BAD_RECORDS)
def test_bad_records(files, tmp_path, line, message):
  path = tmp_path / 'x_validation.jsonl'
  good = path.read_text().splitlines()[0]
  path.write_text(f'{good}\n\n{line}\n')
  with pytest.raises(ValueError, match=f'x_validation.jsonl, {message}') as e:
    test_data_tasks.load(files)
  assert '\n' not in str(e.value)


def test_bad_files(files, tmp_path):
  for path, message in (
    ('/nowhere/x_train.jsonl', 'no training file at .*/nowhere/x_train.jsonl'),
    (files.replace('_train', ''), "expected a path that ends in '_train.jsonl"),
  ):
    with pytest.raises(ValueError, match=message):
      test_data_tasks.load(path)
  (tmp_path / 'x_validation.jsonl').write_text('\n')
  with pytest.raises(ValueError, match=r'x_validation\.jsonl has no examples'):
    test_data_tasks.load(files)
  (tmp_path / 'x_validation.jsonl').unlink()
  with pytest.raises(ValueError, match=r'no validation file at .*x_validation'):
    test_data_tasks.load(files)
  for label, message in (
    ([{'label': 'a'}], 'no input: expected a field that is a string'),
    ([{'x': 'y', 'label': 'a'}], r"has the labels \('a',\); expected two"),
    (
      [{'x': 'y', 'label': 'a'}, {'x': 'y', 'label': ''}],
      'none of them empty',
    ),
  ):
    for name in ('y_train.jsonl', 'y_validation.jsonl'):
      test_data_tasks.write(tmp_path / name, label)
    with pytest.raises(ValueError, match=message):
      test_data_tasks.load(str(tmp_path / 'y_train.jsonl'))


def test_a_label_too_long_for_a_decoder(tmp_path):
  for name in ('y_train.jsonl', 'y_validation.jsonl'):
    test_data_tasks.write(
      tmp_path / name, [{'x': '', 'label': 'n' * k} for k in (15, 16)]
    )
  path = str(tmp_path / 'y_train.jsonl')
  assert test_data_tasks.load(path, kind='decoder')
  with pytest.raises(ValueError, match=r"label 'n{16}' .* is 17 tokens .* 16"):
    test_data_tasks.load(path, kind='encoder_decoder')


def test_fields_that_do_not_go_together(files, tmp_path):
  with pytest.raises(ValueError, match=r"data\.task='glue/rte' and .*one of"):
    test_data_tasks.load(files, task='glue/rte')
  with pytest.raises(ValueError, match=r"data\.task='glue/rte' and .*one of"):
    session_lib.plan(
      tiny.config(**{'data.task': 'glue/rte', 'data.task_file': files})
    )
  root = str(tmp_path)
  for spec, message in (
    ('nosuch()', "unknown task 'nosuch'; valid: chain, docst"),
    ('docstring(n=3)', "unknown argument of task 'docstring' 'n'; valid: exam"),
    (
      'nosuch',
      r"task='nosuch': built in is chain\(\), docstring\(\), domain\(\); as a "
      'TFDS name: '
      "'nosuch' is not prepared under .*tfds build",
    ),
    ('text_files', "'text_files' has no labels"),
  ):
    with pytest.raises(ValueError, match=message) as e:
      test_data_tasks.load(task=spec, dir=root)
    assert '\n' not in str(e.value)


class MoePairs(tfds.core.GeneratorBasedBuilder):
  """Stands for a classification set of TFDS, as super_glue/cb is."""

  VERSION = tfds.core.Version('1.0.0')
  BUILDER_CONFIGS = [tfds.core.BuilderConfig(name='cb')]
  url_infos = {}  # as in builders.py

  def _info(self):
    features = {
      'premise': tfds.features.Text(),
      'hypothesis': tfds.features.Text(),
      'idx': tfds.features.Scalar(np.int32),
      'label': tfds.features.ClassLabel(names=['entailment', 'other']),
    }
    return tfds.core.DatasetInfo(
      builder=self, features=tfds.features.FeaturesDict(features)
    )

  def _split_generators(self, dl_manager):
    return {
      'train': self._generate_examples(6),
      'validation': self._generate_examples(3),
      'test': self._generate_examples(2, label=-1),
    }

  def _generate_examples(self, n, label=None):
    for i in range(n):
      yield (
        i,
        {
          'premise': f'premise {i} é',
          'hypothesis': f'hypothesis {i}',
          'idx': i,
          'label': i % 2 if label is None else label,
        },
      )


def test_a_tfds_task(tmp_path):
  fields = {'task': 'moe_pairs/cb', 'dir': str(tmp_path), 'seq_len': 96}
  with pytest.raises(ValueError, match='is not prepared under'):
    test_data_tasks.load(**fields)
  builder = MoePairs(
    config='cb', data_dir=str(tmp_path), file_format='array_record'
  )
  builder.download_and_prepare()
  data = test_data_tasks.load(**fields)
  assert data.labels == ('entailment', 'other')
  assert "train 6 examples ('entailment' 3, 'other' 3)" in data.describe()
  assert len(data.documents) == 6 and data.domains == ('cb',)
  batch = data.batch(seed=0, batch_size=6, step=0)
  texts = {data.tokenizer.decode(row).decode() for row in batch['targets']}
  want = set()
  for i in range(6):
    parts = {'premise': f'premise {i} é', 'hypothesis': f'hypothesis {i}'}
    prompt = ' '.join(f'{f}: {parts[f]}' for f in sorted(parts))
    label = ('entailment', 'other')[i % 2]
    want.add(f'cb {prompt} label: {label}')
  assert texts == want
  with pytest.raises(ValueError, match='record 0 has label -1'):
    test_data_tasks.load(**fields, validation_split='test')
  with pytest.raises(ValueError, match="no split 'dev'; it has"):
    test_data_tasks.load(**fields, validation_split='dev')


def test_a_tfds_set_without_labels(tmp_path):
  from tests import test_data_sources

  builder = test_data_sources.MoeTiny(
    config='en', data_dir=str(tmp_path), file_format='array_record'
  )
  builder.download_and_prepare()
  with pytest.raises(ValueError, match="a ClassLabel 'label'; its features"):
    test_data_tasks.load(task='moe_tiny/en', dir=str(tmp_path))


SOURCE = b'''
class C:
  def first(self, x):
    """Gives the first of all things.

    And more.
    """
    def inner():
      "Says what inner does."
      return x
    return inner()

  async def second(self):
    "Waits for the second thing."

def short():
  "Too short."
  return 1

def undocumented():
  return 2
'''


def test_functions_of_a_source():
  got = docstrings.functions([('py', 'm.py', SOURCE), ('c', 'x.h', b'int x;')])
  found = {f.line: f.code for f in got}
  assert found == {
    b'Gives the first of all things.': (
      b'def first(self, x):\n  def inner():\n    return x\n  return inner()'
    ),
    b'Says what inner does.': b'def inner():\n  return x',
    b'Waits for the second thing.': b'async def second(self):\n  pass',
  }
  assert {f.file for f in got} == {'m.py'}


def test_false_docstrings_are_of_the_same_file_where_possible():
  F = docstrings.Function
  found = [F(f'{i // 3}', b'code %d' % i, b'line %d' % i) for i in range(30)]
  found.append(F('alone', b'code 30', b'line 30'))
  examples = docstrings.pairs(found, seed=0)
  assert sorted(e.texts[0] for e in examples) == sorted(f.code for f in found)
  own = {f.code: f for f in found}
  line_file = {f.line: f.file for f in found}
  for n, e in enumerate(examples):
    f = own[e.texts[0]]
    assert e.label == n % 2 == (e.texts[1] == f.line)
    assert line_file[e.texts[1]] == f.file or f.file == 'alone'
  assert docstrings.pairs(found, seed=0) == examples
  assert docstrings.pairs(found, seed=1) != examples


@pytest.mark.slow
def test_docstring_task_of_this_python():
  small, large = (docstrings.docstring(examples=n) for n in (100, 1000))
  assert large.train[:100] == small.train and len(large.train) == 1000
  assert large.validation == small.validation
  assert 400 <= len(large.validation) <= docstrings.MAX_VALIDATION
  for part in (small.train, large.train, large.validation):
    assert abs(sum(2 * e.label - 1 for e in part)) <= 1
  everything = docstrings._splits()[0]
  train = {e.texts[0] for e in everything}
  assert len(train) == len(everything) > 2000
  assert train.isdisjoint(e.texts[0] for e in large.validation)
  # Nor does a file, of the functions that stand in one file only.
  own = {}
  for f in docstrings._found():
    own.setdefault(f.code, set()).add(f.file)
  files = [
    set().union(*(own[e.texts[0]] for e in p if len(own[e.texts[0]]) == 1))
    for p in (everything, large.validation)
  ]
  assert files[0].isdisjoint(files[1]) and len(files[1]) > 30
  for n in (1, 10**6, 2.5):
    with pytest.raises(ValueError, match=rf'examples={n}: expected 2 to \d+'):
      docstrings.docstring(examples=n)
