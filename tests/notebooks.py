"""The notebooks of `colabs/`: their pairs, what they import, who is run when.

  python -m tests.notebooks colabs/02_routers.py /tmp/figures

runs one as `python` would, and keeps each figure that it shows as a PNG.
"""

import ast
import hashlib
import json
import os
import pathlib
import re
import runpy
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[1]
FOLDER = ROOT / 'colabs'
PATHS = sorted(FOLDER.glob('*.ipynb'))
OURS = ('moe_jax', 'configs')
AT_ONCE = 2  # notebooks that a run of the slow tests takes in rotation


def script_of(path: pathlib.Path) -> pathlib.Path:
  return path.with_suffix('.py')


def cells_of_notebook(path: pathlib.Path) -> list[tuple[str, str]]:
  """(type, source) of each cell of an .ipynb."""
  cells = json.loads(path.read_text())['cells']
  return [(c['cell_type'], ''.join(c['source']).strip()) for c in cells]


def cells_of_script(path: pathlib.Path) -> list[tuple[str, str]]:
  """The same of a script in jupytext's percent format."""
  found = []
  for part in re.split(r'^# %%', path.read_text(), flags=re.MULTILINE)[1:]:
    mark, _, body = part.partition('\n')
    text = 'markdown' in mark
    # A line for the shell is a comment to Python.
    comment = r'^# ?' if text else r'^# (?=[!%])'
    body = re.sub(comment, '', body, flags=re.MULTILINE)
    found.append(('markdown' if text else 'code', body.strip()))
  return found


def imports(path: pathlib.Path) -> set[str]:
  """Files of ours that a script names in its imports, from the root.

  A name that is neither a file nor in one stands for itself.
  """
  names = set()
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      names |= {a.name for a in node.names}
    elif isinstance(node, ast.ImportFrom):
      names |= {f'{node.module}.{a.name}' for a in node.names}
  found = set()
  for name in names:
    if name.partition('.')[0] in OURS:
      found.add(_file(name) or _holder(name) or name)
  return found


def _holder(name: str) -> str | None:
  """The file that defines the last part of a dotted name."""
  module, _, last = name.rpartition('.')
  file = _file(module)
  text = (ROOT / file).read_text() if file else ''
  defined = rf'^(?:class |def |){last}\b'
  return file if re.search(defined, text, re.MULTILINE) else None


def _file(name: str) -> str | None:
  stem = name.replace('.', '/')
  places = f'{stem}.py', f'{stem}/__init__.py'
  return next((p for p in places if (ROOT / p).is_file()), None)


def changed() -> set[str]:
  """Files that differ from the last commit's parent; none without git."""
  names = ('git', 'diff', '--name-only', 'HEAD~1')
  try:
    done = subprocess.run(names, cwd=ROOT, capture_output=True, text=True)
  except OSError:
    return set()
  return set(done.stdout.split()) if done.returncode == 0 else set()


def due() -> list[pathlib.Path]:
  """Those that a run of the slow tests takes.

  Two in rotation, whose turn follows from what stands in the folders of OURS,
  so that a commit always gets the same; those that changed, or of whose imports
  one did. `MOE_JAX_NOTEBOOKS=all` is all of them.
  """
  if os.environ.get('MOE_JAX_NOTEBOOKS') == 'all':
    return PATHS
  tree = hashlib.sha256()
  for folder in OURS:
    for file in sorted((ROOT / folder).rglob('*.py')):
      tree.update(file.read_bytes())
  first, count = int(tree.hexdigest(), 16), len(PATHS)
  turn = {PATHS[(first + i) % count] for i in range(AT_ONCE)}
  new = changed()
  for path in PATHS:
    script = script_of(path)
    if new & {str(script.relative_to(ROOT)), *imports(script)}:
      turn.add(path)
  return sorted(turn)


def main(script: str, folder: str) -> None:
  """Runs a notebook; its figures become FOLDER/01.png, ..."""
  import matplotlib

  matplotlib.use('agg')
  from matplotlib import pyplot as plt

  place = pathlib.Path(folder)
  place.mkdir(parents=True, exist_ok=True)

  def show():
    for number in plt.get_fignums():
      done = len(list(place.glob('*.png')))
      plt.figure(number).savefig(place / f'{done + 1:02}.png', dpi=80)
    plt.close('all')

  plt.show = show
  sys.path.insert(0, str(ROOT))
  runpy.run_path(script, run_name='__main__')


if __name__ == '__main__':
  main(*sys.argv[1:])
