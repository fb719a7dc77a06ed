"""The house rules: files are short, call strings are read."""

import pathlib
import re

import pytest

import moe_jax
from moe_jax import registry

ROOT = pathlib.Path(moe_jax.__file__).parent


def test_files_are_short():
  for path in ROOT.parent.rglob('*.py'):
    lines = len(path.read_text().splitlines())
    assert lines <= 400 - ('tests' in path.parts), path


def test_mains_are_short_and_say_help():
  for path in (ROOT.parent / 'experiments').glob('*.py'):
    text = path.read_text()
    if 'cli.run(main)' in text and path.name != 'cli.py':
      assert len(text.splitlines()) <= 100, path
      assert re.search(rf'python -m experiments\.{path.stem}', text), path


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
    ('moe_jax.no.such()', "cannot import 'moe_jax.no.such'"),
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
