"""Other data than a run was trained on are refused, and named."""

import json
import re
import shutil

import numpy as np
import pytest

from moe_jax.data import inventory, pipeline
from moe_jax.errors import UserError
from moe_jax.training import kept_data, loop
from tests import test_data_tasks, tiny


@pytest.fixture
def folder(tmp_path):
  """Two domains of thirty documents."""
  rng = np.random.default_rng(0)
  for domain in 'ab':
    made = [bytes(rng.integers(97, 123, 40).tolist()) for _ in range(30)]
    (tmp_path / f'{domain}.txt').write_bytes(b'\n\n'.join(made))
  return tmp_path


def load(folder, **fields):
  config = {'name': 'text_files', 'dir': str(folder), 'seq_len': 16} | fields
  return pipeline.load(config, cache_dir=str(folder / 'cache'))


def blocks(folder, domain):
  return (folder / f'{domain}.txt').read_bytes().split(b'\n\n')


def write(folder, domain, made):
  (folder / f'{domain}.txt').write_bytes(b'\n\n'.join(made))


def edit(folder):
  """Takes out the first document, and changes others; its text."""
  made = blocks(folder, 'a')
  gone = made.pop(0)
  made[9] = b'another text, of other letters: xyz'
  write(folder, 'a', [*made, b'and one that was not there'])
  return gone


def test_documents_are_named(folder):
  was = load(folder)
  kept = json.loads(json.dumps(was.kept()))
  assert load(folder).changes(kept) == ''
  before = blocks(folder, 'a')
  edit(folder)
  now = load(folder)
  assert now.fingerprint != was.fingerprint
  said = now.changes(kept)
  names = {b: f'a/{i}' for i, b in enumerate(before)}
  after = {b: f'a/{i}' for i, b in enumerate(blocks(folder, 'a'))}
  there = lambda data, text: text in set(data.train_texts('a'))
  gone = [t for t in before if there(was, t) and not there(now, t)]
  come = [t for t in after if there(now, t) and not there(was, t)]
  training = re.search('training: ([^;]*)', said)[1]
  assert gone and come and "'b'" not in said
  for old, of in ((gone, names), (come, after)):
    for text in old:
      assert repr(of[text]) in training, (said, text)
  assert len(re.findall(r"'a/\d+'", training)) <= len(gone) + len(come)


def test_an_index_that_is_gone_leaves_the_domain(folder):
  kept = load(folder).kept()
  edit(folder)
  now = load(folder)
  for name, split in kept['splits'].items():
    there = folder / 'cache' / 'index' / split['index']
    shutil.move(there, folder / 'cache' / name)
  count, size, _ = kept['splits']['training']['domains']['a']
  assert f"training: 'a' had {count} texts, {size} bytes" in now.changes(kept)
  for bad in ('../training', str(folder / 'cache/training'), 7, None):
    kept['splits']['training']['index'] = bad
    assert 'a/' not in now.changes(kept)
  for bad in (None, [], {}, {'splits': 3}, {'splits': {'training': []}}):
    assert now.changes(bad) == ''


def test_domains_and_fields_are_named(folder):
  kept = load(folder).kept()
  (folder / 'b.txt').rename(folder / 'c.txt')
  said = load(folder, max_bytes=500).changes(kept)
  assert "data.domains ['a', 'b'], now ['a', 'c']" in said
  assert 'data.max_bytes 0, now 500' in said
  assert "'b' is gone (" in said and "'c' is new (" in said


def test_what_became_of_documents_by_a_table():
  old = [('a', 1), ('b', 2), ('c', 3), ('d', 3), ('e', 5)]
  new = [('x', 1), ('b', 7), ('c', 3), ('f', 8)]
  assert inventory._compared(old, new) == (
    "2 gone ('d', 'e') and 1 changed ('b') and 1 new ('f')"
  )
  assert inventory._compared(old, old[::-1]) == 'another order'
  many = [(str(i), i) for i in range(5)]
  assert inventory._compared([], many) == "5 new ('0', '1', '2', ...)"


def test_examples_of_a_task_by_label(tmp_path):
  lines = [{'a': c, 'label': c} for c in 'xyz']
  for name in ('t_train.jsonl', 't_validation.jsonl'):
    test_data_tasks.write(tmp_path / name, lines)
  path = str(tmp_path / 't_train.jsonl')
  kept = test_data_tasks.load(path).kept()
  more = [*lines, {'a': 'yy', 'label': 'y'}]
  test_data_tasks.write(tmp_path / 't_train.jsonl', more)
  said = test_data_tasks.load(path).changes(kept)
  assert re.search("^training: 'y' had 1 texts, 1 .*, now 2 texts, 3 b", said)
  assert ';' not in said


@pytest.mark.slow
def test_a_run_says_so(tmp_path):
  """On a resume, and as `evaluate` asks; of a run without the file, too."""
  fields = tiny.corpus(tmp_path) | {'train.steps': 2, 'moe.layers': 'none'}
  fields |= {'model.num_layers': 1, 'eval.max_bytes': 64}
  workdir = tmp_path / 'run'
  loop.train(tiny.config(**fields), str(workdir))
  kept = json.loads((workdir / kept_data.FILE).read_text())
  (tmp_path / 'b.txt').rename(tmp_path / 'c.txt')
  longer = tiny.config(**fields | {'train.steps': 4})
  resume = lambda: loop.train(longer, str(workdir), allow=('train',))
  with pytest.raises(UserError, match=r"\): data\.domains .*'b' is gone") as e:
    resume()
  assert str(e.value).endswith('; --restart begins anew')
  assert '\n' not in str(e.value) and len(str(e.value)) < 1000
  assert json.loads((workdir / kept_data.FILE).read_text()) == kept
  (workdir / kept_data.FILE).unlink()
  with pytest.raises(UserError, match=r'data \(\w+, now \w+\); --restart'):
    resume()
