"""A run's workdir without the run: initial parameters, as a checkpoint."""

import jax
import numpy as np

from moe_jax.runs import checkpoint, configs, workdir as workdir_lib
from moe_jax.training import session as session_lib, state as state_lib

WORDS = b'the router sends each token to one expert and the expert answers '


def corpus(root, documents=40, words=20):
  """Fields of a config for two small domains, 'a' and 'b'."""
  rng = np.random.default_rng(0)
  for domain, order in (('a', WORDS.split()), ('b', WORDS.split()[::-1])):
    text = [b' '.join(rng.choice(order, size=words)) for _ in range(documents)]
    (root / f'{domain}.txt').write_bytes(b'\n\n'.join(text))
  return {
    'data.name': 'text_files',
    'data.dir': str(root),
    'data.cache': str(root / 'cache'),
    'data.weights': (),
  }


def state(config, scale=1.0):
  """A train state of random parameters, placed on the config's mesh.

  Gains are 1 and embeddings small, so that the logits depend on what the
  layers do. Nothing is compiled.

  Args:
    config: whose model.
    scale: of the standard deviations, which go by fan-in.
  """
  made = session_lib.plan(config, splits=())
  rng = np.random.default_rng(config.seed)

  def draw(path, leaf):
    name = jax.tree_util.keystr(path)
    if 'scale' in name:
      return np.ones(leaf.shape, np.float32)
    fan_in = leaf.shape[-2] if leaf.ndim > 1 else 1
    deviation = 0.1 if 'embedding' in name else scale / fan_in**0.5
    return deviation * rng.standard_normal(leaf.shape).astype(np.float32)

  params = jax.tree_util.tree_map_with_path(draw, made.layout.params)
  balance = jax.tree.map(
    lambda v: np.zeros(v.shape, v.dtype), made.layout.balance
  )
  opt_state = made.tx.init(params)
  new = state_lib.TrainState(np.int32(0), params, opt_state, balance)
  return jax.tree.map(jax.device_put, new, made.shardings)


def run(config, workdir, scale=1.0, steps=(0,), fingerprint='0' * 64):
  """Writes `workdir`: each of `steps` has parameters a little larger."""
  first = state(config, scale)
  kept = configs.to_dict(config)
  workdir_lib.prepare(workdir, kept, restart=False, allow=())
  workdir_lib.release(workdir)
  with checkpoint.Checkpointer(workdir / 'checkpoints', len(steps)) as saved:
    for step in steps:
      data = {'data_step': step, 'fingerprint': fingerprint, 'config': kept}
      grown = jax.tree.map(lambda v, n=step: v * (1 + 0.1 * n), first.params)
      new = first.replace(step=first.step + step, params=grown)
      saved.save(step, new, data)
  return first
