"""Metrics of routing, one a file; `measure` takes them over a record."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from moe_jax import registry
from moe_jax.analysis import records
from moe_jax.analysis.metrics import base
from moe_jax.errors import UserError

FAMILY = 'analysis.metrics'


def default(pair: bool = False) -> tuple[str, ...]:
  """Call strings of all metrics of one record, or of a pair of them."""
  found = {n: registry.method_class(FAMILY, n) for n in registry.names(FAMILY)}
  return tuple(f'{n}()' for n, c in found.items() if c.pair == pair)


def measure(
  record: records.Record,
  specs: Sequence[str] | None = None,
  other: records.Record | None = None,
) -> dict[str, Any]:
  """Metrics of a record, in one pass over its parts.

  Args:
    record: what is measured.
    specs: call strings; None is `default`, of pairs where there is an `other`.
    other: what metrics of pairs compare with; of the same text.

  Returns:
    Numbers that JSON has, lists by layer of them, by 'METRIC/NAME'; None is a
    number that is not defined. 'METRIC/undefined' says why there is no other.

  Raises:
    ValueError: an unknown metric or argument, one that is given twice, one of
      pairs without an `other` or the reverse, or an `other` of another text.
  """
  pair = other is not None
  made = [registry.build(FAMILY, s) for s in specs or default(pair)]
  names = [base.name(m) for m in made]
  for n, m in zip(names, made, strict=True):
    if m.pair != pair:
      wanted = 'compares two records' if m.pair else 'is of one record'
      raise UserError(f'the metric {n} {wanted}; given: {1 + pair}')
    if names.count(n) > 1:
      raise UserError(f'the metric {n} is given {names.count(n)} times')
  of = (record, other) if pair else (record,)
  schemas = [r.schema for r in of]
  states = [m.start(*schemas) for m in made]
  walk = base.in_step(*of) if pair else ((p,) for p in record.parts())
  for parts in walk:
    states = [m.add(s, *parts) for m, s in zip(made, states, strict=True)]
  return {
    f'{n}/{k}': plain(v)
    for n, m, s in zip(names, made, states, strict=True)
    for k, v in m.result(s, *schemas).items()
  }


def plain(value: Any) -> Any:
  """What JSON has of arrays and numbers; None for nan and infinity."""
  if isinstance(value, dict):
    return {str(k): plain(v) for k, v in value.items()}
  if isinstance(value, np.ndarray | np.generic):
    value = value.tolist()
  if isinstance(value, list | tuple):
    return [plain(v) for v in value]
  return (
    None if isinstance(value, float) and not math.isfinite(value) else value
  )
