"""The fields of a config and their types, for what is read back from files.

`configs/base.py` has the defaults, and is no part of the package: here are the
fields of the first day, and what `config_history` says came since. A test holds
the two together.
"""

from collections.abc import Mapping
from typing import Any

from moe_jax import registry
from moe_jax.errors import UserError
from moe_jax.runs import config_history

# Those of the first day.
_FIRST = {
  int: """seed cpu_devices model.num_layers model.d_model model.num_heads
    model.d_head model.d_ff model.vocab_size moe.num_experts moe.d_ff
    moe.group_size moe.dense_branch_d_ff data.seq_len train.steps
    train.batch_size train.accumulate train.log_every train.eval_every
    train.checkpoint_every train.check_replicas_every train.keep
    eval.batch_size eval.max_bytes""",
  float: """model.dropout model.init_scale moe.capacity_factor
    moe.eval_capacity_factor train.clip train.z_loss""",
  bool: """model.qk_norm model.norm_scale model.tied_head model.scan
    moe.allow_noncausal moe.route_padding moe.identical_experts""",
  str: """mesh model.kind model.ffn model.positions model.dtype model.remat
    moe.layers moe.experts moe.router moe.dispatch moe.capacity_rule
    moe.seating moe.extra_ffn moe.dense_branch data.name data.dir data.cache
    data.tokenizer data.objective data.text_field data.train_split
    data.validation_split train.balance_over_layers train.optimizer
    train.schedule""",
  tuple: """moe.balance moe.local_experts data.domains data.weights
    eval.probes""",
}


def _fields() -> dict[str, type]:
  found = {n: t for t, names in _FIRST.items() for n in names.split()}
  for change in config_history.CHANGES:
    if isinstance(change, config_history.Added):
      found[change.field] = type(change.value)
    else:
      found = change.forward(found)
  return found


FIELDS = _fields()
WANTED = {
  int: 'a whole number',
  float: 'a number',
  bool: 'true or false',
  str: 'a text',
  tuple: 'a tuple',
}
# Fields of `moe`, as many as there are wishes.
_OPEN = 'moe.decoder'


def type_of(name: str) -> type | None:
  """The type of a field; None of one that is not ours."""
  return FIELDS.get(name.replace(f'{_OPEN}.', 'moe.'))


def fits(value: Any, kind: type) -> bool:
  """Whether a value is of a field's type; a whole number is a number."""
  if kind is tuple:
    return isinstance(value, tuple | list)
  if kind in (int, float):
    kinds = int | float if kind is float else int
    return isinstance(value, kinds) and not isinstance(value, bool)
  return isinstance(value, kind)


def known(config: Mapping[str, Any], where: str) -> dict[str, Any]:
  """The groups of a config that are ours, each field there and of its type.

  Other groups are a study's, and left out.

  Args:
    config: nested dict of JSON's types, with today's fields.
    where: what messages begin with.

  Raises:
    ValueError: names the field that is missing, unknown or of another type.
  """
  out: dict[str, Any] = {}
  for name, kind in FIELDS.items():
    group, _, field = name.rpartition('.')
    of = config.get(group) if group else config
    if not isinstance(of, Mapping) or field not in of:
      raise UserError(f'{where}: {name} is missing')
    if not fits(of[field], kind):
      raise UserError(
        f'{where}: {name} is {_shown(of[field])}; {WANTED[kind]} is wanted'
      )
    (out.setdefault(group, {}) if group else out)[field] = of[field]
  out['moe']['decoder'] = own = config['moe'].get('decoder', {})
  if not isinstance(own, Mapping):
    raise UserError(f'{where}: {_OPEN} is {_shown(own)}; an object is wanted')
  for field, value in own.items():
    kind = FIELDS.get(f'moe.{field}')
    if kind and not fits(value, kind):
      raise UserError(
        f'{where}: {_OPEN}.{field} is {_shown(value)}; {WANTED[kind]} is wanted'
      )
  given = [k for k, v in config.items() if not isinstance(v, Mapping)]
  for group in ('model', 'moe', 'data', 'train', 'eval'):
    given += [f'{group}.{k}' for k in config[group]]
  given += [f'moe.{k}' for k in own]  # `moe` has them all
  for name in given:
    if name not in FIELDS and name != _OPEN:
      group = name.rpartition('.')[0]
      near = [f for f in FIELDS if f.rpartition('.')[0] == group]
      raise registry.unknown(f'field of {where}', name, near)
  return out


def _shown(value: Any) -> str:
  return repr(value)[:60]
