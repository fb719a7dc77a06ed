"""What a config would cost on a mesh that need not exist."""

import dataclasses
from typing import Any

import jax
import numpy as np

from moe_jax import registry
from moe_jax.errors import UserError
from moe_jax.experts import base as experts_base
from moe_jax.layers import causality
from moe_jax.parallel import axes as axes_lib, mesh as mesh_lib
from moe_jax.planning import (
  advice,
  counts,
  dispatches,
  layers as planned,
  loads as loads_lib,
  memory,
  traffic,
)
from moe_jax.runs import configs
from moe_jax.training import checks, seats, session as session_lib


def make(config, mesh_spec: str) -> session_lib.Session:
  """A session without data, on an abstract mesh: shapes and shardings.

  Args:
    config: a ConfigDict.
    mesh_spec: exact sizes, `'exact(data=2, expert=4)'`; '' is the config's own
      mesh, on as many devices as it simulates (`cpu_devices`).

  Raises:
    ValueError: a field that does not fit, with its value and what would.
  """
  configs.validate(config)
  problem = session_lib.choose_problem(config)
  experts = checks.num_experts(config)
  if mesh_spec:
    sizes = mesh_lib.shape(mesh_spec, None, experts)
  else:
    simulated = max(config.cpu_devices, 1)
    sizes = mesh_lib.fitted(config.mesh, simulated, experts)
  splits, make_mesh = ('train',), mesh_lib.abstract
  return session_lib.build(config, problem, sizes, splits, make_mesh)


def layers(session: session_lib.Session) -> dict[str, planned.Layer]:
  """One device's share of each stack's sparse layers in a training step."""
  c, found = session.config, {}
  sizes = dict(session.mesh.shape)
  axes = axes_lib.make(sizes)
  rows = c.train.batch_size // axes.size(axes.batch) // c.train.accumulate
  for name in checks.sparse_stacks(c):
    stack = session.model.stacks[name]
    made = stack.moe
    tokens = rows * session.lengths[name]
    E, Z, D = made.num_experts, made.num_local, stack.d_model
    T = made.tokens_of_group(tokens, train=True)
    sizes_of_experts = experts_base.sizes(
      made.experts, E // sizes['expert'], D, sizes['model']
    )
    found[name] = planned.Layer(
      layers=sum(stack.sparse),
      micro_batches=c.train.accumulate,
      groups=tokens // T,
      tokens=T,
      edges=causality.edges(made, T, D, train=True),
      choices=made.router.experts_per_token(E + Z) * E / (E + Z),
      experts=E,
      capacity=made.rows(T, made.capacity_factor),
      most=made.router.most_edges(T),
      width=D,
      **sizes_of_experts,
      itemsize=stack.dtype.dtype.itemsize,
      mesh=sizes,
    )
  return found


def dispatch(spec: str) -> dispatches.Dispatch | None:
  """A call string as planning takes it; None where it has no numbers for it."""
  name, _ = registry.parse(spec)
  if name not in dispatches.ALGORITHMS:
    return None
  options = dataclasses.asdict(registry.build('dispatch', spec))
  return dispatches.ALGORITHMS[name](options)


def _recomputed(config) -> bool:
  return config.model.remat in ('full', 'dots')


def describe(config, mesh_spec: str = '') -> dict[str, Any]:
  """Parameters, FLOPs, bytes and exchanges of a training step, as JSON has it.

  The exchanges are None for a dispatch that planning has no numbers for.

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
  found = layers(session)
  fields = checks.sparse_stacks(config)
  pairs = [(v, dispatch(fields[k]['dispatch'])) for k, v in found.items()]
  moved = None
  if all(d for _, d in pairs):
    moved = traffic.wire(pairs, _recomputed(config))
  tokens, forward = session.lengths, session.forward_flops()
  return {
    'params_total': counts.parameters(leaves),
    'params_active': counts.active_parameters(leaves, share),
    'params_active_without_embedding': counts.active_parameters(
      leaves, share, looked_up=False
    ),
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
    'buffers': {
      k: {
        **dataclasses.asdict(v),
        'dispatch': d and d.name,
        'rows': d and d.rows(v),
      }
      for k, (v, d) in zip(found, pairs)
    },
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


def compare(
  config,
  mesh_spec: str = '',
  *,
  skew: float = 0.5,
  loads: str = '',
  cpu: bool = False,
  seed: int = 0,
) -> dict[str, Any]:
  """What each dispatch would cost the sparse layers, as JSON has it.

  Args:
    config, mesh_spec: as in `make`.
    skew: deviation of the experts' mean logits where tokens are simulated.
    loads: file or workdir of recorded loads (see `planning.loads.read`).
    cpu: as in `planning.memory.buffers`.
    seed: of the simulation.

  Raises:
    ValueError: as `make`; a model without experts, or loads of another.
  """
  if not 0 <= skew <= 10:
    raise UserError(f'skew={skew} must be from 0 to 10')
  recorded = loads_lib.read(loads) if loads else None
  session = make(config, mesh_spec)
  found, stacks = layers(session), {}
  if not found:
    raise UserError(f'moe.layers={config.moe.layers!r}: no layer has experts')
  depths = {k: v.layers for k, v in found.items()}
  if recorded is not None:
    _check_loads(recorded, loads, depths, config.moe.num_experts)
    if len(recorded) == 1:
      recorded = np.repeat(recorded, sum(depths.values()), axis=0)
  first = 0
  for name, layer in found.items():
    rng = np.random.default_rng(seed)
    K, E = layer.choices, layer.experts
    if recorded is None:
      count = min(layer.layers, 4)
      mean_QE = [loads_lib.skewed(E, skew, rng) for _ in range(count)]
    else:
      own = recorded[first : first + layer.layers]
      mean_QE = [loads_lib.popularity(share_E, K, rng) for share_E in own]
    first += layer.layers
    made = session.model.stacks[name].moe
    kept_QGE, wanted_QGE, dropped_QG = seats.simulate(
      made, layer.tokens, np.array(mean_QE), seed
    )
    spec = checks.sparse_stacks(config)[name]['dispatch']
    figures = _figures(config, layer, spec, kept_QGE, cpu, seed)
    load_QE = wanted_QGE.sum(1)
    best, why = advice.recommend(layer, figures, cpu)
    stacks[name] = {
      'layer': dataclasses.asdict(layer),
      'dispatch': spec,
      'dropped': float(dropped_QG.sum() / max(wanted_QGE.sum(), 1)),
      'busiest': float((load_QE.max(1) / load_QE.mean(1)).mean()),
      'groups_simulated': kept_QGE.shape[0] * kept_QGE.shape[1],
      'algorithms': figures,
      'recommended': best,
      'because': why,
    }
  sizes = dict(session.mesh.shape)
  return {
    'mesh': sizes,
    'devices': session.mesh.size,
    'platform': 'cpu' if cpu else 'accelerator',
    'remat': config.model.remat,
    'routing': {'loads': loads} if loads else {'skew': skew},
    'stacks': stacks,
  }


def _check_loads(recorded, loads: str, depths: dict[str, int], E: int) -> None:
  count, experts = recorded.shape
  if experts != E:
    raise UserError(
      f'{loads} has loads of {experts} experts; the config has '
      f'moe.num_experts={E}'
    )
  if count not in (1, sum(depths.values())):
    raise UserError(
      f'{loads} has loads of {count} layers; the config has '
      f'{sum(depths.values())} sparse ones (1 stands for all)'
    )


def _figures(config, layer, own: str, kept_QGE, cpu: bool, seed: int):
  """Each algorithm's figures; the config's own options where it is that."""
  figures = {}
  for name in dispatches.ALGORITHMS:
    d = dispatch(own if registry.parse(own)[0] == name else f'{name}()')
    sizes = {
      'balanced': (layer.balanced(), d),
      'held': (layer, d),
      'worst': (layer.dropless(), d.roomy()),
    }
    tables = {k: memory.buffers(*v, cpu) for k, v in sizes.items()}
    peaks = {k: memory.peak(v) for k, v in tables.items()}
    flops = traffic.flops(layer, d)
    figures[name] = {
      'options': dict(d.options),
      'rows': {k: d_.rows(layer_) for k, (layer_, d_) in sizes.items()},
      'peak': {k: v for k, (_, v) in peaks.items()},
      'peak_at': peaks['held'][0],
      'buffers': {
        k: [dataclasses.asdict(b) for b in v] for k, v in tables.items()
      },
      'wire': traffic.wire([(layer, d)], _recomputed(config), cpu),
      'flops': flops,
      'flops_of_dispatch': flops['dispatch'] / flops['experts'],
      **loads_lib.fate(kept_QGE, layer, d, seed),
    }
  return figures
