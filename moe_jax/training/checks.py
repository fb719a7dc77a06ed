"""What of a config must fit a mesh, and the stacks that have MoE layers."""

import functools
from typing import Any

from moe_jax import registry
from moe_jax.errors import UserError
from moe_jax.layers import groups
from moe_jax.models import factory, pattern
from moe_jax.parallel import axes as axes_lib
from moe_jax.problems import base as problems


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


def check_batch(
  config, problem: problems.Problem, shape: dict[str, int], split: str
) -> None:
  """Raises ValueError where a batch or its groups do not fit the mesh.

  Args:
    config: validated.
    problem: of the config.
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
    tokens = size // parts * problem.lengths[name]
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
