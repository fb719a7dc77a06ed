"""A run goes on with other balancing rules: state that its checkpoint lacks.

`--allow=moe.balance` lets a run add or drop rules. The state of an added rule
begins as in a new run; that of a dropped one is left where it is, unread.
"""

from collections.abc import Callable
from typing import Any

import jax

from moe_jax.runs import checkpoint

_STATE = 'balance/'


def restore(
  checkpoints: checkpoint.Checkpointer,
  abstract: Any,
  initialize: Callable[[], Any],
  say: Callable[[str], None],
) -> tuple[Any, dict[str, Any]]:
  """`checkpoints.restore(abstract)`, with fresh state of rules not in it.

  Args:
    checkpoints: of the run.
    abstract: train state, as `Checkpointer.restore` takes it.
    initialize: makes a fresh state; called where a rule was added.
    say: is given the line that names the rules.

  Raises:
    ValueError: as `Checkpointer.restore`.
  """
  wanted = checkpoint.named(abstract)
  try:
    there = checkpoint.shapes(checkpoints.directory)
  except ValueError:  # damaged, which `restore` deals with
    return checkpoints.restore(abstract)
  added = [k for k in wanted if k.startswith(_STATE) and k not in there]
  gone = [k for k in there if k not in wanted]
  if not added and not any(k.startswith(_STATE) for k in gone):
    return checkpoints.restore(abstract)
  # Whatever else is only there is as wrong as ever.
  partial = all(k.startswith(_STATE) for k in gone)
  asked = {k: v for k, v in wanted.items() if k not in added}
  found, data = checkpoints.restore(asked, partial=partial)
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
