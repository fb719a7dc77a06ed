"""Prepared TFDS datasets are read as they are; others are an error at once."""

import json
import shutil
import time

import numpy as np
import pytest
import tensorflow_datasets as tfds

from moe_jax.data import pipeline


class MoeTiny(tfds.core.GeneratorBasedBuilder):
  """Stands for a text dataset of TFDS: a config, a version, other features."""

  VERSION = tfds.core.Version('2.1.0')
  BUILDER_CONFIGS = [tfds.core.BuilderConfig(name='en')]
  url_infos = {}  # as in builders.py
  word = 'page'

  def _info(self):
    features = {
      'text': tfds.features.Text(),
      'url': tfds.features.Text(),
      'stars': tfds.features.Scalar(np.int32),
    }
    return tfds.core.DatasetInfo(
      builder=self, features=tfds.features.FeaturesDict(features)
    )

  def _split_generators(self, dl_manager):
    return {
      'train': self._generate_examples(40, self.word),
      'test': self._generate_examples(7, 'held'),
    }

  def _generate_examples(self, n, word):
    for i in range(n):
      text = f'{word} {i} says é ' * (i + 1)
      yield i, {'text': text if i else '', 'url': f'{word}/{i}', 'stars': i}


def _texts(n, word):
  return sorted(f'{word} {i} says é '.encode() * (i + 1) for i in range(1, n))


@pytest.fixture(scope='module')
def prepared(tmp_path_factory):
  root = str(tmp_path_factory.mktemp('prepared'))
  builder = MoeTiny(config='en', data_dir=root, file_format='array_record')
  builder.download_and_prepare()
  return root


def _config(root, name, **fields):
  return {
    'name': name,
    'dir': str(root),
    'seq_len': 16,
    'validation_split': 'test',
    **fields,
  }


@pytest.mark.parametrize('name', ['moe_tiny/en:2.1.0', 'moe_tiny/en'])
def test_a_prepared_dataset_is_read(prepared, tmp_path, name):
  data = pipeline.load(_config(prepared, name), cache_dir=str(tmp_path))
  assert data.domains == ('moe_tiny',)
  assert sorted(data.train_texts('moe_tiny')) == _texts(40, 'page')
  assert sorted(data.validation_texts()) == _texts(7, 'held')
  assert [d.num_bytes for d in data.documents] == [
    len(t) for t in data.validation_texts()
  ]  # and the document without text is left out
  batch = data.batch(seed=0, batch_size=4, step=0)
  assert batch['targets'].shape == (4, 16)


def test_the_class_that_wrote_it_is_not_needed(prepared, tmp_path, monkeypatch):
  monkeypatch.setattr(tfds.core.registered, '_DATASET_REGISTRY', {})
  config = _config(prepared, 'moe_tiny/en:2.1.0')
  data = pipeline.load(config, cache_dir=str(tmp_path))
  assert len(data.documents) == 6


def test_splits_may_be_slices(prepared, tmp_path):
  config = _config(
    prepared, 'moe_tiny/en', train_split='train[:50%]', validation_split='test'
  )
  data = pipeline.load(config, cache_dir=str(tmp_path))
  assert 15 <= len(list(data.train_texts('moe_tiny'))) <= 20


def test_another_text_field(prepared, tmp_path):
  config = _config(prepared, 'moe_tiny/en', text_field='url')
  data = pipeline.load(config, cache_dir=str(tmp_path))
  assert b'page/39' in set(data.train_texts('moe_tiny'))


@pytest.mark.parametrize(
  'name', ['c4/en:3.1.0', 'moe_tiny/en:9.9.9', 'no_such']
)
def test_what_is_not_prepared_is_an_error_at_once(prepared, tmp_path, name):
  start = time.monotonic()
  with pytest.raises(ValueError, match='is not prepared under') as e:
    pipeline.load(_config(prepared, name), cache_dir=str(tmp_path))
  assert time.monotonic() - start < 5
  for part in (name, prepared, 'tfds build', 'data.dir', 'allow_download'):
    assert part in str(e.value)


@pytest.mark.parametrize(
  'name', ['../c4', 'c4/../..', 'c4:latest', '', 'a/b/c']
)
def test_names_that_are_no_names(tmp_path, name):
  with pytest.raises(ValueError, match=r'expected .python_stdlib.'):
    pipeline.load(_config(tmp_path, name), cache_dir=str(tmp_path))


def test_a_download_is_allowed_by_the_flag(tmp_path):
  load = lambda **kw: pipeline.load(
    _config(tmp_path / 'tfds', 'moe_tiny/en'), cache_dir=str(tmp_path), **kw
  )
  with pytest.raises(ValueError, match='is not prepared'):
    load()
  assert len(load(allow_download=True).documents) == 6
  assert len(load().documents) == 6  # prepared by now


def test_tfrecord_is_refused(prepared, tmp_path):
  config = _config(prepared, 'moe_tiny/en')
  data = tmp_path / 'moe_tiny' / 'en' / '2.1.0'
  data.mkdir(parents=True)
  source = f'{prepared}/moe_tiny/en/2.1.0'
  for name in ('dataset_info.json', 'features.json'):
    with open(f'{source}/{name}') as f:
      info = json.load(f)
    if 'fileFormat' in info:
      info['fileFormat'] = 'tfrecord'
    (data / name).write_text(json.dumps(info))
  with pytest.raises(ValueError, match=r'tfrecord files.*no random access'):
    pipeline.load({**config, 'dir': str(tmp_path)}, cache_dir=str(tmp_path))


def test_a_dataset_prepared_anew_is_indexed_anew(tmp_path, monkeypatch):
  root, seen = tmp_path / 'tfds', []
  for word in ('page', 'leaf'):
    monkeypatch.setattr(MoeTiny, 'word', word)
    builder = MoeTiny(
      config='en', data_dir=str(root), file_format='array_record'
    )
    builder.download_and_prepare()
    config = _config(root, 'moe_tiny/en')
    data = pipeline.load(config, cache_dir=str(tmp_path / 'cache'))
    assert sorted(data.train_texts('moe_tiny')) == _texts(40, word)
    seen.append(data.fingerprint)
    shutil.rmtree(root)
  assert seen[0] != seen[1]


def test_a_folder_takes_the_place_of_the_standard_library(tmp_path):
  for domain in ('x', 'y'):
    text = '\n\n'.join(f'{domain} document {i} {i * 7919}' for i in range(60))
    (tmp_path / f'{domain}.txt').write_text(text)
  config = {'name': 'python_stdlib', 'dir': str(tmp_path), 'seq_len': 32}
  data = pipeline.load(config, cache_dir=str(tmp_path / 'cache'))
  assert data.domains == ('x', 'y')
