"""Fine-tuning from config to report, and scores against NumPy."""

import dataclasses
import json
import pathlib

import jax
import numpy as np
import pytest

from moe_jax.plots import records, report, tables
from moe_jax.problems import base as problems, losses
from moe_jax.runs import checkpoint
from moe_jax.training import (
  evaluation,
  loop,
  plans,
  session as session_lib,
  state as state_lib,
  step as step_lib,
)
from tests import tiny

KINDS = {
  'decoder': {
    'model.kind': 'decoder',
    'model.num_layers': 1,
    'moe.layers': 'all',
    'data.seq_len': 48,
  },
  'encoder_decoder': {
    'model.kind': 'encoder_decoder',
    'model.positions': 'relative',
    # Its MoE layers take long to compile; a decoder has some.
    'model.num_layers': 1,
    'moe.layers': 'none',
    'data.seq_len': 48,
  },
}
LABELS = ('no', 'perhaps')


@pytest.fixture(scope='module')
def path(tmp_path_factory):
  """A task whose label is told by the text's length."""
  root = tmp_path_factory.mktemp('task')
  rng = np.random.default_rng(0)
  for name, count in (('train', 40), ('validation', 11)):
    with open(root / f'word_{name}.jsonl', 'w') as f:
      for _ in range(count):
        label = int(rng.random() < 0.4)
        word = 'ab'[label] * int(rng.integers(3, 9))
        f.write(json.dumps({'text': word, 'label': LABELS[label]}) + '\n')
  return str(root / 'word_train.jsonl')


def config(path, kind, **overrides):
  fields = {
    'data.task_file': path,
    'moe.group_size': 16,
    'train.eval_every': 2,
    'train.optimizer': 'adamw()',
    'train.schedule': 'constant(value=0.01)',
  }
  return tiny.config(**(fields | KINDS[kind] | overrides))


def read(workdir):
  lines = (workdir / 'metrics.jsonl').read_text().splitlines()
  return [json.loads(line) for line in lines]


@pytest.fixture(
  scope='module',
  params=[
    'decoder',
    # Its rows and answers are those of test_data_tasks.
    pytest.param('encoder_decoder', marks=pytest.mark.slow),
  ],
)
def run(request, path, tmp_path_factory):
  """A run of four steps without interruption."""
  workdir = tmp_path_factory.mktemp(request.param)
  session = session_lib.make(config(path, request.param), workdir)
  summary = loop.train(session.config, str(workdir), session=session)
  return session, workdir, summary


def test_records_of_a_run(run, path):
  _, workdir, summary = run
  rows = read(workdir)
  accuracies = [r['eval/accuracy'] for r in rows if 'eval/accuracy' in r]
  assert len(accuracies) == 2
  assert summary['best/accuracy'] == max(accuracies)
  assert summary['eval/accuracy'] == accuracies[-1]
  low, high = (summary[f'eval/accuracy_{e}'] for e in ('low', 'high'))
  assert 0 <= low <= summary['eval/accuracy'] <= high <= 1 and low < high
  assert summary['eval/examples'] == 11
  assert not [k for k in summary if 'bits_per_byte' in k or 'bigram' in k]
  with open(path.replace('_train', '_validation')) as f:
    labels = [json.loads(line)['label'] for line in f]
  assert summary['eval/majority'] == labels.count('no') / 11


def test_what_is_shown_of_a_run(run):
  _, workdir, summary = run
  shown = tables.end_of_run(summary, {})
  accuracy = f'{100 * summary["eval/accuracy"]:.2f} %'
  assert f'accuracy                     {accuracy}' in shown
  page = pathlib.Path(report.write(str(workdir)))
  assert 'Held-out accuracy' in page.read_text()
  runs = [records.read(str(workdir))] * 2
  assert 'best accuracy %' in tables.side_by_side(runs)
  report.compare([str(workdir)] * 2, str(workdir))


def restored(session, workdir):
  with checkpoint.Checkpointer(workdir / 'checkpoints', 2) as saved:
    return saved.restore(session.abstract_state)[0]


def test_scores_against_a_loop(run):
  """Log-probabilities of the whole batch, summed in NumPy, on another mesh."""
  made, workdir, summary = run
  session = session_lib.make(
    made.config, workdir, mesh_spec='exact(data=8)', splits=('eval',)
  )
  state = restored(session, workdir)
  variables = {'params': state.params} | (
    {'balance': state.balance} if state.balance else {}
  )
  apply = jax.jit(
    lambda b: session.model.apply(
      variables, b, train=False, rngs={'router': jax.random.key(0)}
    )[0]
  )
  scores, right, loss, tokens = {}, 0, 0.0, 0
  for i, batch in enumerate(session.data.validation(batch_size=8)):
    logits = np.asarray(apply(session.put(batch)), np.float64)
    logp = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    for row in range(8):
      text = LABELS[row % 2].encode()
      target = [*(3 + c for c in text), 1]
      found = batch['targets'][row].tolist()
      if 1 not in found:
        continue  # padding
      end = found.index(1) + 1
      at = range(end - len(target), end)
      assert [found[p] for p in at] == target
      scores[i * 8 + row] = sum(logp[row, p, t] for p, t in zip(at, target))
  assert sorted(scores) == list(range(22))
  with open(made.config.data.task_file.replace('_train', '_validation')) as f:
    for n, line in enumerate(f):
      label = LABELS.index(json.loads(line)['label'])
      both = [scores[2 * n], scores[2 * n + 1]]
      right += both[label] == max(both)
      loss -= both[label]
      tokens += len(LABELS[label]) + 1
  assert summary['eval/accuracy'] == right / 11
  assert summary['eval/loss'] == pytest.approx(loss / tokens, rel=1e-4)
  again = evaluation.Evaluator(session)(state.params, state.balance)
  assert again['eval/accuracy'] == summary['eval/accuracy']
  assert again['eval/loss'] == pytest.approx(summary['eval/loss'], rel=1e-5)


def test_resume_is_bitwise(run, tmp_path):
  """Stopped after two steps; the best evaluation is one of the first part."""
  made, whole, summary = run
  first = made.config.copy_and_resolve_references()
  first.unlock()
  first.train.steps = 2
  begun = dataclasses.replace(made, config=first)
  loop.train(first, str(tmp_path), session=begun)
  # As though it had been perfect then.
  lines = (tmp_path / 'metrics.jsonl').read_text()
  was = json.dumps(read(tmp_path)[-1]['eval/accuracy'])
  lines = lines.replace(f'"eval/accuracy": {was}', '"eval/accuracy": 1.5')
  (tmp_path / 'metrics.jsonl').write_text(lines)
  again = loop.train(
    made.config, str(tmp_path), allow=('train.steps',), session=made
  )
  assert again['best/accuracy'] == 1.5
  assert again['eval/accuracy'] == summary['eval/accuracy']
  states = [restored(made, w) for w in (tmp_path, whole)]
  jax.tree.map(np.testing.assert_array_equal, *map(jax.device_get, states))


def test_it_learns(path, tmp_path):
  """A letter tells the label, and a dense model finds it."""
  made = config(
    path,
    'decoder',
    **{
      'moe.layers': 'none',
      'train.steps': 60,
      'train.eval_every': 0,
      'train.checkpoint_every': 60,
      'train.schedule': 'constant(value=0.02)',
    },
  )
  summary = loop.train(made, str(tmp_path))
  assert summary['eval/accuracy'] == 1.0 == summary['best/accuracy']
  assert summary['eval/loss'] < 0.5


def test_only_the_answer_counts():
  batch = {
    'segments': np.array([[1, 1, 2, 0]]),
    'loss': np.array([[0, 1, 1, 1]]),
  }
  assert losses.counted(batch).tolist() == [[False, True, True, False]]
  del batch['loss']
  assert np.asarray(losses.counted(batch)).tolist() == [
    [True, True, True, False]
  ]


def test_training_loss_is_of_the_answer(path):
  """The step's loss against NumPy, the mean over all micro-batches' answers."""
  made = config(path, 'decoder', **{'moe.layers': 'none'})
  session = session_lib.make(made, '')
  model, tx = session.model, session.tx
  dummy = session.dummy
  where = jax.tree.map(lambda v: v.sharding, session.abstract_state)
  state = state_lib.init(model, tx, dummy, 0, where)
  batch = session.data.batch(seed=0, batch_size=16, step=0)
  apply = jax.jit(lambda p, b: model.apply({'params': p}, b, train=False)[0])
  logits = apply(state.params, session.put(batch))
  logits = np.asarray(logits, np.float64)
  logp = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
  nats, tokens = 0.0, 0
  for row, targets in enumerate(batch['targets'].tolist()):
    text = bytes(t - 3 for t in targets if t > 2)
    for p in range(text.index(b' label: ') + 8, targets.index(1) + 1):
      nats -= logp[row, p, targets[p]]
      tokens += 1
  assert 16 * 3 < tokens < 16 * 8  # 'no' and 'perhaps', each with EOS
  # The devices have two micro-batches of a row each.
  step = step_lib.make_train_step(
    model, tx, problem=session.problem, seed=0, accumulate=2
  )
  _, metrics = jax.jit(step)(state, session.put(batch))
  assert float(metrics['loss']) == pytest.approx(nats / tokens, rel=1e-5)
  # Throughput is of all tokens of the rows.
  assert metrics['tokens'] == (batch['segments'] > 0).sum()


def test_an_encoder_decoder_is_planned_without_data():
  """Groups of 16 fit any batch of the decoder's rows; no data is read."""
  made = config('nowhere_train.jsonl', 'encoder_decoder')
  with made.unlocked():
    made.moe.layers = 'all'
    made.moe.capacity_factor = 1.0
  assert problems.of(made).lengths == {'encoder': 48, 'decoder': 16}
  assert session_lib.plan(made).mesh.size == 8
  session = plans.make(made, 'exact(data=8)')
  assert plans.layers(session)['decoder'].groups == 1
