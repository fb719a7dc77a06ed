"""Branch-Train-Merge: several language models as one, by the text so far.

Margaret Li et al., "Branch-Train-Merge: Embarrassingly Parallel Training of
Expert Language Models", 2022, arXiv:2208.03306, section 3: the next token is

  p(x_t | x_<t) = sum_j p(x_t | x_<t, D = j) p(D = j | x_<t)

where model j is of domain j and the posterior of the domain is Bayes' on what
the models gave the tokens before, those of its own segment:

  p(D = j | x_<t) = p(x_<t | D = j) p(D = j) / sum_i p(x_<t | D = i) p(D = i)

The prior is uniform, or an exponential average of posteriors at the end of
texts (recalled: decay 0.3, over 100 texts; from Gururangan et al. 2021,
arXiv:2108.05036). With `top_k` the k largest posteriors of a token are kept and
divided by their sum. FlexOlmo's baseline (Shi et al. 2025, arXiv:2507.07024)
averages logits instead, by softmax(-L_j / tau) of each model's loss; there of
the whole text, here of the tokens before, so that it is causal.

The cost is that of all models, whatever top_k is: each has to read the text.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P

from moe_jax import registry
from moe_jax.errors import UserError
from moe_jax.problems import losses
from moe_jax.training import session as session_lib, step as step_lib


@dataclasses.dataclass(frozen=True)
class Bayes:
  """Probabilities, averaged by the posterior of the domain.

  Attributes:
    top_k: models that a token keeps; 0 is all.
    prior: 'uniform', or 'average' of posteriors over training texts.
    decay: of that average: the share of the newest.
    texts: how many.
  """

  top_k: int = 0
  prior: str = 'uniform'
  decay: float = 0.3
  texts: int = 100

  def __post_init__(self):
    if self.prior not in ('uniform', 'average'):
      valid = ('uniform', 'average')
      raise registry.unknown('prior of bayes', str(self.prior), valid)
    if not (0 < self.decay <= 1 and self.texts >= 1):
      raise UserError(
        f'bayes: decay={self.decay}, texts={self.texts}; valid: above 0 to 1, '
        'and from 1'
      )

  def log_weights(self, log_p_JBL, starts_BL, log_prior_J):
    """f32 [J, B, L], of each model for each token; their exps sum to 1.

    Args:
      log_p_JBL: what each model gives each token.
      starts_BL: bool, the first token of a segment.
      log_prior_J: of the models.
    """
    before_JBL = _before(log_p_JBL, starts_BL)
    return _kept(before_JBL + log_prior_J[:, None, None], self.top_k)

  def mixed(self, logits_JBLV, log_w_JBL):
    """f32 [B, L, V], logarithms of the mixture's probabilities."""
    log_p_JBLV = jax.nn.log_softmax(logits_JBLV.astype(jnp.float32))
    return jax.nn.logsumexp(log_p_JBLV + log_w_JBL[..., None], axis=0)


@dataclasses.dataclass(frozen=True)
class Logits:
  """Logits, averaged by softmax(-loss / tau): FlexOlmo's baseline.

  Attributes:
    top_k: models that a token keeps; 0 is all.
    tau: of the loss, the mean over the tokens before, in nats.
  """

  top_k: int = 0
  tau: float = 1.0
  prior = 'uniform'

  def __post_init__(self):
    if not self.tau > 0:
      raise UserError(f'logits: tau={self.tau}; valid: above 0')

  def log_weights(self, log_p_JBL, starts_BL, log_prior_J):
    """As of `Bayes`; a segment's first token has equal weights."""
    before_JBL = _before(log_p_JBL, starts_BL)
    tokens_BL = _before(jnp.ones_like(log_p_JBL[:1]), starts_BL)[0]
    mean_JBL = before_JBL / jnp.maximum(tokens_BL, 1.0)
    return _kept(mean_JBL / self.tau, self.top_k)

  def mixed(self, logits_JBLV, log_w_JBL):
    """f32 [B, L, V], logits."""
    w_JBL1 = jnp.exp(log_w_JBL)[..., None]
    return (w_JBL1 * logits_JBLV.astype(jnp.float32)).sum(0)


WAYS = {'bayes': Bayes, 'logits': Logits}


def build(spec: str, models: int) -> Bayes | Logits:
  """`'bayes(top_k=2)'`, for so many models.

  Raises:
    ValueError: an unknown way or option, or a top_k above the models.
  """
  way = registry.call(spec, WAYS, 'ensemble')
  if type(way.top_k) is not int or not 0 <= way.top_k <= models:
    raise UserError(
      f'{spec}: top_k={way.top_k!r}; valid: 1 to {models} models, or 0 for all'
    )
  return way


def _before(v_JBL, starts_BL):
  """Sums over the tokens before, of the same segment; no long differences."""

  def join(a, b):
    (x, at), (y, here) = a, b
    return jnp.where(here, y, x + y), at | here

  shifted_JBL = jnp.pad(v_JBL, ((0, 0), (0, 0), (1, 0)))[..., :-1]
  shifted_JBL = jnp.where(starts_BL, 0.0, shifted_JBL)
  resets_JBL = jnp.broadcast_to(starts_BL, v_JBL.shape)
  scanned = jax.lax.associative_scan(join, (shifted_JBL, resets_JBL), axis=-1)
  return scanned[0]


def _kept(score_JBL, top_k):
  """Log-softmax over the models, of the `top_k` largest alone."""
  if top_k:
    J = len(score_JBL)
    best_BLK = jax.lax.top_k(jnp.moveaxis(score_JBL, 0, -1), top_k)[1]
    kept_BLJ = jax.nn.one_hot(best_BLK, J, dtype=bool).any(-2)
    score_JBL = jnp.where(jnp.moveaxis(kept_BLJ, -1, 0), score_JBL, -jnp.inf)
  return jax.nn.log_softmax(score_JBL, axis=0)


@dataclasses.dataclass(frozen=True)
class Member:
  """One of the models.

  Attributes:
    name: of its run.
    session: of its run, on the mesh and the data of the first.
    variables: {'params', 'balance'}.
  """

  name: str
  session: session_lib.Session
  variables: Mapping[str, Any]


def check(members: list[Member]) -> None:
  """Raises ValueError where models cannot be one: what they say differs."""
  first = members[0].session
  for own in members:
    try:
      if own.session.model.stacks.keys() != {'decoder'}:
        raise UserError('it is no decoder')
      first.problem.check_teacher(own.session.model, first.model)
      differs = first.problem.differs(own.session.problem)
      if differs:
        raise UserError(differs)
    except ValueError as e:
      raise UserError(f'{own.name}: {e}') from None


def measure(members: list[Member], way: Bayes | Logits) -> dict[str, Any]:
  """Scores of the ensemble and of each model, on the first's validation set.

  Returns:
    The problem's scores of the ensemble; under 'models' {name: scores of it
    alone}; under 'difference' {name: of the ensemble less that model, paired by
    document}; under 'weights' {name: its mean weight over tokens}.
  """
  check(members)
  first = members[0].session
  problem, data = first.problem, first.data
  run = jax.jit(_step(members, way, data), out_shardings=_replicated(first))
  variables = [m.variables for m in members]
  log_prior_J = _prior(members, way)
  sums = None
  for batch in first.validation():
    out = run(variables, first.put(batch), log_prior_J)
    sums = out if sums is None else jax.tree.map(jnp.add, sums, out)
  sums = jax.device_get(sums)
  names = [m.name for m in members]
  weights_J = np.asarray(sums['weights'], np.float64)
  weights_J /= max(weights_J.sum(), 1.0)
  both = lambda own: problem.difference(sums['whole'], own, data)
  return problem.scores(sums['whole'], data) | {
    'models': {
      n: problem.scores(own, data) for n, own in zip(names, sums['models'])
    },
    'difference': {n: both(own) for n, own in zip(names, sums['models'])},
    'weights': dict(zip(names, weights_J.tolist())),
    'prior': dict(zip(names, np.exp(log_prior_J).tolist())),
  }


def _replicated(session):
  return NamedSharding(session.mesh, P())


def _outputs(members, variables, batch, log_prior_J, way):
  """(logits of each model, their log-weights, log-likelihoods) of a batch."""
  logits = [
    step_lib.evaluated(m.session.model, dict(v), batch)[0]
    for m, v in zip(members, variables)
  ]
  real_BL = losses.counted(batch)
  log_p_JBL = jnp.stack(
    [
      jnp.where(real_BL, -losses.token_nll(own, batch['targets']), 0.0)
      for own in logits
    ]
  )
  starts_BL = batch['positions'] == 0
  return logits, way.log_weights(log_p_JBL, starts_BL, log_prior_J), log_p_JBL


def _step(members, way, data) -> Callable:
  judge = members[0].session.problem.judge

  def step(variables, batch, log_prior_J):
    given = members, variables, batch, log_prior_J
    logits, log_w_JBL, _ = _outputs(*given, way)
    whole = way.mixed(jnp.stack(logits), log_w_JBL)
    w_JBL = jnp.where(losses.counted(batch), jnp.exp(log_w_JBL), 0.0)
    return {
      'whole': judge(whole, batch, data),
      'models': [judge(own, batch, data) for own in logits],
      'weights': w_JBL.sum((1, 2)),
    }

  return step


def _prior(members, way) -> np.ndarray:
  """Logarithms [J]; an average is of posteriors behind whole training rows."""
  J, first = len(members), members[0].session
  prior_J = np.full(J, 1 / J)
  if way.prior == 'uniform':
    return np.log(prior_J).astype(np.float32)

  def ends(variables, batch):
    *_, log_p_JBL = _outputs(members, variables, batch, jnp.zeros(J), way)
    return jax.nn.softmax(log_p_JBL.sum(-1), axis=0)

  ends = jax.jit(ends, out_shardings=_replicated(first))
  variables = [m.variables for m in members]
  size, posteriors = first.config.eval.batch_size, []
  batches = first.data.train(
    seed=first.config.seed,
    batch_size=size,
    process_index=jax.process_index(),
    process_count=jax.process_count(),
  )
  for _ in range(-(-way.texts // size)):
    found_JB = ends(variables, first.put(next(batches)))
    posteriors += list(np.asarray(found_JB, np.float64).T)
  for posterior_J in posteriors[: way.texts]:
    prior_J = way.decay * posterior_J + (1 - way.decay) * prior_J
  return np.log(np.maximum(prior_J, 1e-30)).astype(np.float32)
