"""The whole MoE layer, forward and backward, beside a dense FFN.

Router, seating, dispatch, experts and combine on one device, jitted, as in
training; the gradients are those of all parameters and of the tokens. The dense
FFN has the same active FLOPs: hidden width K x F. The floor in practice is
`own_matmuls`, E separate plain products of C rows each, without any routing.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from moe_jax import registry
from moe_jax.benchmarks import cases, machine, scopes
from moe_jax.errors import UserError
from moe_jax.experts import base as experts_base
from moe_jax.layers import mlp, moe
from moe_jax.seating import capacity
from moe_jax.types import CAUSES

# E, K, F; D is 512 unless asked for.
SIZES = (
  (8, 1, 2048),
  (8, 2, 2048),
  (32, 2, 2048),
  (64, 8, 512),
  (256, 8, 128),
)
BASELINES = ('dense', 'ragged_dot')
SEQUENCES = 4
NAIVE_EXPERTS = 32  # above it, the loop over experts takes minutes
DROPLESS = {
  'dropless': 'gather_reduce()',
  'dropless_all_to_all': 'ragged_all_to_all()',
}


@dataclasses.dataclass(frozen=True)
class Options:
  """What all cases share.

  Attributes:
    tokens, D: of the batch; four sequences.
    experts: call string of an expert kind without its width.
    group_size: 0 is one group of all tokens.
    capacity_factor: of `dropping`; None is dropless.
    capacity_rule: what the factor means.
    router: call string; '' is Switch for one choice, else renormalised top-k.
    zipf: exponent s of the load, expert of rank r being chosen in proportion to
      r^-s; 0 leaves the routing to the initial router.
    dtype: of the computation.
    balance: balancing rules.
  """

  tokens: int = 4096
  D: int = 512
  experts: str = "mlp(activation='relu')"
  group_size: int = 0
  capacity_factor: float | None = 1.0
  capacity_rule: str = 'per_choice()'
  router: str = ''
  zipf: float = 0.0
  dtype: str = 'float32'
  balance: tuple[str, ...] = ('switch_loss(weight=0.01)',)

  def __post_init__(self):
    if self.tokens < SEQUENCES or self.tokens % SEQUENCES:
      raise UserError(
        f'tokens={self.tokens} must be a multiple of {SEQUENCES}, the sequences'
      )
    if self.dtype not in ('float32', 'bfloat16'):
      raise UserError(f'dtype={self.dtype!r}; valid: float32, bfloat16')


def case(
  o: Options,
  E: int,
  K: int,
  F: int,
  baselines: Sequence[str] = ('dense',),
  naive: bool = False,
) -> cases.Case:
  """Dropping and dropless layers of one size, and what they compare to.

  Args:
    o: options.
    E, K, F: sizes.
    baselines: of 'dense' and 'ragged_dot', the dropless layer by
      `jax.lax.ragged_dot`.
    naive: also the loop over all experts on all tokens.
  """
  candidates = [
    machine.matmul(o.dtype),
    machine.copy(),
    dense(o, K, F),
    own_matmuls(o, E, K, F),
    sparse('dropping', o, E, K, F, 'scatter()', split=True),
  ]
  dropless = dict(DROPLESS)
  if 'ragged_dot' in baselines:
    dropless['ragged_dot'] = "gather_reduce(matmul='ragged_dot')"
  if naive and E <= NAIVE_EXPERTS:
    dropless['naive'] = "gather_reduce(matmul='loop')"
  no_capacity = dataclasses.replace(o, capacity_factor=None)
  candidates += [
    sparse(name, no_capacity, E, K, F, dispatch, compare=True, split=True)
    for name, dispatch in dropless.items()
  ]
  return cases.Case(
    'layer',
    f'E={E} K={K} F={F}',
    {'E': E, 'K': K, 'F': F} | dataclasses.asdict(o),
    candidates,
    (*baselines, 'own_matmuls'),
  )


def setup(o: Options, E: int, K: int, F: int, dispatch: str):
  """A layer, its parameters, tokens [4, L, D] and a cotangent of its result."""
  router = o.router or ('switch()' if K == 1 else 'top_k()')
  layer = moe.MoE(
    num_experts=E,
    router=registry.build('routers', router, k=K),
    experts=scopes.Experts(registry.build('experts', o.experts, d_ff=F)),
    dispatch=scopes.Dispatch(registry.build('dispatch', dispatch)),
    balance=tuple(registry.build('balancing', b) for b in o.balance),
    group_size=o.group_size or o.tokens,
    capacity_factor=o.capacity_factor,
    capacity_rule=capacity.build(o.capacity_rule),
    dtype=o.dtype,
  )
  x, dy = tokens(o)
  params = jax.jit(lambda key: layer.init(key, o.D))(jax.random.key(2))
  if o.zipf:
    x = skew(x, params['router'], E, o.zipf)
  return layer, params, x, dy


def gradient(layer: moe.MoE, params, x, dy):
  """The function ((parameters', tokens' gradients), aux) and its arguments."""

  def loss(params, x, dy):
    y, _, aux = layer(params, layer.init_state(), x, train=True)
    return (y * dy).sum() + aux.loss, aux

  return jax.grad(loss, (0, 1), has_aux=True), params, x, dy


def sparse(
  name: str,
  o: Options,
  E: int,
  K: int,
  F: int,
  dispatch: str,
  compare: bool = False,
  split: bool = False,
) -> cases.Candidate:
  """The layer, with facts about its routing.

  Args:
    name: of the candidate.
    o, E, K, F: as in `case`.
    dispatch: call string.
    compare: its gradient of the tokens with that of other candidates.
    split: its time by part.
  """

  def build():
    args = gradient(*setup(o, E, K, F, dispatch))
    run, facts = cases.compiled(*args, split=split)
    aux = run()[1]
    load_E, cause = np.asarray(aux.load_E), np.asarray(aux.cause)
    facts['kept'] = float(cause[CAUSES.index('kept')] / (o.tokens * K))
    facts['load'] = float(load_E.max() / load_E.mean())
    return run, facts

  of_tokens = (lambda out: out[0][1]) if compare else None
  return cases.Candidate(name, build, *work(o, E, K, F), of_tokens)


def dense(o: Options, K: int, F: int, name: str = 'dense') -> cases.Candidate:
  """A dense FFN as wide as K experts."""

  def build():
    kind = registry.build('experts', o.experts, d_ff=K * F)
    layer = mlp.FFN(kind, dtype=o.dtype)
    x, dy = tokens(o)
    params = jax.jit(lambda key: layer.init(key, o.D))(jax.random.key(2))

    def loss(params, x, dy):
      return (layer(params, x, train=True) * dy).sum()

    return cases.compiled(jax.grad(loss, (0, 1)), params, x, dy)

  whole = dataclasses.replace(o, capacity_factor=None)
  return cases.Candidate(name, build, *work(whole, 1, 1, K * F))


def own_matmuls(o: Options, E: int, K: int, F: int) -> cases.Candidate:
  """E plain FFNs on T x K / E rows each, from separate arrays.

  The same expert kind, so the same products and activations; nothing is
  routed, gathered or summed, and weights and gradients are not stacked.
  """
  C = max(o.tokens * K // E, 1)

  def build():
    kind = registry.build('experts', o.experts, d_ff=F)
    layer = mlp.FFN(kind, dtype=o.dtype)
    keys = jax.random.split(jax.random.key(3), E)
    normal = lambda i: jax.random.normal(
      jax.random.key(i), (1, C, o.D), o.dtype
    )
    x_E, dy_E = ([normal(i + E * j) for i in range(E)] for j in range(2))
    init = jax.jit(lambda key: layer.init(key, o.D))
    params_E = [init(k) for k in keys]

    def loss(params_E, x_E, dy_E):
      return sum(
        (layer(p, x, train=True) * dy).sum()
        for p, x, dy in zip(params_E, x_E, dy_E)
      )

    return cases.compiled(jax.grad(loss, (0, 1)), params_E, x_E, dy_E)

  whole = dataclasses.replace(o, capacity_factor=None)
  return cases.Candidate('own_matmuls', build, *work(whole, E, K, F))


def _gradient_of_tokens(out):
  return out[0][1]


def work(o: Options, E: int, K: int, F: int) -> tuple[float, float]:
  """FLOPs and bytes that forward and backward need.

  FLOPs are those of the experts' products, three times the forward's, on as
  many rows as there are assignments, or seats where these are fewer. Bytes:
  weights are read forward and backward and their gradients written, in float32;
  tokens, results and both gradients pass once. Hidden activations, which a
  fused kernel need not store, count as nothing.
  """
  rows = o.tokens * K
  if o.capacity_factor:
    T = o.group_size or o.tokens
    rule = capacity.build(o.capacity_rule)
    C = capacity.rows(rule, o.capacity_factor, T, K, E)[0]
    rows = min(rows, o.tokens // T * E * C)
  kind = registry.build('experts', o.experts, d_ff=F)
  sizes = experts_base.sizes(kind, E, o.D)
  flops = 3.0 * 2 * rows * sizes['products']
  moved = 3.0 * 4 * (sizes['inner'] + sizes['outer'])
  moved += 4.0 * o.tokens * o.D * jnp.dtype(o.dtype).itemsize
  return flops, moved


def tokens(o: Options) -> tuple[jax.Array, jax.Array]:
  """Normal tokens [4, L, D] and a cotangent of the result."""
  shape = (SEQUENCES, o.tokens // SEQUENCES, o.D)
  draw = lambda seed: jax.random.normal(jax.random.key(seed), shape, o.dtype)
  return draw(0), draw(1)


def skew(x_BLD, params: Any, E: int, s: float) -> jax.Array:
  """Tokens whose choices follow a Zipf law, whatever the router's weights.

  The least change of the tokens that gives the logits log p_e plus Gumbel
  noise: K choices are then a sample without replacement in proportion to p.
  """
  (w_DE,) = jax.tree.leaves(params)
  D = x_BLD.shape[-1]
  if E > D:
    raise UserError(f'zipf: needs E <= D, got E={E}, D={D}')
  logits_BLE = zipf_logits(x_BLD.shape[:2], E, s)
  x_BLD = x_BLD.astype(jnp.float32)
  change_BLE = logits_BLE - x_BLD @ w_DE
  return x_BLD + change_BLE @ jnp.linalg.pinv(w_DE)


def zipf_logits(shape: tuple[int, ...], E: int, s: float) -> jax.Array:
  """float32 [*shape, E]; which expert has which rank is random."""
  rank_E = jax.random.permutation(jax.random.key(5), E) + 1.0
  noise = jax.random.gumbel(jax.random.key(6), (*shape, E))
  return noise - s * jnp.log(rank_E)
