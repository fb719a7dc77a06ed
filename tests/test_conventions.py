"""Presets, and what they make of the same logits, against loops."""

import io
import pathlib
import subprocess
import sys
from contextlib import redirect_stdout

import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver

from configs import base, presets
from experiments import conventions as program
from moe_jax.analysis import conventions
from moe_jax.models import factory
from tests import oracles
from tests.balancing import (
  test_importance_loss,
  test_switch_loss,
  test_z_loss,
)
from tests.routers import test_top_k

T, E = 40, 8
ROOT = pathlib.Path(__file__).parent.parent
LOGITS = np.random.default_rng(0).normal(size=(T, E)) + np.linspace(0, 1, E)
MASK = np.arange(T) < T - 6

# By convention: preset, K, rows of an expert at its factor, whether the weights
# are renormalised, whether padding is routed, who is first, f's choices.
CASES = {
  'switch paper': (presets.switch('paper'), 1, 7, False, False, None, 'first'),
  'switch mtf': (presets.switch('mtf'), 1, 6, False, False, None, 'first'),
  'switch t5x': (presets.switch('t5x'), 1, 6, False, True, None, 'union'),
  'switch hf': (presets.switch('hf'), 1, 40, False, True, None, 'first'),
  'st_moe paper': (presets.st_moe(), 2, 7, True, False, None, 'first'),
  'st_moe t5x': (presets.st_moe('t5x'), 2, 6, False, True, None, 'union'),
  'vmoe': (presets.vmoe(), 2, 12, False, True, None, None),
  'vmoe bpr': (presets.vmoe(True), 2, 12, False, True, 'max', None),
}


def layer(fields):
  config = base.get_config()
  sizes = {'moe.num_experts': E, 'moe.group_size': T}
  presets.apply(config, fields | sizes)
  stack = factory.moe_fields(config)['decoder']
  return factory.moe_layer(config, stack)


@pytest.mark.parametrize('name', CASES)
def test_conventions_equal_loops(name):
  """Capacity, seats, weights and losses: 1.25 * 40 / 8 is 6.25 rows."""
  fields, K, rows, renormalize, routed, order, count = CASES[name]
  got = conventions.measure(layer(fields), LOGITS, MASK)
  mask = np.ones(T, bool) if routed else MASK
  identity = {'kernel': np.eye(E)}
  choice = test_top_k.top_k(
    LOGITS, identity, np.zeros(E), {}, k=K, renormalize=renormalize
  )
  best = choice.probs.max(-1)
  first = lambda t, j: (j, -best[t] if order else 0, t)
  kept, weight = oracles.seat(choice, mask, rows, key=first)
  assert got['capacity'] == rows
  assert got['kept'] == kept[MASK].sum()
  assert got['dropped'] == K * MASK.sum() - kept[MASK].sum()
  weight[~MASK] = 0
  np.testing.assert_allclose(got['weight_TK'], weight, atol=1e-6)
  losses = got['losses']
  if count:
    want = test_switch_loss.switch_loss([choice], [mask], count=count)
    np.testing.assert_allclose(losses['switch_loss'], want, rtol=1e-5)
  else:
    want = test_importance_loss.importance_loss([choice], [mask])
    np.testing.assert_allclose(losses['importance_loss'], want, rtol=1e-4)
  assert ('z_loss' in losses) == ('st_moe' in name or name == 'switch hf')
  if 'z_loss' in losses:
    want = test_z_loss.z_loss([choice], [mask])
    np.testing.assert_allclose(losses['z_loss'], want, rtol=1e-5)
  weights = {'switch t5x': 0.01, 'switch hf': 0.001}
  if name in weights:
    total = weights[name] * losses['switch_loss']
    total += 0.001 * losses.get('z_loss', 0.0)
    np.testing.assert_allclose(got['loss'], total, rtol=1e-5)


def test_presets_set_what_their_tables_say():
  """The fields that a routing of given logits cannot show."""
  paper, t5x, hf = (presets.switch(c) for c in ('paper', 't5x', 'hf'))
  assert paper['train.balance_over_layers'] == 'sum'
  assert t5x['train.balance_over_layers'] == 'mean'
  assert paper['moe.layers'] == t5x['moe.layers'] == 'every_2'
  assert hf['moe.layers'] == 'every_2_at_1'
  routers = [layer(f).router for f in (paper, t5x, hf)]
  assert [r.jitter for r in routers] == [0.01, 0.0, 0.01]
  assert [r.init_std for r in routers] == [None, 0.02, 1.0]
  assert layer(t5x).experts.dropout_mask == 'shared'
  assert layer(paper).experts.dropout_mask == 'row'
  assert layer(paper).experts.init_scale == 0.1
  assert layer(presets.switch(ffn='geglu')).experts.activation == 'gelu'
  assert layer(presets.st_moe()).experts.bias == 'multiplicative'
  assert layer(presets.st_moe('t5x')).experts.bias == 'none'
  router = layer(presets.st_moe()).router
  assert (router.second_policy, router.threshold) == ('random', 0.2)
  assert presets.st_moe()['moe.extra_ffn'] == 'after'
  vmoe = layer(presets.vmoe())
  assert vmoe.identical_experts and not vmoe.router.selective_precision
  rows = layer(presets.switch('t5x', min_capacity=9)).rows(T, 1.25)
  assert rows == 9


@pytest.mark.parametrize(
  ('make', 'message'),
  [
    (lambda: presets.switch('jax'), "convention='jax'; valid: paper, mtf, t5x"),
    (lambda: presets.st_moe('mtf'), "convention='mtf'; valid: paper, t5x"),
    (lambda: presets.switch(ffn='silu'), "ffn='silu'; valid: relu, geglu"),
    (
      lambda: presets.apply(base.get_config(), {'moe.groups': 1}),
      "no field 'moe.groups'",
    ),
  ],
)
def test_preset_errors(make, message):
  with pytest.raises(ValueError, match=message):
    make()


def test_program_prints_what_it_compares(monkeypatch):
  """The flags reach it; the rows are those of the page, tested there."""
  seen = []

  def compare(T, E, *, spread, seed):
    seen.append((T, E, spread, seed))
    return [('a', *'12345678')], [('b', 'rule()', '1', '2')]

  monkeypatch.setattr(program, 'compare', compare)
  out = io.StringIO()
  # Not parsed: other programs' required flags may be loaded, too.
  flags.FLAGS.mark_as_parsed()
  given = {'tokens': 16, 'experts': 4, 'spread': 2.0, 'seed': 3}
  with flagsaver.flagsaver(markdown=True, **given), redirect_stdout(out):
    program.main([])
  assert seen == [(16, 4, 2.0, 3)]
  assert '16 tokens, 14 of them real, 4 experts' in out.getvalue()
  assert '| b | rule() | 1 | 2 |' in out.getvalue()


def test_program_refuses_in_one_line():
  run = subprocess.run(
    [sys.executable, '-m', 'experiments.conventions', '--tokens=3'],
    cwd=ROOT,
    capture_output=True,
    text=True,
  )
  assert run.returncode == 1 and run.stdout == ''
  assert run.stderr == (
    'error: --tokens=3 must be at least 8, --experts=8 at least 2\n'
  )
