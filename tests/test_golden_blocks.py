"""Hugging Face's sparse blocks, frozen (tests/golden/make_hf_moe_blocks.py).

Each is a layer here: router, expert kind and dense branch by call string, no
limit on rows. Outputs and all gradients to 1e-5 of the largest value.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe_jax import registry
from moe_jax.layers import linen, moe
from tests.golden import freeze

E, F = 8, 6


@dataclasses.dataclass(frozen=True)
class Block:
  """What a block is here.

  Attributes:
    router: call string.
    gate: name of its router among the frozen parameters.
    layout: of the fused first kernel: 'rows' [E, 2 F, D], gate first;
      'columns' [E, D, 2 F], gate first; 'turns' [E, D, 2 F], gate, up, gate.
    shared: name of the shared FFN, '' for none, and its width.
    gated: whether the shared FFN has a gate.
  """

  router: str
  gate: str = 'gate'
  layout: str = 'rows'
  shared: tuple[str, int] = ('', 0)
  gated: bool = False


BLOCKS = {
  'olmoe': Block('top_k(k=3, renormalize=False)'),
  'olmoe/renormalized': Block('top_k(k=3)'),
  'mixtral': Block('top_k(k=3)'),
  'flex_olmo': Block('top_k(k=3, renormalize=False)'),
  'qwen2_moe': Block(
    'top_k(k=3, renormalize=False)',
    shared=('shared_expert', 13),
    gated=True,
  ),
  'deepseek_v2': Block(
    'top_k(k=3, renormalize=False)', shared=('shared_experts', 12)
  ),
}


def layer(block):
  biased = block.layout == 'turns'
  width = block.shared[1]
  branch = 'gated' if block.gated else 'shared' if width else 'none'
  glu = lambda d_ff: registry.build('experts', 'glu()', d_ff=d_ff)
  clamped = registry.build('experts', 'clamped_glu()', d_ff=F)
  return linen.MoE(
    moe.MoE(
      num_experts=E,
      router=registry.build('routers', block.router),
      experts=clamped if biased else glu(F),
      dispatch=registry.build('dispatch', 'gather_reduce()'),
      balance=(registry.build('balancing', 'loss_free_bias()'),),
      capacity_factor=None,
      eval_capacity_factor=None,
      dense_branch=branch,
      dense=glu(width) if width else None,
    )
  )


def ours(block, theirs):
  """Their parameters, or gradients, as our tree."""
  flip = lambda v: np.swapaxes(v, -1, -2)
  first = theirs['experts.gate_up_proj']
  first = flip(first) if block.layout == 'rows' else first
  down = theirs['experts.down_proj']
  experts = {'wo': flip(down) if block.layout == 'rows' else down}
  parts = {'gate': slice(0, F), 'up': slice(F, None)}
  if block.layout == 'turns':
    parts = {'gate': slice(0, None, 2), 'up': slice(1, None, 2)}
    experts['bo'] = theirs['experts.down_proj_bias']
    for name, part in parts.items():
      experts[f'bi_{name}'] = theirs['experts.gate_up_proj_bias'][:, part]
  for name, part in parts.items():
    experts[f'wi_{name}'] = first[..., part]
  router = {'kernel': flip(theirs[f'{block.gate}.weight'])}
  if f'{block.gate}.bias' in theirs:
    router['bias'] = theirs[f'{block.gate}.bias']
  params = {'router': router, 'experts': experts}
  name, width = block.shared
  if width:
    w = lambda part: flip(theirs[f'{name}.{part}_proj.weight'])
    ffn = {'wi_gate': w('gate'), 'wi_up': w('up'), 'wo': w('down')}
    params['dense'] = {'ffn': ffn}
  if block.gated:
    params['dense_gate'] = flip(theirs[f'{name}_gate.weight'])
  return params


def close(ours, theirs):
  """Largest difference in units of the largest value."""
  scale = max(1.0, np.abs(theirs).max())
  np.testing.assert_allclose(ours, theirs, atol=1e-5 * scale, rtol=0)


@pytest.mark.parametrize('name', BLOCKS)
def test_hugging_face_block(name):
  """Traps: which half is the gate; biases move the selection, no weight."""
  block, frozen = BLOCKS[name], freeze.load('hf_moe_blocks')
  under = lambda at: {
    k.removeprefix(f'{name}/{at}/'): v
    for k, v in frozen.items()
    if k.startswith(f'{name}/{at}/')
  }
  theirs, grads = under('params'), under('grads')
  module, x = layer(block), frozen[f'{name}/x']
  bias_E = theirs.get(f'{block.gate}.e_score_correction_bias', np.zeros(E))
  state = {'loss_free_bias': jnp.asarray(bias_E, jnp.float32)}

  def loss(params, x):
    y, _, _ = module.apply(
      {'params': params, 'balance': {'state': state}}, x, train=False
    )
    weight = jnp.cos(jnp.arange(y.size, dtype=jnp.float32)).reshape(y.shape)
    return (y * weight).sum(), y

  step = jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))
  (by_params, by_x), y = jax.device_get(step(ours(block, theirs), x))
  close(y, frozen[f'{name}/y'])
  close(by_x, grads['x'])
  want = ours(block, grads)
  assert jax.tree.structure(by_params) == jax.tree.structure(want)
  jax.tree.map(close, by_params, want)
