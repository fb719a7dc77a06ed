"""What a router is, and the pieces that most routers share."""

import abc
import dataclasses
import fractions
import math
from typing import Any

import jax
import jax.numpy as jnp

from moe_jax import types
from moe_jax.errors import UserError
from moe_jax.kernels import gates

Params = Any


class Router(abc.ABC):
  """Decides who goes where, with what weight, for ONE group of tokens.

  Concrete routers are frozen dataclasses, vmapped over groups by the layer. All
  arithmetic is float32, whatever the model's dtype.

  Class attributes:
    causal: False where a token's routing depends on later tokens of its group,
      whatever the capacity.
    first_fit: as in types.Routing.
    reads_experts: whether it needs `Context.features`.
    has_matrix: whether the parameter 'kernel' is [D, E], a column an expert.
    compares: when the tokens of a group are compared with one another, so that
      another group size is another method: 'never', in 'train', or 'always'.
  """

  causal = True
  first_fit = False
  reads_experts = False
  has_matrix = False
  compares = 'never'

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

  def most_edges(self, T: int) -> int:
    """The most edges that one expert can get from T tokens."""
    return T

  def check(self, E: int) -> None:
    """Raises ValueError where E experts do not fit this router."""

  def init_carry(self, T: int, E: int) -> Any:
    """What the first MoE layer's router finds in `ctx.carry`."""
    del T, E
    return ()


def init_linear(key: jax.Array, E: int, D: int, std: float | None = None):
  """A router matrix [D, E], no bias: {'kernel': f32 [D, E]}.

  Truncated normal of variance 0.1 / D (Fedus et al. 2021, arXiv:2101.03961,
  section 2.4: init scale 0.1), or with `std` a plain normal (flaxformer 0.02,
  Hugging Face 1.0).
  """
  inits = jax.nn.initializers
  init = inits.variance_scaling(0.1, 'fan_in', 'truncated_normal')
  if std is not None:
    init = inits.normal(std)
  return {'kernel': init(key, (D, E), jnp.float32)}


def linear_logits(params: Params, x_TD: jax.Array) -> jax.Array:
  """f32 logits [T, E] = x W_r (Switch Transformer, equation 1).

  Exact in f32, where the default on TPU and GPU rounds to bf16 or tf32.
  """
  return jnp.einsum(
    'td,de->te',
    x_TD.astype(jnp.float32),
    params['kernel'],
    precision=jax.lax.Precision.HIGHEST,
  )


JITTER_ON = ('input', 'logits', 'logits_added')


@dataclasses.dataclass(frozen=True)
class Linear(Router):
  """Logits by one matrix, with the published noises; all off by default.

  Attributes:
    init_std: as in `init_linear`.
    selective_precision: router in float32 whatever the model's dtype (Switch,
      section 2.4); False computes logits and softmax in the tokens' dtype, to
      reproduce Switch's table 2 and V-MoE.
    jitter: half-width eps of uniform noise in training, elementwise (0.01).
    jitter_on: what is multiplied by U(1 - eps, 1 + eps): the router's 'input'
      (Switch, appendix C, and all code) or the 'logits' (ST-MoE, section 3.2);
      'logits_added' adds the same draw to the logits (Switch, appendix F).
    input_dropout: rate of dropout on the router's input in training (Switch,
      table 11: 0.1).
    sample: temperature; above 0 experts are drawn from the softmax in training,
      without replacement (Switch, table 11: 1.0). The weights stay the
      probabilities.
  """

  init_std: float | None = None
  selective_precision: bool = True
  jitter: float = 0.0
  jitter_on: str = 'input'
  input_dropout: float = 0.0
  sample: float = 0.0
  has_matrix = True

  def __post_init__(self):
    if self.jitter_on not in JITTER_ON:
      raise UserError(
        f'jitter_on={self.jitter_on!r}; valid: {", ".join(JITTER_ON)}'
      )
    if not 0 <= self.input_dropout < 1:
      raise UserError(
        f'input_dropout={self.input_dropout} must be from 0 to below 1'
      )
    for name in ('jitter', 'sample', 'init_std'):
      if (getattr(self, name) or 0) < 0:
        raise UserError(f'{name}={getattr(self, name)} must not be negative')

  def init(self, key, E, D):
    return init_linear(key, E, D, self.init_std)

  def affinities(self, params, x_TD, ctx):
    """f32 logits and probabilities [T, E], and further fields of Routing.

    These are the probabilities' logarithms and, as terms, the clean logits.
    """
    logits_TE, terms = self.logits(params, x_TD), {}
    if ctx.train and (self.jitter or self.input_dropout):
      terms['clean_logits'] = logits_TE
      jitter = lambda v: jax.random.uniform(
        noise_key(ctx, 'jitter'),
        v.shape,
        minval=-self.jitter,
        maxval=self.jitter,
      )
      x_TD = x_TD.astype(self._dtype(x_TD))
      if self.jitter and self.jitter_on == 'input':
        x_TD *= (1 + jitter(x_TD)).astype(x_TD.dtype)
      if self.input_dropout:
        keep = 1 - self.input_dropout
        key = noise_key(ctx, 'input_dropout')
        keep_TD = jax.random.bernoulli(key, keep, x_TD.shape)
        x_TD = jnp.where(keep_TD, x_TD / keep, 0).astype(x_TD.dtype)
      logits_TE = self.logits(params, x_TD)
      if self.jitter and self.jitter_on == 'logits':
        logits_TE *= 1 + jitter(logits_TE)
      elif self.jitter and self.jitter_on == 'logits_added':
        logits_TE += 1 + jitter(logits_TE)
    probs_TE, log_probs_TE = self.softmax(logits_TE, x_TD)
    return logits_TE, probs_TE, {'log_probs_TE': log_probs_TE, 'terms': terms}

  def softmax(self, logits_TE, x_TD):
    """f32 probabilities, logarithms too, in the router's precision."""
    found = normalized(logits_TE.astype(self._dtype(x_TD)))
    return [found[k].astype(jnp.float32) for k in ('probs_TE', 'log_probs_TE')]

  def scores(self, logits_TE, probs_TE, ctx, k):
    """What selects k, f32 [T, E], without a gradient; and solved_E."""
    if self.sample and ctx.train:
      # The k largest of logits with Gumbel noise are k draws from the softmax
      # without replacement (Kool et al. 2019, arXiv:1903.06059, section 2).
      key = noise_key(ctx, 'sample')
      noise_TE = jax.random.gumbel(key, logits_TE.shape)
      return logits_TE / self.sample + noise_TE, None
    return biased(probs_TE, k, ctx)

  def logits(self, params, x_TD):
    """f32 logits [T, E], computed in the router's precision."""
    if self.selective_precision:
      return linear_logits(params, x_TD)
    return (x_TD @ params['kernel'].astype(x_TD.dtype)).astype(jnp.float32)

  def _dtype(self, x_TD):
    return jnp.float32 if self.selective_precision else x_TD.dtype


def biased(
  scores_TE: jax.Array, k: int, ctx: types.Context
) -> tuple[jax.Array, jax.Array | None]:
  """Selection scores with the balancing rules' bias, and `Routing.solved_E`.

  Args:
    scores_TE: f32.
    k: choices of a token.
    ctx: for the bias, or the rule that solves for it.
  """
  scores_TE = jax.lax.stop_gradient(scores_TE)
  if ctx.solve is None:
    return scores_TE + ctx.selection_bias_E, None
  bias_E, solved_E = ctx.solve(scores_TE, ctx.mask_T, k)
  return scores_TE + ctx.selection_bias_E + bias_E, solved_E


def normalized(log_v_TE: jax.Array) -> dict[str, jax.Array]:
  """Affinities over their sum, from their logarithms: two of Routing's fields.

  A softmax, in short; for affinities that are none (sigmoids), the quotients.
  """
  return {
    'probs_TE': jax.nn.softmax(log_v_TE),
    'log_probs_TE': jax.nn.log_softmax(log_v_TE),
  }


def mixture(
  gates_TE: jax.Array, ctx: types.Context, **rest: Any
) -> types.Routing:
  """Every expert whose gate is above 0, weighted by it; the largest first.

  T x E edges, unused ones included; the selection bias moves the order alone.
  `logits_TE` is the log of the gates' shares, of at least 1e-6.
  """
  E, probs_TE = gates_TE.shape[-1], gates.shares(gates_TE)
  score_TE = jax.lax.stop_gradient(gates_TE) + ctx.selection_bias_E
  score_TE = jnp.where(gates_TE > 0, score_TE, -jnp.inf)
  score_TK, expert_TK = jax.lax.top_k(score_TE, E)
  used_TK = score_TK > -jnp.inf
  return from_choices(
    jnp.where(used_TK, expert_TK, E),
    jnp.where(used_TK, jnp.take_along_axis(gates_TE, expert_TK, -1), 0),
    ctx,
    E,
    logits_TE=jnp.log(jnp.maximum(probs_TE, 1e-6)),
    probs_TE=probs_TE,
    **rest,
  )


_NOISES = 'jitter input_dropout sample second_policy gaussian heun'.split()


def noise_key(ctx: types.Context, use: str) -> jax.Array:
  """The group's key for one of a router's noises, all independent.

  Raises:
    ValueError: there is no key.
  """
  if ctx.key is None:
    raise UserError(f"router noise {use!r} needs the 'router' random stream")
  return jax.random.fold_in(ctx.key, _NOISES.index(use))


def from_choices(
  expert_TK: jax.Array,
  weight_TK: jax.Array,
  ctx: types.Context,
  E: int,
  log_weight_TK: jax.Array | None = None,
  chosen_TK: jax.Array | None = None,
  **rest: Any,
) -> types.Routing:
  """Token choice: K experts a token, rank-major storage.

  Storage order is also the seating order of every published top-k code: all
  first choices of the group before any second choice. Padding goes to nobody.

  Args:
    expert_TK: int32 [T, K]; E for a choice that is not used.
    weight_TK: f32 [T, K] combine weights.
    ctx: for its mask.
    E: number of experts.
    log_weight_TK, chosen_TK: `Routing.log_weight_N`, `Routing.chosen_N`.
    **rest: further fields of Routing.
  """
  T, K = expert_TK.shape

  def edges(v_TK, of_padding):
    if v_TK is None:
      return None
    return jnp.where(ctx.mask_T[:, None], v_TK, of_padding).T.reshape(-1)

  return types.Routing(
    token_N=jnp.tile(jnp.arange(T, dtype=jnp.int32), K),
    expert_N=edges(expert_TK, E).astype(jnp.int32),
    weight_N=edges(weight_TK, 0.0),
    log_weight_N=edges(log_weight_TK, -jnp.inf),
    chosen_N=edges(chosen_TK, E),
    num_experts=E,
    choices=K,
    **rest,
  )


def known(ctx: types.Context, field: str, router: str) -> jax.Array:
  """A field of the context; a ValueError where it is not known."""
  value = getattr(ctx, field)
  if value is None:
    raise UserError(f'the router {router} needs {field}, which is not known')
  return value


def feature(ctx: types.Context, name: str, router: str) -> jax.Array:
  """A feature of the experts' weights; a ValueError where there is none."""
  if name not in ctx.features:
    raise UserError(
      f'the router {router} needs experts that show {name!r}; these show '
      f'{", ".join(map(repr, ctx.features)) or "nothing"}'
    )
  return ctx.features[name]


def from_experts(
  token_EC: jax.Array, weight_EC: jax.Array, ctx: types.Context, **rest: Any
) -> types.Routing:
  """Expert choice: C tokens an expert, stored and seated in that order.

  Args:
    token_EC: int32 [E, C], each expert's tokens, the best first.
    weight_EC: f32 [E, C] combine weights.
    ctx: for its mask; padding goes to nobody.
    **rest: further fields of Routing.
  """
  E, C = token_EC.shape
  token_N = token_EC.reshape(-1).astype(jnp.int32)
  expert_N = jnp.repeat(jnp.arange(E, dtype=jnp.int32), C)
  real_N = ctx.mask_T[token_N]
  return types.Routing(
    token_N=token_N,
    expert_N=jnp.where(real_N, expert_N, E),
    weight_N=jnp.where(real_N, weight_EC.reshape(-1), 0.0),
    num_experts=E,
    **rest,
  )


def rows(choices: float, T: int, E: int) -> int:
  """ceil(choices T / E), at most T: tokens that an expert takes; exact."""
  return min(T, math.ceil(fractions.Fraction(str(choices)) * T / E))


def check_choices(name: str, choices: float, E: int | None = None) -> None:
  """Raises ValueError unless 0 < choices (<= E): mean experts of a token."""
  if not choices > 0 or (E is not None and choices > E):
    limit = '' if E is None else f' to num_experts={E}'
    raise UserError(f'{name}: choices={choices}; valid: above 0{limit}')


def check_k(name: str, k: int, E: int | None = None) -> None:
  """Raises ValueError where k is no whole number from 1 (to E)."""
  if not isinstance(k, int) or k < 1:
    raise UserError(f'{name}: k={k!r} must be a whole number from 1')
  if E is not None and k > E:
    raise UserError(f'{name}: k={k} exceeds num_experts={E}')


SECOND_POLICIES = ('all', 'threshold', 'random', 'gshard', 'sampled')


def used_choices(
  policy: str, share_TK: jax.Array, threshold: float, ctx: types.Context
) -> jax.Array:
  """bool [T, K]: which choices a policy uses; the first always.

  Args:
    policy: one of SECOND_POLICIES.
    share_TK: each choice's share of the K probabilities.
    threshold: of 'threshold' and 'random'; 'gshard' has 0.5.
    ctx: for its key.
  """
  used_TK = jnp.ones(share_TK.shape, bool)
  if policy == 'threshold':
    used_TK = share_TK >= threshold
  elif policy in ('random', 'gshard'):
    key = noise_key(ctx, 'second_policy')
    level_TK = jax.random.uniform(key, share_TK.shape)
    used_TK = level_TK * (threshold if policy == 'random' else 0.5) < share_TK
  return used_TK.at[:, 0].set(True)


def draw_others(
  first_T: jax.Array, logits_TE: jax.Array, k: int, ctx: types.Context
) -> jax.Array:
  """int32 [T, k]: the first choices, then k - 1 draws from the others.

  Without replacement, by their softmax (lingvo's and fairscale's 'sampling').
  """
  noise_TE = jax.random.gumbel(noise_key(ctx, 'second_policy'), logits_TE.shape)
  is_first_TE = first_T[:, None] == jnp.arange(logits_TE.shape[-1])
  scores_TE = jnp.where(is_first_TE, jnp.inf, logits_TE + noise_TE)
  return jax.lax.top_k(scores_TE, k)[1]
