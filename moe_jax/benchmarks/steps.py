"""A whole training step of a decoder whose FFNs are MoE layers.

Forward, backward and optimizer, jitted, the state donated as in training; the
batch is on the device already, so that no data pipeline is in it. Model FLOPs
are those of `planning.counts`: recomputation, padding to a capacity and causal
halves are not discounted, and count as inefficiency.

With one run of each under the profiler, a step's time is split by part: every
operation of the trace goes to the part whose named scope it stands in
(`scopes`).
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from moe_jax import registry
from moe_jax.benchmarks import cases, machine, scopes
from moe_jax.layers import heads, moe
from moe_jax.models import decoder, records
from moe_jax.parallel import mesh as mesh_lib, rules
from moe_jax.planning import counts
from moe_jax.problems import causal_lm
from moe_jax.seating import orders
from moe_jax.training import optimizers, state as state_lib, step as step_lib


@dataclasses.dataclass(frozen=True)
class Size:
  """Of a decoder; F is an expert's hidden width, d_head is D / heads."""

  layers: int
  D: int
  heads: int
  vocab: int
  length: int
  batch: int
  E: int
  K: int
  F: int
  dtype: str
  remat: str
  scan: bool = True


# OLMoE-1B-7B (Muennighoff et al. 2024, arXiv:2409.02060): 6.9e9 parameters,
# 1.3e9 of them active.
OLMOE = Size(
  layers=16,
  D=2048,
  heads=16,
  vocab=50304,
  length=4096,
  batch=4,
  E=64,
  K=8,
  F=1024,
  dtype='bfloat16',
  remat='full',
)
SMALL = Size(
  layers=4,
  D=128,
  heads=2,
  vocab=512,
  length=256,
  batch=8,
  E=16,
  K=4,
  F=128,
  dtype='float32',
  remat='none',
)
CANDIDATES = {
  'dropless': ('gather_reduce()', None),
  'dropping': ('scatter()', 1.25),
}


def suite(size: Size | None = None) -> list[cases.Case]:
  """One case; None chooses OLMoE's shape, on CPU a small one."""
  on_cpu = jax.default_backend() == 'cpu'
  size = size or (SMALL if on_cpu else OLMOE)
  candidates = [
    machine.matmul(size.dtype),
    machine.copy(),
    candidate('dense', dataclasses.replace(size, E=0)),
    *(candidate(name, size, *how) for name, how in CANDIDATES.items()),
  ]
  name = f'layers={size.layers} D={size.D} E={size.E} K={size.K} F={size.F}'
  sizes = dataclasses.asdict(size)
  return [cases.Case('step', name, sizes, candidates, ('dense',))]


def candidate(
  name: str,
  size: Size,
  dispatch: str = '',
  capacity_factor: float | None = None,
  mesh: str = 'exact()',
  split: bool = True,
) -> cases.Candidate:
  """A step of a fresh model.

  Args:
    name: of the candidate.
    size: E = 0 is a dense model with FFNs as wide as K experts.
    dispatch, capacity_factor: of its MoE layers.
    mesh: call string; the devices used are the first ones.
    split: measure the parts.
  """

  def build():
    step, state, batch, _ = make(size, dispatch, capacity_factor, mesh)
    run = jax.jit(step, donate_argnums=0).lower(state, batch).compile()
    held = [state]

    def once():
      held[0], metrics = run(held[0], batch)
      jax.block_until_ready((held[0], metrics))
      return metrics

    metrics, facts = once(), {}
    memory = run.memory_analysis()
    if memory is not None:
      facts['temporaries'] = memory.temp_size_in_bytes
    facts['loss'] = float(metrics['loss'])
    if 'cause' in metrics:
      cause = np.asarray(metrics['cause'])
      facts['kept'] = float(cause[:, 0].sum() / cause.sum())
      load = np.asarray(metrics['load'])
      facts['load'] = float((load.max(1) / load.mean(1)).max())
    if split:
      facts |= scopes.facts(run.as_text(), once)
    return once, facts

  return cases.Candidate(name, build, flops=flops(size))


def make(
  size: Size,
  dispatch: str,
  capacity_factor: float | None,
  mesh_spec: str = 'exact()',
  abstract: bool = False,
):
  """The step function, a state and a batch on the mesh, and the layout.

  Args:
    size, dispatch, capacity_factor: as in `candidate`.
    mesh_spec: as its `mesh`.
    abstract: shapes in place of state and batch.
  """
  sizes = mesh_lib.shape(mesh_spec, None, size.E)
  devices = jax.devices()[: int(np.prod(list(sizes.values())))]
  mesh = mesh_lib.make(sizes, devices)
  model = _model(size, dispatch, capacity_factor, mesh)
  draw = np.random.default_rng(0).integers
  ids = draw(0, size.vocab, (size.batch, size.length + 1), dtype=np.int32)
  position = np.broadcast_to(np.arange(size.length), ids[:, 1:].shape)
  batch = {
    'inputs': ids[:, :-1],
    'targets': ids[:, 1:],
    'positions': position.astype(np.int32),
    'segments': np.ones_like(ids[:, 1:]),
  }
  where = jax.sharding.NamedSharding(mesh, rules.spec(('batch',), mesh.shape))
  lay = state_lib.layout(model, batch)
  tx, _ = optimizers.make(
    'adafactor()',
    'constant(value=0.001)',
    steps=1,
    clip=1.0,
    batch_dims=lay.batch_dims(),
  )
  tx = scopes.optimizer(tx)
  problem = causal_lm.CausalLM(data={})
  step = step_lib.make_train_step(model, tx, problem=problem, seed=0)
  if abstract:
    return step, state_lib.abstract(tx, lay, mesh), batch, lay
  shardings = rules.shardings(mesh, state_lib.specs(tx, lay, mesh))
  state = state_lib.init(model, tx, batch, 0, shardings)
  return step, state, jax.device_put(batch, where), lay


def flops(size: Size) -> float:
  """Model FLOPs of a step, all devices together."""
  *_, lay = make(size, 'gather_reduce()', None, abstract=True)
  stacks = {
    'decoder': counts.Stack(
      size.length,
      size.K / size.E if size.E else 1.0,
      size.K,
      ((size.layers, size.D, size.length),),
    )
  }
  forward = counts.forward_flops(lay.leaves(), stacks, tied_head=True)
  return 3.0 * forward * size.batch


def _model(size: Size, dispatch, capacity_factor, mesh) -> decoder.Decoder:
  build: Any = registry.build
  layer = moe.MoE(
    num_experts=size.E,
    router=build('routers', 'top_k(renormalize=False)', k=size.K),
    experts=scopes.Experts(build('experts', 'glu()', d_ff=size.F)),
    dispatch=scopes.Dispatch(build('dispatch', dispatch or 'scatter()')),
    balance=(
      build('balancing', 'switch_loss(weight=0.01)'),
      build('balancing', 'z_loss(weight=0.001)'),
    ),
    group_size=size.length,
    capacity_factor=capacity_factor,
    seating=orders.build('token_major()'),
  )
  block = records.Layer(
    attention=heads.Full(
      num_heads=size.heads, d_head=size.D // size.heads, qk_norm=True
    ),
    ffn=build('experts', 'glu()', d_ff=size.K * size.F),
    moe=layer if size.E else None,
  )
  config = records.StackConfig(
    layers=(block,) * size.layers,
    d_model=size.D,
    scan=size.scan,
    remat=size.remat,
    mesh=mesh,
    dtype=jnp.dtype(size.dtype),
  )
  return decoder.Decoder(size.vocab, config)
