"""The run from config to report, on 8 devices, at toy sizes."""

import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from moe_jax.data import pipeline
from moe_jax.models import factory
from moe_jax.parallel import mesh as mesh_lib
from moe_jax.problems import base as problems
from moe_jax.runs import chaos, checkpoint, configs, workdir as workdir_lib
from moe_jax.training import (
  evaluation,
  generation,
  loop,
  session as session_lib,
  state as state_lib,
  step as step_lib,
)
from tests import tiny


@pytest.fixture(scope='session')
def corpus(tmp_path_factory):
  """Two small domains, and one cache for all runs."""
  return tiny.corpus(tmp_path_factory.mktemp('corpus'))


MESHES = (
  dict(),
  dict(data=2, expert=4),
  dict(fsdp=2, expert=2, model=2),
  dict(data=8),
)
# Every kind of term: two losses, a biased selection, drops, two groups a row.
SGD = {
  'train.optimizer': 'sgd()',
  'train.schedule': 'constant(value=0.3)',
  'moe.router': "top_k(k=2, renormalize='kept', jitter=0.1)",
  'moe.allow_noncausal': True,
  'moe.balance': (
    'switch_loss(weight=0.1)',
    'z_loss(weight=0.01)',
    'top1_loss(weight=0.1)',
    'loss_free_bias(rate=0.01)',
  ),
  'moe.group_size': 8,
  'moe.dense_branch': 'gated',
  'moe.dense_branch_d_ff': 16,
}


def three_steps(corpus, sizes, first=None, **overrides):
  """Metrics, parameters, biases, first state of three SGD steps, on the host.

  They start at `first`, or at what the mesh initialises.
  """
  config = tiny.config(**(SGD | corpus | overrides))
  sizes = mesh_lib.exact(**sizes)
  devices = jax.devices()[: math.prod(sizes.values())]
  mesh = mesh_lib.make(sizes, devices)
  model, problem = factory.make(config, 384, mesh), problems.of(config)
  dummy = session_lib.dummy(config, problem, mesh)
  lay = state_lib.layout(model, dummy)
  tx = optax.sgd(0.3)
  where = jax.tree.map(lambda v: v.sharding, state_lib.abstract(tx, lay, mesh))
  if first is None:
    first = jax.device_get(state_lib.init(model, tx, dummy, 0, where))
  state = jax.device_put(first, where)
  step = jax.jit(
    step_lib.make_train_step(
      model,
      tx,
      problem=problem,
      seed=0,
      accumulate=config.train.accumulate,
    ),
    out_shardings=(where, None),
  )
  data = pipeline.load(config.data, cache_dir=config.data.cache)
  out = []
  for i in range(3):
    batch = data.batch(seed=0, batch_size=8, step=i)
    state, metrics = step(state, batch)
    out.append(jax.device_get(metrics))
  assert step._cache_size() == 1  # step two compiles nothing
  params, balance = jax.device_get((state.params, state.balance))
  return out, params, balance, first


@pytest.fixture(scope='session')
def one_device(corpus):
  return three_steps(corpus, MESHES[0])


def test_a_step_drops_and_balances(one_device):
  """What other meshes are compared with has all that can differ."""
  metrics, _, balance, _ = one_device
  for got in metrics:
    assert got['cause'][..., 1].sum() > 0  # some are dropped
  moved = jax.tree.leaves(balance)
  assert any(np.abs(v).max() > 0.005 for v in moved)


@pytest.mark.parametrize(
  'sizes',
  # All axes at once; each alone in CI.
  [
    pytest.param(m, marks=() if len(m) > 2 else pytest.mark.slow)
    for m in MESHES[1:]
  ],
  ids=str,
)
def test_mesh_changes_nothing(corpus, one_device, sizes):
  """Losses, drops, gradients and parameters of three steps, to 1e-5."""
  metrics, params, balance, _ = three_steps(corpus, sizes)
  for got, want in zip(metrics, one_device[0]):
    np.testing.assert_array_equal(got['load'], want['load'])
    np.testing.assert_array_equal(got['cause'], want['cause'])
    for name in ('loss', 'total_loss', 'grad_norm', 'entropy'):
      np.testing.assert_allclose(got[name], want[name], rtol=1e-5)
  compare = lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5)
  jax.tree.map(compare, params, one_device[1])
  jax.tree.map(np.testing.assert_array_equal, balance, one_device[2])


def test_accumulation_is_the_whole_batch(corpus, one_device):
  """Four micro-batches give what one batch gives, on another mesh.

  Losses by group and of the whole batch's sums, under noise.
  """
  overrides = {'train.accumulate': 4}
  metrics, params, balance, _ = three_steps(
    corpus, dict(data=2), one_device[3], **overrides
  )
  for got, want in zip(metrics, one_device[0]):
    np.testing.assert_array_equal(got['load'], want['load'])
    np.testing.assert_array_equal(got['cause'], want['cause'])
    for name in ('loss', 'total_loss', 'grad_norm', 'entropy', 'balance'):
      compare = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5)
      jax.tree.map(compare, got[name], want[name])
  jax.tree.map(np.testing.assert_array_equal, balance, one_device[2])
  compare = lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5)
  jax.tree.map(compare, params, one_device[1])


def test_noise_follows_the_step(corpus):
  """Each step draws anew, and the same step draws the same."""
  config = tiny.config(**corpus, **{'model.dropout': 0.5})
  model, tx = factory.make(config, 384), optax.sgd(0.0)
  mesh, problem = mesh_lib.single(), problems.of(config)
  dummy = session_lib.dummy(config, problem, mesh)
  lay = state_lib.layout(model, dummy)
  where = jax.tree.map(lambda v: v.sharding, state_lib.abstract(tx, lay, mesh))
  state = state_lib.init(model, tx, dummy, 0, where)
  step = jax.jit(step_lib.make_train_step(model, tx, problem=problem, seed=0))
  data = pipeline.load(config.data, cache_dir=config.data.cache)
  batch = data.batch(seed=0, batch_size=8, step=0)
  losses = [
    float(step(state.replace(step=jnp.int32(n)), batch)[1]['loss'])
    for n in (0, 1, 0)
  ]
  assert losses[0] == losses[2] and abs(losses[0] - losses[1]) > 1e-4


def read(workdir):
  lines = (workdir / 'metrics.jsonl').read_text().splitlines()
  return [json.loads(line) for line in lines]


@pytest.fixture(scope='session')
def made(corpus, tmp_path_factory):
  """The session of the runs below, whose programs they share."""
  config = tiny.config(
    **corpus,
    **{
      'train.optimizer': 'adafactor()',
      'moe.balance': ('switch_loss()', 'loss_free_bias()'),
      'train.eval_every': 2,
    },
  )
  return session_lib.make(config, tmp_path_factory.mktemp('made'))


def altered(made, **fields):
  """The same with other fields of `train`."""
  config = made.config.copy_and_resolve_references()
  with config.unlocked():
    config.train.update(fields)
  return dataclasses.replace(made, config=config)


@pytest.mark.slow
def test_non_finite_loss_stops_and_names_the_checkpoint(made, tmp_path):
  # Fine for one step, then far off.
  fields = {'schedule': 'constant(value=1e30)', 'eval_every': 0}
  run = altered(made, steps=30, checkpoint_every=1, **fields)
  tx, schedule = session_lib.make_optimizer(
    run.config, made.layout.batch_dims()
  )
  programs = {}
  run = dataclasses.replace(run, tx=tx, schedule=schedule, programs=programs)
  with pytest.raises(
    FloatingPointError, match=r'at step \d+; the same bits .*; last good'
  ) as e:
    loop.train(run.config, str(tmp_path), session=run)
  assert f'in {tmp_path}/checkpoints' in str(e.value)
  assert not (tmp_path / 'summary.json').exists()
  # A learning rate changes nothing at the start.
  made.programs['init'] = programs['init']


def test_scores_are_sums_over_documents(made):
  parts = made.model, made.tx, made.dummy, made.shardings
  init = made.program('init', lambda: state_lib.initializer(*parts))
  state = init(jax.random.key(made.config.seed))  # the run's own
  evaluate = made.program('evaluate', lambda: evaluation.Evaluator(made))
  found = evaluate(state.params, state.balance) | evaluate.floor()
  for name in ('', 'a/', 'b/'):
    key = f'eval/{name}bits_per_byte'
    assert found[f'{key}_low'] < found[key] < found[f'{key}_high']
    assert 0 < found[f'eval/{name}bigram_bits_per_byte'] < 8
  # Bits of all documents over bytes of all documents.
  mean = sum(
    found[f'eval/{d}/bits_per_byte'] * found[f'eval/{d}/bytes'] for d in 'ab'
  ) / (found['eval/a/bytes'] + found['eval/b/bytes'])
  assert found['eval/bits_per_byte'] == pytest.approx(mean)
  # The same nats: a token is a byte, or the end of a document.
  num_bytes = found['eval/bytes']
  nats = found['eval/loss'] * (num_bytes + found['eval/documents'])
  bits = found['eval/bits_per_byte'] * num_bytes
  assert bits * math.log(2) == pytest.approx(nats, rel=1e-5)


@pytest.fixture(scope='session')
def straight(made, tmp_path_factory):
  """A run of four steps without interruption."""
  workdir = tmp_path_factory.mktemp('straight')
  return made, workdir, loop.train(made.config, str(workdir), session=made)


def test_run_leaves_its_records(straight):
  _, workdir, summary = straight
  assert json.loads((workdir / 'config.json').read_text())['seed'] == 0
  rows = read(workdir)
  assert [r['step'] for r in rows] == [1, 2, 3, 4]
  assert 'eval/bits_per_byte' in rows[1] and 'eval/loss' not in rows[2]
  assert json.loads((workdir / 'summary.json').read_text()) == json.loads(
    json.dumps(summary)
  )
  assert 0 < summary['eval/a/bigram_bits_per_byte'] < 8
  assert summary['steps'] == 4 and summary['mesh'] == 'data=2 expert=4'
  for r in rows:
    assert sum(r['moe/load'][0]) == pytest.approx(1)
    assert r['moe/layers'] == [1]
  assert list((workdir / 'tensorboard').iterdir())


@pytest.fixture(scope='session')
def other(made, tmp_path_factory):
  """The same session, planned and compiled anew, as in a new process."""
  return session_lib.make(made.config, tmp_path_factory.mktemp('other'))


def test_the_same_run_gives_the_same_bits(straight, other, tmp_path):
  """Every logged number, the summary and the arrays."""
  loop.train(other.config, str(tmp_path), session=other)
  assert chaos.differences(straight[1], tmp_path) == []


def test_resume_is_bitwise(straight, other, tmp_path):
  """Stopped after two steps and started again: the same bits and lines."""
  session, whole, _ = straight
  config, first = session.config, altered(session, steps=2)
  loop.train(first.config, str(tmp_path), session=first)
  with pytest.raises(ValueError, match=r'train\.steps is 2 there, 4 here'):
    loop.train(config, str(tmp_path))
  allowed = {'allow': ('train.steps',), 'session': other}
  loop.train(config, str(tmp_path), **allowed)
  assert chaos.differences(whole, tmp_path) == []
  # A finished run is not run again.
  before = (tmp_path / 'metrics.jsonl').read_bytes()
  assert loop.train(config, str(tmp_path))['steps'] == 4
  assert (tmp_path / 'metrics.jsonl').read_bytes() == before


def test_evaluation_on_another_mesh(straight):
  made, workdir, summary = straight
  session = session_lib.make(
    made.config, workdir, mesh_spec='exact(data=8)', splits=('eval',)
  )
  with checkpoint.Checkpointer(workdir / 'checkpoints', 2) as saved:
    state, _ = saved.restore(session.abstract_state)
  scores = evaluation.Evaluator(session)(state.params, state.balance)
  for name in ('eval/bits_per_byte', 'eval/a/bits_per_byte', 'eval/loss'):
    assert scores[name] == pytest.approx(summary[name], rel=1e-5)
  assert scores['moe/eval_dropped'] == summary['moe/eval_dropped']


def test_generation(straight):
  """Greedy samples are those of the whole sequence run without a cache."""
  _, workdir, _ = straight
  made = generation.Generator(str(workdir), mesh_spec='exact(data=8)')
  # Four steps learn to repeat the last byte. With sub-layers that outweigh the
  # embeddings the samples vary, and a wrong position shows.
  weights = jax.tree.map(lambda v: 4 * v, made._variables['params'])
  weights['embedding']['table'] /= 100
  made._variables = {**made._variables, 'params': weights}
  texts = made(b'the router', length=20, samples=8, temperature=0)
  assert len(texts) == 8 and len(set(texts)) == 1
  assert len(set(texts[0])) > 2, texts[0]
  config = made._session.config.copy_and_resolve_references()
  config.moe.eval_capacity_factor = 0.0  # dropless
  config.moe.group_size = 1
  plain = factory.make(config, 384)
  ids = [0, *made.tokenizer.encode(b'the router')]
  apply = jax.jit(lambda b: plain.apply(host, b, train=False)[0])
  host = jax.device_get(made._variables)
  for _ in range(20):
    n = len(ids)
    padded = np.zeros((1, 31), np.int32)
    padded[0, :n] = ids
    batch = {
      'inputs': padded,
      'positions': np.arange(31, dtype=np.int32)[None],
      'segments': (np.arange(31) < n).astype(np.int32)[None],
    }
    ids.append(int(jnp.argmax(apply(batch)[0, n - 1])))
  want = made._text(np.array(ids[11:]), [made.tokenizer.eos_id])
  assert texts[0] == want
  drawn = made(b'', length=6, samples=8, temperature=9.0, seed=1)
  assert len(set(drawn)) > 1
  with pytest.raises(ValueError, match='length=0'):
    made(b'', length=0)


@pytest.fixture(scope='session')
def encoder_decoder(corpus, tmp_path_factory):
  """A run of a layer in each stack, both with experts, of noise at step 1."""
  workdir = tmp_path_factory.mktemp('encoder_decoder')
  config = tiny.config(
    **corpus,
    **{
      'model.num_layers': 1,
      'moe.layers': 'all',
      'model.kind': 'encoder_decoder',
      'model.positions': 'relative',
      'data.objective': 'span_corruption()',
      'data.seq_len': 32,
      'moe.group_size': 1,
      'train.steps': 3,
    },
  )
  session = session_lib.make(config, workdir)
  rng = np.random.default_rng(0)
  draw = lambda v: (0.1 * rng.normal(size=v.shape)).astype(v.dtype)
  state = jax.tree.map(
    lambda v: jax.device_put(draw(v), v.sharding), session.abstract_state
  )
  fields = configs.to_dict(config)
  workdir_lib.prepare(workdir, fields, restart=False, allow=())
  workdir_lib.release(workdir)
  kept = {'rows': 8, 'fingerprint': session.data.fingerprint, 'config': fields}
  with checkpoint.Checkpointer(workdir / 'checkpoints', 2) as saved:
    saved.save(1, state.replace(step=state.step + 1), kept)
  return session, workdir


@pytest.mark.slow
def test_encoder_decoder_generates(encoder_decoder):
  workdir = str(encoder_decoder[1])
  made = generation.Generator(workdir, mesh_spec='exact(data=8)')
  assert len(made(b'the router', length=3, samples=8)) == 8


@pytest.mark.slow
def test_encoder_decoder_trains(encoder_decoder):
  session, workdir = encoder_decoder
  summary = loop.train(session.config, str(workdir), session=session)
  assert 0 < summary['eval/loss'] < 10
  assert 'eval/bits_per_byte' not in summary
  assert [r['step'] for r in read(workdir)] == [2, 3]
  assert len(read(workdir)[-1]['moe/load']) == 2  # encoder's and decoder's


def test_bad_data_leaves_no_run(corpus, tmp_path):
  config = tiny.config(**{'data.name': 'text_files', 'data.dir': '/nowhere'})
  with pytest.raises(ValueError, match='/nowhere'):
    loop.train(config, str(tmp_path / 'w'))
  assert not (tmp_path / 'w' / 'config.json').exists()
