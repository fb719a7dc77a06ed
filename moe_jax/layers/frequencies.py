"""Rotary frequencies of models that read further than they first did."""

import abc
import dataclasses
import math

import numpy as np

from moe_jax import registry
from moe_jax.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scaling(abc.ABC):
  """How frequencies are changed.

  Attributes:
    factor: how many times further.
  """

  factor: float

  def __post_init__(self):
    for f in dataclasses.fields(self):
      v = getattr(self, f.name)
      least = f.name not in ('factor', 'original_length')
      if not isinstance(v, bool) and (v < 0 or (v == 0 and not least)):
        raise UserError(f'{f.name}={v} must be {"0 or " * least}positive')

  @abc.abstractmethod
  def frequencies(self, frequency_P: np.ndarray, base: float) -> np.ndarray:
    """From base^(-2j/J), f64 [J/2]."""

  @property
  @abc.abstractmethod
  def factor_on_turned(self) -> float:
    """What turned queries and keys are multiplied by; twice in a product."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Linear(Scaling):
  """Positions divided by `factor` (Chen et al. 2023, arXiv:2306.15595)."""

  def frequencies(self, frequency_P, base):
    return frequency_P / self.factor

  @property
  def factor_on_turned(self):
    return 1.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Yarn(Scaling):
  """Slow pairs are slowed, fast ones are not (arXiv:2309.00071, section 3.2).

  Peng et al. 2023; the factor on what is turned is theirs of section 3.4,
  equation 22, by halves on queries and keys.

  Attributes:
    original_length: tokens that the model first read.
    beta_fast, beta_slow: turns within them above which a pair is kept, and
      below which it is slowed by all of `factor`; between them linear in j.
    truncate: whether these two places are rounded outwards to whole pairs.
    attention_factor: on what is turned; 0 is 0.1 ln(factor) + 1.
  """

  original_length: int
  beta_fast: float = 32.0
  beta_slow: float = 1.0
  truncate: bool = True
  attention_factor: float = 0.0

  def frequencies(self, frequency_P, base):
    P = len(frequency_P)
    place = lambda turns: (
      P
      * math.log(self.original_length / (turns * 2 * math.pi))
      / math.log(base)
    )
    low, high = place(self.beta_fast), place(self.beta_slow)
    if self.truncate:
      low, high = math.floor(low), math.ceil(high)
    # Clipped to the head's width, though there are half as many pairs.
    low, high = max(low, 0), min(high, 2 * P - 1)
    width = high - low or 0.001
    slowed_P = np.clip((np.arange(P) - low) / width, 0, 1)
    return frequency_P * (1 - slowed_P + slowed_P / self.factor)

  @property
  def factor_on_turned(self):
    return self.attention_factor or 0.1 * math.log(max(self.factor, 1)) + 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Llama3(Scaling):
  """By wavelength, as of Llama 3.1 (arXiv:2407.21783, section 3.4.2; code).

  Attributes:
    original_length: tokens that the model first read.
    low, high: turns within them below which a pair is slowed by all of
      `factor`, and above which it is kept; between them linear in turns.
  """

  original_length: int
  low: float = 1.0
  high: float = 4.0

  def __post_init__(self):
    super().__post_init__()
    if self.low > self.high:
      raise UserError(f'low={self.low} must not exceed high={self.high}')

  def frequencies(self, frequency_P, base):
    turns_P = self.original_length * frequency_P / (2 * math.pi)
    # Equal, as in Llama 4 Scout: a step.
    width = self.high - self.low or 1e-9
    kept_P = np.clip((turns_P - self.low) / width, 0, 1)
    return frequency_P * (kept_P + (1 - kept_P) / self.factor)

  @property
  def factor_on_turned(self):
    return 1.0


KINDS = {'linear': Linear, 'yarn': Yarn, 'llama3': Llama3}


def build(spec: str) -> Scaling:
  """`'yarn(factor=4.0, original_length=4096)'` -> how frequencies change."""
  return registry.call(spec, KINDS, 'scaling')
