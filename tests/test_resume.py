"""Going on with a run: from which row, with what config, from what state.

The loop is the real one, with its files; the model is not run. A step counts,
notes the rows that it was given, and does to the state what the test says.
"""

import dataclasses
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe_jax.runs import checkpoint, resume
from moe_jax.training import evaluation, loop, session as session_lib
from tests import tiny

DENSE = {
  'mesh': 'auto()',
  'model.num_layers': 1,
  'moe.layers': 'none',
  'data.name': 'text_files',
  'train.optimizer': 'sgd(momentum=0.5)',
}


@pytest.fixture(scope='module')
def made(tmp_path_factory):
  """A session of a dense model, whose data all runs here have."""
  root = tmp_path_factory.mktemp('corpus')
  text = [b'%04d-%04d-%04d' % (i, 999 - i, 7 * i) for i in range(200)]
  (root / 'a.txt').write_bytes(b'\n\n'.join(text))
  dirs = {'data.dir': str(root), 'data.cache': str(root / 'cache')}
  config = tiny.config(**DENSE, **dirs)
  return session_lib.make(config, root)


class Runs:
  """Runs in one workdir.

  Attributes:
    rows: the targets of the rows trained on, in order.
    hurt: (state, step) -> the state after a step, from the one it would be.
    number: step -> the loss that it reports.
    extra: step -> what else it reports.
    scores: of an evaluation, or what makes it.
  """

  def __init__(self, made, workdir):
    self._made, self.workdir = made, workdir
    self.rows, self.hurt = [], lambda state, step: state
    self.number = lambda step: 1.0
    self.extra = lambda step: {}
    self.scores = {'eval/loss': 2.0}

  def __call__(self, allow=(), **overrides):
    config = self._made.config.copy_and_resolve_references()
    with config.unlocked():
      for name, value in overrides.items():
        group, _, field = name.rpartition('__')
        (config[group] if group else config)[field] = value
    fresh = jax.tree.map(
      lambda v: jax.device_put(jnp.zeros(v.shape, v.dtype), v.sharding),
      self._made.abstract_state,
    )
    runs = self

    def step(state, batch, key):
      runs.rows += np.asarray(batch['targets']).tolist()
      n = int(state.step) + 1
      metrics = {'loss': runs.number(n), 'total_loss': 1.0, 'grad_norm': 1.0}
      state = state.replace(step=state.step + 1)
      metrics |= {'tokens': 1.0} | runs.extra(n)
      return runs.hurt(state, n), metrics

    class Evaluate:
      def __call__(self, *state):
        return runs.scores(*state) if callable(runs.scores) else runs.scores

      def floor(self):
        return {}

    programs = {
      'init': lambda key: fresh,
      'train': step,
      'evaluate': Evaluate(),
      'rate': 1.0,
    }
    fields = {'config': config, 'programs': programs}
    session = dataclasses.replace(self._made, **fields)
    return loop.train(config, str(self.workdir), allow=allow, session=session)

  def meta(self, step):
    path = self.workdir / 'checkpoints' / str(step) / 'meta.json'
    return json.loads(path.read_text())['data']

  def files(self):
    """The bytes of all of its JSON files, and the names of the others."""
    return {
      str(p): p.read_bytes() if p.suffix.startswith('.json') else b''
      for p in self.workdir.rglob('*')
    }


@pytest.fixture
def runs(made, tmp_path):
  return Runs(made, tmp_path / 'run')


def nan(state, part):
  """The state with a nan in the last place of the table's leaf in a part."""
  leaves = checkpoint.named(state)
  for name, v in leaves.items():
    if name.startswith(part) and name.endswith('embedding/table'):
      leaves[name] = v.at[(-1,) * v.ndim].set(jnp.nan)
  return jax.tree.structure(state).unflatten(leaves.values())


def test_another_batch_size_skips_and_repeats_no_row(runs, made):
  """Two steps of 8 rows, one of 24, two of 16: rows 0 to 71, each once."""
  fields = ('train.steps', 'train.batch_size')
  runs(train__steps=2)
  assert runs.meta(2)['rows'] == 16
  runs(fields, train__steps=3, train__batch_size=24)
  assert runs.meta(3)['rows'] == 40
  runs(fields, train__steps=5, train__batch_size=16)
  assert runs.meta(5)['rows'] == 72
  straight = made.data.batch(seed=0, batch_size=72, step=0)['targets']
  assert runs.rows == straight.tolist()
  assert len(set(map(tuple, runs.rows))) > 60  # which tell rows apart


def test_kept_steps_stay_whatever_a_run_goes_on_with(runs):
  steps = lambda: checkpoint.steps(runs.workdir / 'checkpoints')
  own = {'train__keep': 1, 'train__checkpoint_every': 4}
  own['train__keep_at'] = 0.1, 0.5
  runs.hurt = lambda state, step: 1 / 0 if step == 9 else state
  with pytest.raises(ZeroDivisionError):
    runs(train__steps=10, **own)
  assert steps() == [1, 5, 8]
  for manifest in runs.workdir.glob('checkpoints/[58]/MANIFEST.json'):
    manifest.unlink()
  runs.hurt = lambda state, step: state
  runs(train__steps=10, **own)
  assert steps() == [1, 5, 10]
  own.pop('train__keep_at')
  runs(('train.steps', 'train.keep_at'), train__steps=12, **own)
  assert steps() == [1, 5, 12]


def test_checkpoints_used_to_have_the_step_alone():
  kept = {'data_step': 3, 'config': {'train': {'batch_size': 7}}}
  assert resume.row(kept) == 21
  assert resume.row(kept | {'rows': 5}) == 5


def test_fewer_steps_than_there_were_are_refused(runs):
  """Whether it is over, or was killed on the way to more."""
  runs(train__steps=4)
  before = runs.files()
  for steps in (2, 3):
    with pytest.raises(
      ValueError, match=rf'at step 4: train\.steps={steps} wo'
    ):
      runs(('train.steps',), train__steps=steps)
    assert runs.files() == before
  again = {'train__steps': 9, 'train__checkpoint_every': 6}
  runs.hurt = lambda state, step: 1 / 0 if step == 8 else state
  fields = ('train.steps', 'train.checkpoint_every')
  with pytest.raises(ZeroDivisionError):
    runs(fields, **again)
  before = runs.files()
  with pytest.raises(ValueError, match=r'is at step 6: train\.steps=4 would'):
    runs(fields, train__steps=4)  # whose summary is still there
  assert runs.files() == before


def test_a_finished_run_is_judged_again_or_refused(runs):
  runs.scores = {'eval/loss': 2.0, 'eval/old': 1.0}
  first = runs()
  seen = len(runs.rows)
  runs.scores = {'eval/loss': 3.0}
  before = runs.files()
  assert runs() == json.loads(before[str(runs.workdir / 'summary.json')])
  assert runs.files() == before
  for field, value, shown in (
    ('train__z_loss', 0.5, r'train\.z_loss is 0\.0001 there, 0\.5 here'),
    ('model__dropout', 0.5, r'model\.dropout is 0\.0 there, 0\.5 here'),
    ('train__log_every', 7, r'train\.log_every is 1 there, 7 here'),
  ):
    allow = field.replace('__', '.')
    with pytest.raises(ValueError, match=rf'trained, all 4 steps: {shown} com'):
      runs((allow,), **{field: value})
    with pytest.raises(ValueError, match=rf'holds a run with.*{shown}'):
      runs((), **{field: value})
    assert runs.files() == before
  again = runs(('eval',), eval__max_bytes=600)
  assert (again['eval/loss'], 'eval/old' in again) == (3.0, False)
  assert json.loads((runs.workdir / 'summary.json').read_text()) == again
  read = lambda name: json.loads((runs.workdir / name).read_text())
  assert read('config.json')['eval']['max_bytes'] == 600
  assert read('config_1.json')['eval']['max_bytes'] == 512
  assert len(runs.rows) == seen
  for name in ('train/loss', 'curve', 'tokens_per_second', 'step_seconds'):
    assert again[name] == first[name], name


def test_what_cannot_go_on_changes_nothing(runs, made):
  """A config that the checkpoint does not fit, and data that are others."""
  runs(train__steps=2)
  before = runs.files()
  config = made.config.copy_and_resolve_references()
  with config.unlocked():
    config.model.d_ff = 8
  with pytest.raises(ValueError, match=r'does not fit the state.*ffn'):
    loop.train(config, str(runs.workdir), allow=('model', 'train'))
  assert runs.files() == before
  fingerprint, made.data.fingerprint = made.data.fingerprint, 'x'
  try:
    with pytest.raises(ValueError, match='was trained on other data'):
      runs(('train',), train__steps=4)
  finally:
    made.data.fingerprint = fingerprint
  assert runs.files() == before


def test_no_lock_is_left(runs):
  """By a run that ended, one that failed, and one that was refused."""
  lock = runs.workdir / 'lock'
  runs(train__steps=2)
  assert not lock.exists()
  runs.hurt = lambda state, step: 1 / 0
  with pytest.raises(ZeroDivisionError):
    runs(('train.steps',), train__steps=4)
  assert not lock.exists()
  with pytest.raises(ValueError):
    runs(('train.steps',), train__steps=1)
  assert not lock.exists()


def test_checkpoints_at_the_end_alone(runs):
  summary = runs(train__checkpoint_every=0)
  assert summary['steps'] == 4
  assert checkpoint.steps(runs.workdir / 'checkpoints') == [4]


@pytest.mark.parametrize('part', ['params', 'opt_state'])
def test_a_state_is_looked_at_before_it_is_saved(runs, part):
  """The loss of step 4 was good: it is that of the parameters before."""
  runs.hurt = lambda state, n: nan(state, part) if n == 4 else state
  with pytest.raises(FloatingPointError) as e:
    runs()
  found = re.fullmatch(
    r'after the update (\S+) is not finite at step 4; the same bits when run '
    r'again: data or optimisation; last good checkpoint: step 2 in '
    r'/.*/run/checkpoints',
    str(e.value),
  )
  assert found[1].startswith(f'{part}/') and found[1].endswith('table')
  assert checkpoint.steps(runs.workdir / 'checkpoints') == [2]
  assert not (runs.workdir / 'summary.json').exists()
  runs.hurt = lambda state, n: state
  assert runs()['steps'] == 4  # it was the step's, not the rows'


def test_a_loss_that_is_not_finite_is_of_the_state_before(runs):
  """Step 3's gradient is that of the state which step 2 left and saved."""
  runs.number = lambda step: np.inf if step == 3 else 1.0
  where = f'{runs.workdir}/checkpoints'
  for _ in range(2):  # and it stops again, from step 2
    with pytest.raises(FloatingPointError) as e:
      runs()
    assert str(e.value) == (
      'loss is inf at step 3; the same bits when run again: data or'
      f' optimisation; last good checkpoint: none in {where}'
    )
  assert checkpoint.steps(where) == [2]
  runs.number = lambda step: np.nan if step == 5 else 1.0
  with pytest.raises(FloatingPointError) as e:
    runs(('train.steps',), train__steps=6)
  assert str(e.value) == (
    'loss is nan at step 5; the same bits when run again: data or optimisation;'
    f' last good checkpoint: step 2 in {where}'
  )


def test_a_saved_state_that_is_not_finite_is_passed_over(runs, made, caplog):
  """Its files are as they were written; the step before is gone on with."""
  runs(train__steps=2)
  directory = runs.workdir / 'checkpoints'
  with checkpoint.Checkpointer(directory, 5) as c:
    state, data = c.restore(made.abstract_state)
    c.save(3, nan(state, 'params'), data)
    with pytest.raises(ValueError, match=r'points/3: params/\S+ is not finite'):
      c.restore(made.abstract_state, step=3)
    wanted = checkpoint.named(made.abstract_state)
    trace = {k: v for k, v in wanted.items() if k.startswith('opt_state/')}
    assert c.restore(trace, step=3, partial=True)[1] == data  # of good ones
  caplog.clear()
  runs.rows.clear()
  runs(('train.steps',), train__steps=4)
  assert len(runs.rows) == 2 * 8 and checkpoint.steps(directory) == [2, 4]
  (line,) = [m for m in caplog.messages if 'not finite' in m]
  assert 'checkpoint 3 of' in line and 'moved to _quarantine/3' in line
  with checkpoint.Checkpointer(directory, 5) as c:
    for step in (2, 4):
      (directory / str(step)).rename(directory / f'{step}_')
    c.save(7, nan(state, 'params'), data)
    with pytest.raises(ValueError, match='no usable checkpoint: all 1 were'):
      c.restore(made.abstract_state)


def test_an_evaluation_that_is_not_finite_ends_the_run(runs, made):
  """By name, and without a checkpoint of that step."""
  evaluate = object.__new__(evaluation.Evaluator)
  evaluate._session = made
  nats = np.ones(len(made.data.documents), np.float32)
  nats[1] = np.inf
  evaluate._step = lambda *_: {'sums': {'nats': nats, 'tokens': 9.0}}
  with pytest.raises(FloatingPointError) as e:
    evaluate(None, None)
  name = made.data.documents[1].name
  what = f'eval/loss is inf, by 1 of {len(nats)} documents, such as {name!r}'
  assert str(e.value) == what
  runs.scores = evaluate
  with pytest.raises(FloatingPointError, match=re.escape(f'{what} at step 2;')):
    runs(train__eval_every=2)
  assert checkpoint.steps(runs.workdir / 'checkpoints') == []


def test_another_config_before_the_first_checkpoint_is_the_runs(runs):
  """A run that died early begins anew, with the config that is allowed."""

  def die(state, step):
    raise KeyError(step)

  runs.hurt = die
  with pytest.raises(KeyError):
    runs()
  runs.hurt = lambda state, step: state
  runs(('train.z_loss',), train__z_loss=0.5)
  read = lambda name: json.loads((runs.workdir / name).read_text())
  assert read('config.json')['train']['z_loss'] == 0.5
  assert read('config_1.json')['train']['z_loss'] == 1e-4
  with pytest.raises(ValueError, match=r'z_loss is 0\.5 there, 0\.0001 here'):
    runs()


def test_a_death_while_a_run_is_judged_again_leaves_no_old_scores(runs):
  runs()

  def die(*state):
    raise KeyError

  runs.scores = die
  with pytest.raises(KeyError):
    runs(('eval',), eval__max_bytes=600)
  runs.scores = {'eval/loss': 3.0}
  again = runs(('eval',), eval__max_bytes=600)
  assert again['eval/loss'] == 3.0
  assert again['train/loss'] == 1.0
