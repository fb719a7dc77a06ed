"""Bad records: left out up to `data.max_bad` and told, or one line says no."""

import json
import os
import re
import shutil

import numpy as np
import pytest
from array_record.python import array_record_module

from moe_jax.data import bad, documents, pipeline, task_sources, tokenizers
from moe_jax.errors import UserError
from tests import test_data_sources, test_data_tasks

SHARD = 'moe_tiny-train.array_record-00000-of-00001'


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  root = tmp_path_factory.mktemp('whole')
  test_data_sources.MoeTiny(
    config='en', data_dir=str(root), file_format='array_record'
  ).download_and_prepare()
  return root


def load(root, cache, **fields):
  config = {'name': 'moe_tiny/en', 'dir': str(root), 'seq_len': 16}
  config |= {'validation_split': 'test'} | fields
  return pipeline.load(config, cache_dir=str(cache))


def _rewritten(shard, changed=None):
  """The records, written without compression, some of them other ones."""
  reader = array_record_module.ArrayRecordReader(str(shard))
  records = reader.read(list(range(40)))
  reader.close()
  options = 'group_size:1,uncompressed'
  writer = array_record_module.ArrayRecordWriter(str(shard), options)
  for i, record in enumerate(records):
    writer.write((changed or {}).get(i, record))
  writer.close()
  return [records[i] for i in (2, 5)]


def damaged(shard):
  """Flips a bit in each of two records; their texts."""
  records = _rewritten(shard)
  raw = bytearray(shard.read_bytes())
  for record in records:
    raw[raw.index(record) + len(record) // 2] ^= 1
  shard.write_bytes(raw)
  return _texts(records)


def no_examples(shard):
  """Puts what is no example in the place of two records; their texts."""
  return _texts(_rewritten(shard, dict.fromkeys((2, 5), b'no example')))


def _texts(records):
  numbers = [int(re.search(rb'page/(\d+)', r)[1]) for r in records]
  return {f'page {i} says é '.encode() * (i + 1) for i in numbers}


@pytest.mark.parametrize('spoil', [damaged, no_examples])
def test_records_are_left_out_or_refused(whole, tmp_path, caplog, spoil):
  root, cache = tmp_path / 'root', tmp_path / 'cache'
  shutil.copytree(whole, root)
  clean = load(root, cache)
  assert '; documents without text: 2\n' in clean.describe()
  texts = set(clean.train_texts('moe_tiny'))
  gone = spoil(root / 'moe_tiny/en/2.1.0' / SHARD)
  for most, message in (
    (0, f'{SHARD}, record 2 cannot be read: .*; data.max_bad=0'),
    (1, f'{SHARD}, record 5 cannot.*; 2 bad records so far; data.max_bad=1'),
  ):
    with pytest.raises(UserError, match=message) as e:
      load(root, cache, max_bad=most)
    assert '\n' not in str(e.value)
  assert 'left out' not in caplog.text
  found = load(root, cache, max_bad=2)
  said = caplog.messages[-1]
  assert 'bad records left out: 2 (data.max_bad=2)' in said
  assert f'{SHARD}, record 2 cannot' in said and 'record 5' in said
  assert found.left_out == 2 and 'left out: 2' in found.describe()
  assert set(found.train_texts('moe_tiny')) == texts - gone
  assert len(gone) == 2 and found.fingerprint != clean.fingerprint
  # Found once: opened again, and built again elsewhere, the rows are the same.
  again, elsewhere = load(root, cache, max_bad=9), tmp_path / 'elsewhere'
  anew = load(root, elsewhere, max_bad=2)
  rows = [d.train_row(0, 7)['targets'].tolist() for d in (found, again, anew)]
  assert rows[0] == rows[1] == rows[2]
  assert found.fingerprint == again.fingerprint == anew.fingerprint
  with pytest.raises(UserError, match=f'train: .*{SHARD}, record 2 .*_bad=1'):
    load(root, cache, max_bad=1)  # the index is there by now


def test_a_bpe_is_learnt_from_what_can_be_read(whole, tmp_path):
  pytest.importorskip('tokenizers')
  root = tmp_path / 'root'
  shutil.copytree(whole, root)
  damaged(root / 'moe_tiny/en/2.1.0' / SHARD)
  fields = {'tokenizer': 'bpe(size=400)'}
  with pytest.raises(UserError, match=r'cannot be read: .*; data\.max_bad=0'):
    load(root, tmp_path / 'cache', **fields)
  assert load(root, tmp_path / 'cache', max_bad=2, **fields).left_out == 2


LOST = {
  'empty': (lambda p: os.truncate(p, 0), 'cannot be read: .*64KB', 7),
  'gone': (os.unlink, 'cannot be read: No such file', 7),
  'short': (lambda p: os.truncate(p, 131_071), 'cannot be read', 7),
  'none': (
    lambda p: array_record_module.ArrayRecordWriter(str(p), '').close(),
    'has 0 records, not 7',
    7,
  ),
}


@pytest.mark.parametrize('case', LOST)
def test_a_shard_is_as_many_records(whole, tmp_path, case):
  """Beside a whole one: both splits' files are shards of one here."""
  spoil, message, count = LOST[case]
  root = tmp_path / 'root'
  shutil.copytree(whole, root)
  shard = SHARD.replace('train', 'test')
  spoil(str(root / 'moe_tiny/en/2.1.0' / shard))
  fields = {'train_split': 'train+test', 'validation_split': 'train[:10]'}
  with pytest.raises(UserError, match=f'{shard} {message}.*; data.max_bad=6'):
    load(root, tmp_path / 'cache', max_bad=6, **fields)
  found = load(root, tmp_path / 'cache', max_bad=7, **fields)
  assert found.left_out == count
  assert len(list(found.train_texts('moe_tiny'))) == 39  # one has no text


def test_what_may_not_be_read_is_not_bad(whole, tmp_path, monkeypatch):
  def forbidden(path, *args):
    raise PermissionError(13, 'Permission denied', path)

  monkeypatch.setattr('moe_jax.data.prepared.open', forbidden, raising=False)
  with pytest.raises(PermissionError):
    load(whole, tmp_path, max_bad=100)


def test_a_record_that_goes_bad_later_stops_with_one_line(whole, tmp_path):
  root = tmp_path / 'root'
  shutil.copytree(whole, root)
  shard = root / 'moe_tiny/en/2.1.0' / SHARD
  _rewritten(shard)
  found = load(root, tmp_path / 'cache', max_bad=5)
  found._train._stored = None  # as of a split whose tokens are not kept
  damaged(shard)
  with pytest.raises(UserError, match=f'{SHARD}, record . cannot be read') as e:
    for row in range(2000):
      found.train_row(0, row)
  assert '\n' not in str(e.value)


def test_a_domain_that_there_is_not(tmp_path):
  class Source(list):
    dataset_info = None

    def __getitems__(self, numbers):
      return [self[n] for n in numbers]

  records = [{'text': b'x', 'domain': d} for d in (0, 2, 1)]
  left = bad.Bad(1)
  tokenizer = tokenizers.build('bytes()')
  documents._index(
    Source(records), str(tmp_path), tokenizer, 'text', ('a', 'b'), left
  )
  assert left.lines == ['record 1 is of domain 2; there are 2']
  assert np.load(tmp_path / 'domain.npy').tolist() == [0, 1]
  assert np.load(tmp_path / 'record.npy').tolist() == [0, 2]


def test_a_text_file_without_text(tmp_path, caplog):
  for name, text in (('a', 'one\n\ntwo\n\nthree\n\nfour'), ('b', ' \n')):
    (tmp_path / f'{name}.txt').write_text(text)
  config = {'name': 'text_files', 'dir': str(tmp_path), 'seq_len': 2}
  cache = str(tmp_path / 'cache')
  with pytest.raises(UserError, match=r'b\.txt has no text .*max_bad=0'):
    pipeline.load(config, cache_dir=cache)
  for _ in range(2):  # the second time from the cache
    caplog.clear()
    found = pipeline.load(config | {'max_bad': 1}, cache_dir=cache)
    assert found.domains == ('a',) and found.left_out == 1
    assert 'bad records left out: 1 (' in caplog.text
  # The mixture that was asked for is not another's.
  with pytest.raises(UserError, match="unknown domain 'b'"):
    config |= {'domains': ('a', 'b'), 'weights': (1, 3)}
    pipeline.load(config | {'max_bad': 1}, cache_dir=cache)


def test_lines_of_a_task(tmp_path, caplog):
  lines = [json.dumps({'a': c, 'label': c}).encode() for c in 'xyxy']
  broken = [b'{"a": ', b'{"a": "\xff", "label": "x"}', b'{"a": "x"}']
  path = tmp_path / 't_train.jsonl'
  path.write_bytes(b'\n'.join([*broken[:2], *lines, broken[2]]))
  strange = b'{"a": "x", "label": "z"}'
  held = b'\n'.join([lines[0], strange])
  (tmp_path / 't_validation.jsonl').write_bytes(held)
  with pytest.raises(UserError, match=r't_train\.jsonl, line 1: brok.*_bad=0'):
    test_data_tasks.load(str(path))
  with pytest.raises(UserError, match=r"line 2: label 'z' .*; 4 bad.*_bad=3"):
    test_data_tasks.load(str(path), max_bad=3)
  data = test_data_tasks.load(str(path), max_bad=4)
  assert data.left_out == 4 and '; bad records left out: 4' in data.describe()
  assert 't_train.jsonl, line 2: broken JSON' in caplog.messages[-1]
  found = task_sources.from_file(str(path), bad.Bad(4))
  assert [e.texts[0] for e in found.train] == [b'x', b'y', b'x', b'y']
  assert [e.texts[0] for e in found.validation] == [b'x']


@pytest.mark.parametrize('most', [-1, 0.5, True])
def test_a_number_of_records(most):
  with pytest.raises(UserError, match=f'data.max_bad={most}: expected a whole'):
    bad.Bad(most)
