"""What a router is, and the pieces that most routers share."""

import abc
import dataclasses
import fractions
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from moe_jax import registry, types
from moe_jax.errors import UserError
from moe_jax.kernels import chosen

Params = Any
Chosen = chosen.Chosen
# Of routers that rank by no scores; of those by whom experts choose.
fixed, best_tokens = chosen.fixed, chosen.best_tokens


class Router(abc.ABC):
  """Decides who goes where, with what weight, for ONE group of tokens.

  Concrete routers are frozen dataclasses, vmapped over groups by the layer. All
  arithmetic is float32, whatever the model's dtype.

  Class attributes:
    causal: False where a token's routing depends on later tokens of its group,
      whatever the capacity.
    first_fit: as in types.Routing.
    reads_experts: whether it needs `Context.features`.
    takes_bias: whether it chooses by scores, which balancing rules can bias.
    has_matrix: whether the parameter 'kernel' is [D, E], a column an expert.
    compares: when the tokens of a group are compared with one another, so that
      another group size is another method: 'never', in 'train', or 'always'.
    anchors: how many of the first experts are what others are measured by, and
      cannot leave their places.
  """

  causal = True
  first_fit = False
  reads_experts = False
  takes_bias = True
  has_matrix = False
  compares = 'never'
  anchors = 0

  def __post_init__(self):
    """Raises ValueError where own fields do not fit; each class adds to it."""

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
    return ()


class Around(Router):
  """Something done to another router, whose parameters these are.

  Attributes:
    router: it, which the dataclass has as a field.
  """

  router: Router

  def __post_init__(self):
    super().__post_init__()
    for name, value in vars(Router).items():  # what is said of a router
      if not (name.startswith('_') or callable(value)):
        object.__setattr__(self, name, getattr(self.router, name))

  def init(self, key, E, D):
    return self.router.init(key, E, D)

  def init_carry(self, T, E):
    return self.router.init_carry(T, E)

  def check(self, E):
    self.router.check(E)

  def experts_per_token(self, E):
    return self.router.experts_per_token(E)

  def most_edges(self, T):
    return self.router.most_edges(T)


def init_linear(key: jax.Array, E: int, D: int, std: float | None = None):
  """A router matrix [D, E], no bias: {'kernel': f32 [D, E]}.

  Truncated normal of variance 0.1 / D (Fedus et al. 2021, arXiv:2101.03961,
  section 2.4: init scale 0.1), or with `std` a plain normal (flaxformer 0.02,
  Hugging Face 1.0).
  """
  init = jax.nn.initializers.variance_scaling(0.1, 'fan_in', 'truncated_normal')
  if std is not None:
    init = jax.nn.initializers.normal(std)
  return {'kernel': init(key, (D, E), jnp.float32)}


def linear_logits(params: Params, x_TD: jax.Array) -> jax.Array:
  """f32 logits [T, E] = x W_r (Switch Transformer, equation 1)."""
  # TPU and GPU would by default round to bf16 or tf32.
  return jnp.einsum(
    'td,de->te',
    x_TD.astype(jnp.float32),
    params['kernel'],
    precision=jax.lax.Precision.HIGHEST,
  )


class Choosing(Router):
  """Each token has k experts: a field, or of the class, where it is fixed.

  `least_k` is 2 where the weight of a single choice would be 1.
  """

  k: int
  least_k = 1

  def __post_init__(self):
    super().__post_init__()
    check_k(name(self), self.k)
    if self.k < self.least_k:
      why = 'makes every weight 1 and leaves the router without a gradient'
      raise UserError(f'{name(self)}: k=1 {why}; valid: from 2')

  def limit(self, E: int) -> int:
    """The most experts of E to choose; a ValueError where E does not fit."""
    return E

  def check(self, E):
    check_k(name(self), self.k, self.limit(E))

  def experts_per_token(self, E):
    return float(self.k)


@dataclasses.dataclass(frozen=True)
class Matrix(Router):
  """A router of one matrix; init_std: as in `init_linear`."""

  init_std: float | None = None
  has_matrix = True

  def init(self, key, E, D):
    return init_linear(key, E, D, self.init_std)


@dataclasses.dataclass(frozen=True)
class Linear(Matrix):
  """Logits by one matrix, with the published noises; all off by default.

  Attributes:
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

  selective_precision: bool = True
  jitter: float = 0.0
  jitter_on: str = 'input'
  input_dropout: float = 0.0
  sample: float = 0.0

  def __post_init__(self):
    super().__post_init__()
    valid = ('input', 'logits', 'logits_added')
    if self.jitter_on not in valid:
      raise registry.unknown('jitter_on', self.jitter_on, valid)
    rate = self.input_dropout
    if not 0 <= rate < 1:
      raise UserError(f'input_dropout={rate} must be from 0 to below 1')
    for field in ('jitter', 'sample', 'init_std'):
      if (value := getattr(self, field) or 0) < 0:
        raise UserError(f'{field}={value} must not be negative')

  def affinities(self, params, x_TD, ctx) -> dict[str, Any]:
    """As the function; and, as `terms`, the logits without noise."""
    logits_TE, terms, eps = self.logits(params, x_TD), {}, self.jitter
    if ctx.train and (eps or self.input_dropout):
      terms['clean_logits'] = logits_TE
      jitter = lambda v: jax.random.uniform(
        noise_key(ctx, 'jitter'), v.shape, minval=-eps, maxval=eps
      )
      x_TD = x_TD.astype(self._dtype(x_TD))
      if eps and self.jitter_on == 'input':
        x_TD *= (1 + jitter(x_TD)).astype(x_TD.dtype)
      if self.input_dropout:
        keep = 1 - self.input_dropout
        key = noise_key(ctx, 'input_dropout')
        keep_TD = jax.random.bernoulli(key, keep, x_TD.shape)
        x_TD = jnp.where(keep_TD, x_TD / keep, 0).astype(x_TD.dtype)
      logits_TE = self.logits(params, x_TD)
      if eps and self.jitter_on == 'logits':
        logits_TE *= 1 + jitter(logits_TE)
      elif eps and self.jitter_on == 'logits_added':
        logits_TE += 1 + jitter(logits_TE)
    return self.softmax(logits_TE, x_TD) | {'terms': terms}

  def softmax(self, logits_TE, x_TD) -> dict[str, Any]:
    """`affinities` of these logits, in the router's precision."""
    found = affinities(logits_TE.astype(self._dtype(x_TD)))
    as_f32 = {k: v.astype(jnp.float32) for k, v in found.items()}
    return as_f32 | {'logits_TE': logits_TE}

  def choose(self, found, ctx, k, **options) -> Chosen:
    """As the function, by `affinities`; or k draws, which know no bias."""
    scores_TE = found['probs_TE']
    if self.sample and ctx.train:
      # The k largest of logits with Gumbel noise are k draws from the softmax
      # without replacement (Kool et al. 2019, arXiv:1903.06059, section 2).
      noise_TE = jax.random.gumbel(noise_key(ctx, 'sample'), scores_TE.shape)
      scores_TE = found['logits_TE'] / self.sample + noise_TE
      none_E = jnp.zeros_like(ctx.selection_bias_E)
      ctx = ctx.replace(selection_bias_E=none_E, solve=None)
    return choose(scores_TE, ctx, k, **options)

  def logits(self, params, x_TD):
    """f32 logits [T, E], computed in the router's precision."""
    if self.selective_precision:
      return linear_logits(params, x_TD)
    return (x_TD @ params['kernel'].astype(x_TD.dtype)).astype(jnp.float32)

  def _dtype(self, x_TD):
    return jnp.float32 if self.selective_precision else x_TD.dtype


def affinities(
  logits_TE: jax.Array, log_v_TE: jax.Array | None = None
) -> dict[str, jax.Array]:
  """Routing's `logits_TE`, and their softmax as `probs_TE`, `log_probs_TE`.

  Affinities that are none, sigmoids say, come as their logarithms `log_v_TE`,
  and are divided by their sum.
  """
  log_v_TE = logits_TE if log_v_TE is None else log_v_TE
  shares = {'probs_TE': jax.nn.softmax, 'log_probs_TE': jax.nn.log_softmax}
  found = {k: share(log_v_TE) for k, share in shares.items()}
  return {'logits_TE': logits_TE} | found


def biased(
  scores_TE: jax.Array, ctx: types.Context, K: int
) -> tuple[jax.Array, jax.Array | None]:
  """f32 scores with the balancing rules' bias, no gradient; and `solved_E`.

  The bias is the context's, by rules that solve for it for K choices a token.
  """
  scores_TE = jax.lax.stop_gradient(scores_TE)
  if ctx.solve is None:
    return scores_TE + ctx.selection_bias_E, None
  bias_E, solved_E = ctx.solve(scores_TE, ctx.mask_T, K)
  return scores_TE + ctx.selection_bias_E + bias_E, solved_E


def choose(
  scores_TE: jax.Array,
  ctx: types.Context,
  k: int,
  then: Callable[[jax.Array], jax.Array] = lambda scores_TE: scores_TE,
  seats: int | None = None,
) -> Chosen:
  """The k experts of the largest scores, biased; or those that were given.

  Args:
    scores_TE, ctx: as `biased` takes them.
    k: choices of a token.
    then: what the router makes of biased scores before the largest are taken.
    seats: of a token, for the rule that solves; None is k.
  """
  scores_TE, solved_E = biased(scores_TE, ctx, seats or k)
  return chosen.best(then(scores_TE), ctx, k, solved_E)


_NOISES = 'jitter input_dropout sample second_policy gaussian heun'.split()


def noise_key(ctx: types.Context, use: str) -> jax.Array:
  """The group's key for one of a router's noises; a ValueError without one."""
  if ctx.key is None:
    raise UserError(f"router noise {use!r} needs the 'router' random stream")
  return jax.random.fold_in(ctx.key, _NOISES.index(use))


def name(router: Router) -> str:
  """The router's name in messages: its file's."""
  return type(router).__module__.rpartition('.')[2]


def known(ctx: types.Context, field: str, router: str) -> jax.Array:
  """A field of the context; a ValueError where it is not known."""
  if getattr(ctx, field) is None:
    raise UserError(f'the router {router} needs {field}, which is not known')
  return getattr(ctx, field)


def feature(ctx: types.Context, name: str, router: str) -> jax.Array:
  """A feature of the experts' weights; a ValueError where there is none."""
  if name not in ctx.features:
    shown = ', '.join(map(repr, ctx.features)) or 'nothing'
    wanted = f'the router {router} needs experts that show {name!r}'
    raise UserError(f'{wanted}; these show {shown}')
  return ctx.features[name]


def from_experts(
  token_EC: jax.Array, weight_EC: jax.Array, ctx: types.Context, **rest: Any
) -> types.Routing:
  """Expert choice: C tokens an expert, stored and seated in that order.

  `token_EC`, int32, are each expert's tokens, the best first, `weight_EC`, f32,
  their combine weights, `rest` further fields of Routing. No padding.
  """
  token_N = token_EC.reshape(-1).astype(jnp.int32)
  E, real_N = len(token_EC), ctx.mask_T[token_N]
  expert_N = jnp.repeat(jnp.arange(E, dtype=jnp.int32), token_EC.shape[1])
  if ctx.given_TK is not None:
    open_TE = chosen.members(ctx) | chosen.own(ctx)
    real_N &= open_TE[token_N, expert_N]
  return types.Routing(
    token_N=token_N,
    expert_N=jnp.where(real_N, expert_N, E),
    weight_N=jnp.where(real_N, weight_EC.reshape(-1), 0.0),
    num_experts=E,
    given=ctx.given_TK is not None,
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
