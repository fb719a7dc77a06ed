"""Data folders made to do harm, or only broken: one line, nothing imported."""

import json
import os
import pathlib
import shutil
import stat

import pytest

from moe_jax.data import bad, pipeline, task_sources
from moe_jax.errors import UserError
from tests import test_data_sources

SHARD = 'moe_tiny-train.array_record-00000-of-00001'
FEATURES, INFO = 'features.json', 'dataset_info.json'


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


def changed(name, change):
  def spoil(folder):
    value = json.loads((folder / name).read_text())
    change(value)
    (folder / name).write_text(json.dumps(value))

  return spoil


def cut(size):
  return lambda folder: os.truncate(folder / SHARD, size)


def in_place_of(name, make):
  def spoil(folder):
    (folder / name).unlink()
    make(folder / name)

  return spoil


def of_class(name, key='pythonClassName'):
  return changed(
    FEATURES, lambda v: v['featuresDict']['features']['url'].update({key: name})
  )


def split(**fields):
  return changed(INFO, lambda v: v['splits'][0].update(fields))


OLD = {'type': 'their_lab.Feature', 'content': {}}
IMPORTS = "would import and run 'their_lab.Feature'"
CASES = {
  'class': (of_class('their_lab.Feature'), IMPORTS),
  'class_2': (of_class('their_lab.Feature', 'python_class_name'), IMPORTS),
  'class_old': (changed(FEATURES, lambda v: v.update(OLD)), IMPORTS),
  'class_hidden': (
    changed(FEATURES, lambda v: v.update(OLD | {'content': json.dumps(OLD)})),
    'content is a text|would import',
  ),
  'class_near': (
    of_class('tensorflow_datasets.core.features.x y.Z'),
    'would import and run',
  ),
  'class_absent': (
    of_class('tensorflow_datasets.core.features.no_such.Feature'),
    'TFDS cannot read it: ',
  ),
  'deep': (lambda f: (f / FEATURES).write_text('[' * 100_000), 'nested more'),
  'no_object': (lambda f: (f / INFO).write_text('3'), 'expected a JSON obj'),
  'unknown': (changed(FEATURES, lambda v: v.update(x=1)), 'TFDS cannot read'),
  'template': (split(filepathTemplate='/dev/zero'), 'filepathTemplate is'),
  'template_2': (split(filepath_template='../x'), 'filepath_template is'),
  'fifo': (in_place_of(SHARD, os.mkfifo), 'is no regular file'),
  'device': (
    in_place_of(SHARD, lambda p: p.symlink_to('/dev/zero')),
    'is no regular file',
  ),
  'gone': (lambda f: (f / SHARD).unlink(), f'{SHARD} cannot be read|TFDS can'),
  'empty': (cut(0), f'{SHARD} cannot be read: .*at least 64KB'),
  'first_block': (cut(65_536), f'{SHARD} cannot be read: RuntimeError'),
  'short': (cut(131_071), f'{SHARD} cannot be read: '),
  'count': (
    split(shardLengths=[str(10**12)]),
    f'{SHARD} has 40 records, not 1000000000000',
  ),
}


@pytest.mark.parametrize('case', CASES)
def test_a_prepared_set_is_refused(whole, tmp_path, case):
  spoil, message = CASES[case]
  root = tmp_path / 'root'
  shutil.copytree(whole, root)
  spoil(root / 'moe_tiny/en/2.1.0')
  with pytest.raises(UserError, match=message) as e:
    load(root, tmp_path / 'cache')
  assert '\n' not in str(e.value) and len(str(e.value)) < 1000


def test_only_text_is_text(whole, tmp_path):
  """A number would be so many zeros."""
  with pytest.raises(UserError, match=r"'stars' .* is a Scalar; a Text is"):
    load(whole, tmp_path, text_field='stars')


NAMES = {
  'folder': (lambda d: (d / 'c.txt').mkdir(), "c.txt' in data.dir is no reg"),
  'fifo': (lambda d: os.mkfifo(d / 'c.txt'), "c.txt' in data.dir is no regul"),
  'link': (
    lambda d: (d / 'c.txt').symlink_to('/dev/zero'),
    "c.txt' in data.dir is no regular file",
  ),
  'name': (
    lambda d: pathlib.Path(os.fsdecode(bytes(d) + b'/\xff.txt')).write_text(
      'x'
    ),
    r"the file name b'\\xff.txt' is not UTF-8",
  ),
}


@pytest.mark.parametrize('case', NAMES)
def test_a_folder_of_texts_is_refused(tmp_path, case):
  spoil, message = NAMES[case]
  (tmp_path / 'a.txt').write_text('the router\n\nsends\n\ntokens')
  spoil(tmp_path)
  config = {'name': 'text_files', 'dir': str(tmp_path), 'seq_len': 4}
  with pytest.raises(UserError, match=message) as e:
    pipeline.load(config, cache_dir=str(tmp_path / 'cache'))
  str(e.value).encode()  # a terminal must take it


def test_a_cache_is_shared_by_those_whom_the_umask_lets(tmp_path):
  (tmp_path / 'a.txt').write_text('\n\n'.join(map(str, range(99))))
  config = {'name': 'text_files', 'dir': str(tmp_path), 'seq_len': 4}
  before = os.umask(0o027)
  try:
    pipeline.load(config, cache_dir=str(tmp_path / 'cache'))
  finally:
    os.umask(before)
  found = [p for p in (tmp_path / 'cache').rglob('*')]
  modes = {p.is_dir(): set() for p in found}
  for p in found:
    modes[p.is_dir()].add(oct(stat.S_IMODE(p.stat().st_mode)))
  assert modes == {True: {'0o750'}, False: {'0o640'}}, modes


def test_broken_lines_of_a_task(tmp_path):
  text = '{"text": "a", "label": 1}\n' + '[' * 100_000 + '\n'
  for name in ('x_train.jsonl', 'x_validation.jsonl'):
    (tmp_path / name).write_text(text)
  with pytest.raises(UserError, match='line 2: JSON nested more than 64 deep'):
    task_sources.from_file(str(tmp_path / 'x_train.jsonl'), bad.Bad(0))
