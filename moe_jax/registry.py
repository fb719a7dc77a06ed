"""Methods by call string: `'top_k(k=2, renormalize=True)'` -> an object.

A family is a package (`moe_jax.routers`, ...); a method is one file of it, and
the class in that file marked `@registry.register` is what its name builds. A
dotted name (`'my_lab.routers.Mine(k=2)'`) builds any importable class, so that
private experiments need no change here.
"""

import abc
import ast
import dataclasses
import difflib
import importlib
import inspect
import math
import pkgutil
from collections.abc import Callable, Mapping
from typing import Any

from moe_jax.errors import UserError

FAMILIES = ('routers', 'balancing', 'experts', 'local_experts', 'dispatch')
# What else is built as a method is: of a run, not of a layer.
OTHERS = ('problems',)


def register(cls: type) -> type:
  """Marks the one class of a method's file that the file's name builds."""
  cls.registered_in = cls.__module__
  return cls


def names(family: str) -> tuple[str, ...]:
  """The methods of a family: its files, less `base` and private ones."""
  package = importlib.import_module(f'moe_jax.{family}')
  found = (m.name for m in pkgutil.iter_modules(package.__path__))
  return tuple(
    sorted(n for n in found if n != 'base' and not n.startswith('_'))
  )


def parse(spec: str) -> tuple[str, dict[str, Any]]:
  """`'name(k=v)'` -> `('name', {'k': v})`; values are Python literals.

  Raises:
    ValueError: not a call of a name with keyword literals, or a number in it
      that is not finite.
  """
  form = "a name, or a call with keywords such as 'top_k(k=2)'"
  try:
    node = ast.parse(str(spec).strip(), mode='eval').body
  except SyntaxError:
    raise UserError(f'cannot read {spec!r}: expected {form}') from None
  keywords: dict[str, Any] = {}
  if isinstance(node, ast.Call):
    if node.args:
      raise UserError(f'{spec!r}: arguments go by keyword; expected {form}')
    for k in node.keywords:
      try:
        keywords[k.arg] = ast.literal_eval(k.value)
      except ValueError:
        raise UserError(
          f'{spec!r}: the value of {k.arg!r} is no literal; expected {form}'
        ) from None
      check_finite(keywords[k.arg], f'{spec!r}: {k.arg}')
    node = node.func
  if not isinstance(node, ast.Name | ast.Attribute):
    raise UserError(f'cannot read {spec!r}: expected {form}')
  return ast.unparse(node), keywords


def check_finite(value: Any, what: str) -> None:
  """Raises ValueError where a float (inside a tuple, too) is nan or inf."""
  for v in value if isinstance(value, tuple | list) else (value,):
    if isinstance(v, float) and not math.isfinite(v):
      raise UserError(f'{what} is {v}; a finite number is wanted')


def unknown(what: str, given: str, valid) -> UserError:
  """The one message for a name that is not among the valid ones."""
  valid = sorted(valid)
  near = difflib.get_close_matches(given, valid, n=1)
  hint = f'; did you mean {near[0]!r}?' if near else ''
  return UserError(f'unknown {what} {given!r}; valid: {", ".join(valid)}{hint}')


def call(spec: str, table: Mapping[str, Callable], what: str) -> Any:
  """Calls `table[name](**keywords)`, for families that fit in one file."""
  name, keywords = parse(spec)
  if name not in table:
    raise unknown(what, name, table)
  return _call(table[name], keywords, f'{what} {name!r}')


def build(family: str, spec: str, **sizes: Any) -> Any:
  """Builds a method of a family from its call string.

  Args:
    family: one of FAMILIES or OTHERS.
    spec: the call string.
    **sizes: sizes of the model (`d_ff=512`), given to a method that has a field
      of that name and whose call string does not set it.

  Raises:
    ValueError: unknown family, method or argument, or a bad value; the message
      lists the valid ones.
  """
  if family not in FAMILIES + OTHERS:
    raise unknown('family', family, FAMILIES + OTHERS)
  name, keywords = parse(spec)
  cls = method_class(family, name)
  if not _of_family(cls, family):
    raise UserError(
      f'{family}: {name} is no dataclass with all that moe_jax.{family}.base '
      'asks of one'
    )
  fields = {f.name for f in dataclasses.fields(cls) if f.init}
  keywords = {k: v for k, v in sizes.items() if k in fields} | keywords
  return _call(cls, keywords, f'{family} {name!r}')


def method_class(family: str, name: str) -> type:
  """The registered class of `moe_jax/<family>/<name>.py`, or a dotted name's.

  Raises:
    ValueError: no such method or class.
  """
  if '.' in name:
    module, _, attribute = name.rpartition('.')
    try:
      return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as e:
      raise UserError(f'{family}: cannot import {name!r}: {e}') from None
  if name not in names(family):
    raise unknown(f'method of {family}', name, names(family))
  module = importlib.import_module(f'moe_jax.{family}.{name}')
  found = [
    c
    for c in vars(module).values()
    if isinstance(c, type) and vars(c).get('registered_in') == module.__name__
  ]
  if len(found) != 1:
    raise UserError(
      f'{module.__name__} must register one class, found {len(found)}'
    )
  return found[0]


def _of_family(found: Any, family: str) -> bool:
  if not dataclasses.is_dataclass(found) or inspect.isabstract(found):
    return False
  base = f'moe_jax.{family}.base'
  bases = getattr(found, '__mro__', ())
  return any(isinstance(c, abc.ABCMeta) and c.__module__ == base for c in bases)


def _call(fn: Callable, keywords: dict[str, Any], what: str) -> Any:
  if dataclasses.is_dataclass(fn):
    valid = [f.name for f in dataclasses.fields(fn) if f.init]
  else:
    valid = list(inspect.signature(fn).parameters)
  for k in keywords:
    if k not in valid:
      raise unknown(f'argument of {what}', k, valid)
  try:
    return fn(**keywords)
  except UserError:
    raise
  except (TypeError, ValueError) as e:  # of a class that is not ours, too
    raise UserError(f'{what}: {e}') from None
