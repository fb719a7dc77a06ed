"""A config and a text small enough that a test runs them in seconds."""

import numpy as np

from configs import base

WORDS = b'the router sends each token to one expert and the expert answers '


def config(**overrides):
  """A small sparse decoder; overrides by dotted name."""
  c = base.get_config()
  small = {
    'cpu_devices': 8,
    'mesh': 'auto(expert=4)',
    'model.num_layers': 2,
    'model.d_model': 16,
    'model.num_heads': 2,
    'model.d_head': 8,
    'model.d_ff': 32,
    'moe.layers': 'every_2',
    'moe.num_experts': 4,
    'moe.d_ff': 32,
    'moe.group_size': 16,
    'moe.capacity_factor': 1.0,
    'data.seq_len': 16,
    'train.batch_size': 8,
    'train.steps': 4,
    'train.log_every': 1,
    'train.eval_every': 0,
    'train.checkpoint_every': 2,
    'train.schedule': 'constant(value=0.1)',
    'train.optimizer': 'sgd()',
    'eval.batch_size': 8,
    'eval.max_bytes': 512,
  }
  for name, value in (small | overrides).items():
    group, _, field = name.rpartition('.')
    target = c[group] if group else c
    assert field in target, name
    target[field] = value
  c.lock()
  return c


get_config = config  # so that the file is one


def corpus(root):
  """Two small domains in a folder, and one cache; a config's overrides."""
  rng = np.random.default_rng(0)
  words = WORDS.split()
  for domain, order in (('a', words), ('b', words[::-1])):
    documents = [b' '.join(rng.choice(order, size=30)) for _ in range(80)]
    (root / f'{domain}.txt').write_bytes(b'\n\n'.join(documents))
  return {
    'data.name': 'text_files',
    'data.dir': str(root),
    'data.cache': str(root / 'cache'),
    'data.weights': (),
  }


def own_scores(config):
  """Names of the scores of `data.problem`; none where it is ''."""
  import jax

  from moe_jax.data import batches
  from moe_jax.problems import base as problems

  if not config.data.problem:
    return set()
  problem = problems.of(config)
  data = problem.open(cache_dir='')
  batch = batches.stack([data.validation_row(0)])
  shape = (*batch['targets'].shape, problem.vocabulary(None))
  out = jax.ShapeDtypeStruct(shape, np.float32)
  sums = jax.eval_shape(lambda o: problem.judge(o, batch, data), out)
  zeros = jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), sums)
  return set(problem.scores(zeros, data)) | set(problem.floor(data))
