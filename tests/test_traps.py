"""The traps of published mixture-of-experts code, and where each is tested.

group = device: capacity, drops and losses by device count
                              test_train.py::test_mesh_changes_nothing
f from kept assignments only  test_moe.py::test_two_dispatches_equal_loops
sum or mean over layers; cross-entropy summed, so that balancing vanishes
                              here
noise and random second choices in evaluation
                              routers/test_top_k.py, routers/test_switch.py
one slot lost to `<` after an inclusive cumsum
                              test_seating.py::test_equals_reference; here
a gate that underflows drops its token from a mask cast from weights
                              here
padding's uniform logits send it all to expert 0, ahead of real tokens
                              contracts/test_routers.py, padding; here
scatter past the end of a buffer
                              test_seating.py, every edge one cause
batch-prioritised and rank-major top-2 read the future
                              test_causality.py
expert gradients scaled by the expert axis (an optimizer without scale,
SGD, shows it)                test_train.py::test_mesh_changes_nothing
Adafactor factored over experts
                              test_optimizers.py, per slice
gelu by tanh or erf           contracts/test_experts.py
one choice renormalised has no gradient
                              routers/test_top_k.py, ERRORS
capacity beyond the group     test_seating.py, at most the group
noise that depends on the sharding
                              test_moe_program.py, test_dropout.py
fan-in over the stacked experts
                              contracts/test_experts.py::test_axes_and_fan_in
balancing loss asserted to be at least 1
                              balancing/test_switch_loss.py
"""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import struct

from moe_jax import registry, types
from moe_jax.layers import linen
from moe_jax.models import factory, stack
from moe_jax.problems import causal_lm
from moe_jax.routers import base as routers
from moe_jax.seating import seat as seating
from moe_jax.training import state as state_lib, step as step_lib
from tests import test_moe, tiny
from tests.experts import test_mlp

B, L, V = 8, 16, 32


def one_group(expert_T, probs_TE=None, E=4, **rest):
  T = len(expert_T)
  return types.Routing(
    token_N=jnp.arange(T, dtype=jnp.int32),
    expert_N=jnp.asarray(expert_T, jnp.int32),
    weight_N=jnp.ones(T),
    probs_TE=probs_TE,
    num_experts=E,
    choices=1,
    **rest,
  )


@functools.cache
def two_layers():
  """A model of two MoE layers, its parameters and a batch."""
  config = tiny.config(**{'moe.layers': 'all', 'moe.group_size': 32})
  model = factory.make(config, V)
  rng = np.random.default_rng(0)
  inputs = rng.integers(3, V, (B, L + 1)).astype(np.int32)
  batch = {
    'inputs': inputs[:, :-1],
    'targets': inputs[:, 1:],
    'positions': np.tile(np.arange(L, dtype=np.int32), (B, 1)),
    'segments': np.tile(np.repeat([1, 0], [L - 3, 3]), (B, 1)).astype(np.int32),
  }
  init = jax.jit(lambda k: nn.unbox(model.init(k, batch, train=False)))
  return model, init(jax.random.key(0))['params'], batch


@pytest.mark.parametrize(
  'over_layers', ['sum', pytest.param('mean', marks=pytest.mark.slow)]
)
def test_total_loss_is_a_mean_over_tokens_and_its_layers(over_layers):
  """Mesh-TensorFlow adds the layers' losses, T5X averages them."""
  model, params, batch = two_layers()
  tx = optax.sgd(0.0)
  state = state_lib.TrainState(jnp.int32(0), params, tx.init(params), {})
  step = step_lib.make_train_step(
    model,
    tx,
    problem=causal_lm.CausalLM(data={}),
    seed=0,
    over_layers=over_layers,
  )
  _, metrics = jax.jit(step)(state, batch)
  logits, aux = jax.jit(
    lambda p: model.apply({'params': p}, batch, train=True)
  )(params)
  logits = np.asarray(logits, np.float64)
  log_z = np.log(np.exp(logits).sum(-1))
  nll = (
    log_z - np.take_along_axis(logits, batch['targets'][..., None], -1)[..., 0]
  )
  real = batch['segments'] > 0
  layers = stack.aux_by_layer(aux['decoder'], model.stack_config.places)
  losses = [float(a.loss) for _, a in layers]
  assert len(losses) == 2 and min(losses) > 0.005
  want = nll[real].mean() + (
    sum(losses) if over_layers == 'sum' else np.mean(losses)
  )
  np.testing.assert_allclose(metrics['total_loss'], want, rtol=1e-5)


def test_capacity_is_filled_to_the_last_slot():
  """Switch's appendix F compares an inclusive cumsum with `<`: C - 1 fit."""
  seated = seating.seat(one_group([2] * 6), ((0, 2), (4, 1), (0, 1)))
  assert int(seated.kept_N.sum()) == 4


@pytest.mark.parametrize('dispatch', ['einsum()', 'scatter()', 'dense()'])
def test_a_gate_that_underflows_keeps_its_row(dispatch):
  """A mask cast from weights, V-MoE's and Mesh-TensorFlow's, would lose it.

  On the input side a weight of 0 still leaves what the expert makes of 0.
  """
  switch = registry.build('routers', 'switch()')

  @struct.dataclass
  class Underflow(routers.Router):
    def init(self, key, E, D):
      return switch.init(key, E, D)

    def experts_per_token(self, E):
      return 1.0

    def __call__(self, params, x_TD, ctx):
      r = switch(params, x_TD, ctx)
      return r.replace(weight_N=0 * r.weight_N, weight_on='input')

  m = test_moe.layer(dispatch, 'switch()', capacity_factor=None)
  core = dataclasses.replace(m.core, router=Underflow(), balance=())
  m = linen.MoE(core)
  v = test_moe.variables('switch()')
  y, _, _ = jax.jit(lambda v: m.apply(v, test_moe.X, train=True))(v)
  w = {k: np.asarray(p) for k, p in v['params']['experts'].items()}
  zero = np.zeros(test_moe.D)
  outs = np.stack(
    [
      test_mlp.mlp(w, e, zero, activation='gelu', bias=True)
      for e in range(test_moe.E)
    ]
  )
  distance = np.abs(np.asarray(y)[..., None, :] - outs).max(-1).min(-1)
  assert distance.max() < 1e-5 and np.abs(outs).max() > 0.05


def test_padding_takes_no_seat():
  """Zero logits are a tie, which the lowest expert wins."""
  router = registry.build('routers', 'switch()')
  mask_T = np.array([False, False, True, True])
  x_TD = np.zeros((4, 3), np.float32)
  ctx = types.Context(
    key=None, mask_T=jnp.asarray(mask_T), selection_bias_E=jnp.zeros(4)
  )
  r = router({'kernel': jnp.ones((3, 4))}, jnp.asarray(x_TD), ctx)
  seated = seating.seat(r, ((2, 4),), jnp.asarray(mask_T))
  np.testing.assert_array_equal(seated.kept_N, mask_T)
