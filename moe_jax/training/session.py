"""Config -> data, mesh, model, optimizer: what train and evaluate share."""

import dataclasses
import functools
import math
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import optax
from jax.sharding import NamedSharding

from moe_jax import registry
from moe_jax.data import objectives, pipeline, tasks, tokenizers
from moe_jax.errors import UserError
from moe_jax.layers import groups
from moe_jax.models import factory, pattern
from moe_jax.parallel import axes as axes_lib, mesh as mesh_lib, rules
from moe_jax.planning import counts
from moe_jax.runs import configs
from moe_jax.training import (
  accumulation,
  optimizers,
  state as state_lib,
  tuning,
)


@dataclasses.dataclass(frozen=True)
class Session:
  """One config made real on the devices found.

  Attributes:
    config: validated.
    mesh, data, model: as built; no data where the session is abstract.
    tx, schedule: optimizer and learning rate by step.
    layout: shapes and logical axes of the parameters.
    batch_sharding: of a batch's arrays.
    programs: what was compiled, shared by the runs that differ in their seed.
  """

  config: Any
  mesh: jax.sharding.Mesh | jax.sharding.AbstractMesh
  data: pipeline.Data | tasks.TaskData | None
  model: Any
  tx: Any
  schedule: Any
  layout: state_lib.Layout
  batch_sharding: NamedSharding
  programs: dict[str, Any] = dataclasses.field(default_factory=dict)

  def program(self, name: str, make: Callable[[], Any]) -> Any:
    """`make()`, once for all sessions that share `programs`."""
    if name not in self.programs:
      self.programs[name] = make()
    return self.programs[name]

  def with_seed(self, seed: int) -> 'Session':
    """The same, data and programs included, with another `config.seed`."""
    config = self.config.copy_and_resolve_references()
    with config.unlocked():
      config.seed = seed
    return dataclasses.replace(self, config=config)

  @property
  def abstract_state(self) -> state_lib.TrainState:
    """Shapes and shardings of the train state on this mesh."""
    return state_lib.abstract(self.tx, self.layout, self.mesh)

  @property
  def trained(self) -> Any:
    """Whether each parameter is trained; None where all are."""
    return tuning.trained(self.layout.params, self.config.train.trainable)

  def put(self, batch) -> dict[str, jax.Array]:
    """This process's rows of a global batch -> arrays on the mesh."""
    return {
      k: jax.make_array_from_process_local_data(self.batch_sharding, v)
      for k, v in batch.items()
    }

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
    c, share, work = self.config, self._shares(), {}
    tokens = lengths(c)
    width = c.model.num_heads * c.model.d_head
    for name, stack in self.model.stacks.items():
      attention = [(stack.num_layers, width, tokens[name])]
      if stack.cross:
        attention.append((stack.num_layers, width, tokens['encoder']))
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


def lengths(config) -> dict[str, int]:
  """Tokens of a row by stack: 'encoder' and 'decoder', in order."""
  L = config.data.seq_len
  if config.model.kind == 'decoder':
    return {'decoder': L}
  if tasks.chosen(config.data):
    return {'encoder': L, 'decoder': tasks.TARGETS}
  objective = objectives.build(config.data.objective)
  return {'encoder': L, 'decoder': objective.targets_length(L)}


def sparse_stacks(config) -> dict[str, dict[str, Any]]:
  """The `moe` fields of the stacks that have MoE layers."""
  layers = config.model.num_layers
  return {
    name: fields
    for name, fields in factory.moe_fields(config).items()
    if any(pattern.sparse_layers(fields['layers'], layers))
  }


def with_eval_factor(config, factor: float) -> Any:
  """A copy with another capacity factor of evaluation, in all stacks.

  Args:
    config: a ConfigDict.
    factor: 0 is dropless.

  Raises:
    ValueError: a model that has no MoE layers to have one.
  """
  if not sparse_stacks(config):
    raise UserError(
      f'capacity_factor={factor} is for MoE layers; this model has none'
    )
  config = config.copy_and_resolve_references()
  with config.unlocked():
    config.moe.eval_capacity_factor = factor
    if 'eval_capacity_factor' in config.moe.decoder:
      del config.moe.decoder.eval_capacity_factor
  return config


def num_experts(config) -> int:
  """Experts that the mesh must fit: 0 for a dense model."""
  return config.moe.num_experts if sparse_stacks(config) else 0


def check_widths(config, shape: dict[str, int]) -> None:
  """Raises ValueError where a width does not divide over its mesh axis."""
  c = config
  widths = [
    ('model.d_model', c.model.d_model, 'fsdp'),
    ('model.num_heads', c.model.num_heads, 'model'),
    ('model.d_ff', c.model.d_ff, 'model'),
  ]
  for fields in sparse_stacks(config).values():
    widths.append(('moe.d_ff', fields['d_ff'], 'model'))
    if fields['dense_branch'] != 'none':
      width = fields['dense_branch_d_ff']
      widths.append(('moe.dense_branch_d_ff', width, 'model'))
  for name, size, axis in widths:
    if size % shape[axis]:
      raise UserError(
        f'{name}={size} is not divisible by the mesh axis {axis!r} of size '
        f'{shape[axis]}'
      )


def check_batch(config, shape: dict[str, int], split: str) -> None:
  """Raises ValueError where a batch or its groups do not fit the mesh.

  Args:
    config: validated.
    shape: sizes of the mesh axes.
    split: 'train' or 'eval'.
  """
  axes = axes_lib.make(shape)
  devices = axes.size(axes.batch)
  training = split == 'train'
  micro = config.train.accumulate if training else 1
  size, parts = config[split].batch_size, devices * micro
  if size % parts:
    raise UserError(
      f'{split}.batch_size={size} is not divisible by {parts} ({devices} '
      f'devices on the batch axes {axes.batch}, {micro} micro-batches); sizes '
      f'that are: {", ".join(str(k * parts) for k in (1, 2, 4, 8))}, ...'
    )
  factor = 'capacity_factor' if training else 'eval_capacity_factor'
  for name, fields in sparse_stacks(config).items():
    tokens = size // parts * lengths(config)[name]
    router, limit = registry.build('routers', fields['router']), fields[factor]
    size_of = functools.partial(
      groups.size,
      fields['group_size'],
      router=router,
      factor=limit or None,
      train=training,
    )
    part, whole = size_of(tokens), size_of(micro * tokens)
    if part != whole:
      # Dropless groups are cut to what divides a device's tokens.
      raise UserError(
        f'moe.group_size={fields["group_size"]} makes groups of {whole} tokens '
        f'of the {micro * tokens} of a device, and of {part} of a micro-batch; '
        f'a size that divides {tokens} is the same in both'
      )


def plan(
  config, mesh_spec: str = '', splits: tuple[str, ...] = ('train', 'eval')
) -> jax.sharding.Mesh:
  """Checks all of a config that needs no data; the mesh it runs on.

  Args:
    config: a ConfigDict.
    mesh_spec: in place of the config's mesh.
    splits: whose batches must fit.

  Raises:
    ValueError: a field that does not fit, with its value and what would.
  """
  configs.validate(config)
  choose_kind(config)
  shape = mesh_lib.shape(
    mesh_spec or config.mesh, jax.device_count(), num_experts(config)
  )
  check_widths(config, shape)
  for split in splits:
    check_batch(config, shape, split)
  mesh = mesh_lib.make(shape)
  tokenizer = tokenizers.build(config.data.tokenizer)
  model = factory.make(config, vocab_size(config, tokenizer, mesh), mesh)
  if config.train.accumulate > 1:
    accumulation.check(sum(accumulation.rules(model).values(), ()))
  make_optimizer(config, batch_dims={})
  return mesh


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
  return (tx if mask is None else optax.masked(tx, mask)), schedule


def vocab_size(config, tokenizer, mesh) -> int:
  """Rows of the embedding table: `model.vocab_size`, or the tokenizer's.

  The tokenizer's are padded to what the `model` axis divides.

  Raises:
    ValueError: fewer rows than the tokenizer has ids.
  """
  ids, rows = tokenizer.vocab_size, config.model.vocab_size
  if not rows:
    parts = mesh.shape['model']
    return math.ceil(ids / parts) * parts
  if rows < ids:
    raise UserError(
      f'model.vocab_size={rows} is less than the {ids} ids of '
      f'data.tokenizer={config.data.tokenizer!r}; 0 takes those'
    )
  return rows


def make(
  config,
  workdir: str | pathlib.Path,
  *,
  mesh_spec: str = '',
  splits: tuple[str, ...] = ('train', 'eval'),
  allow_download: bool = False,
) -> Session:
  """Builds everything but the state; reads or builds the data.

  Args:
    config: a ConfigDict.
    workdir: built data goes to its `data/` unless `data.cache` says where.
    mesh_spec, splits: as in `plan`.
    allow_download: lets TFDS download.

  Raises:
    ValueError: a field or data that do not fit.
  """
  mesh = plan(config, mesh_spec, splits)
  data = load_data(config, workdir, allow_download)
  model = factory.make(config, vocab_size(config, data.tokenizer, mesh), mesh)
  sharding = NamedSharding(mesh, rules.spec(('batch',), mesh.shape))
  lay = state_lib.layout(model, dummy(config, mesh))
  tx, schedule = make_optimizer(config, lay.batch_dims())
  return Session(config, mesh, data, model, tx, schedule, lay, sharding)


def load_data(
  config, workdir: str | pathlib.Path, allow_download: bool = False
) -> pipeline.Data | tasks.TaskData:
  """The corpus of a config, or its task; arguments as in `make`."""
  where = {
    'cache_dir': config.data.cache or str(pathlib.Path(workdir) / 'data'),
    'allow_download': allow_download,
  }
  if tasks.chosen(config.data):
    kind, most = config.model.kind, config.eval.max_examples
    return tasks.load(config.data, kind=kind, max_examples=most, **where)
  most = config.eval.max_bytes
  return pipeline.load(config.data, validation_max_bytes=most, **where)


def dummy(config, mesh: jax.sharding.Mesh) -> dict[str, Any]:
  """The batch that initialisers are traced with: whole groups a device."""
  axes, length = axes_lib.make(mesh.shape), lengths(config)
  rows = 1
  for name, fields in sparse_stacks(config).items():
    group = fields['group_size']
    rows = math.lcm(rows, group // math.gcd(group, length[name]))
  return factory.dummy_batch(
    config,
    axes.size(axes.batch) * rows,
    config.data.seq_len,
    length['decoder'],
  )


def layer_numbers(model) -> list[int]:
  """MoE layers by number; an encoder's come first, the decoder's go on."""
  numbers, first = [], 0
  for stack in model.stacks.values():
    numbers += [first + i for i, sparse in enumerate(stack.sparse) if sparse]
    first += stack.num_layers
  return numbers


def choose_kind(config) -> str:
  """'decoder' or 'encoder_decoder'; checks that the objective goes with it.

  A task goes with both, and has no objective.
  """
  name, _ = registry.parse(config.data.objective)
  wanted = {'decoder': 'causal_lm', 'encoder_decoder': 'span_corruption'}
  kind = factory.choose('model.kind', config.model.kind, factory.KINDS)
  if not tasks.chosen(config.data) and name != wanted[kind]:
    raise UserError(
      f'data.objective={config.data.objective!r} does not go with model.kind='
      f"'{kind}', which wants {wanted[kind]!r}"
    )
  return kind
