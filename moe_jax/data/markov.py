"""Order-1 Markov chains whose entropy is known exactly: data without files.

The rows of chain c's transition matrix are drawn from a symmetric Dirichlet, so
that chains share nothing but their alphabet. A sequence starts from its chain's
stationary distribution, so every position has that distribution, too.
"""

import bisect
import functools

import numpy as np

from moe_jax.errors import UserError


class Chains:
  """`chains` matrices over `states` symbols.

  Attributes:
    step_CSS: p(column | row) of each chain, float64.
    start_CS: its stationary distribution.

  Raises:
    ValueError: a count or a concentration that gives no chains.
  """

  def __init__(self, chains: int, states: int, concentration: float, seed: int):
    for name, value, least in (('chains', chains, 1), ('states', states, 2)):
      if not (isinstance(value, int) and value >= least):
        raise UserError(
          f'{name}={value!r}: expected a whole number of at least {least}'
        )
    if not concentration > 0:
      raise UserError(f'concentration={concentration!r}: expected more than 0')
    rng = np.random.default_rng([seed, 0])
    alpha_S = np.full(states, float(concentration))
    self.step_CSS = rng.dirichlet(alpha_S, size=(chains, states))
    self.start_CS = np.stack([stationary(p) for p in self.step_CSS])

  @functools.cached_property
  def _ladders(self):
    """Cumulative sums as lists, which `bisect` is fast on."""
    return self.start_CS.cumsum(-1).tolist(), self.step_CSS.cumsum(-1).tolist()

  def draw(self, rng: np.random.Generator, chain: int, length: int):
    """A sequence of a chain. int32 [length]."""
    start, step = self._ladders
    last, ladder, out = self.start_CS.shape[1] - 1, start[chain], []
    for u in rng.random(length).tolist():
      out.append(min(bisect.bisect_right(ladder, u), last))  # sums may be < 1
      ladder = step[chain][out[-1]]
    return np.array(out, np.int32)

  def log_likelihood(self, symbols_L: np.ndarray) -> np.ndarray:
    """Of a sequence under each chain, nats. float64 [C]; -inf is no chance."""
    with np.errstate(divide='ignore'):
      first_C = np.log(self.start_CS[:, symbols_L[0]])
      later_CL = np.log(self.step_CSS[:, symbols_L[:-1], symbols_L[1:]])
    return first_C + later_CL.sum(-1)

  def entropy(self, length: int) -> float:
    """Nats a symbol of `length`, given the chain; the mean over chains."""
    first_C = _nats(self.start_CS)
    later_C = (self.start_CS * _nats(self.step_CSS)).sum(-1)
    return float((first_C + (length - 1) * later_C).mean() / length)


def stationary(step_SS: np.ndarray) -> np.ndarray:
  """The distribution that a step leaves as it is. float64 [S]."""
  size = len(step_SS)
  # pi (P - 1) = 0 and sum(pi) = 1: one equation too many, which agrees.
  a = np.concatenate([step_SS.T - np.eye(size), np.ones((1, size))])
  pi_S = np.linalg.lstsq(a, np.append(np.zeros(size), 1.0), rcond=None)[0]
  pi_S = np.maximum(pi_S, 0)
  return pi_S / pi_S.sum()


def _nats(p):
  return -(p * np.log(np.where(p > 0, p, 1))).sum(-1)
