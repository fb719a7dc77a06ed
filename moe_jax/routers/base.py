"""What a router is, and the pieces that most routers share."""

import abc
from typing import Any

import jax
import jax.numpy as jnp

from moe_jax import types

Params = Any


class Router(abc.ABC):
  """Decides who goes where, with what weight, for ONE group of tokens.

  Concrete routers are frozen dataclasses. The layer vmaps them over groups. All
  arithmetic is float32, whatever the model's dtype.

  Attributes:
    causal: False where a token's routing depends on later tokens of its group,
      whatever the capacity.
  """

  causal: bool = True

  @abc.abstractmethod
  def init(self, key: jax.Array, E: int, D: int) -> Params:
    """float32 parameters for E experts and model width D."""

  @abc.abstractmethod
  def __call__(
    self, params: Params, x_TD: jax.Array, ctx: types.Context
  ) -> types.Routing:
    """Routes the tokens `x_TD` (any float dtype) of one group."""

  @abc.abstractmethod
  def experts_per_token(self, E: int) -> float:
    """Mean experts a token is sent to: the active share of the parameters."""

  def check(self, E: int) -> None:
    """Raises ValueError where E experts do not fit this router."""

  def init_carry(self, T: int, E: int) -> Any:
    """What the first MoE layer's router finds in `ctx.carry`."""
    del T, E
    return ()


def init_linear(key: jax.Array, E: int, D: int) -> Params:
  """A router matrix [D, E]: truncated normal, variance 0.1 / D, no bias.

  Fedus et al. 2021, arXiv:2101.03961, section 2.4 (init scale 0.1).
  """
  init = jax.nn.initializers.variance_scaling(0.1, 'fan_in', 'truncated_normal')
  return {'kernel': init(key, (D, E), jnp.float32)}


def linear_logits(params: Params, x_TD: jax.Array) -> jax.Array:
  """f32 logits [T, E] = x W_r (Switch Transformer, equation 1).

  The input is cast up, and the product is exact in f32 on TPU and GPU too
  ('highest'), where the default rounds its arguments to bf16 or tf32.
  """
  return jnp.einsum(
    'td,de->te',
    x_TD.astype(jnp.float32),
    params['kernel'],
    precision=jax.lax.Precision.HIGHEST,
  )


def jitter(x_TD: jax.Array, eps: float, ctx: types.Context) -> jax.Array:
  """x * U(1 - eps, 1 + eps), elementwise, in training only.

  Fedus et al. 2021, appendix C. On the router's copy alone: the experts see the
  clean tokens.
  """
  if not eps or not ctx.train:
    return x_TD
  if ctx.key is None:
    raise ValueError(f"router jitter={eps} needs the 'router' random stream")
  x_TD = x_TD.astype(jnp.float32)
  noise = jax.random.uniform(
    ctx.key, x_TD.shape, minval=1 - eps, maxval=1 + eps
  )
  return x_TD * noise


def from_choices(
  expert_TK: jax.Array, weight_TK: jax.Array, ctx: types.Context, E: int, **rest
) -> types.Routing:
  """Token choice: K experts a token, rank-major storage.

  Storage order is also the seating order of every published top-k code: all
  first choices of the group before any second choice. Padding goes to nobody.

  Args:
    expert_TK: int32 [T, K].
    weight_TK: f32 [T, K] combine weights.
    ctx: for its mask.
    E: number of experts.
    **rest: further fields of Routing.
  """
  T, K = expert_TK.shape
  mask_T1 = ctx.mask_T[:, None]
  expert_TK = jnp.where(mask_T1, expert_TK, E).astype(jnp.int32)
  weight_TK = jnp.where(mask_T1, weight_TK, 0.0)
  return types.Routing(
    token_N=jnp.tile(jnp.arange(T, dtype=jnp.int32), K),
    expert_N=expert_TK.T.reshape(-1),
    weight_N=weight_TK.T.reshape(-1),
    num_experts=E,
    choices=K,
    **rest,
  )
