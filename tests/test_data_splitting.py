"""Splits share no run of 64 bytes; the two local corpora hold what they say."""

import ast
import hashlib
import pathlib
import re
import textwrap
import tokenize

import numpy as np
import pytest

from moe_jax.data import (
  bad,
  builders,
  pipeline,
  sources,
  splitting,
  stdlib,
  text_files,
)


@pytest.fixture(scope='module')
def half():
  return stdlib.documents(stdlib.files()[::2])


@pytest.fixture(scope='module')
def documents(half):
  """Those of the library before the split, which take half the build's time."""
  rest = stdlib.documents(stdlib.files()[1::2])
  found = {(e.domain, e.name): e for e in half + rest}  # both have the topics
  return [found[k] for k in sorted(found)]


@pytest.fixture(scope='module')
def built(documents, tmp_path_factory):
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(stdlib, 'documents', lambda sources: documents)
    return builders.python_stdlib(str(tmp_path_factory.mktemp('library')))


@pytest.fixture(scope='module')
def library(built):
  """The corpus as TFDS stores it: {split: [(domain, name, text)]}."""
  name, root = built
  found = {}
  for split in ('train', 'validation'):
    source = sources.read(name, root, split, 'text')
    found[split] = [
      (stdlib.DOMAINS[r['domain']], r['name'].decode(), r['text'])
      for r in source
    ]
  return found


def _runs(texts):
  """A number of each run of 64 bytes: a polynomial of them modulo 2^64."""
  found = []
  for text in texts:
    number, factor = np.frombuffer(text, np.uint8).astype(np.uint64), 0x9E3779B1
    for half in (1, 2, 4, 8, 16, 32):
      number = number[:-half] * np.uint64(factor) + number[half:]
      factor = factor**2 % 2**64
    found.append(number)
  return np.concatenate(found)


def _share_a_run(train, validation):
  """Does any train text hold 64 bytes of a validation text?"""
  of_train, wanted = np.sort(_runs(train)), _runs(validation)
  at = np.searchsorted(of_train, wanted)
  return bool((of_train[np.minimum(at, len(of_train) - 1)] == wanted).any())


@pytest.mark.slow
def test_library_has_no_docstrings(half):
  code = [e.text for e in half if e.domain == 'code']
  for text in code[::4]:
    for node in ast.walk(ast.parse(text)):
      if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
        assert ast.get_docstring(node) is None


def test_library_has_no_tests_tables_or_licences(documents):
  names = [e.name for e in documents]
  assert not [n for n in names if '/test/' in f'/{n}' or 'site-packages' in n]
  tables = re.compile(rb'(?m)^decoding_(table = \(|map.update)|Auto-?generated')
  assert not [e.name for e in documents if tables.search(e.text)]
  assert {'argparse.py', 'json/decoder.py'} <= set(names)
  assert any(n.startswith('pydoc_data/') for n in names)
  # Of the blocks of #-comments, none speaks of copyright any more.
  code = [e.text for e in documents if e.domain == 'code']
  assert not [text for text in code if b'# Copyright' in text]


@pytest.mark.slow
def test_library_is_large_enough_to_measure_with(library):
  for domain in stdlib.DOMAINS:
    texts = [t for d, _, t in library['validation'] if d == domain]
    assert sum(map(len, texts)) >= 60_000
    assert len(texts) >= 20
    documents = sum(d == domain for d, _, _ in library['train']) + len(texts)
    assert 0.03 < len(texts) / documents < 0.17


@pytest.mark.slow
def test_library_splits_share_no_64_bytes(documents, library):
  train, validation = (
    [text for _, _, text in library[s]] for s in ('train', 'validation')
  )
  # It can be seen.
  assert _share_a_run(train[-3:], validation[:3] + [train[-1]])
  assert not _share_a_run(train, validation)
  assert {(d, n, t) for d, n, t in library['train']} <= {
    e[:3] for e in documents
  }


def test_a_files_code_and_docstrings_fall_in_one_split(library):
  names = {s: {n for d, n, _ in library[s] if d != 'c'} for s in library}
  assert all(n.endswith('.py') or 'pydoc_data/' in n for n in names['train'])
  assert not names['train'] & names['validation']


@pytest.mark.slow
def test_built_twice_the_files_are_the_same_bytes(built, tmp_path):
  places = [built, builders.python_stdlib(str(tmp_path))]
  assert places[0][0] == places[1][0] and places[0][1] != places[1][1]
  digests = []
  for name, root in places:
    folder = pathlib.Path(root) / name.replace(':', '/')
    digests.append(
      {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.iterdir()
      }
    )
  assert len(digests[0]) == 5 and digests[0] == digests[1]


SOURCE = b'''#!/usr/bin/env python
# Copyright (c) somebody.
# All of it.
"""Module docstring,
two lines."""

import os  # \xc3\xa9\xc3\xa9
x = """not a docstring"""
def f(): "one line"
def g(): "one line"; return 1
class A(Exception):
\t"""only \xe2\x82\xac"""
class B:
    \'\'\'docs\'\'\' # why
    "a second string"
    y = 1
    async def h(self):
        r"""raw \\d

            deep
        """
        "not" + "docs"\r
        return """kept"""
'''
WITHOUT = b'''#!/usr/bin/env python
# Copyright (c) somebody.
# All of it.

import os  # \xc3\xa9\xc3\xa9
x = """not a docstring"""
def f(): pass
def g(): pass; return 1
class A(Exception):
\tpass
class B:
    # why
    y = 1
    async def h(self):
        "not" + "docs"\r
        return """kept"""
'''


def test_docstrings_leave_all_other_bytes_as_they_are():
  code, docs = stdlib.split_docstrings(SOURCE)
  assert code == WITHOUT
  want = ['Module docstring,\ntwo lines.', 'one line', 'one line', 'only €']
  assert docs == [*want, 'docs', 'raw \\d\n\ndeep']


def test_docstrings_of_a_source_that_is_not_utf8():
  source = '# coding: latin-1\n"""dé"""\nx = "é"\n'.encode('latin-1')
  code, docs = stdlib.split_docstrings(source)
  assert code == '# coding: latin-1\nx = "é"\n'.encode('latin-1')
  assert docs == ['dé']
  with pytest.raises((SyntaxError, tokenize.TokenError)):
    stdlib.split_docstrings(b'def (:\n')


def test_the_whole_library_less_its_docstrings_is_the_same_program():
  """An oracle by tree: parse, drop leading strings, compare dumps."""
  files = [f for f in stdlib.files() if f[0] == 'py'][::25]
  assert len(files) > 20
  for _, name, source in files:
    code, _ = stdlib.split_docstrings(source)
    tree = ast.parse(source)
    for node in ast.walk(tree):
      if isinstance(
        node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
      ):
        while node.body and isinstance(node.body[0], ast.Expr):
          if not isinstance(getattr(node.body[0].value, 'value', 0), str):
            break
          del node.body[0]
        if not node.body and not isinstance(node, ast.Module):
          node.body = [ast.Pass()]
    assert ast.dump(tree) == ast.dump(ast.parse(code)), name
    lines = source.splitlines()
    for line in set(code.splitlines()) - set(lines):  # changed ones are few
      assert b'pass' in line or any(x.endswith(line) for x in lines)


def test_headers_are_numpys_where_the_interpreters_are_missing(
  tmp_path, monkeypatch
):
  monkeypatch.setattr(
    stdlib.sysconfig, 'get_path', lambda name: str(tmp_path / name)
  )
  names = {name for kind, name, _ in stdlib.files() if kind == 'c'}
  assert 'numpy/ndarraytypes.h' in names


def test_licences_go_and_other_comments_stay():
  code = b'# Copyright me.\n# More.\n\n# Reason.\nx = 1  # licensed\n'
  assert stdlib.strip_legal(code) == b'\n# Reason.\nx = 1  # licensed\n'
  c = b'/* Copyright\n * me */\n/* why */ int x;\n'
  assert stdlib.strip_c_legal(c) == b'/* why */ int x;\n'


def test_hashes_are_equal_exactly_where_runs_are():
  rng = np.random.default_rng(0)
  data = rng.integers(0, 2, 3000, np.uint8)
  data[1000:1100] = data[2000:2100]
  h = splitting._hashes(data)
  assert len(h) == 3000 - 63
  runs = [data[i : i + 64].tobytes() for i in range(len(h))]
  assert len(set(runs)) == len(np.unique(h)) == len(h) - 37
  assert all(h[1000 + i] == h[2000 + i] for i in range(37))
  assert len(splitting._hashes(data[:63])) == 0


def test_only_the_blocks_with_a_shared_run_are_dropped(monkeypatch):
  monkeypatch.setattr(splitting, '_CHUNK', 100)  # runs cross chunks
  rng = np.random.default_rng(0)
  text = lambda n: bytes(rng.integers(97, 123, n, np.uint8).tolist())
  secret, near = text(64), text(63)
  train = [text(150) + secret + text(90), text(200), near + b'!' + text(10)]
  blocks = [text(80) + b'\n\n', text(9) + secret + b'\n \n', near + b'\n\n']
  documents = [b''.join(blocks), secret, b'short', b'']
  kept = splitting.drop_shared(train, documents)
  assert kept == [blocks[0] + blocks[2], b'', b'short', b'']
  assert splitting.drop_shared(train, []) == []
  two = [text(9) + secret[:30], secret[30:] + text(9)]  # each has but a part
  assert splitting.drop_shared(train, two) == two


def test_runs_that_a_cut_makes_are_found_too():
  rng = np.random.default_rng(1)
  text = lambda n: bytes(rng.integers(97, 123, n, np.uint8).tolist())
  a, b, secret = text(40) + b'\n\n', text(50), text(70) + b'\n\n'
  train = [secret, b'xx' + a + b]  # a and b meet in training
  kept = splitting.drop_shared(train, [a + secret + b])
  assert kept in ([a], [b])
  # Too many rounds: the document goes as a whole.
  parts = [text(40) + b'\n\n' for _ in range(12)]
  train = [secret] + [p + b for p in parts]
  kept = splitting.drop_shared(train, [b''.join(parts) + secret + b])
  assert not _share_a_run(train, kept)


def test_equal_keys_fall_together_and_every_domain_is_held_out():
  examples = [
    splitting.Example('ab'[i % 2], f'{i}', b'text %d' % i, key=f'{i // 2}')
    for i in range(200)
  ]
  fraction = {'a': 0.1, 'b': 0.1}
  train, held = splitting.split(examples, fraction=fraction, min_bytes=1)
  assert sorted(train + held) == sorted(examples)
  assert not {e.key for e in train} & {e.key for e in held}
  assert 0.04 < len(held) / 200 < 0.2
  again = splitting.split(examples[::-1], fraction=fraction, min_bytes=1)
  assert set(again[1]) == set(held)  # whatever the order
  few = splitting.split(examples, fraction={'a': 1e-9, 'b': 1e-9}, min_bytes=1)[
    1
  ]
  assert {e.domain for e in few} == {'a', 'b'}


def test_a_domain_without_validation_is_told():
  same = [
    splitting.Example('a', f'{i}', b'x' * 100, key=f'{i}') for i in range(9)
  ]
  with pytest.raises(ValueError, match="domain 'a' has no validation"):
    splitting.split(same, fraction={'a': 0.2}, min_bytes=1)
  with pytest.raises(ValueError, match="domain 'a' has no training"):
    splitting.split(same[:1], fraction={'a': 0.2}, min_bytes=1)


def test_text_files_are_cut_at_blank_lines_or_line_ends():
  text = b'\n\none\ntwo\n\n \t\nthree\r\n\r\nfour \xff'
  assert text_files.cut(text) == [b'one\ntwo', b'three', b'four \xff']
  lines = [b'%03d ' % i + b'x' * 90 + b'\n' for i in range(100)]
  chunks = text_files.cut(b''.join(lines) + b'\n')
  assert b''.join(chunks) == b''.join(lines) + b'\n'
  assert all(c.endswith(b'\n') and len(c) <= 2048 for c in chunks)
  assert len(chunks) == 5
  long = b'y' * 5000
  assert text_files.cut(long + b'\n' + b'z\n') == [long + b'\n', b'z\n']


def test_text_files_say_what_is_wrong(tmp_path, caplog):
  load = lambda d: pipeline.load(
    {'name': 'text_files', 'dir': str(d)}, cache_dir=str(tmp_path / 'cache')
  )
  with pytest.raises(ValueError, match='is not a directory'):
    load(tmp_path / 'nowhere')
  with pytest.raises(ValueError, match=r"data\.dir='' is not a directory"):
    load('')
  with pytest.raises(ValueError, match=r'no \.txt file in'):
    load(tmp_path)
  (tmp_path / 'empty.txt').write_bytes(b' \n')
  with pytest.raises(ValueError, match=r'empty\.txt has no text'):
    load(tmp_path)
  (tmp_path / 'empty.txt').write_bytes(b'caf\xe9\n\nplain\n')
  (tmp_path / 'fine.txt').write_text('é')
  found = text_files.files(str(tmp_path), bad.Bad(0))
  assert found['empty'] == b'caf\xe9\n\nplain\n'
  assert '1 of 2 files' in caplog.text and 'empty' in caplog.text


def test_a_changed_file_builds_anew_and_bytes_are_kept(tmp_path):
  path = tmp_path / 'a.txt'
  seen = []
  for extra in (b'', b'zwei \xe4\x00\n\n'):
    body = b'\n\n'.join(b'block %d \xff\x00' % i for i in range(40))
    path.write_bytes(extra + body)
    config = {'name': 'text_files', 'dir': str(tmp_path), 'seq_len': 8}
    data = pipeline.load(config, cache_dir=str(tmp_path / 'cache'))
    texts = [*data.train_texts('a'), *data.validation_texts()]
    assert sorted(texts) == sorted(text_files.cut(extra + body))
    seen.append(data.fingerprint)
  assert seen[0] != seen[1]


def _folder(tmp_path):
  (tmp_path / 'a.txt').write_text(
    '\n\n'.join(textwrap.wrap(' '.join(map(str, range(3000))), 60))
  )
  return {'name': 'text_files', 'dir': str(tmp_path), 'seq_len': 16}


def test_a_build_that_dies_leaves_nothing_that_looks_built(
  tmp_path, monkeypatch
):
  config, cache = _folder(tmp_path), str(tmp_path / 'cache')
  make = builders._LocalText._generate_examples

  def dies(self, examples):
    yield from list(make(self, examples))[:1]
    raise KeyboardInterrupt

  with monkeypatch.context() as m:
    m.setattr(builders._LocalText, '_generate_examples', dies)
    with pytest.raises(KeyboardInterrupt):
      pipeline.load(config, cache_dir=cache)
  data = pipeline.load(config, cache_dir=cache)
  fresh = pipeline.load(config, cache_dir=str(tmp_path / 'other'))
  assert data.fingerprint == fresh.fingerprint


def test_two_processes_may_build_at_once(tmp_path, monkeypatch):
  """The second build starts and ends while the first one writes."""
  config, cache = _folder(tmp_path), str(tmp_path / 'cache')
  make = builders._LocalText._generate_examples
  other = []

  def race(self, examples):
    if not other:
      other.append(None)
      other[0] = pipeline.load(config, cache_dir=cache).fingerprint
    return make(self, examples)

  monkeypatch.setattr(builders._LocalText, '_generate_examples', race)
  assert pipeline.load(config, cache_dir=cache).fingerprint == other[0]
