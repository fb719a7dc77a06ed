"""A problem that is no text, trained by its dotted name: waves and noise."""

import dataclasses
import json
import pathlib

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest

from moe_jax.data import batches, intervals
from moe_jax.layers import boxes
from moe_jax.models import factory, records, stack
from moe_jax.plots import report
from moe_jax.problems import base
from tests import mains, tiny

FLAGS = f"""--config={tiny.__file__} --config.mesh=exact(data=8)
--config.data.problem=tests.problems.test_series.Series(noise=0.1)
--config.data.seq_len=8 --config.moe.group_size=8 --config.moe.layers=all
--config.train.schedule=constant(value=0.1) --config.train.optimizer=adamw()
--config.model.num_layers=1 --config.train.steps=39 --config.train.batch_size=16
--config.train.accumulate=2 --config.train.checkpoint_every=30""".split()


class Waves(batches.Batches):
  fingerprint, validation_rows = 'waves', 20

  def __init__(self, noise, length):
    self.noise, self.length = noise, length

  def row(self, *seed, real=True):
    rng = np.random.default_rng(seed)
    x_L = np.cos(np.arange(self.length + 1) + rng.uniform(0, 6))
    x_LC = np.float32(x_L + self.noise * rng.standard_normal(x_L.size))[:, None]
    unit = np.int32(seed[-1] if real else -1)
    row = {'segments': np.full(self.length, real, np.int32), 'unit': unit}
    return row | {'inputs': x_LC[:-1], 'targets': x_LC[1:]}

  def train_row(self, seed, row):
    return self.row(0, seed, row)

  def validation_row(self, row):
    return self.row(1, row, real=row < self.validation_rows)


class Regressor(nn.Module):
  stack_config: records.StackConfig

  @nn.compact
  def __call__(self, batch, *, train):
    c, segment_BL = self.stack_config, batch['segments']
    w = boxes.boxed(nn.initializers.normal(), (None, 'embed'))
    w_in, w_out = (self.param(k, w, (1, c.d_model)) for k in ('in', 'out'))
    place_BL, tokens = jnp.indices(segment_BL.shape)[1], stack.tokens(batch)
    x_BLD, aux = stack.Stack(c, name='decoder')(
      batch['inputs'] @ w_in, place_BL, segment_BL, train=train, tokens=tokens
    )
    return x_BLD @ w_out.T, {'decoder': aux}

  stacks = property(lambda self: {'decoder': self.stack_config})


@dataclasses.dataclass(frozen=True)
class Series(base.Problem):
  seq_len: int
  noise: float = 0.0
  shown = (base.Score('eval/mse', 'MSE', floor='eval/last', best='best/mse'),)

  def example(self):
    return Waves(0, self.seq_len).row(0)

  def model(self, config, mesh, **rest):
    return Regressor(factory.stacks(config, mesh)['decoder'])

  def open(self, **where):
    return Waves(self.noise, self.seq_len)

  def loss(self, out, batch):
    return base.Loss(((out - batch['targets']) ** 2).sum())

  def judge(self, out, batch, data):
    square_B = ((out - batch['targets']) ** 2).sum((1, 2))
    return base.by_unit(square_B, batch['unit'], data.validation_rows)

  def scores(self, sums, data):
    found = intervals.ratio(sums, np.full(len(sums), self.seq_len))
    return {'eval/loss': found.value} | found.named('eval/mse')

  def floor(self, data):
    rows = map(data.validation_row, range(data.validation_rows))
    squares = [(r['targets'] - r['inputs']) ** 2 for r in rows]
    return {'eval/last': float(np.mean(squares))}


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  workdir, page = tmp_path_factory.mktemp('run'), report.write
  train = lambda: mains.call('train', *FLAGS, f'--workdir={workdir}')[1]
  read = lambda: json.loads((workdir / 'summary.json').read_text())
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(report, 'write', lambda workdir: '')
    yield workdir, page, train, read, train(), read()


def test_it_is_trained(run):
  *_, out, found = run
  losses = found['curve']['loss']
  assert losses[-1] < 0.6 * losses[0] and found['train/dropped'] > 0
  low, mse, high = (found[f'eval/mse{end}'] for end in ('_low', '', '_high'))
  assert low < mse < high and mse < found['eval/last'] and f'{mse:.4f}' in out


def test_it_is_shown(run):
  assert 'Held-out MSE' in pathlib.Path(run[1](run[0])).read_text()


def test_it_goes_on(run):
  workdir, _, train, read, _, found = run
  (workdir / 'checkpoints/39').rename(workdir / 'gone')
  (workdir / 'summary.json').unlink()
  assert 'at step 30' in train()
  assert all(read()[k] == found[k] for k in ('curve', 'eval/mse', 'best/mse'))
