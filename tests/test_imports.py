"""Imports go one way: each room's, and the libraries that it does without."""

import ast
import pathlib
import subprocess
import sys

import pytest

import moe_jax
from moe_jax import registry

ROOT = pathlib.Path(moe_jax.__file__).parent

# What a room may import of ours, beside itself: whole rooms, or files of them.
BASE = {*('types', 'registry', 'errors', 'manifest', 'json_files', 'npy_files')}
CORE = BASE | {'parallel', 'kernels'}
METHODS = set(registry.FAMILIES) | {'seating'}
LAYERS = CORE | METHODS
MODELS = LAYERS | {'layers'}
PROBLEMS = MODELS | {'models', 'data'}
TRAINING = MODELS | {
  'models',
  'problems',
  'data.batches',  # places of rows; what they hold is the problem's
  'runs',
  'planning',
}
ROOMS = {
  '__init__': {'citations'},
  'errors': set(),
  'json_files': {'errors'},
  'npy_files': {'errors'},
  'manifest': {'errors', 'json_files'},
  'types': set(),
  'registry': {'errors'},
  'parallel': BASE,
  'kernels': BASE | {'parallel'},
  'routers': CORE,
  'balancing': CORE,
  'experts': CORE,
  'local_experts': BASE,
  'dispatch': CORE | {'experts.base'},  # its operations are bound here
  'seating': BASE | {'kernels.gates'},
  'layers': LAYERS,
  'models': MODELS,
  'data': BASE,
  'runs': BASE,
  'problems': PROBLEMS,
  'training': TRAINING,
  # Beside training. What is drawn or planned is numbers: no room makes it.
  'planning': {'errors', 'json_files'},
  'plots': {'errors', 'json_files', 'analysis.records', 'data.tokenizers'},
  'analysis': TRAINING | {'training', 'data'},
  'conversion': TRAINING | {'training', 'data.objectives', 'citations'},
  'parity': MODELS,
  'benchmarks': TRAINING | {'training'},
  'studies': BASE
  | {'runs', 'training', 'plots', 'benchmarks.machine'}
  | {'conversion', 'problems', 'planning', 'data.batches', 'analysis'},
  'citations': BASE | {'balancing.base', 'planning', 'plots.tables'},
}
# What else a room must do without; nothing imports TensorFlow, which is slow
# to load and takes the accelerator's memory.
DATA = {'grain', 'tensorflow_datasets', 'ml_collections', 'orbax'}
WITHOUT = {
  **dict.fromkeys(METHODS, DATA | {'flax', 'optax'}),
  'planning': DATA | {'jax', 'flax', 'optax'},
  'plots': DATA | {'jax', 'flax', 'optax'},
  'layers': DATA | {'optax'},
  'models': DATA | {'optax'},
  'parity': DATA,
  'benchmarks': DATA,
  'data': {'jax', 'flax', 'optax'},
}
# The layers' shells and Linen modules; other files of the room are pure.
SHELLS = {
  *('linen', 'nnx', 'boxes', 'embeddings', 'norms'),
  *('attention', 'heads', 'latent'),
}


def room_of(path):
  return path.relative_to(ROOT).parts[0].removesuffix('.py')


def imports(path):
  """Dotted names that a file imports, wherever in it."""
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      yield from (a.name for a in node.names)
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, path
      yield from (f'{node.module}.{a.name}' for a in node.names)


def fault(room, file, name):
  """Why this import is against the order; '' where it is not."""
  top, *rest = name.split('.')
  if top in ('experiments', 'configs', 'tests', 'tensorflow'):
    return f'nothing imports {top}'
  without = WITHOUT.get(room, set())
  if room == 'layers' and file not in SHELLS:
    without = without | {'flax'}
  if top in without and not name.startswith('flax.struct'):
    return f'{room} does without {top}'
  if top != 'moe_jax' or not rest:
    return ''
  if rest[0] == room:
    methods = room in registry.FAMILIES and rest[1:2] != ['base']
    return 'methods never import each other' if methods else ''
  if ROOMS[room] & {rest[0], '.'.join(rest[:2])}:
    return ''
  return f'{room} may not import {rest[0]}'


def test_every_room_is_in_the_table():
  assert {room_of(p) for p in ROOT.rglob('*.py')} == set(ROOMS)


@pytest.mark.parametrize('room', ROOMS)
def test_imports_go_one_way(room):
  faults = {
    f'{path.relative_to(ROOT)}: {name}: {why}'
    for path in ROOT.rglob('*.py')
    if room_of(path) == room
    for name in imports(path)
    if (why := fault(room, path.stem, name))
  }
  assert not faults


def test_the_table_has_no_way_round():
  """Of two rooms at most one may import the other."""
  both = {
    frozenset((a, b))
    for a, allowed in ROOMS.items()
    for b in {name.split('.')[0] for name in allowed}
    if a != b and a in {name.split('.')[0] for name in ROOMS[b]}
  }
  assert not both


@pytest.mark.parametrize(
  ('room', 'file', 'name'),
  [
    ('routers', 'top_k', 'moe_jax.balancing.base'),
    ('routers', 'top_k', 'moe_jax.routers.switch'),
    ('routers', 'top_k', 'flax.linen'),
    ('dispatch', 'scatter', 'moe_jax.experts.mlp'),
    ('layers', 'moe', 'flax.linen'),
    ('layers', 'linen', 'moe_jax.models.stack'),
    ('data', 'tasks', 'moe_jax.models'),
    ('runs', 'workdir', 'moe_jax.problems.base'),
    ('problems', 'base', 'moe_jax.training.loop'),
    ('training', 'loop', 'moe_jax.studies'),
    ('training', 'session', 'moe_jax.data.tokenizers'),
    ('plots', 'curves', 'moe_jax.runs.writers'),
    ('studies', 'runner', 'experiments.train'),
  ],
)
def test_what_is_against_the_order(room, file, name):
  assert fault(room, file, name)


def test_configs_import_neither_jax_nor_moe_jax():
  for path in (ROOT.parent / 'configs').rglob('*.py'):
    found = {n.split('.')[0] for n in imports(path)}
    assert found - sys.stdlib_module_names <= {'ml_collections', 'configs'}


def test_layers_models_and_benchmarks_import_alone():
  """Benchmarks run on machines that hold only jax and flax."""
  code = (
    'import sys\n'
    "for m in ('grain', 'tensorflow_datasets', 'ml_collections', 'orbax'):\n"
    '  sys.modules[m] = None\n'
    'from moe_jax.layers import moe\n'
    'from moe_jax.models import factory\n'
    'import moe_jax.benchmarks.report\n'
    'import moe_jax.parity.report\n'
    "assert 'tensorflow' not in sys.modules\n"
  )
  subprocess.run([sys.executable, '-c', code], check=True, cwd=ROOT.parent)
