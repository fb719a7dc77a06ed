"""The running interpreter's standard library as text, in three domains.

`code`: Python sources without their docstrings. `prose`: pydoc's topics and the
docstrings, dedented. `c`: the interpreter's C headers, or numpy's where those
are not installed. The same everywhere that the same Python is installed, and
offline; it changes with the interpreter, so a run stores a content hash.
"""

import ast
import importlib
import inspect
import io
import pathlib
import re
import sysconfig
import tokenize

import numpy as np

from moe_jax.data import splitting

DOMAINS = ('code', 'prose', 'c')
MIN_BYTES = 256  # a shorter file is a stub, not a document
# Headers are few, and half their text is boilerplate that training shares.
VALIDATION = {'code': 0.08, 'prose': 0.08, 'c': 0.16}

# Tests repeat the code that they test; bundled and installed packages differ
# between machines with the same interpreter.
_NOT_LIBRARY = frozenset(
  ('site-packages', 'dist-packages', 'test', 'tests', 'idle_test')
  + ('__pycache__', '_bundled', 'pydoc_data')
)
_GENERATED = re.compile(
  rb'(?i)auto-?generated|automatically generated|is generated (?:by|from)'
  rb'|generated (?:from|on) |configuration generated'
)
_CODEC = re.compile(rb'(?m)^decoding_(?:table = \(|map\.update)')
_LEGAL = re.compile(rb'(?i)copyright|licen[cs]e|all rights reserved')
_COMMENT_LINES = re.compile(rb'(?m)(?:^[ \t]*#[^\n]*\n)+')
_C_COMMENT = re.compile(rb'/\*.*?\*/[ \t]*\n?', re.DOTALL)


def files() -> list[tuple[str, str, bytes]]:
  """(kind, name, bytes) of every file used, sorted; kind is 'py' or 'c'."""
  found = _read('py', pathlib.Path(sysconfig.get_path('stdlib')), '*.py')
  include = pathlib.Path(sysconfig.get_path('include'))
  if not (include / 'Python.h').exists():
    include = pathlib.Path(np.get_include())
  return found + _read('c', include, '*.h')


def _read(kind, root, pattern):
  found = []
  for path in root.rglob(pattern):
    name = path.relative_to(root)
    if not _NOT_LIBRARY.isdisjoint(name.parts):
      continue
    text = path.read_bytes()
    # Tables written by a script say so at the top, but for some codecs.
    table = _GENERATED.search(text[:400]) or _CODEC.search(text)
    if len(text) >= MIN_BYTES and not table:
      found.append((kind, name.as_posix(), text))
  return sorted(found)


def documents(
  sources: list[tuple[str, str, bytes]],
) -> list[splitting.Example]:
  """The documents of all domains, from `files()`.

  A file's code and its docstrings carry the same key, so that they fall in the
  same split. One document a file, or a pydoc topic.
  """
  found = []
  for kind, name, text in sources:
    if kind == 'c':
      found.append(('c', name, strip_c_legal(text)))
    else:
      code, docstrings = split_docstrings(text)
      found.append(('code', name, strip_legal(code)))
      found.append(('prose', name, '\n\n'.join(docstrings).encode() + b'\n'))
  for name, text in sorted(_topics().items()):
    found.append(('prose', f'pydoc_data/{name}', text.encode()))
  found = [f for f in found if len(f[2]) >= MIN_BYTES]
  return [
    splitting.Example(domain, name, text, key=name)
    for domain, name, text in sorted(found)
  ]


def _topics() -> dict[str, str]:
  """pydoc's help topics; some distributions leave them out."""
  try:
    return importlib.import_module('pydoc_data.topics').topics
  except ImportError:
    return {}


def split_docstrings(source: bytes) -> tuple[bytes, list[str]]:
  """Takes the docstrings out of a Python source.

  Strings go by their position in the syntax tree, so that all other bytes stay
  as they are: whole lines are removed, and a string that is the only statement
  of its body, or shares a line with other code, becomes `pass`.

  Returns:
    The code, in the encoding of the source, and the docstrings, dedented.

  Raises:
    SyntaxError: the source is not of this interpreter's grammar.
  """
  encoding, _ = tokenize.detect_encoding(io.BytesIO(source).readline)
  text = source.decode(encoding)
  lines = text.encode().splitlines(keepends=True)  # ast counts UTF-8 bytes
  docstrings = []
  cuts = []
  for node in ast.walk(ast.parse(text)):
    if not isinstance(
      node,
      ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef,
    ):
      continue
    # A second string would become the docstring once the first is gone.
    strings = []
    for statement in node.body:
      if not _is_string(statement):
        break
      strings.append(statement)
    if strings:
      docstrings.append((strings[0].lineno, strings[0].value.value))
    only = len(strings) == len(node.body) and not isinstance(node, ast.Module)
    cuts += [(s, only and s is strings[-1]) for s in strings]
  for node, only in sorted(cuts, key=lambda c: c[0].lineno, reverse=True):
    first, last = node.lineno - 1, node.end_lineno - 1
    before = lines[first][: node.col_offset]
    after = lines[last][node.end_col_offset :]
    rest = after.strip()
    if before.strip() or only or (rest and not rest.startswith(b'#')):
      lines[first : last + 1] = [before + b'pass' + after]
    else:  # a comment stays
      lines[first : last + 1] = [before + after.lstrip()] if rest else []
  dedented = [inspect.cleandoc(d) for _, d in sorted(docstrings)]
  # A docstring may hold escaped lone surrogates, which UTF-8 has not.
  dedented = [
    d.encode('utf-8', 'backslashreplace').decode() for d in dedented if d
  ]
  return b''.join(lines).decode().encode(encoding), dedented


def _is_string(node: ast.stmt) -> bool:
  return (
    isinstance(node, ast.Expr)
    and isinstance(node.value, ast.Constant)
    and isinstance(node.value.value, str)
  )


def strip_legal(code: bytes) -> bytes:
  """Takes out groups of comment lines that speak of copyright or licences."""
  return _COMMENT_LINES.sub(
    lambda m: b'' if _LEGAL.search(m[0]) else m[0], code
  )


def strip_c_legal(code: bytes) -> bytes:
  """Takes out C comments that speak of copyright or licences."""
  return _C_COMMENT.sub(lambda m: b'' if _LEGAL.search(m[0]) else m[0], code)
