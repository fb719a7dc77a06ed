"""Methods by call string: `'top_k(k=2, renormalize=True)'` -> an object.

A family is a package (`moe_jax.routers`, ...); a method is one file of it, and
the class in that file marked `@registry.register` is what its name builds. A
dotted name (`'my_lab.routers.Mine(k=2)'`) builds a class of any module that was
allowed, so that private experiments need no change here. Call strings come out
of files, too, as config.json of someone's run, and to import is to run: none
but moe_jax is imported unasked.
"""

import abc
import ast
import cmath
import dataclasses
import difflib
import importlib
import inspect
import pkgutil
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any

from moe_jax.errors import UserError

FAMILIES = ('routers', 'balancing', 'experts', 'local_experts', 'dispatch')
# What else is built as a method is: of runs, not of a layer.
OTHERS = ('problems', 'analysis.metrics', 'conversion.methods')
_FORM = "a name, or a call with keywords such as 'top_k(k=2)'"
_LONGEST, _SHOWN = 10_000, 400  # characters of a call string
_allowed = {'moe_jax'}


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


def allow(*modules: str) -> None:
  """Lets call strings name classes of these modules, and of what is in them.

  Mains do it by `--allow_modules`, notebooks by a call; `'__main__'` is what
  stands in the notebook itself.

  Raises:
    ValueError: no dotted name of a module.
  """
  for m in modules:
    if not _is_dotted(m):
      raise UserError(f'allow_modules={m!r}; the name of a module is wanted')
  _allowed.update(modules)


def allowed() -> tuple[str, ...]:
  """What `allow` was given, in order of the alphabet."""
  return tuple(sorted(_allowed - {'moe_jax'}))


def _is_dotted(name: str) -> bool:
  return all(part.isidentifier() for part in name.split('.'))


def parse(spec: str) -> tuple[str, dict[str, Any]]:
  """`'name(k=v)'` -> `('name', {'k': v})`; values are Python literals.

  Raises:
    ValueError: not a call of a name with keyword literals, a keyword twice, or
      a number in it that is not finite.
  """
  text, form = str(spec).strip(), _FORM
  shown = repr(spec)
  shown = shown if len(shown) <= _SHOWN else f'{shown[:_SHOWN]}...'
  if len(text) > _LONGEST:
    raise UserError(
      f'{shown} has {len(text)} characters; at most {_LONGEST} are read'
    )
  # What nests too deep is another error in each version of Python.
  deep = RecursionError, MemoryError
  try:
    node = ast.parse(text, mode='eval').body
    called = isinstance(node, ast.Call)
    named = node.func if called else node
    name = ast.unparse(named)
  except (SyntaxError, ValueError, *deep):
    named = None
  if not (isinstance(named, ast.Name | ast.Attribute) and _is_dotted(name)):
    raise UserError(f'cannot read {shown}: expected {form}')
  if called and node.args:
    raise UserError(f'{shown}: arguments go by keyword; expected {form}')
  keywords: dict[str, Any] = {}
  for k in node.keywords if called else ():
    if k.arg is None:
      raise UserError(f'{shown}: no ** in it; expected {form}')
    if k.arg in keywords:
      raise UserError(f'{shown}: {k.arg!r} is given twice')
    try:
      keywords[k.arg] = ast.literal_eval(k.value)
    except (ValueError, TypeError, *deep):
      raise UserError(
        f'{shown}: the value of {k.arg!r} is no literal; expected {form}'
      ) from None
    check_finite(keywords[k.arg], f'{shown}: {k.arg}')
  return name, keywords


def check_finite(value: Any, what: str) -> None:
  """Raises ValueError where a number (inside a tuple, too) is nan or inf."""
  if isinstance(value, Mapping):
    value = (*value, *value.values())
  if isinstance(value, tuple | list | set):
    for v in value:
      check_finite(v, what)
  elif isinstance(value, float | complex) and not cmath.isfinite(value):
    raise UserError(f'{what} is {value}; a finite number is wanted')


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
    raise _no_method(family, name)
  fields = {f.name for f in dataclasses.fields(cls) if f.init}
  sizes = {k: v for k, v in sizes.items() if k in fields}
  return _call(cls, keywords, f'{family} {name!r}', sizes)


def method_class(family: str, name: str) -> type:
  """The registered class of `moe_jax/<family>/<name>.py`, or a dotted name's.

  Raises:
    ValueError: no such method or class, or its module was not allowed.
  """
  if '.' in name:
    return _dotted(family, name)
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


def _dotted(family: str, name: str) -> type:
  module, _, attribute = name.rpartition('.')
  root = module.partition('.')[0]
  if not any(f'{module}.'.startswith(f'{m}.') for m in _allowed):
    raise UserError(
      f'{family}: {name!r} would import and run the module {module!r}; where '
      f'you trust it, pass --allow_modules={root}, or in Python call '
      f'registry.allow({root!r})'
    )
  try:
    found = getattr(importlib.import_module(module), attribute)
  except (ImportError, AttributeError) as e:
    raise UserError(f'{family}: cannot import {name!r}: {e}') from None
  if not isinstance(found, type):
    raise _no_method(family, name)
  return found


def _no_method(family: str, name: str) -> UserError:
  return UserError(
    f'{family}: {name} is no dataclass with all that moe_jax.{family}.base '
    'asks of one'
  )


def _of_family(found: Any, family: str) -> bool:
  if not dataclasses.is_dataclass(found) or inspect.isabstract(found):
    return False
  base = f'moe_jax.{family}.base'
  bases = getattr(found, '__mro__', ())
  return any(isinstance(c, abc.ABCMeta) and c.__module__ == base for c in bases)


def _call(
  fn: Callable,
  keywords: dict[str, Any],
  what: str,
  sizes: Mapping[str, Any] = types.MappingProxyType({}),
) -> Any:
  if dataclasses.is_dataclass(fn):
    valid = [f.name for f in dataclasses.fields(fn) if f.init]
  else:
    valid = list(inspect.signature(fn).parameters)
  for k in keywords:
    if k not in valid:
      raise unknown(f'argument of {what}', k, valid)
  wanted = inspect.signature(fn).parameters.values()
  missing = [
    p.name
    for p in wanted
    if p.default is p.empty
    and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    and p.name not in {**sizes, **keywords}
  ]
  if missing:
    raise UserError(f'{what}: without {", ".join(map(repr, missing))}')
  try:
    made = fn(**{**sizes, **keywords})
  except UserError:
    raise
  except (TypeError, ValueError) as e:  # of a class that is not ours, too
    raise UserError(f'{what}: {e}') from None
  _check_types(fn, keywords, what)
  return made


def _check_types(fn: Callable, keywords: dict[str, Any], what: str) -> None:
  """Raises ValueError where a value is not of the type that its field has.

  Else `jitter=None` is built and fails where the model is traced.
  """
  try:
    hints = typing.get_type_hints(fn)
  except (NameError, TypeError):  # of a class of theirs that does not say
    return
  for k, v in keywords.items():
    hint = hints.get(k, Any)
    if not _fits(v, hint):
      name = hint.__name__ if isinstance(hint, type) else hint
      raise UserError(f'{what}: {k}={v!r}; the type {name} is wanted')


def _fits(value: Any, hint: Any) -> bool:
  kind = typing.get_origin(hint) or hint
  if kind in (types.UnionType, typing.Union):
    return any(_fits(value, h) for h in typing.get_args(hint))
  if kind in (bool, int, float):
    # 0 and 1 go for a bool, but a bool for no number.
    valid = {bool: (bool, int), int: (int,), float: (int, float)}[kind]
    return type(value) in valid
  if kind in (str, tuple, type(None)):
    return isinstance(value, kind)
  return True
