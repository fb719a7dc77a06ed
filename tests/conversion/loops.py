"""Tiny random models as trees, and what their FFNs compute, in NumPy."""

import functools

import numpy as np

from moe_jax import registry
from moe_jax.conversion import trees
from moe_jax.runs import checkpoint
from tests import tiny

D, F, T = 16, 32, 40
DENSE = {
  'model.num_layers': 3,
  'model.ffn': "glu(activation='silu')",
  'model.d_ff': F,
  'moe.layers': 'none',
  'train.optimizer': 'adamw()',
}
SPARSE = DENSE | {
  'moe.layers': '0,2',
  'moe.experts': "glu(activation='silu')",
  'moe.d_ff': F,
  'moe.capacity_factor': 0.0,
  'moe.eval_capacity_factor': 0.0,
  'moe.balance': ('loss_free_bias()',),
  'moe.dispatch': 'gather_reduce()',
}


@functools.cache
def _of(fields):
  config = tiny.config(**dict(fields))
  return config, shapes(config)


def shapes(config):
  """Of the leaves of a state, as a tree."""
  from moe_jax.training import session as session_lib

  return session_lib.plan(config, 'auto()', splits=()).abstract_state


def random(config, state, seed=0, optimizer=False):
  """A random model, whose state's `shapes` these are."""
  rng = np.random.default_rng(seed)
  leaves = {
    k: _draw(rng, v)
    for k, v in checkpoint.named(state).items()
    if k.startswith(('params/', 'balance/') + ('opt_state/',) * optimizer)
  }
  return trees.unstacked(config, leaves)


def _draw(rng, v):
  if not np.issubdtype(v.dtype, np.floating):
    return np.full(v.shape, 7, v.dtype)
  width = v.shape[-1] if v.shape else 1
  return np.asarray(rng.standard_normal(v.shape) / width**0.5, v.dtype)


def made(seed=0, optimizer=False, **fields):
  """A random model of these fields over tiny ones."""
  config, state = _of(tuple(sorted(fields.items())))
  return random(config, state, seed, optimizer)


def write_run(path, step, seed=0, **fields):
  """A run whose optimizer and balancing rules have seen something."""
  import jax

  from moe_jax.runs import configs, workdir as workdir_lib

  config, state = _of(tuple(sorted(fields.items())))
  rng = np.random.default_rng(seed)
  state = jax.tree.map(lambda v: _draw(rng, v), state)
  # Second moments have no sign.
  state = state.replace(opt_state=jax.tree.map(np.abs, state.opt_state))
  kept = configs.to_dict(config)
  workdir_lib.prepare(path, kept, restart=False, allow=())
  workdir_lib.release(path)
  with checkpoint.Checkpointer(path / 'checkpoints', 1) as saved:
    saved.save(step, jax.device_put(state, jax.devices()[0]), {'config': kept})


def dense(seed=0, **rest):
  return made(seed, **(DENSE | rest))


def sparse(router='top_k(k=2)', seed=0, **rest):
  return made(seed, **(SPARSE | {'moe.router': router} | rest))


def tokens(seed=9):
  return np.random.default_rng(seed).standard_normal((T, D)).astype(np.float32)


def ffn(params, x_TD):
  """A gated expert, or one of two layers with biases, in float64."""
  p = {k: v.astype(np.float64) for k, v in params.items()}
  if 'wi' in p:
    hidden = np.maximum(x_TD @ p['wi'] + p.get('bi', 0), 0)
  else:
    gate = x_TD @ p['wi_gate']
    hidden = gate / (1 + np.exp(-gate)) * (x_TD @ p['wi_up'])
  return hidden @ p['wo'] + p.get('bo', 0)


def weights(model, i, x_TD):
  """f64 [T, E]: 0 where a token is not sent."""
  name, _ = registry.parse(model.config.moe.router)
  router = registry.build('routers', model.config.moe.router)
  layer = model.layers[i]
  logits = x_TD.astype(np.float64) @ layer['moe/router/kernel']
  if 'moe/router/bias' in layer:
    logits = logits + np.minimum(layer['moe/router/bias'], 0) * (
      np.arange(logits.shape[1]) > 0
    )
  score = np.exp(logits - logits.max(-1, keepdims=True))
  score /= score.sum(-1, keepdims=True)
  if name == 'sigmoid_top_k':
    score = 1 / (1 + np.exp(-logits))
  bias = model.balance[i].get('moe/state/loss_free_bias', 0.0)
  chosen = np.argsort(-(score + bias), axis=1, kind='stable')[:, : router.k]
  out = np.zeros_like(score)
  for t, own in enumerate(chosen):
    out[t, own] = score[t, own]
    if name == 'sample_top_1' or getattr(router, 'renormalize', False):
      out[t] /= out[t].sum()
  return out * getattr(router, 'scaling', 1.0)


def outputs(model, i, x_TD):
  """f64 [T, D]: of a sparse layer, or of a dense FFN."""
  layer = model.layers[i]
  if not model.sparse[i]:
    return ffn(_below(layer, 'ffn/ffn/'), x_TD)
  w_TE, experts = weights(model, i, x_TD), _below(layer, 'moe/experts/')
  y_TD = 0
  for e in range(w_TE.shape[1]):
    y_TD += w_TE[:, e : e + 1] * ffn(
      {k: v[e] for k, v in experts.items()}, x_TD
    )
  return y_TD


def same(a, b, but=()):
  """Whether all but these names inside blocks are equal to the bit."""
  of = lambda m: [m.rest, *m.layers, *m.balance]
  assert len(of(a)) == len(of(b))
  for one, other in zip(of(a), of(b)):
    names = {k for k in one if not k.startswith(but)} if but else set(one)
    theirs = {k for k in other if not k.startswith(but)} if but else set(other)
    assert names == theirs
    for k in names:
      np.testing.assert_array_equal(one[k], other[k], err_msg=k)
      assert one[k].dtype == other[k].dtype


def _below(layer, prefix):
  return {
    k.removeprefix(prefix): v for k, v in layer.items() if k.startswith(prefix)
  }
