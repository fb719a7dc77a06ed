"""The front page: its examples run, its pages are what the code says."""

import importlib
import pathlib
import re
import sys

import jax
import pytest

from configs import base
from experiments import tables
from moe_jax import registry
from moe_jax.models import factory
from moe_jax.training import plans, step as step_lib
from tests import methods, tiny
from tests.contracts import test_files, test_routers

ROOT = pathlib.Path(__file__).parent.parent


def section(title):
  text = (ROOT / 'README.md').read_text()
  start = text.index(f'## {title}\n')
  return text[start : text.index('\n## ', start)]


@pytest.fixture
def rows(tmp_path, monkeypatch):
  """Those of the example, its two files where the page says, but elsewhere."""
  text = section('Add a method in three steps')
  method, test = re.findall(r'```python\n(.*?)```', text, re.DOTALL)
  assert len([line for line in method.splitlines() if line.strip()]) < 30
  for code, path in ((method, 'moe_jax'), (test, 'tests')):
    (path,) = re.findall(rf'`({path}/\w+/\w+\.py)`', text)
    (tmp_path / path).parent.mkdir(parents=True)
    (tmp_path / path).write_text(code)
    package, name = path.removesuffix('.py').replace('/', '.').rsplit('.', 1)
    package = importlib.import_module(package)
    folders = [*package.__path__, str((tmp_path / path).parent)]
    monkeypatch.setattr(package, '__path__', folders)
    locations = package.__spec__, 'submodule_search_locations'
    monkeypatch.setattr(*locations, folders)
    # To be found anew, and gone at the end.
    monkeypatch.setitem(sys.modules, f'{package.__name__}.{name}', None)
    monkeypatch.setattr(package, name, None, raising=False)
    monkeypatch.delitem(sys.modules, f'{package.__name__}.{name}')
  return [r for r in methods.rows('routers') if r.spec.startswith('above(')]


def test_example_keeps_the_contracts(rows):
  """Those that rows are put to; the first compares with the page's oracle."""
  assert len(rows) == 2
  for row in rows:
    test_routers.test_equals_reference(row, masked=3)
  test_routers.test_shapes_dtypes_and_range(row)
  test_routers.test_padding_goes_to_nobody_and_changes_nothing(row)
  test_routers.test_gradient_reaches_every_parameter(row)
  test_routers.test_future_changes_the_past_only_where_declared(row)
  test_files.test_every_method_has_rows('routers', 'above')


def test_example_is_used_by_its_name(rows):
  """By the command line's string, in a whole training step, traced."""
  text = section('Add a method in three steps')
  fields = dict(re.findall(r"--config\.(moe\.\w+)='(.*?)'", text))
  assert set(fields) == {'moe.router', 'moe.seating'}
  assert registry.build('routers', fields['moe.router']).bar == 0.2
  config = tiny.config(**fields)
  session = plans.make(config, 'exact()')
  batch = jax.eval_shape(
    lambda: factory.dummy_batch(config, config.train.batch_size, 16)
  )
  batch['targets'] = batch['inputs']
  step = step_lib.make_train_step(
    session.model, session.tx, problem=session.problem, seed=0
  )
  _, metrics = jax.eval_shape(step, session.abstract_state, batch)
  assert metrics['load'].shape == (1, 4)


def test_generated_pages_are_what_the_code_says():
  root = ROOT / 'experiments' / 'results'
  for name, text in tables.pages(root).items():
    assert (root / name).read_text() == text, 'python -m experiments.tables'


def test_the_front_page_is_one():
  text = (ROOT / 'README.md').read_text()
  assert len(text.splitlines()) <= 230 and len(text.encode()) <= 16 * 1024


def test_links_between_pages_lead_somewhere():
  for page in ROOT.rglob('*.md'):
    for link in re.findall(r'\]\(([^)#]+)\)', page.read_text()):
      if '://' not in link:
        assert (page.parent / link).exists(), (page, link)


def test_every_field_of_a_config_is_explained():
  text = (ROOT / 'configs' / 'README.md').read_text()
  explained = re.findall(r'`([a-z_.]+)`', text[text.index('## Every field') :])
  config = base.get_config()
  fields = [
    f'{group}.{name}' if hasattr(value, 'items') else group
    for group, value in config.items()
    for name in (value if hasattr(value, 'items') else [''])
  ]
  assert [f for f in fields if f not in explained] == []
