"""The studies' files: arms that can run, claims that runs can answer."""

import dataclasses
import pathlib
import re

import jax
import numpy as np
import pytest

from configs import lm, routers
from moe_jax import registry
from moe_jax.models import factory
from moe_jax.problems import base as problems
from moe_jax.runs import checkpoint, configs
from moe_jax.studies import derived, results, study as study_lib
from moe_jax.training import (
  checks,
  loop,
  plans,
  probes,
  session as session_lib,
  step as step_lib,
)
from tests import tiny

FILES = sorted(
  str(p.relative_to(pathlib.Path.cwd()))
  for p in pathlib.Path('configs/ablations').resolve().glob('*.py')
  if hasattr(study_lib._module(str(p)), 'sweep')
)
ONE = {'data': 1, 'fsdp': 1, 'expert': 1, 'model': 1}
# Claims that a study has at least.
LEAST = dict(capacity_factor=8, sparse_dense=4, stability=6, routers=20)
LEAST |= dict(dropout=8, batch_size=6, what_to_update=6, distillation=6)
LEAST |= dict(references=0, from_dense=11, critics=8, flex_olmo=17)
LEAST |= dict(inside=21, olmoe_choices=12)
# Of runs with a task or with frozen parameters.
TASK_METRICS = {'eval/accuracy', 'best/accuracy', 'trained_parameters'}
# Of one process; 40 for the others.
MINUTES = dict(routers=60, sparse_dense=100, references=80, scaling=180)
MINUTES |= dict(from_dense=90, critics=80, flex_olmo=80, batch_size=60)
MINUTES |= dict(rates=60, inside=180, olmoe_choices=70, optimal_sparsity=80)


SIZES = [(f, s) for f in FILES for s in study_lib._module(f).SEEDS]


def load(path, size=''):
  """At a size, or at the smallest that a study has."""
  sizes = study_lib._module(path).SEEDS
  size = size or ('quick' if 'quick' in sizes else 'reference')
  return study_lib.load(f'{path}:{size}')


@pytest.mark.parametrize(('path', 'size'), SIZES)
def test_arms_are_valid(path, size):
  study = load(path, size)
  for arm in study.arms:
    config = study.config_of(arm, 0)
    with config.unlocked():  # as the runner does
      config.train.init_from = arm.init_from
    configs.validate(config)
    problem = session_lib.choose_problem(config)
    probes.check(config)
    factory.make(config, vocab_size=384)
    for split in ('train', 'eval'):
      checks.check_batch(config, problem, ONE, split)
  digests = [results.arm_digest(study, a) for a in study.arms]
  assert len(set(digests)) == len(digests), 'two arms are the same'


@pytest.mark.parametrize('path', FILES)
def test_a_study_is_whole(path):
  study = load(path)
  text = pathlib.Path(path).read_text()
  assert re.search(rf'--config={re.escape(path)}:(reference|quick)\b', text)
  assert 'arXiv:' in text and 'CPU cores' in ' '.join(text.split())
  assert study.columns and study.figures
  assert len(study.claims) >= LEAST.get(study.name, 4)
  runs = sum(len(a.seeds) for a in study.arms)
  assert runs * study.seconds <= MINUTES.get(study.name, 40) * 60
  for size in {'reference', 'quick'} & set(study_lib._module(path).SEEDS):
    arm = load(path, size).arm
    for claim in study.claims:
      for name in claim.arms:
        assert claim.seeds_needed <= len(arm(name).seeds), (size, claim.name)
  for spec in study.figures:
    for points in spec['series'].values():
      named = [points] if isinstance(points, str) else [p[1] for p in points]
      for name in named:
        assert study.arm(name)
    assert set(spec.get('published') or {}) <= set(spec['series']), spec['file']


def test_capacity_has_at_most_15_arms():
  study = load('configs/ablations/capacity_factor.py')
  assert len(study.arms) <= 15


def test_claims_about_quality_are_enough():
  claims = [
    c for name in LEAST for c in load(f'configs/ablations/{name}.py').claims
  ]
  assert sum(c.kind == 'quality' for c in claims) >= 9


def test_routers_has_every_causal_preset():
  """And of those that see later tokens one, marked."""
  study = load('configs/ablations/routers.py')
  changed = [a.name for a in study.arms if a.name not in routers.PRESETS]
  noncausal = {'expert_choice'}
  for arm in study.arms:
    config = study.config_of(arm, 0)
    assert config.moe.allow_noncausal == (arm.name in noncausal)
    preset = config.moe.router, config.moe.dispatch
    if arm.name in routers.PRESETS and arm.name != 'dense':
      own = lm.get_config(f'router={arm.name}')
      assert preset == (own.moe.router, own.moe.dispatch), arm.name
      assert config.moe.balance == own.moe.balance
    if not routers.get(_preset_of(arm.name)).experts:
      assert config.moe.experts == config.model.ffn == routers.SWIGLU
  assert len(study.arms) - len(changed) - 1 == sum(
    not p.moe.get('allow_noncausal') for p in routers.PRESETS.values()
  )
  assert set(study.figures[0]['series']) == {a.name for a in study.arms}
  assert set(study.figures[0]['apart']) == noncausal


def _preset_of(arm):
  module = study_lib._module('configs/ablations/routers.py')
  return module.VARIANTS.get(arm, (arm,))[0]


def test_an_unknown_size():
  module = study_lib._module('configs/ablations/stability.py')
  with pytest.raises(ValueError, match="size 'big'; valid: reference, qu"):
    module.get_config('big')


@pytest.mark.parametrize('size', ['quick', 'gpu', 'paper'])
def test_experts_cost_no_flops(size):
  """Less the router's, E x D products a token in each sparse layer."""
  study = load('configs/ablations/sparse_dense.py', size)
  found = {}
  for name in ('dense', 'experts_2', 'experts_64'):
    config = study.config_of(study.arm(name), 0)
    session = plans.make(config, 'exact()')
    routers = sum(
      2
      * sum(stack.sparse)
      * config.moe.num_experts
      * config.model.d_model
      * problems.of(config).lengths[stack_name]
      for stack_name, stack in session.model.stacks.items()
    )
    found[name] = session.forward_flops() - routers
  assert len({round(v) for v in found.values()}) == 1, found


def test_relu_is_of_equal_size():
  study = load('configs/ablations/stability.py')
  sizes = {}
  for name in ('baseline', 'relu'):
    session = plans.make(study.config_of(study.arm(name), 0), 'exact()')
    sizes[name] = sum(np.prod(leaf.shape) for leaf in session.leaves())
  assert sizes['relu'] == sizes['baseline']


@pytest.mark.parametrize(
  'path',
  [pytest.param(f, marks=pytest.mark.slow) for f, s in SIZES if s == 'paper'],
)
def test_paper_sizes_trace(path):
  """A whole step of the first and the last arm, on devices not there."""
  study = load(path, 'paper')
  for arm in (study.arms[0], study.arms[-1]):
    config = study.config_of(arm, 0)
    with config.unlocked():  # as the runner does
      config.train.init_from = arm.init_from
    _trace(config, 'exact(data=8)')


@pytest.mark.slow
def test_every_router_of_the_study_traces():
  study = load('configs/ablations/routers.py')
  for arm in study.arms:
    _trace(study.config_of(arm, 0), 'exact()')


def _trace(config, mesh):
  session = plans.make(config, mesh)
  L = problems.of(config).lengths
  batch = jax.eval_shape(
    lambda: factory.dummy_batch(
      config, config.train.batch_size, config.data.seq_len, L['decoder']
    )
  )
  batch['targets'] = batch['inputs']
  step = step_lib.make_train_step(
    session.model, session.tx, problem=session.problem, seed=0
  )
  state, metrics = jax.eval_shape(step, session.abstract_state, batch)
  assert metrics['loss'].shape == ()
  assert jax.tree.structure(state) == jax.tree.structure(session.abstract_state)


PROBES = (
  'capacity_factors(values=(0.5, 2.0))',
  'drop_by_position(bins=4, capacity_factor=0.5)',
  'logits()',
)


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
  """Session, workdir and summary of a tiny run with one probe."""
  text = tiny.corpus(tmp_path_factory.mktemp('text'))
  own = {'train.checkpoint_every': 20, 'mesh': 'exact(data=8)'}
  own |= {'eval.probes': PROBES[-1:], 'train.steps': 20}
  own |= {'model.num_layers': 1, 'moe.layers': 'all'}
  workdir = tmp_path_factory.mktemp('run')
  session = session_lib.make(tiny.config(**text, **own), workdir)
  summary = loop.train(session.config, str(workdir), session=session)
  return session, workdir, summary


@pytest.fixture(scope='module')
def run(trained):
  """The summary, had it all probes."""
  session, workdir, summary = trained
  config = session.config.copy_and_resolve_references()
  with config.unlocked():
    config.eval.probes = PROBES
  session = dataclasses.replace(session, config=config)
  with checkpoint.Checkpointer(workdir / 'checkpoints', 1) as saved:
    state, _ = saved.restore(session.abstract_state)
  measured = probes.measure(session, state.params, state.balance)
  # What the loop found, with the one that it had.
  assert all(measured[k] == summary[k] for k in summary if 'probe/' in k)
  return summary | measured


@pytest.mark.slow
def test_seeds_share_programs_and_nothing_else(tmp_path):
  """A run with another's programs is that run alone, to the bit."""
  config = tiny.config(**{'train.steps': 20})
  session = session_lib.make(config, str(tmp_path))
  first = loop.train(config, str(tmp_path / '0'), session=session)
  with config.unlocked():
    config.seed = 1
  second = loop.train(config, str(tmp_path / '2'), session=session)
  with config.unlocked():
    config.data.cache = str(tmp_path / 'data')
  alone = loop.train(config, str(tmp_path / '3'))
  assert second['curve'] == alone['curve'] != first['curve']
  assert second['eval/loss'] == alone['eval/loss']


def test_tail_is_of_the_last_tenth(trained):
  first = trained[-1]
  assert first['train/averaged_steps'] == 2
  assert first['train/loss'] == pytest.approx(
    np.mean(first['curve']['loss'][-2:]), rel=1e-6
  )
  assert first['curve']['step'] == list(range(1, 21))
  # Groups of 16 tokens, 4 experts, factor 1: 16 seats for 16 assignments.
  assert first['train/wasted'] == pytest.approx(first['train/dropped'])
  assert 0 < first['step_seconds'] < 10
  probed = {k.split('/')[1] for k in first if k.startswith('probe/')}
  assert probed == {'logits'}


def test_probes_agree_with_the_evaluation(run):
  first = run
  name = 'probe/capacity_factors/2.0'
  assert first[f'{name}/loss'] == first['eval/loss']
  assert first[f'{name}/dropped'] == first['moe/eval_dropped']
  bins = [first[f'probe/drop_by_position/bin_{i}'] for i in range(4)]
  # Every place of a row is taken by a token in all but a few rows.
  dropped = first['probe/capacity_factors/0.5/dropped']
  assert np.mean(bins) == pytest.approx(dropped, abs=0.03)
  # Two seats an expert: with one sequence a group, nobody of the first two
  # tokens is dropped, and places fill up from there.
  assert bins == sorted(bins) and bins[0] < bins[-1]
  assert first['probe/drop_by_position/slope'] == bins[-1] - bins[0]
  # Small logits: logsumexp is ln E, and so is the entropy.
  assert first['probe/logits/logsumexp'] == pytest.approx(np.log(4), abs=0.2)
  assert first['probe/logits/entropy'] == pytest.approx(np.log(4), abs=0.1)


@pytest.mark.parametrize('path', FILES)
def test_claims_are_of_metrics_that_runs_have(path, run):
  """By the names of a real summary; probes' options are the study's."""
  study = load(path)
  known = set(results.metrics(run)) | TASK_METRICS | {'curve'}
  for claim in study.claims:
    for metric, arm in zip(claim.metrics, claim.arms):
      if 'analysis/' in metric:
        continue  # see test_studies_inside.py
      config = study.config_of(study.arm(arm), 0)
      names = known | tiny.own_scores(config)
      if '(' in metric:
        registry.call(metric, derived.DERIVED, 'derived metric')
        _, options = registry.parse(metric)
        metric = options.get('metric', 'curve')
        assert options.get('arms', (arm,))[0] == arm, claim.name
        for other in _arms_in(options):
          assert study.arm(other)
        assert {options.get(k, 'eval/loss') for k in ('less', 'at')} <= names
      if metric.startswith('probe/'):
        assert metric in _probed(config), (claim.name, metric)
      elif metric.startswith('train/balance/'):
        rules = {registry.parse(r)[0] for r in config.moe.balance}
        assert metric.rpartition('/')[2] in rules
      elif not metric.startswith(('task/', 'train_task/')):
        metric = _of_domain(metric, config)
        assert metric in names, (claim.name, metric)


def _of_domain(metric, config):
  """As of the tiny run's, where it is of a domain of the study."""
  match = re.fullmatch('eval/([^/]+)/(.+)', metric)
  of = match is not None and match[1] in config.data.domains
  return f'eval/a/{match[2]}' if of else metric


def _arms_in(options):
  named = (options[k] for k in ('of', 'worse', 'better') if k in options)
  several = (n for k in ('arms', 'minus', 'over') for n in options.get(k, ()))
  return (*named, *several)


def _probed(config):
  found = set()
  for spec in config.eval.probes:
    name, options = registry.parse(spec)
    inner = {
      'capacity_factors': [
        f'{v}/{k}'
        for v in options.get('values', ())
        for k in ('loss', 'dropped')
      ],
      'drop_by_position': [
        'slope',
        *(f'bin_{i}' for i in range(options.get('bins', 8))),
      ],
      'logits': ['logsumexp', 'entropy', 'rms'],
      'experts_by_domain': ['information', 'slope'],
      'switching': [f'{options.get("pieces", 2)}/penalty'],
    }[name]
    found |= {f'probe/{name}/{k}' for k in inner}
  return found
