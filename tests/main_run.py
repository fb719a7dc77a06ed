"""A tiny run that the tests of the mains start, and what its data were."""

import json
import pathlib

import numpy as np

from tests import mains, saved
from tests.routers import test_hash

E, T = 2, 16
FIELDS = {
  'mesh': 'auto(expert=2)',
  'model.num_layers': 1,
  'model.d_model': 8,
  'model.num_heads': 1,
  'model.d_ff': 8,
  'moe.layers': 'all',
  'moe.num_experts': E,
  'moe.d_ff': 8,
  'moe.group_size': T,
  'moe.router': 'hash()',
  'moe.balance': (),
  'moe.capacity_factor': 0.5,
  'moe.eval_capacity_factor': 2.0,
  'train.steps': 2,
  'train.checkpoint_every': 1,
  'train.eval_every': 1,
  'train.schedule': 'constant(value=3.0)',
}
EIGHT = '--cpu_devices=8'  # as there are


class Run:
  """The workdir of two steps, what its training saw, and how to start it."""

  def __init__(self, root):
    self.root, self.workdir, self.batches = root, root / 'run', []
    fields = FIELDS | saved.corpus(root)
    self.file = root / 'config.py'
    self.file.write_text(
      'from tests import tiny\n\n'
      f'def get_config(arg=None):\n  return tiny.config(**{fields!r})\n'
    )

  def train(self, *flags, workdir=None):
    self.batches = []
    workdir = f'--workdir={workdir or self.workdir}'
    return mains.call('train', f'--config={self.file}', workdir, *flags)[1]

  def evaluate(self, *flags):
    self.batches = []
    call = [f'--workdir={self.workdir}', EIGHT, *flags]
    _, out = mains.call('evaluate', *call)
    return read(self.workdir / 'evaluation/summary.json'), out

  def generate(self, *flags, **rest):
    call = [f'--workdir={self.workdir}', EIGHT, *flags]
    return mains.call('generate', *call, **rest)[1]

  def rows(self):
    lines = (self.workdir / 'metrics.jsonl').read_text().splitlines()
    return [json.loads(line) for line in lines]

  def dropped(self, factor, train):
    """Share of the real tokens' choices that find no row, by a loop."""
    lost = total = 0
    for batch in self.batches:
      if ('document' in batch) == train:
        continue
      groups = zip(*(batch[k].reshape(-1, T) for k in ('inputs', 'segments')))
      for ids_T, segment_T in groups:
        real = {'ids_T': ids_T[segment_T > 0]}
        x = np.zeros((len(real['ids_T']), 1))
        chosen = test_hash.hash_(x, {}, np.zeros(E), real, k=1).expert
        load_E = np.bincount(chosen[:, 0], minlength=E)
        rows = int(np.ceil(factor * T / E)) if factor else T
        lost += np.maximum(load_E - rows, 0).sum()
        total += load_E.sum()
    assert total > 100
    return lost / total


def read(path):
  return json.loads(pathlib.Path(path).read_text())
