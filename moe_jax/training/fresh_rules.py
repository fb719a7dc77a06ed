"""A run goes on with other balancing rules: state that its checkpoint lacks.

`--allow=moe.balance` lets a run add or drop rules. The state of an added rule
begins as in a new run; that of a dropped one is left where it is, unread.
"""

import pathlib
from collections.abc import Callable
from typing import Any

import jax

from moe_jax.runs import checkpoint
from moe_jax.training import session as session_lib, state as state_lib

_STATE = 'balance/'


def of_run(
  session: session_lib.Session,
  workdir: str | pathlib.Path,
  step: int | None = None,
) -> tuple[state_lib.TrainState, dict[str, Any]]:
  """A run's state, and what its checkpoint knows of it.

  Args:
    session: of the run's config, which may be newer than the checkpoint.
    workdir: of the run.
    step: of the checkpoint; None is the newest.

  Raises:
    ValueError: as `restore`.
  """
  abstract = session.abstract_state

  def fresh():
    s, seed = session, session.config.seed
    return state_lib.init(s.model, s.tx, s.dummy, seed, s.shardings)

  path = pathlib.Path(workdir) / 'checkpoints'
  with checkpoint.Checkpointer(path, session.config.train.keep) as checkpoints:
    return restore(checkpoints, abstract, fresh, lambda line: None, step)


def restore(
  checkpoints: checkpoint.Checkpointer,
  abstract: Any,
  initialize: Callable[[], Any],
  say: Callable[[str], None],
  step: int | None = None,
) -> tuple[Any, dict[str, Any]]:
  """`checkpoints.restore(abstract)`, with fresh state of rules not in it.

  Args:
    checkpoints: of the run.
    abstract: train state, as `Checkpointer.restore` takes it.
    initialize: makes a fresh state; called where a rule was added.
    say: is given the line that names the rules.
    step: of the checkpoint; None is the newest.

  Raises:
    ValueError: as `Checkpointer.restore`.
  """
  wanted = checkpoint.named(abstract)
  try:
    there = checkpoint.shapes(checkpoints.directory, step)
  except ValueError:  # damaged, which `restore` deals with
    return checkpoints.restore(abstract, step)
  added = [k for k in wanted if k.startswith(_STATE) and k not in there]
  gone = [k for k in there if k not in wanted]
  if not added and not any(k.startswith(_STATE) for k in gone):
    return checkpoints.restore(abstract, step)
  # Whatever else is only there is as wrong as ever.
  partial = all(k.startswith(_STATE) for k in gone)
  asked = {k: v for k, v in wanted.items() if k not in added}
  found, data = checkpoints.restore(asked, step, partial=partial)
  if added:
    fresh = checkpoint.named(initialize())
    found |= {k: fresh[k] for k in added}
    say(f'fresh state, which the checkpoint has not: {_rules(added)}')
  if gone:
    say(f'state of the checkpoint that is left out: {_rules(gone)}')
  treedef = jax.tree.structure(abstract)
  return treedef.unflatten(found[k] for k in wanted), data


def _rules(leaves: list[str]) -> str:
  """The rules whose state they are: '.../moe/state/loss_free_bias'."""
  rules = (k.partition('/state/')[2].partition('/')[0] for k in leaves)
  return ', '.join(dict.fromkeys(rules))
