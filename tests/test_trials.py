"""Bad steps are run again, and told apart; their batches are kept."""

import weakref

import jax
import numpy as np
import pytest

from experiments import cli
from moe_jax.data import batches, pipeline
from moe_jax.errors import MachineError
from moe_jax.training import bad_batches
from tests import test_resume, test_spikes

made, runs = test_resume.made, test_resume.runs  # the fixtures


def faulty(runs, at):
  """Each of these steps is not finite the first time; all steps, in order."""
  left, seen = list(at), []

  def number(step):
    seen.append(step)
    if step in left:
      left.remove(step)
      return np.nan
    return 1.0 + step

  runs.number = number
  return seen


def test_a_fault_of_the_machine_leaves_nothing(runs, made, tmp_path, capsys):
  """The run ends in the bits that it would have ended in."""
  straight = test_resume.Runs(made, tmp_path / 'straight')
  faulty(straight, [])
  grow = lambda state, step: jax.tree.map(lambda v: v + 1, state)
  keep_step = lambda state, step: grow(state, step).replace(step=state.step)
  straight.hurt = runs.hurt = keep_step
  straight(train__steps=5)
  seen = faulty(runs, [4])
  runs(train__steps=5)
  assert seen == [1, 2, 3, 4, 3, 4, 5]  # from the checkpoint of step 2
  assert test_spikes.end(runs) == test_spikes.end(straight)
  out = capsys.readouterr().out
  assert 'loss is nan at step 4, which is run again' in out
  assert (
    'loss is nan at step 4, but it was good when run again: the machine, or'
    in out
  )


def test_too_many_faults_of_the_machine_end_it(runs):
  faulty(runs, [1, 2, 3, 4])
  with pytest.raises(MachineError, match=r'4\. time; last good .* step 3') as e:
    runs(train__steps=5, train__checkpoint_every=1)
  with pytest.raises(SystemExit) as left:
    cli._fail(str(e.value), e.value.code)
  assert left.value.code == 74


def test_other_bits_are_said(runs):
  count = iter(range(9))
  runs.extra = lambda step: {'grad_norm': float(next(count))}
  runs.number = lambda step: np.nan if step == 2 else 1.0
  with pytest.raises(FloatingPointError, match='bad again, with other bits'):
    runs()


def test_the_state_of_the_bad_step_is_let_go(runs, monkeypatch):
  """Before another one is read: two might not fit."""
  held, alive = [], []

  def hurt(state, step):
    state = jax.tree.map(lambda v: v + 0, state)
    held.append(weakref.ref(jax.tree.leaves(state)[0]))
    return state

  runs.hurt = hurt
  runs.number = lambda step: np.nan if step == 3 else 1.0
  save = bad_batches.save

  def saved(*args):
    alive.append([ref() is not None for ref in held])
    save(*args)

  monkeypatch.setattr(bad_batches, 'save', saved)
  with pytest.raises(FloatingPointError):
    runs()
  assert alive == [[False] * 4]


def test_its_batch_is_kept_with_rows_and_documents(runs, made, capsys):
  runs.number = lambda step: np.nan if step == 3 else 1.0
  with pytest.raises(FloatingPointError):
    runs()
  (path,) = (runs.workdir / 'bad_batches').iterdir()
  assert path.name == 'step_3_row_16.npz'
  found = np.load(path)  # without pickles
  assert found['rows'].tolist() == list(range(16, 24))
  batch = made.data.batch(seed=0, batch_size=8, step=2)
  for name, value in batch.items():
    np.testing.assert_array_equal(found[name], value)
  assert (int(found['step']), str(found['why'])) == (3, 'loss is nan')
  # The text of each row is that of its documents.
  for i, row in enumerate(found['rows']):
    at = found['document_rows'] == row
    names = [n.split(': ', 1) for n in found['documents'][at].tolist()]
    assert {d for d, _ in names} == {'a'}
    whole = b''.join(text_of(made.data, name) for _, name in names)
    ids = batch['targets'][i]
    assert all(t in whole for t in made.data.tokenizer.decode(ids).split())
  assert f'its batch, rows 16 to 23, is in {path}' in capsys.readouterr().out


def text_of(data: pipeline.Data, name):
  train = data._train
  (n,) = (n for n in range(len(train.bytes_N)) if train.name(n) == name)
  return train.text(n)


def test_at_most_ten_are_kept(runs, capsys):
  runs.number = lambda step: np.nan if step % 2 else 1.0
  runs.extra = lambda step: {'skipped': bool(step % 2)}
  skip = {'train__on_nonfinite': 'skip', 'train__checkpoint_every': 30}
  runs(train__steps=25, **skip)
  files = sorted((runs.workdir / 'bad_batches').iterdir())
  assert len(files) == 10
  assert 'step_19_row_144.npz, the last of 10' in capsys.readouterr().out


def test_data_without_documents_have_no_names():
  assert batches.Batches.sources(object(), 0, 3) == ()
