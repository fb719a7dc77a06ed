"""Other runs, whose parameters a run begins with or learns from."""

import dataclasses
import pathlib
from typing import Any

import jax

from moe_jax.errors import UserError
from moe_jax.problems import base as problems
from moe_jax.runs import checkpoint, workdir as workdir_lib
from moe_jax.training import checks, session as session_lib, state as state_lib


@dataclasses.dataclass(frozen=True)
class Source:
  """A run's newest checkpoint, as far as files say without reading arrays.

  Attributes:
    field: that names it, 'train.init_from' or 'train.teacher'.
    workdir: of the run.
    config: the run's.
    shapes: of the leaves of its state, by name ('params/decoder/...').
  """

  field: str
  workdir: str
  config: Any
  shapes: dict[str, tuple[int, ...]]

  def error(self, text: Any) -> UserError:
    """To raise: says which field and workdir do not fit, and why."""
    return UserError(f'{self.field}={self.workdir}: {text}')

  def model(self, session: session_lib.Session):
    """(its model on the session's mesh, its layout, the config of both).

    Raises:
      ValueError: sizes that do not divide over this mesh.
    """
    config = session.config.copy_and_resolve_references()
    mesh = session.mesh
    with config.unlocked():
      config.model = self.config.model
      config.moe = self.config.moe
      # It runs on this run's micro-batches, without an update.
      config.eval.batch_size = config.train.batch_size
      config.eval.batch_size //= config.train.accumulate
    experts = checks.num_experts(config)
    if experts % mesh.shape['expert']:
      raise self.error(
        f'its {experts} experts do not divide over the mesh axis '
        f"'expert' of size {mesh.shape['expert']}"
      )
    try:
      checks.check_widths(config, dict(mesh.shape))
      problem = session.problem
      model = problem.model(config, mesh, shapes=self.shapes)
      dummy = session_lib.dummy(config, problem, mesh)
      lay = state_lib.layout(model, dummy)
    except ValueError as e:
      raise self.error(e) from None
    return model, lay, config

  def read(self, wanted: dict[str, Any]) -> dict[str, jax.Array]:
    """Arrays by name, placed as `wanted` says (ShapeDtypeStructs)."""
    directory = pathlib.Path(self.workdir) / 'checkpoints'
    with checkpoint.Checkpointer(directory, keep=1) as checkpoints:
      return checkpoints.restore(wanted, partial=True)[0]


def find(
  config, field: str, problem: problems.Problem | None = None
) -> Source | None:
  """The run that a field of `config.train` names; None where it is ''.

  Args:
    config: of this run.
    field: 'init_from' or 'teacher'.
    problem: of this run, once its data is open.

  Raises:
    ValueError: no run or no checkpoint there, another vocabulary or kind of
      model; nothing was written.
  """
  workdir = config.train[field]
  if not workdir:
    return None
  name = f'train.{field}'
  try:
    theirs = workdir_lib.load_config(workdir)
    found = checkpoint.shapes(pathlib.Path(workdir) / 'checkpoints')
  except ValueError as e:
    raise UserError(f'{name}={workdir}: {e}') from None
  source = Source(name, workdir, theirs, found)
  if theirs.model.kind != config.model.kind:
    raise source.error(
      f'its model.kind is {theirs.model.kind!r}, here {config.model.kind!r}'
    )
  try:
    here = problem or problems.of(config).with_kept(workdir)
    differs = here.differs(problems.of(theirs).with_kept(workdir))
  except ValueError as e:
    raise source.error(e) from None
  if differs:
    raise source.error(differs)
  return source
