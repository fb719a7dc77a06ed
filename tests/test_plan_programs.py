"""Planned memory, exchanges and FLOPs against those of compiled programs."""

import dataclasses
import functools
import math
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe_jax import registry
from moe_jax.experts import base
from moe_jax.layers import linen, moe
from moe_jax.parallel import hlo, mesh as mesh_lib, rules
from moe_jax.planning import layers, memory, traffic
from moe_jax.training import plans
from tests import test_planning_traced

P = jax.sharding.PartitionSpec
RAGGED = 'ragged_all_to_all(buffer_factor=1.25)'
FALLBACK = "ragged_all_to_all(buffer_factor=1.0, overflow='gather_reduce')"


@dataclasses.dataclass(frozen=True)
class Case:
  """A layer on a mesh; B x L tokens in groups of T."""

  dispatch: str
  mesh: tuple[tuple[str, int], ...] = ()
  E: int = 8
  K: int = 2
  D: int = 64
  F: int = 128
  T: int = 256
  B: int = 8
  L: int = 256
  factor: float | None = 1.25
  experts: str = 'mlp()'

  def __str__(self):
    changed = [
      f'{f.name}={getattr(self, f.name)}'
      for f in dataclasses.fields(self)
      if getattr(self, f.name) != f.default and f.name != 'mesh'
    ]
    return ' '.join([*changed, *(f'{k}={v}' for k, v in self.mesh)])

  @property
  def sizes(self):
    return mesh_lib.exact(**dict(self.mesh))

  def make(self):
    sizes = self.sizes
    devices = jax.devices()[: math.prod(sizes.values())]
    router = f'top_k(k={self.K})' if self.K > 1 else 'switch()'
    return linen.MoE(
      moe.MoE(
        num_experts=self.E,
        router=registry.build('routers', router),
        experts=registry.build('experts', self.experts, d_ff=self.F),
        dispatch=registry.build('dispatch', self.dispatch),
        balance=(registry.build('balancing', 'switch_loss()'),),
        group_size=self.T,
        capacity_factor=self.factor,
        mesh=mesh_lib.make(sizes, devices),
      )
    )

  def planned(self):
    """The layer as planning sees it, sizes by hand."""
    sizes = self.sizes
    batch = sizes['data'] * sizes['fsdp'] * sizes['expert']
    C = math.ceil((self.factor or 1e9) * self.T * self.K / self.E)
    gated = self.experts.startswith('glu')
    F, local = self.F // sizes['model'], self.E // sizes['expert']
    layer = layers.Layer(
      layers=1,
      micro_batches=1,
      groups=self.B * self.L // self.T // batch,
      tokens=self.T,
      edges=self.K * self.T,
      choices=self.K,
      experts=self.E,
      capacity=min(C, self.T),
      most=self.T,
      width=self.D,
      hidden=F,
      products=(2 + gated) * self.D * F,
      inner=(1 + gated) * local * self.D * F,
      outer=local * self.D * F,
      made=1 + gated,
      kept=5 if gated else 3 if 'gelu' in self.experts else 2,
      itemsize=4,
      mesh=sizes,
    )
    return layer, plans.dispatch(self.dispatch)


def traced(case):
  """Value and gradients by parameters and tokens, placed as in training."""
  layer = case.make()
  mesh = layer.core.mesh
  x = jax.ShapeDtypeStruct((case.B, case.L, case.D), jnp.float32)
  init = lambda: layer.init(jax.random.key(0), jnp.zeros(x.shape), train=True)
  boxed = jax.eval_shape(init)
  place = lambda axes: jax.sharding.NamedSharding(
    mesh, rules.spec(axes, mesh.shape)
  )
  where = jax.tree.map(
    lambda spec: place(tuple(spec)),
    nn.get_partition_spec(boxed),
    is_leaf=lambda v: isinstance(v, P),
  )
  tokens, one = place(('batch',)), place(())

  def loss(variables, x):
    y, _, aux = layer.apply(variables, x, train=True)
    return jnp.square(y).sum() + aux.loss

  step = jax.jit(
    jax.value_and_grad(loss, (0, 1)),
    in_shardings=(where, tokens),
    out_shardings=(one, (where, tokens)),
  )
  return step.trace(nn.unbox(boxed), x)


@functools.cache
def program(case):
  return traced(case).lower().compile()


FOUR, WIDE = (('expert', 4),), (('data', 2), ('expert', 4))
MIXED = (('fsdp', 2), ('expert', 2), ('model', 2))
SMALL = dict(T=64, B=8, L=128)
MANY = dict(E=64, K=8, F=64, T=512, B=4, L=512)
LARGE = dict(E=32, D=256, F=512, T=512, B=16, L=512)
CASES = [
  Case('einsum()', FOUR),
  Case('scatter()', WIDE, **SMALL),
  Case('scatter(pipeline_degree=2)', FOUR),
  Case('gather_reduce()', FOUR),
  Case(RAGGED, WIDE, K=1, E=16, D=128, F=256, B=16),
]
MORE = [
  Case('scatter(host=2)', FOUR, **SMALL),
  Case('gather_reduce()', factor=None),
  *(
    Case(d, mesh, **sizes)
    for d in ('einsum()', 'scatter()', 'gather_reduce()', RAGGED)
    for mesh, sizes in (
      ((('model', 2),), {}),
      ((('fsdp', 2),), {}),
      (MIXED, dict(B=16, D=128, F=512)),
      (WIDE, LARGE),
      ((), MANY),
      (FOUR, MANY | dict(F=128)),
      (FOUR, dict(experts='glu()', D=128, B=16)),
      ((), dict(experts="mlp(activation='gelu')")),
      ((('expert', 8),), dict(E=16, K=4, F=256, D=128, B=16)),
      ((), dict(K=1, F=1024, D=256, B=16)),
    )
  ),
  Case('scatter(pipeline_degree=4)', WIDE, B=16, F=256),
  Case('scatter(host=2)', (('expert', 8),), B=16),
  Case(FALLBACK, FOUR),
]


def check_program(case):
  """Its memory to 25 %, and its exchanges to the byte."""
  layer, dispatch = case.planned()
  compiled = program(case)
  kept = compiled.memory_analysis()
  # Gradients are outputs, and so is memory that XLA may use before they are.
  outputs = kept.output_size_in_bytes
  held = kept.temp_size_in_bytes + outputs
  _, peak = memory.peak(memory.buffers(layer, dispatch, cpu=True))
  assert 0.8 < peak / held < 1.25
  if outputs < held / 10:
    assert 0.8 < peak / kept.temp_size_in_bytes < 1.25
  own = [(c, 1) for c in traffic.collectives(layer, dispatch, cpu=True)]
  if dispatch.fallback(layer):
    # The other branch, whose backward pass recomputes it.
    other = plans.dispatch('gather_reduce()')
    both = traffic.collectives(layer, other)
    own += [(c, 1 + c.again) for c in both]
  want = {}
  for c, times in own:
    want[c.kind] = want.get(c.kind, 0) + times * c.bytes
  text = compiled.as_text()
  assert hlo.collective_bytes(text, 'moe_(dispatched|returned)') == want


@pytest.mark.parametrize(
  'experts', ['mlp()', "mlp(activation='gelu')", 'glu()']
)
def test_an_expert_kind_says_what_is_planned(experts):
  case = Case('scatter()', MIXED, experts=experts)
  layer, _ = case.planned()
  kind = registry.build('experts', experts, d_ff=case.F)
  found = base.sizes(kind, case.E // 2, case.D, 2)
  assert found == {k: getattr(layer, k) for k in found}


@pytest.mark.parametrize('case', CASES, ids=str)
def test_memory_and_exchanges_are_those_of_the_program(case):
  check_program(case)


@pytest.mark.slow
@pytest.mark.parametrize('case', MORE, ids=str)
def test_more_memory_and_exchanges(case):
  check_program(case)


@pytest.mark.parametrize('platform', ['tpu', 'cuda'])
def test_ragged_exchanges_have_the_planned_buffers(platform):
  """Operand and result of each, there and back, forward and backward."""
  case = Case(RAGGED, FOUR, D=48, factor=None, **SMALL)
  layer, dispatch = case.planned()
  text = traced(case).lower(lowering_platforms=(platform,)).as_text()
  calls = re.findall(
    r'@ragged_all_to_all\(.*?: \(tensor<(\d+)x48xf32>.*-> tensor<(\d+)x48xf32>',
    text,
  )
  sent, rows = dispatch.sent(layer), dispatch.rows(layer)
  # By hand: 4 groups of 128 edges of a device, and a quarter more.
  assert (sent, rows) == (4 * 128, 640)
  pairs = sorted((int(a), int(b)) for a, b in calls)
  assert pairs == [(sent, rows)] * 2 + [(rows, sent)] * 2
  # In them, a balanced load leaves but for a quarter; at worst all are full.
  found = traffic.collectives(layer, dispatch)
  ragged = [c for c in found if c.kind == 'ragged-all-to-all']
  row = 48 * 4
  assert [c.leaving() for c in ragged] == [sent * row * 3 // 4] * 4
  assert [c.leaving(worst=True) for c in ragged] == [sent * row, rows * row] * 2


def test_bytes_in_a_programs_text():
  text = """
  %a = f32[2,3]{1,0} all-to-all(%x), metadata={op_name="jit(f)/one/b"}
  %b = (bf16[2]{0}, s32[4]{0}) all-gather(%x, %y), metadata={op_name="two"}
  %c = pred[] all-reduce(%x), metadata={op_name="one"}
  %d = f8e4m3fn[7] all-gather(%x), dimensions={0}
  %f = f32[9] fusion(%a), calls=%all-to-all.1, metadata={op_name="one"}
  """
  found = {'all-to-all': 24, 'all-gather': 20 + 7, 'all-reduce': 1}
  assert hlo.collective_bytes(text) == found
  assert hlo.collective_bytes(text, 'one') == {
    'all-to-all': 24,
    'all-reduce': 1,
  }


# FLOPs, loads, seats.


@pytest.mark.parametrize('experts', ['mlp()', 'glu()'])
def test_flops_of_masks_are_the_traced_ones(experts):
  """What einsum multiplies beyond scatter; 2 T / (M F) of M matrices."""
  flops = {}
  for name in ('einsum()', 'scatter()'):
    case = Case(name, E=4, T=64, D=32, F=48, experts=experts)
    layer, x = case.make(), jnp.zeros((case.B, case.L, case.D))
    variables = jax.eval_shape(
      lambda layer=layer, x=x: layer.init(jax.random.key(0), x, train=True)
    )
    forward = lambda v, layer=layer, x=x: layer.apply(v, x, train=True)[0]
    jaxpr = jax.make_jaxpr(forward)(nn.unbox(variables)).jaxpr
    flops[name] = test_planning_traced.product_flops(jaxpr)
  planned = traffic.flops(
    *dataclasses.replace(case, dispatch='einsum()').planned()
  )
  assert planned['dispatch'] == flops['einsum()'] - flops['scatter()']
  matrices = 3 if experts == 'glu()' else 2
  ratio = planned['dispatch'] / planned['experts']
  np.testing.assert_allclose(ratio, 2 * 64 / (matrices * 48))
  assert traffic.flops(*case.planned())['dispatch'] == 0
