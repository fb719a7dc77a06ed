"""The README's example of a new method runs; its table is the program's."""

import pathlib
import re
import sys

import jax
import pytest

from moe_jax import citations, registry
from moe_jax.models import factory
from moe_jax.training import plans, step as step_lib
from tests import reference, reference_routers, rows, test_routers, tiny

README = pathlib.Path(__file__).parent.parent / 'README.md'


def section(title):
  text = README.read_text()
  start = text.index(f'## {title}\n')
  return text[start : text.index('\n## ', start)]


@pytest.fixture
def example(tmp_path, monkeypatch):
  """The row of the example, its file in a package elsewhere."""
  text = section('Add a method in five steps')
  router, oracle, row = re.findall(r'```python\n(.*?)```', text, re.DOTALL)
  assert len([line for line in router.splitlines() if line.strip()]) < 30
  (path,) = re.findall(r'`(my_lab/\w+\.py)`', text)
  (tmp_path / path).parent.mkdir()
  (tmp_path / path).write_text(router)
  monkeypatch.syspath_prepend(tmp_path)
  names = dict(vars(reference))
  exec(oracle, names)  # as it would stand in tests/reference.py
  monkeypatch.setattr(reference, 'above', names['above'], raising=False)
  given = {
    'Row': rows.Row,
    'routers': reference_routers,
    'reference': reference,
  }
  yield eval(row, given)
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
  config = tiny.config(**{'moe.router': spec})
  session = plans.make(config, 'exact()')
  batch = jax.eval_shape(
    lambda: factory.dummy_batch(config, config.train.batch_size, 16)
  )
  batch['targets'] = batch['inputs']
  step = step_lib.make_train_step(session.model, session.tx, seed=0)
  _, metrics = jax.eval_shape(step, session.abstract_state, batch)
  assert metrics['load'].shape == (1, 4)


def test_methods_are_the_programs():
  found = citations.markdown(citations.methods())
  assert found in README.read_text(), (
    'python -m experiments.describe --methods --markdown prints the table'
  )
