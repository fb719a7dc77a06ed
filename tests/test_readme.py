"""The front page: its examples run, its pages are what the code says."""

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
from tests import methods, oracles, tiny
from tests.contracts import test_routers

ROOT = pathlib.Path(__file__).parent.parent


def section(title):
  text = (ROOT / 'README.md').read_text()
  start = text.index(f'## {title}\n')
  return text[start : text.index('\n## ', start)]


@pytest.fixture
def example(tmp_path, monkeypatch):
  """The row of the example, its file in a package elsewhere."""
  text = section('Add a method in five steps')
  router, oracle = re.findall(r'```python\n(.*?)```', text, re.DOTALL)
  (row,) = re.findall(r'`(Row\(.*?\))`', text)
  assert len([line for line in router.splitlines() if line.strip()]) < 30
  (path,) = re.findall(r'`(my_lab/\w+\.py)`', text)
  (tmp_path / path).parent.mkdir()
  (tmp_path / path).write_text(router)
  monkeypatch.syspath_prepend(tmp_path)
  names = {'Row': methods.Row} | vars(oracles)
  exec(oracle, names)
  yield eval(row, names)
  for name in [n for n in sys.modules if n.split('.')[0] == 'my_lab']:
    del sys.modules[name]


def test_example_keeps_the_contracts(example):
  """Those that rows are put to; the first compares with the README's oracle."""
  test_routers.test_equals_reference(example, masked=3)
  test_routers.test_shapes_dtypes_and_range(example)
  test_routers.test_padding_goes_to_nobody_and_changes_nothing(example)
  test_routers.test_gradient_reaches_every_parameter(example)
  test_routers.test_future_changes_the_past_only_where_declared(example)


def test_example_is_used_by_its_dotted_name(example):
  """By the command line's string, in a whole training step, traced."""
  text = section('Add a method in five steps')
  (spec,) = re.findall(r"--config\.moe\.router='(my_lab\..*?)'", text)
  assert registry.build('routers', spec).bar == 0.2
  assert registry.parse(spec)[0] == registry.parse(example.spec)[0]
  assert "--config.moe.seating='token_major()'" in text
  seating = {'moe.seating': 'token_major()'}
  config = tiny.config(**seating, **{'moe.router': spec})
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
