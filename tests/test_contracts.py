"""The house rules: imports go one way, files are short."""

import ast
import pathlib
import re
import subprocess
import sys

import pytest

import moe_jax
from moe_jax import registry

ROOT = pathlib.Path(moe_jax.__file__).parent


# What a room may import of ours, beside itself; rooms not named: anything but
# experiments, configs and tests.
CORE = {'types', 'registry', 'parallel', 'kernels'}
ALLOWED = {
  'types': set(),
  'registry': set(),
  'manifest': set(),
  'parallel': {'registry'},
  'kernels': {'registry', 'parallel'},
  'routers': CORE,
  'balancing': CORE,
  'experts': CORE,
  'local_experts': {'types', 'registry'},
  'dispatch': CORE | {'experts.base'},
  'layers': CORE
  | {
    'routers',
    'balancing',
    'experts',
    'local_experts',
    'dispatch',
    'seating',
  },
  'models': CORE | {'balancing', 'experts', 'layers', 'seating'},
  'seating': {'types', 'registry', 'kernels.gates'},
  'planning': set(),
  'data': {'registry', 'manifest'},
  'plots': set(),
}
# Outside libraries that a room must do without.
FORBIDDEN = {
  'routers': {'flax'},
  'balancing': {'flax'},
  'experts': {'flax'},
  'local_experts': {'flax'},
  'dispatch': {'flax'},
  'planning': {'jax', 'flax'},
  'plots': {'jax', 'flax'},
  'layers': {'grain', 'tensorflow_datasets', 'ml_collections'},
  'models': {'grain', 'tensorflow_datasets', 'ml_collections'},
  'benchmarks': {'grain', 'tensorflow_datasets', 'ml_collections'},
}


def imports(path):
  """Dotted names that a file imports, wherever in it."""
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      yield from (a.name for a in node.names)
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, path
      yield from (f'{node.module}.{a.name}' for a in node.names)


@pytest.mark.parametrize('path', sorted(ROOT.rglob('*.py')), ids=str)
def test_imports_go_one_way(path):
  room = path.relative_to(ROOT).parts[0].removesuffix('.py')
  for name in imports(path):
    top = name.split('.')[0]
    assert top not in ('experiments', 'configs', 'tests', 'tensorflow'), name
    assert top not in FORBIDDEN.get(room, ()), name
    if top != 'moe_jax' or room not in ALLOWED:
      continue
    ours = name.split('.')[1:]
    if ours[:1] == ['errors']:
      continue
    assert (
      not ours
      or ours[0] == room
      or ours[0] in ALLOWED[room]
      or '.'.join(ours[:2]) in ALLOWED[room]
    ), name
    # Two methods never import each other: of its own family, only the base.
    if room in registry.FAMILIES and ours[0] == room:
      assert ours[1:2] == ['base'], name


def test_configs_import_neither_jax_nor_moe_jax():
  for path in (ROOT.parent / 'configs').rglob('*.py'):
    found = {n.split('.')[0] for n in imports(path)}
    assert found - sys.stdlib_module_names <= {'ml_collections', 'configs'}


def test_files_are_short():
  for path in ROOT.parent.rglob('*.py'):
    if 'tests' not in path.parts:
      assert len(path.read_text().splitlines()) <= 400, path


def test_mains_are_short_and_say_help():
  for path in (ROOT.parent / 'experiments').glob('*.py'):
    text = path.read_text()
    if 'cli.run(main)' in text and path.name != 'cli.py':
      assert len(text.splitlines()) <= 100, path
      assert re.search(rf'python -m experiments\.{path.stem}', text), path


def test_layers_models_and_benchmarks_import_alone():
  """Benchmarks run on machines that hold only jax and flax."""
  code = (
    'import sys\n'
    "for m in ('grain', 'tensorflow_datasets', 'ml_collections', 'orbax'):\n"
    '  sys.modules[m] = None\n'
    'from moe_jax.layers import moe\n'
    'from moe_jax.models import factory\n'
    'from moe_jax.benchmarks import bench_report\n'
    'from moe_jax.parity import report\n'
    "assert 'tensorflow' not in sys.modules\n"
  )
  subprocess.run([sys.executable, '-c', code], check=True, cwd=ROOT.parent)


def test_registry_reads_calls():
  assert registry.parse('top_k') == ('top_k', {})
  assert registry.parse(" a.B(k=2, names=('x', None)) ") == (
    'a.B',
    {'k': 2, 'names': ('x', None)},
  )
  private = registry.build('routers', 'moe_jax.routers.top_k.TopK(k=3)')
  assert private == registry.build('routers', 'top_k(k=3)')
  assert registry.build('experts', 'mlp()', d_ff=7).d_ff == 7
  assert registry.build('experts', 'mlp(d_ff=5)', d_ff=7).d_ff == 5


@pytest.mark.parametrize(
  ('spec', 'message'),
  [
    (
      'topk(k=2)',
      "unknown method of routers 'topk'; valid: ",
    ),
    ('top_k(n=2)', "unknown argument of routers 'top_k' 'n'; valid: init_std"),
    ('top_k(2)', 'arguments go by keyword'),
    ('top_k(k=x)', "the value of 'k' is no literal"),
    ('top_k(k=', 'cannot read'),
    ('1 + 1', 'cannot read'),
    ('switch(jitter=1e999)', 'jitter is inf; a finite number is wanted'),
    ('top_k(k=0)', 'k=0 must be a whole number from 1'),
    ('top_k(k=1)', 'leaves the router without a gradient'),
    ("top_k(renormalize='later')", "'later'; valid: True, False, 'kept'"),
    ("top_k(second_policy='no')", "'no'; valid: all, threshold, random, g"),
    ('top_k(threshold=0.0)', 'threshold=0.0; valid: (0, 1]'),
    ("switch(jitter_on='x')", "jitter_on='x'; valid: input, logits, logits_"),
    ('switch(jitter=-1)', 'jitter=-1 must not be negative'),
    ('switch(input_dropout=1.0)', 'input_dropout=1.0 must be from 0 to below'),
    ('vmoe(noise_std=0)', 'noise_std=0 must be above 0; without noise this is'),
    ('vmoe(k=0)', 'vmoe: k=0 must be a whole number from 1'),
    ('no_token_left_behind(k=0)', 'k=0 must be a whole number from 1'),
    ('no.such.Router()', "cannot import 'no.such.Router'"),
  ],
)
def test_registry_errors(spec, message):
  with pytest.raises(ValueError, match=re.escape(message)):
    registry.build('routers', spec)


def test_registry_needs_what_a_method_needs():
  with pytest.raises(ValueError, match='d_ff'):
    registry.build('experts', 'mlp()')
  with pytest.raises(ValueError, match="unknown family 'router'"):
    registry.build('router', 'switch()')
