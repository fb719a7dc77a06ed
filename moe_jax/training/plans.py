"""What a config would cost on a mesh that need not exist."""

import dataclasses
from typing import Any

import jax
from jax.sharding import NamedSharding

from moe_jax import registry
from moe_jax.data import tokenizers
from moe_jax.layers import moe
from moe_jax.models import factory
from moe_jax.parallel import axes as axes_lib, mesh as mesh_lib, rules
from moe_jax.planning import counts, memory, traffic
from moe_jax.training import (
  configs,
  session as session_lib,
  state as state_lib,
)


def make(config, mesh_spec: str) -> session_lib.Session:
  """A session without data, on an abstract mesh: shapes and shardings.

  Args:
    config: a ConfigDict.
    mesh_spec: exact sizes, `'exact(data=2, expert=4)'`.

  Raises:
    ValueError: a field that does not fit, with its value and what would.
  """
  configs.validate(config)
  session_lib.choose_kind(config)
  sizes = mesh_lib.shape(mesh_spec, None, session_lib.num_experts(config))
  session_lib.check_widths(config, sizes)
  session_lib.check_batch(config, sizes, 'train')
  mesh = mesh_lib.abstract(sizes)
  # A tokenizer's file may be elsewhere; a given size does without.
  vocab_size = config.model.vocab_size or session_lib.vocab_size(
    config, tokenizers.build(config.data.tokenizer), mesh
  )
  model = factory.make(config, vocab_size, mesh)
  batch = jax.eval_shape(lambda: session_lib.dummy(config, mesh))
  lay = state_lib.layout(model, batch)
  tx, schedule = session_lib.make_optimizer(config, lay.batch_dims())
  sharding = NamedSharding(mesh, rules.spec(('batch',), mesh.shape))
  return session_lib.Session(
    config, mesh, None, model, tx, schedule, lay, sharding
  )


# Of the dispatches: exchange padded buffers in all-to-alls; have none.
PADDED, WITHOUT = ('scatter', 'einsum'), ('dense', 'gather_reduce')


def buffers(session: session_lib.Session) -> dict[str, traffic.Buffers] | None:
  """What each stack's sparse layers exchange in a training step.

  None where that depends on the routing.
  """
  c, found = session.config, {}
  axes = axes_lib.make(session.mesh.shape)
  rows = c.train.batch_size // axes.size(axes.batch) // c.train.accumulate
  for name, fields in session_lib.sparse_stacks(c).items():
    name_, options = registry.parse(fields['dispatch'])
    if name_ in WITHOUT:
      continue
    if name_ not in PADDED or options:
      return None
    stack = session.model.stacks[name]
    made = stack.moe(parent=None)
    tokens = rows * session_lib.lengths(c)[name]
    T = moe.group_size(made.group_size, tokens, made.capacity_factor)
    found[name] = traffic.Buffers(
      layers=sum(stack.sparse),
      experts=made.num_experts,
      groups=tokens // T * c.train.accumulate,
      capacity=made.rows(T, made.capacity_factor),
      width=stack.d_model,
      itemsize=stack.dtype.dtype.itemsize,
    )
  return found


def describe(config, mesh_spec: str = 'exact()') -> dict[str, Any]:
  """Parameters, FLOPs, bytes and exchanges of a training step, as JSON has it.

  The exchanges are None for a dispatch whose traffic is not counted.

  Args:
    config, mesh_spec: as in `make`.

  Raises:
    ValueError: as `make`.
  """
  session = make(config, mesh_spec)
  sizes, state = dict(session.mesh.shape), session.abstract_state
  leaves, share = session.leaves(), session.expert_share()
  place = lambda x: memory.shard_bytes(
    x.shape, x.dtype.itemsize, x.sharding.spec, sizes
  )
  total = lambda tree: sum(map(place, jax.tree.leaves(tree)))
  held = {
    'parameters': total(state.params),
    'gradients': total(state.params),
    'optimizer_state': total(state.opt_state),
    'balance_state': total(state.balance),
  }
  exchanged = buffers(session)
  moved = None
  if exchanged is not None:
    moved = traffic.all_to_all(
      exchanged.values(), sizes, config.model.remat in ('full', 'dots')
    )
  tokens, forward = session_lib.lengths(config), session.forward_flops()
  return {
    'params_total': counts.parameters(leaves),
    'params_active': counts.active_parameters(leaves, share),
    'parts': counts.parts(leaves, share),
    'tokens_per_sequence': tokens,
    'flops_per_sequence_forward': forward,
    'flops_per_token': 3 * forward / sum(tokens.values()),
    'flops_per_target_token': session.flops_per_token(),
    'flops_per_step': 3 * forward * config.train.batch_size,
    'mesh': sizes,
    'devices': session.mesh.size,
    'bytes_per_device': held | {'total': sum(held.values())},
    'all_to_all_bytes_per_step': moved and moved['leaving_total'],
    'all_to_all': moved,
    'buffers': {k: dataclasses.asdict(v) for k, v in (exchanged or {}).items()},
    'parameters': [
      {
        'path': '/'.join(leaf.names),
        'shape': leaf.shape,
        'dtype': x.dtype.name,
        'axes': leaf.axes,
        'spec': tuple(x.sharding.spec),
        'bytes_per_device': place(x),
      }
      for leaf, x in zip(leaves, jax.tree.leaves(state.params))
    ],
  }
