"""The canary: on Markov chains a mixture beats its dense twin, in seconds.

What breaks routing, dispatch, experts, their gradients or their optimizer costs
the mixture its lead. Each step has fresh rows, so the loss of the last steps is
one of rows not seen. All steps are one loop of XLA's: a tenth of the time.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe_jax.parallel import mesh as mesh_lib
from moe_jax.training import (
  session as session_lib,
  state as state_lib,
  step as step_lib,
)
from tests import tiny

ROWS, LENGTH, STEPS, LAST = 32, 16, 400, 60
WIDTH, CHAINS = 8, 8


def trained(workdir, layers):
  """(nats a token of the last steps, the entropy) after training."""
  config = tiny.config(
    **{
      'model.num_layers': 1,
      'model.d_model': WIDTH,
      'model.num_heads': 1,
      'model.d_head': WIDTH,
      'model.d_ff': WIDTH,
      'moe.layers': layers,
      'moe.num_experts': 2 * CHAINS,
      'moe.d_ff': WIDTH // 2,  # two a token
      'moe.router': 'top_k(k=2)',
      'moe.balance': ('switch_loss(weight=0.01)',),
      'moe.dispatch': 'gather_reduce()',
      'moe.capacity_factor': 0,
      'moe.eval_capacity_factor': 0,
      'moe.group_size': ROWS * LENGTH,
      'data.problem': f'markov_chains(chains={CHAINS}, states=8)',
      'data.seq_len': LENGTH,
      'train.batch_size': ROWS,
      'train.steps': STEPS,
      'train.schedule': f'cosine(peak=0.03, warmup={STEPS // 10}, final=0.0)',
      'train.optimizer': 'adamw(b1=0.9, b2=0.98, eps=1e-8, weight_decay=0.0)',
    }
  )
  session = session_lib.build(
    config,
    session_lib.choose_problem(config),
    mesh_lib.shape('exact(data=1)', 1, 2 * CHAINS),
    ('train',),
    lambda shape: mesh_lib.make(shape, jax.devices()[:1]),
  ).open(workdir)
  step = step_lib.make_train_step(
    session.model, session.tx, problem=session.problem, seed=0
  )
  state = state_lib.init(
    session.model, session.tx, session.dummy, 0, session.shardings
  )
  batches = [
    session.data.batch(seed=0, batch_size=ROWS, step=i) for i in range(STEPS)
  ]
  batches = {k: np.stack([b[k] for b in batches]) for k in batches[0]}

  def one(state, batch):
    state, metrics = step(state, batch, jax.random.key(0))
    return state, metrics['loss']

  _, loss_N = jax.jit(lambda s, b: jax.lax.scan(one, s, b))(state, batches)
  floor = session.problem.floor(session.data)['eval/entropy']
  return float(jnp.mean(loss_N[-LAST:])), floor


@pytest.fixture(scope='module')
def dense(tmp_path_factory):
  return trained(tmp_path_factory.mktemp('dense'), 'none')


def test_a_dense_model_learns_the_chains(dense):
  loss, floor = dense
  assert floor < loss < np.log(8) - 0.1  # of 8 states


def test_a_mixture_beats_its_dense_twin(dense, tmp_path):
  loss, floor = trained(tmp_path, 'all')
  assert floor < loss < dense[0] - 0.1
