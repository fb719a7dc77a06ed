"""Config -> problem, mesh, model, data: what train and evaluate share."""

import dataclasses
import functools
import math
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import optax
from jax.sharding import NamedSharding

from moe_jax.data import batches
from moe_jax.models import factory
from moe_jax.parallel import axes as axes_lib, mesh as mesh_lib, rules
from moe_jax.planning import counts
from moe_jax.problems import base as problems
from moe_jax.runs import configs
from moe_jax.training import (
  accumulation,
  bests,
  checks,
  optimizers,
  skips,
  spikes,
  state as state_lib,
  tuning,
)


@dataclasses.dataclass(frozen=True)
class Session:
  """One config made real on the devices found.

  Attributes:
    config: validated.
    problem, mesh, model: as built.
    tx, schedule: optimizer and learning rate by step.
    layout: shapes and logical axes of the parameters.
    batch_sharding: of a batch's arrays.
    data: None until it is opened.
    programs: what was compiled, shared by the runs that differ in their seed.
  """

  config: Any
  problem: problems.Problem
  mesh: jax.sharding.Mesh | jax.sharding.AbstractMesh
  model: Any
  tx: Any
  schedule: Any
  layout: state_lib.Layout
  batch_sharding: NamedSharding
  data: batches.Batches | None = None
  programs: dict[str, Any] = dataclasses.field(default_factory=dict)

  def open(
    self, workdir: str | pathlib.Path, allow_download: bool = False
  ) -> 'Session':
    """With its data, read or built.

    A tokenizer that was learned from text is that of the run, or of the run
    whose parameters it begins with or learns from.

    Args:
      workdir: built data goes to its `data/` unless `data.cache` says where.
      allow_download: lets TFDS download.

    Raises:
      ValueError: data that is not there or does not fit.
    """
    cache = self.config.data.cache or str(pathlib.Path(workdir) / 'data')
    train = self.config.train
    problem = self.problem.with_kept(
      str(workdir), train.init_from, train.teacher
    )
    data = problem.open(cache_dir=cache, allow_download=allow_download)
    return dataclasses.replace(self, problem=problem, data=data)

  def program(self, name: str, make: Callable[[], Any]) -> Any:
    """`make()`, once for all sessions that share `programs`."""
    if name not in self.programs:
      self.programs[name] = make()
    return self.programs[name]

  def with_config(self, config) -> 'Session':
    """The same, data and programs included, for another run.

    Args:
      config: which differs in its seed, and in the workdirs of the runs that it
        begins with or learns from.
    """
    return dataclasses.replace(self, config=config)

  @property
  def lengths(self) -> dict[str, int]:
    """Tokens of a row by stack: 'encoder' and 'decoder', in order."""
    return self.problem.lengths

  @property
  def dummy(self) -> dict[str, jax.Array]:
    """The batch that initialisers are traced with."""
    return dummy(self.config, self.problem, self.mesh)

  @functools.cached_property
  def abstract_state(self) -> state_lib.TrainState:
    """Shapes and shardings of the train state on this mesh."""
    return state_lib.abstract(self.tx, self.layout, self.mesh)

  @property
  def shardings(self) -> state_lib.TrainState:
    """Those of the train state's arrays."""
    return jax.tree.map(lambda v: v.sharding, self.abstract_state)

  @property
  def trained(self) -> Any:
    """What of each parameter is trained, see `tuning`; None is all."""
    choice = self.config.train.trainable
    return tuning.trained(self.layout.batch_dims(), choice)

  def put(self, batch) -> dict[str, jax.Array]:
    """This process's rows of a global batch -> arrays on the mesh."""
    return {
      k: jax.make_array_from_process_local_data(self.batch_sharding, v)
      for k, v in batch.items()
    }

  def validation(self) -> Iterator[dict[str, Any]]:
    """This process's rows of the batches of the validation set."""
    return self.data.validation(
      batch_size=self.config.eval.batch_size,
      process_index=jax.process_index(),
      process_count=jax.process_count(),
    )

  def leaves(self) -> list[counts.Leaf]:
    return self.layout.leaves()

  def expert_share(self) -> dict[str, float]:
    """K / E of each stack, times the layers that share those E experts.

    The part of the experts that a token is sent to, one that it meets in two
    layers counted twice.
    """
    return {k: v[0] for k, v in self._shares().items()}

  def _shares(self) -> dict[str, tuple[float, float]]:
    """`expert_share`, and the choices that are sent, of the same layers."""
    found = {}
    for name, stack in self.model.stacks.items():
      found[name] = 1.0, 1.0
      if any(stack.sparse):
        made = stack.moe
        E = made.num_routed
        K = made.router.experts_per_token(E)
        share = stack.share_experts * K / E
        found[name] = share, share * made.num_experts
    return found

  def work(self) -> dict[str, counts.Stack]:
    """What one sequence makes each stack do, for `planning.counts`."""
    share, tokens, work = self._shares(), self.lengths, {}
    for name, stack in self.model.stacks.items():
      attention = []
      for kind in (layer.attention for layer in stack.layers):
        width = kind.width
        keys = kind.keys(tokens[name], stack.causal)
        attention.append((1, width, keys))
        if stack.cross:
          attention.append((1, width, tokens['encoder']))
      work[name] = counts.Stack(tokens[name], *share[name], tuple(attention))
    return work

  def forward_flops(self) -> float:
    """Model FLOPs of one sequence, forward."""
    return counts.forward_flops(
      self.leaves(), self.work(), self.config.model.tied_head
    )

  def flops_per_token(self) -> float:
    """Model FLOPs of a target token in a training step.

    Forward and backward, an encoder's share included: what the tokens per
    second of a run, which are target tokens, are multiplied with.
    """
    return 3 * self.forward_flops() / self.work()['decoder'].tokens


def choose_problem(config) -> problems.Problem:
  """The problem of a config; checks that the kind of model goes with it."""
  factory.choose('model.kind', config.model.kind, factory.KINDS)
  problem = problems.of(config)
  problem.check(config)
  return problem


def plan(
  config, mesh_spec: str = '', splits: tuple[str, ...] = ('train', 'eval')
) -> Session:
  """A session without data: all of a config is checked that needs none.

  Args:
    config: a ConfigDict.
    mesh_spec: in place of the config's mesh.
    splits: whose batches must fit.

  Raises:
    ValueError: a field that does not fit, with its value and what would.
  """
  configs.validate(config)
  skips.check(config)
  spikes.policy(config)
  problem = choose_problem(config)
  bests.check(config, problem)
  shape = mesh_lib.shape(
    mesh_spec or config.mesh, jax.device_count(), checks.num_experts(config)
  )
  return build(config, problem, shape, splits, mesh_lib.make)


def build(config, problem, shape, splits, make_mesh) -> Session:
  """The session of a config on a mesh of this shape, real or abstract."""
  checks.check_widths(config, shape)
  for split in splits:
    checks.check_batch(config, problem, shape, split)
  mesh = make_mesh(shape)
  model = problem.model(config, mesh)
  if config.train.accumulate > 1:
    accumulation.check(sum(accumulation.rules(model).values(), ()))
  batch = jax.eval_shape(lambda: dummy(config, problem, mesh))
  lay = state_lib.layout(model, batch)
  tx, schedule = make_optimizer(config, lay.batch_dims())
  sharding = NamedSharding(mesh, rules.spec(('batch',), mesh.shape))
  made = Session(config, problem, mesh, model, tx, schedule, lay, sharding)
  tuning.size(lay.params, made.trained)  # or raises
  return made


def make_optimizer(config, batch_dims):
  """(optax transformation, learning rate by step) of `config.train`."""
  c = config.train
  mask = tuning.trained(batch_dims, c.trainable)
  tx, schedule = optimizers.make(
    c.optimizer,
    c.schedule,
    steps=c.steps,
    clip=c.clip,
    batch_dims=tuning.select(batch_dims, mask),
  )
  # Masked, it has no state of frozen leaves, and clips by the others' norm.
  if mask is not None:
    tx = optax.masked(tx, tuning.whole(mask))
  return tx, schedule


def make(
  config,
  workdir: str | pathlib.Path,
  *,
  mesh_spec: str = '',
  splits: tuple[str, ...] = ('train', 'eval'),
  allow_download: bool = False,
) -> Session:
  """`plan`, and `Session.open`."""
  return plan(config, mesh_spec, splits).open(workdir, allow_download)


def dummy(config, problem, mesh: jax.sharding.Mesh) -> dict[str, Any]:
  """The batch that initialisers are traced with: whole groups a device."""
  axes, length = axes_lib.make(mesh.shape), problem.lengths
  rows = 1
  for name, fields in checks.sparse_stacks(config).items():
    group = fields['group_size']
    rows = math.lcm(rows, group // math.gcd(group, length[name]))
  return problem.dummy(axes.size(axes.batch) * rows)


def layer_numbers(model) -> list[int]:
  """MoE layers by number; an encoder's come first, the decoder's go on."""
  numbers, first = [], 0
  for stack in model.stacks.values():
    numbers += [first + i for i, sparse in enumerate(stack.sparse) if sparse]
    first += len(stack.layers)
  return numbers
