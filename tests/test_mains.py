"""Every flag of train, evaluate, generate and report changes what it says.

In this process, on one tiny run. Its experts follow from the tokens' ids, so
that loops over raw batches say what is dropped, in training and in evaluation.
"""

import collections
import os
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe_jax.analysis import recording
from moe_jax.kernels import plain
from moe_jax.parallel import check, distributed, mesh as mesh_lib
from moe_jax.plots import report
from moe_jax.runs import workdir as workdir_lib
from moe_jax.training import fresh_rules, generation, session as session_lib
from tests import mains
from tests.main_run import EIGHT, E, Run, read

CASES = collections.defaultdict(set)
ELSEWHERE = {'allow_modules', 'debug_nonfinite'}  # tested


def case(name, *flags):
  """Marks the test of these flags of a main."""
  CASES[name].update(flags)
  return lambda test: test


@pytest.mark.parametrize('name', ['train', 'evaluate', 'generate', 'report'])
def test_every_flag_has_a_case(name):
  assert mains.defined(name) - ELSEWHERE == CASES[name]


class StopHereError(Exception):
  """In place of what a test does without."""


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """A finished run, and what every program compiles, kept on disk."""
  root = tmp_path_factory.mktemp('mains')
  made = Run(root)
  cache = {
    'jax_compilation_cache_dir': str(root / 'compiled'),
    'jax_persistent_cache_min_compile_time_secs': 0.0,
    'jax_persistent_cache_min_entry_size_bytes': -1,
  }
  before = {k: getattr(jax.config, k) for k in cache}
  put = session_lib.Session.put

  def recorded(session, batch):
    made.batches.append({k: np.array(v) for k, v in batch.items()})
    return put(session, batch)

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(session_lib.Session, 'put', recorded)
    patch.setattr(plain, 'rate', lambda dtype: 1e9)
    for k, v in cache.items():
      jax.config.update(k, v)
    with pytest.MonkeyPatch.context() as page:
      page.setattr(report, 'write', lambda workdir: 'no page')
      made.train('--config.seed=5')
    made.first = made.batches
    yield made
    for k, v in before.items():
      jax.config.update(k, v)


@pytest.fixture
def no_page(monkeypatch):
  monkeypatch.setattr(report, 'write', lambda workdir: 'no page')


@case('train', 'config', 'workdir')
def test_train_reads_its_config_and_fills_its_workdir(run):
  config = read(run.workdir / 'config.json')
  assert (config['seed'], config['model']['d_ff']) == (5, 8)
  files = {'summary.json', 'metrics.jsonl', 'checkpoints', 'tensorboard'}
  assert files <= set(os.listdir(run.workdir))
  # Half of the even load in training, twice of it in evaluation.
  run.batches = run.first
  rows, summary = run.rows(), read(run.workdir / 'summary.json')
  assert summary['moe/eval_dropped'] == run.dropped(2.0, train=False) == 0
  steps = [[b] for b in run.first if 'document' not in b]
  assert len(steps) == len(rows) == 2
  for row, run.batches in zip(rows, steps):
    assert row['moe/eval_dropped'] == 0 < row['moe/dropped']
    assert row['moe/dropped'] == pytest.approx(run.dropped(0.5, train=True))


@case('evaluate', 'workdir', 'step')
def test_evaluate_reads_the_step_that_is_asked_for(run):
  newest, out = run.evaluate()
  first, _ = run.evaluate('--step=1')
  losses = [row['eval/loss'] for row in run.rows()]
  assert losses[0] != losses[1] and first['step'] == 1 and newest['step'] == 2
  assert [s['eval/loss'] for s in (first, newest)] == pytest.approx(losses)
  with pytest.raises(ValueError, match=r'no step 9 in .*; there are: 1, 2'):
    run.evaluate('--step=9')
  at = run.workdir / 'evaluation'
  shutil.rmtree(at)
  at.write_text('')  # under a file not even root can write
  shown = mains.call('evaluate', f'--workdir={run.workdir}', EIGHT)[1]
  at.unlink()
  assert shown == out.replace(f'{at}/summary.json', 'not written: File exists')


@case('evaluate', 'capacity_factor', 'mesh')
def test_evaluate_takes_another_factor_and_mesh(run, monkeypatch):
  shapes, make = [], mesh_lib.make
  monkeypatch.setattr(mesh_lib, 'make', lambda s: shapes.append(s) or make(s))
  tight, _ = run.evaluate('--capacity_factor=0.5', '--mesh=exact(data=8)')
  want = run.dropped(0.5, train=False)
  assert tight['moe/eval_dropped'] == pytest.approx(want) and want > 0.2
  assert shapes == [mesh_lib.exact(data=8)]
  with pytest.raises(ValueError, match='needs 2 devices, found 8'):
    run.evaluate('--mesh=exact(data=2)')


@case('evaluate', 'replay')
def test_evaluate_makes_a_records_choices_again(run):
  """The routers go by ids, and would make them all themselves."""
  config = workdir_lib.load_config(run.workdir)
  opened = recording.opened(config, run.workdir, max_bytes=0)
  state, _ = fresh_rules.of_run(opened, run.workdir)
  recording.record(opened, state, run.root / 'routing')
  before = (run.workdir / 'evaluation/summary.json').stat().st_mtime_ns
  _, out = run.evaluate(f'--replay={run.root}/routing')
  assert (run.workdir / 'evaluation/summary.json').stat().st_mtime_ns == before
  found = read(run.workdir / 'evaluation/replay.json')
  assert found['replay/decoder/0'] == 1.0
  assert found['eval/loss'] == pytest.approx(run.rows()[-1]['eval/loss'])
  assert "record's choices that decoder/0 makes, too  100.00 %" in out
  with pytest.raises(ValueError, match=r'other tokens .* or data\.seq_len'):
    run.evaluate(f'--replay={run.root}/routing', '--config.data.seq_len=32')


@case('evaluate', 'config')
def test_evaluate_takes_other_fields_of_data_and_eval(run, capsys):
  loss = run.evaluate('--config.eval.max_bytes=100')[0]['eval/loss']
  assert loss != run.rows()[-1]['eval/loss']
  with pytest.raises(ValueError, match='d_model: here fields of data and eval'):
    run.evaluate('--config.model.d_model=4')
  with pytest.raises(SystemExit):
    run.evaluate('--config.data.seqlen=8')
  assert capsys.readouterr().err.endswith(
    "the config has no field 'seqlen'; did you mean 'seq_len'?\n"
  )


@case('evaluate', 'against')
def test_evaluate_compares_with_another_run(run):
  """That of the step before, by document."""
  other = run.root / 'other'
  shutil.copytree(run.workdir, other)
  shutil.rmtree(other / 'checkpoints/2')
  found, out = run.evaluate(f'--against={other}')
  before, _ = run.evaluate('--step=1')
  for key in ('a/bits_per_byte', 'b/bits_per_byte', 'bits_per_byte'):
    less = found[f'eval/{key}'] - before[f'eval/{key}']
    value = found[f'difference/{key}']
    assert value == pytest.approx(less, abs=1e-5)
  ends = (found[f'difference/{key}_{end}'] for end in ('low', 'high'))
  assert next(ends) < value < next(ends)
  shown = f'overall {value:+.3f}'
  assert shown in ' '.join(out.split())


class Bigram:
  """Logits of bytes by the restored embeddings; next to nothing to compile."""

  def apply(self, variables, batch, *, train, rngs, mutable):
    x_BLD = variables['params']['embedding']['table'][batch['inputs']]
    x_BLD /= jnp.linalg.norm(x_BLD, axis=-1, keepdims=True)
    w_DV = np.random.default_rng(0).standard_normal((8, 256))
    text = jnp.pad(4 * x_BLD @ w_DV, ((0, 0), (0, 0), (3, 125)))
    bytes_V = (np.arange(384) >= 3) & (np.arange(384) < 259)
    return (jnp.where(bytes_V, text, -1e9), ()), {'cache': {}}


@pytest.fixture
def bigram(monkeypatch):
  make = generation.Generator._model
  monkeypatch.setattr(
    generation.Generator,
    '_model',
    lambda self, length: Bigram() if length else make(self, 0),
  )


@case('generate', 'workdir', 'prompt', 'length', 'samples')
def test_generate_continues_its_prompts(run, bigram, capsys):
  flags = ['--temperature=0', '--samples=2', '--length=30']
  flags += ['--prompt=the', '--prompt=a', '--prompt=-']
  out = run.generate(*flags, stdin=b'the')
  parts = re.split(r'--- sample (\d) of prompt (\d)\n', out)
  assert parts[0] == '' and len(set(parts[3])) > 3, out
  assert parts[1::3] == ['0', '1'] * 3 and parts[2::3] == [*'001122']
  the, a = parts[3], parts[9]
  assert parts[3::3] == [the, the, a, a, the, the] and the != a
  short = run.generate('--temperature=0', '--prompt=the', '--length=3')[:-1]
  assert the.startswith(short) and len(short) <= 3 < len(the)
  assert re.search(
    r'first token after [0-9.e-]+ s, then [0-9.e+]+ tokens a second',
    capsys.readouterr().err,
  )
  with pytest.raises(ValueError, match='holds no run'):
    run.generate(f'--workdir={run.root}')


@case('generate', 'temperature', 'top_k', 'top_p', 'stop')
def test_generate_draws_from_the_likeliest_to_a_stop(run, bigram):
  flags = ('--length=9', '--prompt=the')
  free = run.generate(*flags, '--temperature=5')
  likeliest = run.generate(*flags, '--temperature=5', '--top_k=1')
  assert run.generate(*flags, '--temperature=5', '--top_p=1e-6') == likeliest
  assert likeliest != free
  stop = likeliest[2]
  text = run.generate(*flags, '--temperature=0', f'--stop={stop}')
  assert text == likeliest[: likeliest.index(stop)] + '\n'


@case('generate', 'seed', 'step', 'out', 'mesh')
def test_generate_draws_by_seed_and_step_on_a_mesh(run, bigram, monkeypatch):
  shapes, make = [], mesh_lib.make
  monkeypatch.setattr(mesh_lib, 'make', lambda s: shapes.append(s) or make(s))
  flags = ('--prompt=the', '--length=30', f'--out={run.root}/text')
  text = run.generate(*flags)
  written = (run.root / 'text').read_bytes() + b'\n'
  assert written.decode(errors='surrogateescape') == text
  assert run.generate(*flags, '--seed=1') != text
  assert run.generate(*flags, '--step=1') != text
  assert run.generate(*flags, '--step=2', '--mesh=exact(fsdp=8)') == text
  sizes = mesh_lib.exact
  assert shapes == [sizes(data=4, expert=2)] * 3 + [sizes(fsdp=8)]


@case('evaluate', 'cpu_devices')
@case('generate', 'cpu_devices')
@pytest.mark.parametrize('name', ['evaluate', 'generate'])
def test_devices_are_simulated(name, tmp_path, monkeypatch):
  asked = []
  monkeypatch.setattr(distributed, 'simulate', asked.append)
  for flags in ([], ['--cpu_devices=3']):
    with pytest.raises(ValueError, match='holds no run'):
      mains.call(name, f'--workdir={tmp_path}', *flags)
  assert asked == [1, 3]


PROCESSES = ('coordinator_address', 'num_processes', 'process_id')


@case('train', *PROCESSES, 'distributed')
@case('evaluate', *PROCESSES, 'distributed')
@case('generate', *PROCESSES, 'distributed')
@pytest.mark.parametrize('name', ['train', 'evaluate', 'generate'])
def test_processes_join_their_job(run, name, monkeypatch):
  """Each simulates its part of the devices."""
  joined, asked = [], []

  def initialize(*args, heartbeat_timeout_seconds):
    assert heartbeat_timeout_seconds < 60
    joined.append(args)
    raise StopHereError

  monkeypatch.setattr(jax.distributed, 'initialize', initialize)
  monkeypatch.setattr(distributed, 'simulate', asked.append)
  # What else the start sets is not for this process.
  monkeypatch.setattr(distributed.jax.config, 'update', lambda k, v: None)
  flags = [f'--config={run.file}'] if name == 'train' else [EIGHT]
  flags += [f'--workdir={run.root}/none']
  job = ['--coordinator_address=h:1', '--num_processes=4', '--process_id=3']
  for more in (job, ['--distributed']):
    with pytest.raises(StopHereError):
      mains.call(name, *flags, *more)
  assert joined == [('h:1', 4, 3), ()] and asked == [2, 8]


@case('train', 'check')
def test_train_only_looks(run, tmp_path, monkeypatch):
  """At the config and mesh that are given; nothing is written."""
  seen = []
  look = lambda fields, mesh: seen.append((fields['seed'], mesh().shape))
  monkeypatch.setattr(check, 'run', look)
  run.train('--check', '--config.seed=9', workdir=tmp_path / 'none')
  assert seen == [(9, mesh_lib.exact(data=4, expert=2))]
  assert not (tmp_path / 'none').exists()


@case('train', 'allow_download')
def test_train_downloads_only_where_it_may(run, tmp_path, monkeypatch):
  import tensorflow_datasets as tfds

  asked = []

  def builder(name, **rest):
    asked.append(name)
    raise StopHereError

  monkeypatch.setattr(tfds, 'builder', builder)
  flags = [
    '--config.data.name=books:1.0.0',
    f'--config.data.dir={tmp_path}',
    f'--config.data.cache={tmp_path}',
  ]
  with pytest.raises(ValueError, match=r'not prepared .*--allow_download'):
    run.train(*flags, workdir=tmp_path / 'w')
  assert not asked
  with pytest.raises(StopHereError):
    run.train(*flags, '--allow_download', workdir=tmp_path / 'w')
  assert asked == ['books:1.0.0']


@case('report', 'workdirs', 'workdir')
def test_report_of_one_run_and_of_several(run, tmp_path):
  one, two = (str(tmp_path / n) for n in ('one', 'two'))
  a = str(run.workdir)
  _, out = mains.call('report', f'--workdirs={a}', f'--workdir={one}')
  assert sorted(os.listdir(one)) == ['figures', 'report.html']
  assert f'{one}/report.html' in out
  b = tmp_path / 'other'
  b.mkdir()
  for name in ('config.json', 'metrics.jsonl', 'summary.json'):
    (b / name).write_bytes((run.workdir / name).read_bytes())
  _, out = mains.call('report', f'--workdirs={a},{b}', f'--workdir={two}')
  assert sorted(os.listdir(two)) == ['compare.html', 'figures']
  assert f'{two}/compare.html' in out
  assert out.split()[:2] == ['run', 'other']


# The last ones, since they change the run.
@case('train', 'allow')
def test_train_goes_on_with_the_fields_it_may_change(run, no_page):
  """With a rule added, and the factors the other way round."""
  flags = [
    '--config.seed=5',
    '--config.train.steps=3',
    "--config.moe.balance=('loss_free_bias(rate=0.5)',)",
    '--config.moe.capacity_factor=2.0',
    '--config.moe.eval_capacity_factor=0.5',
  ]
  with pytest.raises(ValueError, match=r'train\.steps is 2 there, 3 here'):
    run.train(*flags)
  out = run.train(*flags, '--allow=train.steps,moe')
  fresh = 'fresh state, which the checkpoint has not: loss_free_bias\n'
  assert out.count(fresh) == 1 and 'at step 2\n' in out
  last = run.rows()[-1]
  assert last['step'] == 3
  assert last['moe/dropped'] == run.dropped(2.0, train=True) == 0
  want = run.dropped(0.5, train=False)
  assert last['moe/eval_dropped'] == pytest.approx(want) and want > 0.2
  assert (
    read(run.workdir / 'summary.json')['moe/eval_dropped']
    == (last['moe/eval_dropped'])
  )
  # From zero, half a unit up for the expert with less than the mean load.
  state = generation.Generator(str(run.workdir))._variables['balance']
  (bias_E,) = jax.tree.leaves(state)
  share_E = np.array(last['moe/load'][0])
  assert (share_E != 1 / E).all()
  np.testing.assert_allclose(bias_E.reshape(-1), 0.5 * np.sign(1 / E - share_E))


@case('train', 'restart', 'take_over')
def test_train_restarts_where_it_is_told_to(run):
  before = read(run.workdir / 'config.json')
  first = run.rows()[0]['loss']
  with pytest.raises(ValueError, match=r'seed is 5 there, 6 here'):
    run.train('--config.seed=6')
  out = run.train('--config.seed=6', '--restart')
  assert (run.workdir / 'report.html').exists()
  assert str(run.workdir / 'report.html') in out
  assert read(run.workdir / 'previous_1/config.json') == before
  assert read(run.workdir / 'config.json')['seed'] == 6
  rows = run.rows()
  assert [r['step'] for r in rows] == [1, 2] and rows[0]['loss'] != first
  assert 'is finished' in run.train('--config.seed=6')
