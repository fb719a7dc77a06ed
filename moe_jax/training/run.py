"""One run: its session and files, where it starts, what it computes with."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax

from moe_jax.kernels import plain
from moe_jax.models import factory
from moe_jax.runs import checkpoint, resume, workdir as workdir_lib
from moe_jax.training import (
  evaluation,
  fresh_rules,
  kept_data,
  session as session_lib,
  start as start_lib,
  state as state_lib,
  step as step_lib,
  teacher as teacher_lib,
)


@dataclasses.dataclass(frozen=True)
class Begun:
  """Where a run takes up: after `step` steps of `rows` rows in all.

  Attributes:
    state: of the train state; None where it was taken.
    step, rows: done before.
    kept: what the checkpoint has beside its arrays; {} of a fresh run.
  """

  state: state_lib.TrainState | None
  step: int
  rows: int
  kept: dict[str, Any]

  def row(self, step: int, session: session_lib.Session) -> int:
    """The first row not trained on, after a step of this start or its last."""
    return self.rows + (step - self.step) * session.config.train.batch_size


@dataclasses.dataclass(frozen=True)
class Run:
  """What stays the same from the first step to the last.

  Attributes:
    session: with its data.
    workdir, config: of the run; the config as JSON has it.
    checkpoints: of the workdir.
    teacher: or None.
  """

  session: session_lib.Session
  workdir: str
  config: dict[str, Any]
  checkpoints: checkpoint.Checkpointer
  teacher: teacher_lib.Teacher | None

  @property
  def lead(self) -> bool:
    return jax.process_index() == 0

  @property
  def key(self) -> jax.Array:
    return jax.random.key(self.session.config.seed)

  def start(self, begin: start_lib.Start | None) -> Begun:
    """The newest checkpoint, or a fresh state that goes through `begin`."""
    s = self.session
    new = self.fresh
    if self.checkpoints.latest() is None:
      state = new()
      found = Begun(begin(state) if begin else state, 0, 0, {})
    else:
      say = print if self.lead else lambda line: None
      state, kept = fresh_rules.restore(
        self.checkpoints, s.abstract_state, new, say
      )
      kept_data.check(
        s.data, self.workdir, kept['fingerprint'], '--restart begins anew'
      )
      found = Begun(state, int(state.step), resume.row(kept), kept)
      if self.lead and self.checkpoints.passed_over:
        workdir_lib.keep_metrics(self.workdir)
      say(f'resumes {self.workdir} at step {found.step}')
    if self.lead:  # of a run that died before its first checkpoint, too
      workdir_lib.adopt(self.workdir, self.config)
      s.problem.keep(s.data, self.workdir)
      kept_data.keep(s.data, self.workdir)
    return found

  def fresh(self) -> state_lib.TrainState:
    """The state of a run that begins with nothing."""
    return self.session.program('init', self._initializer)(self.key)

  def _initializer(self) -> Callable:
    s = self.session
    return state_lib.initializer(s.model, s.tx, s.dummy, s.shardings)

  def train_step(self) -> Callable:
    """(state, batch) -> (state, metrics), arrays; the state is given away."""
    taught = (self.teacher.variables,) if self.teacher else ()
    step, key = self.session.program('train', self._step), self.key
    return lambda state, batch: step(state, batch, key, *taught)

  def plain_step(self) -> Callable:
    """The same, not compiled, giving nothing away, and passing over no step."""
    taught = (self.teacher.variables,) if self.teacher else ()
    step, key = self._made_step(skip=False), self.key
    return lambda state, batch: step(state, batch, key, *taught)

  def _made_step(self, skip: bool) -> Callable:
    s, c, teacher = self.session, self.session.config.train, self.teacher
    return step_lib.make_train_step(
      s.model,
      s.tx,
      problem=s.problem,
      seed=s.config.seed,
      accumulate=c.accumulate,
      over_layers=c.balance_over_layers,
      trained=s.trained,
      teacher=teacher and teacher.model,
      distill=c.distill,
      skip=skip,
    )

  def _step(self) -> Callable:
    s = self.session
    return jax.jit(
      self._made_step(skip=s.config.train.on_nonfinite == 'skip'),
      # Unpinned, the state comes back with other shardings than it went in,
      # and step two compiles again.
      in_shardings=(
        s.shardings,
        s.batch_sharding,
        *(None,) * (2 if self.teacher else 1),  # key and teacher
      ),
      out_shardings=(s.shardings, None),
      donate_argnums=0,
    )

  def evaluator(self) -> evaluation.Evaluator:
    s = self.session
    return s.program('evaluate', lambda: evaluation.Evaluator(s))

  def batches(self, first_row: int) -> Iterator[dict[str, Any]]:
    """This process's rows of the training batches."""
    config = self.session.config
    return self.session.data.train(
      seed=config.seed,
      batch_size=config.train.batch_size,
      first_row=first_row,
      process_index=jax.process_index(),
      process_count=jax.process_count(),
    )

  def matmul_rate(self) -> float:
    """FLOPs per second that the devices reach in matrix products."""
    dtype = factory.DTYPES[self.session.config.model.dtype]
    return self.session.program('rate', lambda: plain.rate(dtype))
