"""A built-in task: does this docstring belong to this function?

From the running interpreter's standard library: a function's source without its
docstrings, and a docstring's first line. Half the examples have the function's
own ('yes'), half that of another function of the same file ('no'), or of
another file of the same split where there is none. Nothing is downloaded; the
examples are the same wherever the same Python is installed.

Files are in training or in validation, whole, and a function whose source
stands in both is left out of validation. False docstrings come from the files
of the true ones, so that neither part alone gives the answer.
"""

import ast
import functools
import io
import textwrap
import tokenize
from typing import NamedTuple

import numpy as np

from moe_jax.data import splitting, stdlib
from moe_jax.data.task_sources import Example, Task
from moe_jax.errors import UserError

MAX_CODE = 512  # bytes; a longer function says little more, and costs more
MIN_LINE = 16  # bytes; shorter ones ('Constructor.') fit many functions
HELD_OUT = 0.25  # of the files
MAX_VALIDATION = 1000


class Function(NamedTuple):
  """A function's file, its source without docstrings, its docstring's line."""

  file: str
  code: bytes
  line: bytes


def docstring(examples: int = 1000) -> Task:
  """The task.

  Args:
    examples: of training: the first of an order that is always the same, so
      that fewer are part of more.

  Raises:
    ValueError: fewer than 2, or more than there are.
  """
  train, validation = _splits()
  if not (isinstance(examples, int) and 2 <= examples <= len(train)):
    raise UserError(
      f'docstring: examples={examples!r}: expected 2 to {len(train)}, a whole '
      f'number'
    )
  fields, labels = ('code', 'docstring'), ('no', 'yes')
  return Task('docstring', fields, labels, train[:examples], validation)


@functools.cache
def _found() -> list[Function]:
  """The functions of the standard library. Takes about 5 s, once."""
  return functions(stdlib.files())


@functools.cache
def _splits() -> tuple[list[Example], list[Example]]:
  """All examples of training and of validation."""
  held = lambda f: splitting.place(f.file) < HELD_OUT
  found = _found()
  train = _unique([f for f in found if not held(f)])
  known = {f.code for f in train}
  validation = _unique([f for f in found if held(f) and f.code not in known])
  return pairs(train, seed=0), pairs(validation, seed=1)[:MAX_VALIDATION]


def pairs(found: list[Function], seed: int) -> list[Example]:
  """An example of each function in a drawn order, 'no' and 'yes' in turn."""
  by_file: dict[str, list[int]] = {}
  for i, f in enumerate(found):
    by_file.setdefault(f.file, []).append(i)
  rng = np.random.default_rng(seed)
  examples = []
  for n, i in enumerate(rng.permutation(len(found))):
    mine = found[i]
    line, label = mine.line, n % 2
    if not label:
      other = lambda js, f=mine: [j for j in js if found[j].line != f.line]
      others = other(by_file[mine.file]) or other(range(len(found)))
      line = found[others[rng.integers(len(others))]].line
    examples.append(Example((mine.code, line), label))
  return examples


def functions(files: list[tuple[str, str, bytes]]) -> list[Function]:
  """The documented functions and methods of `stdlib.files()`, in order.

  Those with MAX_CODE bytes of code at most and MIN_LINE of a line at least.
  """
  found = []
  for kind, name, source in files:
    if kind != 'py':
      continue
    encoding, _ = tokenize.detect_encoding(io.BytesIO(source).readline)
    text = source.decode(encoding)
    lines = text.encode().splitlines(keepends=True)
    for node in ast.walk(ast.parse(text)):
      if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        continue
      if not ast.get_docstring(node):
        continue
      whole = b''.join(lines[node.lineno - 1 : node.end_lineno]).decode()
      try:
        code, docs = stdlib.split_docstrings(textwrap.dedent(whole).encode())
      except SyntaxError:  # a string with lines less indented than the code
        continue
      line = docs[0].strip().split('\n')[0].strip().encode()
      if len(code) <= MAX_CODE and len(line) >= MIN_LINE:
        found.append(Function(name, code.rstrip(), line))
  return found


def _unique(found: list[Function]) -> list[Function]:
  """The first of those with equal code."""
  first: dict[bytes, Function] = {}
  for f in found:
    first.setdefault(f.code, f)
  return list(first.values())
