"""The best checkpoint so far, by a score of the validation set."""

from collections.abc import Mapping
from typing import Any

from moe_jax import registry
from moe_jax.errors import UserError
from moe_jax.problems import base as problems

_LOSS = 'eval/loss'


def check(config, problem: problems.Problem) -> None:
  """Raises ValueError where `train.keep_best` is no score of the problem."""
  name = config.train.keep_best
  valid = {_LOSS, *(score.key for score in problem.shown)}
  if name and name not in valid:
    raise registry.unknown('train.keep_best', name, valid)
  if name and not config.train.eval_every:
    raise UserError(
      f'train.keep_best={name!r} chooses among evaluations; train.eval_every=0'
      ' makes one, at the end'
    )


class Best:
  """Which step it was."""

  def __init__(
    self,
    name: str,
    problem: problems.Problem,
    kept: Mapping[str, Any] | None = None,
  ):
    """Goes on from `kept`, the `state` in a checkpoint.

    Args:
      name: of the score; '' is none.
      problem: whose score it is.
      kept: left out where it is of another score.
    """
    self._name = name
    higher = [s.key for s in problem.shown if s.better == 'higher']
    self._sign = 1 if name in higher else -1
    self._kept = dict(kept) if kept and kept['of'] == name else None

  def add(self, step: int, scores: Mapping[str, Any]) -> bool:
    """Takes an evaluation; whether the state after this step is the best."""
    if not self._name:
      return False
    score, best = float(scores[self._name]), self._kept
    better = best is None or self._sign * (score - best['score']) > 0
    if better:
      self._kept = {'of': self._name, 'score': score, 'step': step}
    return better

  def state(self) -> dict[str, Any] | None:
    """JSON, for a checkpoint: 'of', 'score' and 'step'."""
    return self._kept

  def summary(self) -> dict[str, int]:
    return {'best_step': self._kept['step']} if self._kept else {}
