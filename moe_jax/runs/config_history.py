"""How a config's fields came to be what they are.

Runs outlive the code that began them. A workdir's config, and the digests of
configs in a study's results, are of the schema of their day; here they are
compared with today's. A field that is new, renamed or moved gets a line in
`CHANGES`; a test names those that have none.

Another kind of change is another class with `forward` and `backward`, from the
fields before it, {dotted name: value}, to those after it and back.
"""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from moe_jax.errors import UserError

Flat = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Added:
  """A field that was not there; with `value` all is as it was before."""

  field: str
  value: Any

  def forward(self, flat: Flat) -> Flat:
    # As JSON has it, where tuples are lists.
    return {self.field: json.loads(_text(self.value))} | flat

  def backward(self, flat: Flat) -> Flat:
    same = self.field in flat and _text(flat[self.field]) == _text(self.value)
    return {k: v for k, v in flat.items() if not (same and k == self.field)}


@dataclasses.dataclass(frozen=True)
class Renamed:
  """A field, or a group of them, that had another name.

  A field of `moe` is renamed in `moe.decoder`, too.
  """

  old: str
  new: str

  def forward(self, flat: Flat) -> Flat:
    return _rename(flat, self.old, self.new)

  def backward(self, flat: Flat) -> Flat:
    return _rename(flat, self.new, self.old)


# Oldest first, as they came to the main branch; never changed, only added to.
CHANGES: tuple[Added | Renamed, ...] = (
  Added('data.task', ''),
  Added('data.task_file', ''),
  Added('eval.max_examples', 0),
  Added('train.init_from', ''),
  Added('train.init_dense', False),
  Added('train.trainable', 'all'),
  Added('train.teacher', ''),
  Added('train.distill', 0.25),
  Added('moe.share_experts', 1),
  Added('data.problem', ''),
  Added('model.attention', ('full()',)),
  Added('eval.documents', 'all'),
  Added('train.keep_at', ()),
  Added('data.max_bytes', 0),
  Added('train.max_minutes', 0.0),
  Added('train.on_nonfinite', 'stop'),
  Added('train.max_skips', 10),
  Added('model.norm_eps', 1e-6),
  Added('model.norm_at', 'input'),
  Added('model.residual_scale', 1.0),
  Added('model.embedding_scale', 1.0),
  Added('model.logit_scale', 0.0),
  Added('data.max_bad', 0),
  Added('train.keep_best', ''),
  Added('train.on_spike', 'ignore()'),
  Added('train.max_step_minutes', 0.0),
)


def upgrade(config: Mapping[str, Any]) -> dict[str, Any]:
  """A nested config of any day with today's fields.

  Args:
    config: nested dict; one of today's comes back as it is.

  Raises:
    ValueError: what has fields is a value, too.
  """
  flat = _flatten(config, '')
  for change in CHANGES:
    flat = change.forward(flat)
  out: dict[str, Any] = {}
  for name, value in flat.items():
    *groups, last = name.split('.')
    d = out
    for g in groups:
      d = d.setdefault(g, {})
      if not isinstance(d, dict):
        raise UserError(f'config.{name}: {g} is {d!r}, no group of fields')
    d[last] = value
  return out


def forms(flat: Mapping[str, Any]) -> list[Flat]:
  """What today's flat config was in each schema, the newest first.

  A field that did not exist and would have changed the run stays: there was no
  such config then.
  """
  found = [dict(flat)]
  for change in reversed(CHANGES):
    found.append(change.backward(found[-1]))
  return found


def _flatten(config: Mapping[str, Any], prefix: str) -> Flat:
  """As `configs.flatten`, but groups without fields stay."""
  out: Flat = {}
  for k, v in config.items():
    if hasattr(v, 'items') and v:
      out |= _flatten(v, f'{prefix}{k}.')
    else:
      out[f'{prefix}{k}'] = v
  return out


def _rename(flat: Flat, old: str, new: str) -> Flat:
  pairs = [(f'{old}.', f'{new}.')]
  if old.startswith('moe.') and new.startswith('moe.'):
    inner = [f'moe.decoder.{n.removeprefix("moe.")}.' for n in (old, new)]
    pairs.append((inner[0], inner[1]))
  out = {}
  for name, value in flat.items():
    for a, b in pairs:
      if f'{name}.'.startswith(a):
        name = f'{b}{f"{name}."[len(a) :]}'[:-1]
        break
    out[name] = value
  return out


def _text(value: Any) -> str:
  # In JSON 1, 1.0 and true differ, in Python they are equal.
  return json.dumps(value, default=list)
