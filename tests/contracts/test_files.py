"""A method is two files, in shape: its own, and its rows."""

import dataclasses
import importlib
import pathlib
import subprocess
import sys

import pytest

import moe_jax
from moe_jax import citations, registry
from tests import methods

ROOT = pathlib.Path(moe_jax.__file__).parent
METHODS = [(f, n) for f in registry.FAMILIES for n in registry.names(f)]


@pytest.mark.parametrize(('family', 'name'), METHODS)
def test_every_method_has_rows(family, name):
  """In a file of its own, and of no other method."""
  module = importlib.import_module(f'tests.{family}.test_{name}')
  assert {registry.parse(row.spec)[0] for row in module.ROWS} == {name}


def test_rows_are_found():
  """No file is left over, and none of them is missed."""
  for family in registry.FAMILIES:
    found = {m.rpartition('.test_')[2] for m in methods.files(family)}
    assert found <= set(registry.names(family))
    built = {registry.parse(r.spec)[0] for r in methods.rows(family, True)}
    assert built == set(registry.names(family))


def test_rows_are_read_without_jax():
  code = (
    'import sys\n'
    "sys.modules['jax'] = None\n"
    'from moe_jax import registry\n'
    'from tests import methods\n'
    'for family in registry.FAMILIES:\n'
    '  for file in methods.files(family):\n'
    '    __import__(file)\n'
  )
  subprocess.run([sys.executable, '-c', code], check=True, cwd=ROOT.parent)


def test_private_rows_are_found(tmp_path, monkeypatch):
  """By the name of a package, whose folders are those of the families."""
  folder = tmp_path / 'some_lab' / 'routers'
  folder.mkdir(parents=True)
  (folder / 'test_own.py').write_text(
    'from tests.methods import Row\n'
    "ROWS = (Row('some_lab.routers.own.Own(k=2)'),)\n"
  )
  monkeypatch.syspath_prepend(tmp_path)
  monkeypatch.setenv('MOE_JAX_METHODS', 'some_lab')
  for name in ('some_lab', 'some_lab.routers', 'some_lab.routers.test_own'):
    monkeypatch.delitem(sys.modules, name, raising=False)
  assert methods.files('routers')[-1] == 'some_lab.routers.test_own'
  specs = {row.spec for row in methods.rows('routers')}
  assert 'some_lab.routers.own.Own(k=2)' in specs
  assert not any('some_lab' in f for f in methods.files('balancing'))


@pytest.mark.parametrize(('family', 'name'), METHODS)
def test_method_files_are_in_shape(family, name):
  """One frozen dataclass a file, short, that cites its paper."""
  path = ROOT / family / f'{name}.py'
  cls = registry.method_class(family, name)
  assert dataclasses.is_dataclass(cls) and cls.__dataclass_params__.frozen
  assert cls.__subclasses__() == []
  text = importlib.import_module(f'moe_jax.{family}.{name}').__doc__
  lines = len(path.read_text().splitlines())
  limit = 400 if family == 'dispatch' else 100
  assert lines - len(citations.citation_lines(text)) <= limit
  for row in methods.rows(family, slots=True):
    if registry.parse(row.spec)[0] == name and row.arxiv:
      assert f'arXiv:{row.arxiv}' in text, row
