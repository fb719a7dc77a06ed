"""Distillation: another run's model as teacher."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe_jax.models import factory
from moe_jax.problems import losses
from moe_jax.runs import checkpoint
from moe_jax.training import (
  loop,
  session as session_lib,
  sources,
  start,
  state as state_lib,
  step as step_lib,
  teacher as teacher_lib,
)
from tests import test_tuning, tiny
from tests.test_starts import saved, write_run
from tests.test_tuning import named, read_rows

corpus = test_tuning.corpus  # the fixture

SPARSE = {
  'model.dropout': 0.2,
  'moe.balance': ('switch_loss()', 'loss_free_bias()'),
}
DENSE = {
  'model.num_layers': 1,
  'moe.layers': 'none',
  'mesh': 'auto(expert=2)',
  'train.z_loss': 0.0,
}


@pytest.fixture(scope='session')
def teacher(corpus, tmp_path_factory):
  config = tiny.config(**corpus, **SPARSE)
  return write_run(config, tmp_path_factory.mktemp('teacher'))


def test_cross_entropy_is_the_loops():
  rng = np.random.default_rng(0)
  B, L, V = 2, 3, 5
  student, other = rng.normal(size=(2, B, L, V))
  real = np.array([[1, 1, 0], [1, 0, 0]], bool)
  total = 0.0
  for b in range(B):
    for t in range(L):
      if real[b, t]:
        p = np.exp(other[b, t]) / np.exp(other[b, t]).sum()
        q = np.exp(student[b, t]) / np.exp(student[b, t]).sum()
        for v in range(V):
          total -= p[v] * np.log(q[v])
  f = lambda s: losses.distillation(s, jnp.asarray(other), real)
  value, gradient = jax.value_and_grad(f)(jnp.asarray(student))
  assert float(value) == pytest.approx(total, rel=1e-5)
  # The gradient is q - p where a token counts.
  p, q = (
    np.exp(x) / np.exp(x).sum(-1, keepdims=True) for x in (other, student)
  )
  want = np.where(real[..., None], q - p, 0)
  np.testing.assert_allclose(gradient, want, atol=1e-6)


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'model.vocab_size': 400}, 'its vocabulary has 384 rows, here 400'),
    ({'data.seq_len': 8, 'train.batch_size': 8}, 'moe.group_size=16 does not'),
    (
      {'mesh': 'exact(expert=8)'},
      "its 4 experts do not divide over the mesh axis 'expert' of size 8",
    ),
    (
      {
        'model.kind': 'encoder_decoder',
        'data.objective': 'span_corruption()',
        'data.seq_len': 32,
      },
      "its model.kind is 'decoder', here 'encoder_decoder'",
    ),
  ],
  ids=str,
)
def test_a_teacher_that_does_not_fit(
  corpus,
  teacher,
  tmp_path,
  fields,
  message,
):
  fields = DENSE | {'train.teacher': str(teacher)} | fields
  work = tmp_path / 'w'
  with pytest.raises(ValueError, match=message) as e:
    loop.train(tiny.config(**corpus, **fields), str(work))
  assert str(e.value).startswith(f'train.teacher={teacher}: ')
  assert not (work / 'config.json').exists()


def test_another_vocabulary(corpus, teacher, tmp_path):
  """Of the same size, by the tokenizer's own key."""
  copy = tmp_path / 'copy'
  copy.mkdir()
  (copy / 'checkpoints').symlink_to(teacher / 'checkpoints')
  config = json.loads((teacher / 'config.json').read_text())
  config['data']['tokenizer'] = "hf(path='absent')"
  (copy / 'config.json').write_text(json.dumps(config))
  mine = tiny.config(**corpus, **{'train.teacher': str(copy)})
  with pytest.raises(ValueError, match="no tokenizer file at 'absent'"):
    loop.train(mine, str(tmp_path / 'w'))
  config['data']['tokenizer'] = ' bytes( )'  # the same in other words
  (copy / 'config.json').write_text(json.dumps(config))
  assert sources.find(mine, 'teacher').config.model.d_model == 16


@dataclasses.dataclass
class Run:
  """One step of plain descent at rate 1, its metrics and its gradient."""

  metrics: dict
  gradient: dict


def one_step(config, workdir, *, taught=True, same=False, state=None):
  """On eight devices, from `state`, the initialisation or, `same`, the teacher.

  Returns:
    A Run, and the session, state and batch of it.
  """
  session = session_lib.make(config, workdir, mesh_spec='exact(data=8)')
  if state is None:
    where = jax.tree.map(lambda v: v.sharding, session.abstract_state)
    dummy = session.dummy
    state = state_lib.init(session.model, session.tx, dummy, 0, where)
  if same:
    state = start.load(session, str(workdir))(state)
  found = teacher_lib.load(session) if taught else None
  step = jax.jit(
    step_lib.make_train_step(
      session.model,
      session.tx,
      problem=session.problem,
      seed=0,
      accumulate=config.train.accumulate,
      teacher=found and found.model,
      distill=config.train.distill,
    )
  )
  batch = session.data.batch(seed=0, batch_size=8, step=0)
  extra = (found.variables,) if found else ()
  after, metrics = step(state, session.put(batch), jax.random.key(0), *extra)
  before, after = named(state.params), named(after.params)
  gradient = {k: before[k] - after[k] for k in before}
  return Run(jax.device_get(metrics), gradient), session, state, batch


RATE = {'train.schedule': 'constant(value=1.0)', 'train.clip': 0.0}


@pytest.mark.slow
def test_a_student_that_is_its_teacher_learns_nothing(
  corpus,
  teacher,
  tmp_path,
):
  """The gradient of CE(p, p) is p - p; its value the entropy."""
  fields = SPARSE | {
    'model.dropout': 0.0,
    'moe.balance': ('loss_free_bias()',),
    'moe.capacity_factor': 2.0,  # that of evaluation
    'train.z_loss': 0.0,
    'train.distill': 1.0,
    'train.teacher': str(teacher),
    'train.init_from': str(teacher),
    'train.accumulate': 1,
  }
  config = tiny.config(**corpus, **RATE, **fields)
  run, *_ = one_step(config, tmp_path, same=True)
  for name, value in run.gradient.items():
    np.testing.assert_allclose(value, 0, atol=1e-6, err_msg=name)
  assert 0 < run.metrics['distill_loss'] < np.log(384)
  assert run.metrics['loss'] > run.metrics['distill_loss'] * 0.5


def test_the_loss_is_of_labels_and_teacher(corpus, teacher, tmp_path):
  """Metrics and the update, against both losses taken apart."""
  runs, state = {}, None
  for w in (0.0, 0.25):
    fields = {'train.teacher': str(teacher), 'train.distill': w}
    config = tiny.config(**corpus, **DENSE, **RATE, **fields)
    runs[w], session, state, batch = one_step(config, tmp_path, state=state)
  # The teacher as a run of its own would evaluate it, on another mesh.
  theirs = tiny.config(**corpus, **SPARSE)
  alone = factory.make(theirs, 384)
  variables = {'params': {}, 'balance': {}}
  for name, value in saved(teacher).items():
    kind, _, rest = name.partition('/')
    if kind in variables:
      at, keys = variables[kind], rest.split('/')
      for k in keys[:-1]:
        at = at.setdefault(k, {})
      at[keys[-1]] = value
  apply = lambda m, v, train: jax.jit(
    lambda v, b: m.apply(v, b, train=train)[0]
  )(v, batch)
  other = apply(alone, variables, False)
  # Groups of the same 16 tokens, whatever the mesh.
  student = factory.make(session.config, 384)
  logits = apply(student, {'params': jax.device_get(state.params)}, True)
  real = np.asarray(batch['segments'] > 0)
  log_q = np.asarray(jax.nn.log_softmax(logits), np.float64)
  p = np.asarray(jax.nn.softmax(other), np.float64)
  right = np.take_along_axis(log_q, batch['targets'][..., None], -1)[..., 0]
  labels, soft = -right[real].mean(), -(p * log_q).sum(-1)[real].mean()
  for w, run in runs.items():
    assert run.metrics['loss'] == pytest.approx(labels, rel=1e-5)
    assert run.metrics['distill_loss'] == pytest.approx(soft, rel=1e-5)
    total = (1 - w) * labels + w * soft
    assert run.metrics['total_loss'] == pytest.approx(total, rel=1e-5)
  # A weight of 0 is no teacher.
  plain, *_ = one_step(session.config, tmp_path, taught=False, state=state)
  for name, value in plain.gradient.items():
    np.testing.assert_allclose(runs[0.0].gradient[name], value, atol=1e-6)
  assert 'distill_loss' not in plain.metrics
  moved = max(
    np.abs(runs[0.25].gradient[k] - v).max() for k, v in plain.gradient.items()
  )
  assert moved > 1e-4


@pytest.fixture(scope='module')
def taught(corpus, teacher, tmp_path_factory):
  """Four steps of a dense student, in two micro-batches, saved at two."""
  workdir = tmp_path_factory.mktemp('student')
  fields = {'train.teacher': str(teacher), 'train.accumulate': 2}
  fields |= DENSE | {'train.batch_size': 16}
  config = tiny.config(**corpus, **fields)
  session = session_lib.make(config, workdir)
  summary = loop.train(config, str(workdir), session=session)
  return session, workdir, summary


def test_a_run_with_a_teacher_leaves_its_records(taught):
  _, workdir, summary = taught
  rows = read_rows(workdir)
  assert all(0 < r['distill_loss'] < 10 for r in rows)
  assert summary['distill_loss'] == rows[-1]['distill_loss']
  assert summary['train/distill_loss'] == pytest.approx(
    rows[-1]['distill_loss']
  )
  assert rows[-1]['total_loss'] == pytest.approx(
    0.75 * rows[-1]['loss'] + 0.25 * rows[-1]['distill_loss'], rel=1e-5
  )
  # Nothing of the teacher is in the student's checkpoint.
  names = checkpoint.shapes(workdir / 'checkpoints')
  assert not [k for k in names if 'moe' in k or 'teach' in k]
  assert {k.split('/')[0] for k in names} <= {'step', 'params', 'opt_state'}


def test_resume_is_bitwise(taught, tmp_path):
  """Killed before the last checkpoint; the teacher is read again."""
  session, whole, summary = taught
  work = tmp_path / 'w'
  shutil.copytree(whole, work)
  shutil.rmtree(work / 'checkpoints' / '4')
  (work / 'summary.json').unlink()
  name = f'teacher {session.config.train.teacher}'
  first = session.programs.pop(name)
  again = loop.train(session.config, str(work), session=session)
  assert session.programs[name] is not first
  assert again['train/loss'] == summary['train/loss']
  assert again['eval/loss'] == summary['eval/loss']
  a, b = saved(work), saved(whole)
  assert a.keys() == b.keys()
  for name in a:
    np.testing.assert_array_equal(a[name], b[name])
