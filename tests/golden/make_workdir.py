"""A run that was interrupted, kept whole: later code must go on with it.

  python -m tests.golden.make_workdir tests/golden/workdir_v1.tar.xz

Four steps were asked for; the third batch never came (as with Ctrl-C), so that
the checkpoint of step 2 is the last. Beside it lies what the same code wrote
when nothing stopped it: `expected/metrics.jsonl` and `expected/summary.json`.
All paths in the config are relative to the directory that holds both.

The file was made by commit 3885000 and is never made anew: it stands for the
runs that people have. A new one gets a number of its own.
"""

import json
import os
import pathlib
import random
import subprocess
import sys
import tarfile
import tempfile

WORDS = b'the router sends each token to one expert and the expert answers '

# Adam's moments, and a bias that is outside of the optimizer; some drops.
OVERRIDES = {
  'mesh': 'auto()',
  'model.num_layers': 1,
  'moe.layers': 'all',
  'model.d_model': 4,
  'model.num_heads': 1,
  'model.d_head': 4,
  'model.d_ff': 8,
  'model.scan': False,  # which does not change what is stored
  'moe.d_ff': 8,
  'moe.router': 'top_k(k=2)',
  'moe.seating': 'token_major()',
  'moe.balance': (
    'switch_loss(weight=0.01)',
    'z_loss(weight=0.001)',
    'loss_free_bias(rate=0.01)',
  ),
  'data.name': 'text_files',
  'data.dir': 'corpus',
  'train.optimizer': 'adamw(b1=0.9, b2=0.98, eps=1e-8, weight_decay=0.1)',
  'train.schedule': 'constant(value=0.003)',
  'train.eval_every': 2,
}


def corpus(directory: pathlib.Path) -> None:
  """Two domains of sixty documents, from Python's own random numbers."""
  draw, words = random.Random(0), WORDS.split()
  directory.mkdir()
  for domain, order in (('a', words), ('b', words[:5])):
    documents = [b' '.join(draw.choices(order, k=9)) for _ in range(60)]
    (directory / f'{domain}.txt').write_bytes(b'\n\n'.join(documents))


def train(stop: int) -> None:
  """One process's run, in the directory that it stands in."""
  from moe_jax.data import pipeline
  from moe_jax.training import loop
  from tests import tiny

  whole = pipeline.Data.train

  def stopping(*args, **kwargs):
    for i, batch in enumerate(whole(*args, **kwargs)):
      if i == stop:
        raise KeyboardInterrupt
      yield batch

  if stop:
    pipeline.Data.train = stopping
  loop.train(tiny.config(**OVERRIDES), 'run' if stop else 'whole')


def make(out: str) -> None:
  """Runs the two and packs them."""
  root = pathlib.Path(tempfile.mkdtemp())
  corpus(root / 'corpus')
  run = lambda stop: subprocess.run(
    [sys.executable, '-m', 'tests.golden.make_workdir', f'--stop={stop}'],
    cwd=root,
    check=not stop,
    env=os.environ
    | {
      'PYTHONPATH': str(pathlib.Path(__file__).parents[2]),
      'JAX_NUM_CPU_DEVICES': '8',
    },
  )
  run(2)
  run(0)
  (root / 'expected').mkdir()
  for name in ('metrics.jsonl', 'summary.json'):
    (root / 'whole' / name).rename(root / 'expected' / name)
  (root / 'expected' / 'overrides.json').write_text(json.dumps(OVERRIDES))
  with tarfile.open(out, 'w:xz') as f:
    for name in ('corpus', 'run', 'expected'):
      f.add(root / name, name)
  print(root)


if __name__ == '__main__':
  if sys.argv[1].startswith('--stop='):
    train(int(sys.argv[1].removeprefix('--stop=')))
  else:
    make(sys.argv[1])
