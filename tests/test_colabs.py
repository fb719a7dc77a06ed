"""Every notebook runs from top to bottom, and is stored without outputs."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / 'colabs').glob('*.ipynb'))


@pytest.mark.slow
@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda p: p.name)
def test_notebook_runs(path):
  cells = json.loads(path.read_text())['cells']
  code = [c for c in cells if c['cell_type'] == 'code']
  assert code and not any(c['outputs'] for c in code)
  text = '\n\n'.join(''.join(c['source']) for c in code)
  done = subprocess.run(
    [sys.executable, '-c', text],
    capture_output=True,
    text=True,
    cwd=ROOT,
    env=os.environ | {'MPLBACKEND': 'agg'},
  )
  assert done.returncode == 0, done.stderr[-3000:]
  assert 'load of the experts' in done.stdout


def test_there_are_notebooks():
  assert NOTEBOOKS
