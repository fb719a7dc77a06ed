"""Distillation: another run's model, whose probabilities a run learns from.

Switch Transformer (Fedus et al. 2021, arXiv:2101.03961), section 4.2, tables 6
to 8, after Hinton et al. 2015 (arXiv:1503.02531), at temperature 1: the loss is

  (1 - w) CE(labels, student) + w CE(teacher's probabilities, student)

with w = 0.25 in table 6. The teacher runs on the student's batches in
evaluation mode: no dropout, no noise, its capacity of evaluation. It gets no
gradient and is in no checkpoint of the student's.
"""

import dataclasses
from typing import Any

import jax

from moe_jax.training import (
  checks,
  session as session_lib,
  sources,
  state as state_lib,
)

FIELD = 'teacher'


@dataclasses.dataclass(frozen=True)
class Teacher:
  """A model, and its variables on the student's mesh.

  Attributes:
    model: of the student's problem.
    variables: {'params': ..., 'balance': ...}; an argument of the train step,
      not a constant in it.
  """

  model: Any
  variables: dict[str, Any]


def load(session: session_lib.Session) -> Teacher | None:
  """Reads the teacher of `train.teacher`; None where it is ''.

  Raises:
    ValueError: no checkpoint there, another vocabulary, or a model that does
      not fit this mesh and batch.
  """
  source = sources.find(session.config, FIELD, session.problem)
  if source is None:
    return None
  model, lay, config = source.model(session)
  try:
    session.problem.check_teacher(model, session.model)
    sizes = dict(session.mesh.shape)
    checks.check_batch(config, session.problem, sizes, 'eval')
  except ValueError as e:
    raise source.error(e) from None
  wanted = state_lib.abstract_variables(lay, session.mesh)
  read = source.read(wanted)
  return Teacher(model, {k: v for k, v in read.items() if jax.tree.leaves(v)})
