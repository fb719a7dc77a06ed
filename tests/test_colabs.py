"""Every notebook runs from top to bottom, and is stored without outputs."""

import ast
import importlib.util
import json
import os
import re
import subprocess
import sys

import pytest

from tests import notebooks

PLACE = 'github.com/OWNER/moe_jax'
each = pytest.mark.parametrize('path', notebooks.PATHS, ids=lambda p: p.stem)


@each
def test_is_stored_without_outputs(path):
  cells = json.loads(path.read_text())['cells']
  code = [c for c in cells if c['cell_type'] == 'code']
  assert code
  for cell in code:
    assert not cell['outputs'] and cell['execution_count'] is None


@each
def test_pair_is_in_sync(path):
  script = notebooks.script_of(path)
  told = f'jupytext --sync {script.relative_to(notebooks.ROOT)}'
  found = notebooks.cells_of_script(script)
  assert found == notebooks.cells_of_notebook(path), told


@each
def test_begins_with_a_badge_and_a_line_that_installs(path):
  (kind, badge), (_, install), *rest = notebooks.cells_of_notebook(path)
  assert kind == 'markdown'
  place = f'{PLACE.replace(".com", "")}/blob/main/colabs/{path.name}'
  assert f'](https://colab.research.google.com/{place})' in badge
  assert PLACE in install and install.startswith('!') and '\n' not in install
  assert not any(re.search(r'^[!%]', text, re.MULTILINE) for _, text in rest)


@each
def test_what_it_imports_is_there(path):
  script = notebooks.script_of(path)
  assert len(notebooks.imports(script)) > 1
  assert all((notebooks.ROOT / f).is_file() for f in notebooks.imports(script))
  for node in ast.walk(ast.parse(script.read_text())):
    if isinstance(node, ast.ImportFrom | ast.Import):
      name = getattr(node, 'module', None) or node.names[0].name
      assert importlib.util.find_spec(name.partition('.')[0]), name


def test_rotation(monkeypatch):
  monkeypatch.delenv('MOE_JAX_NOTEBOOKS', raising=False)
  monkeypatch.setattr(notebooks, 'changed', set)
  two = notebooks.due()
  assert len(two) == 2 and notebooks.due() == two
  monkeypatch.setattr(notebooks, 'changed', lambda: {'moe_jax/types.py'})
  using = [
    p
    for p in notebooks.PATHS
    if 'moe_jax/types.py' in notebooks.imports(notebooks.script_of(p))
  ]
  assert using and notebooks.due() == sorted({*two, *using})
  monkeypatch.setenv('MOE_JAX_NOTEBOOKS', 'all')
  assert notebooks.due() == notebooks.PATHS


@pytest.mark.slow
@pytest.mark.parametrize('path', notebooks.due(), ids=lambda p: p.stem)
def test_runs(path, tmp_path):
  """At the size for tests; the claims of its text are its own asserts."""
  script = str(notebooks.script_of(path))
  done = subprocess.run(
    [sys.executable, '-m', 'tests.notebooks', script, str(tmp_path)],
    capture_output=True,
    text=True,
    cwd=notebooks.ROOT,
    env=os.environ | {'MOE_JAX_SMALL': '1'},
  )
  assert done.returncode == 0, done.stderr[-3000:]
  assert list(tmp_path.glob('*.png'))
