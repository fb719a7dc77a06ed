"""Two new processes with one config and seed, on one mesh: the same bits.

In one process: test_train.py; another mesh or process count: test_parallel.py.
"""

import json
import os
import subprocess
import sys

import pytest

from moe_jax.runs import chaos, configs
from tests import saved, tiny

# All that draws: initialisers, dropout, a router's noise, the batches.
FIELDS = {
  'mesh': 'exact(data=2, expert=4)',
  'model.num_layers': 1,
  'model.dropout': 0.1,
  'moe.layers': 'all',
  'moe.router': 'switch(jitter=0.1)',
  'train.steps': 3,
  'train.optimizer': 'adamw(b1=0.9)',
  'train.schedule': 'constant(value=0.01)',
}


CHILD = """
import json, sys
from moe_jax.parallel import distributed
distributed.start(8)
from moe_jax.runs import configs
from moe_jax.training import loop
loop.train(configs.from_dict(json.loads(sys.argv[1])), sys.argv[2])
"""


@pytest.mark.slow
def test_two_processes_give_the_same_bits(tmp_path):
  """With other hashes of strings, data built anew, nothing compiled before."""
  runs = []
  for name, seed in (('one', '1'), ('two', '2')):
    root = tmp_path / name
    root.mkdir()
    fields = FIELDS | saved.corpus(tmp_path) | {'data.cache': ''}
    config = json.dumps(configs.to_dict(tiny.config(**fields)))
    env = {k: v for k, v in os.environ.items() if 'CACHE' not in k}
    env |= {'PYTHONHASHSEED': seed}
    call = [sys.executable, '-c', CHILD, config, str(root / 'run')]
    subprocess.run(call, env=env, check=True)
    runs.append(root / 'run')
  assert chaos.differences(*runs) == []
