"""Papers of the methods: a table of all methods, and BibTeX for a config.

A method's papers are those whose arXiv numbers its file's docstring names. The
first is the one it follows, and is cited in full at the start of a paragraph:

  Yanqi Zhou et al., "Mixture-of-Experts with Expert Choice Routing", NeurIPS
  2022, arXiv:2202.09368, section 3.2.

Authors, title, venue (where there is one), year, number. Others are cited so in
parentheses, or by their number alone where another method has the rest.
"""

import ast
import dataclasses
import functools
import importlib
import pathlib
import re
from typing import Any

import ml_collections

from moe_jax import registry
from moe_jax.balancing import base as balancing
from moe_jax.errors import UserError
from moe_jax.plots import tables

_WORD = r"[^\W\da-z_][\w.'-]*"  # a capital, then what names have
_NAME = rf'{_WORD}(?:\s(?:{_WORD}|de|den|der|la|van|von))*'
_CITATION = re.compile(
  rf'(?:\A|\n\n|\()(?P<authors>{_NAME}(?:(?:,|\sand)\s{_NAME})*'
  r'(?:\set\sal\.)?),'
  r'\s"(?P<title>[^"]+)",'
  r'\s(?:(?P<venue>[^",]+)\s)?(?P<year>\d{4}),'
  r'\sarXiv:(?P<number>\d{4}\.\d{5})'
)


@dataclasses.dataclass(frozen=True)
class Paper:
  """A full citation, as its words: authors may end in 'et al.'."""

  authors: str
  title: str
  venue: str  # may be ''
  year: str
  number: str  # arXiv's

  def bibtex(self) -> str:
    """An entry; an author of one word is an institution."""
    authors = self.authors.replace(' et al.', ' and others')
    authors = map(_last_name_first, re.split(', | and ', authors))
    return (
      f'@misc{{arxiv{self.number.replace(".", "_")},\n'
      f'  author = {{{" and ".join(authors)}}},\n'
      f'  title = {{{{{self.title.replace("&", chr(92) + "&")}}}}},\n'
      f'  year = {{{self.year}}},\n'
      f'  eprint = {{{self.number}}},\n'
      '  archivePrefix = {arXiv},\n'
      '}'
    )


def _last_name_first(name: str) -> str:
  words = name.split()
  if len(words) == 1:
    return name if name == 'others' else f'{{{name}}}'
  small = [i for i, w in enumerate(words) if w[0].islower()]
  last = min(small, default=len(words) - 1)  # 'van' begins a last name
  return f'{" ".join(words[last:])}, {" ".join(words[:last])}'


def cited(docstring: str) -> tuple[Paper, ...]:
  """The papers that a docstring cites in full."""
  found = _CITATION.finditer(docstring)
  fields = ({k: v or '' for k, v in m.groupdict().items()} for m in found)
  return tuple(
    Paper(**{k: ' '.join(v.split()) for k, v in f.items()}) for f in fields
  )


def citation_lines(docstring: str) -> set[int]:
  """Numbers of the lines, from 0, that are full citations, whole or in part."""
  lines = set()
  for m in _CITATION.finditer(docstring):
    line = lambda at: docstring.count('\n', 0, at)
    lines.update(range(line(m.start('authors')), line(m.end()) + 1))
  return lines


_FIELDS = {
  'router': 'routers',
  'balance': 'balancing',
  'experts': 'experts',
  'local_experts': 'local_experts',
  'dispatch': 'dispatch',
}


def _docstring(family: str, name: str) -> str:
  """Of a method's file, also of one outside of moe_jax, by a dotted name."""
  module = registry.method_class(family, name).__module__
  return importlib.import_module(module).__doc__ or ''


def papers(family: str, name: str) -> tuple[str, ...]:
  """arXiv numbers of a method, the one it follows first; may be none."""
  found = re.findall(r'arXiv:(\d{4}\.\d{5})', _docstring(family, name))
  return tuple(dict.fromkeys(found))


@functools.cache
def known() -> dict[str, Paper]:
  """All papers that methods of moe_jax cite in full, by arXiv number."""
  methods_ = [(f, n) for f in registry.FAMILIES for n in registry.names(f)]
  return {p.number: p for m in methods_ for p in cited(_docstring(*m))}


def citation(config: ml_collections.ConfigDict) -> str:
  """BibTeX of the papers behind a config's methods, by number.

  Args:
    config: as experiments.train takes it; read are `model.ffn`, what builds
      methods in `moe`, and in `moe.decoder` what differs there.

  Raises:
    UserError: a method from outside of moe_jax names a paper that neither it
      nor any other cites in full.
  """
  specs = [('experts', config.model.ffn)]
  if config.moe.layers != 'none':
    for fields in (config.moe, config.moe.get('decoder', {})):
      for field, family in _FIELDS.items():
        value = fields.get(field, ())
        values = (value,) if isinstance(value, str) else value
        specs += [(family, spec) for spec in values]
  found = {}
  for family, spec in specs:
    method = family, registry.parse(spec)[0]
    whole = known() | {p.number: p for p in cited(_docstring(*method))}
    for number in papers(*method):
      if number not in whole:
        raise UserError(
          f'{method[1]}: expected \'Authors, "Title", Venue Year, '
          f"arXiv:{number}' at the start of a paragraph of its docstring"
        )
      found[number] = whole[number].bibtex()
  return '\n\n'.join(found[number] for number in sorted(found))


def methods() -> list[dict[str, Any]]:
  """A row for each method of every family.

  Keys:
    family, name, arxiv ('' where there is no paper), summary.
    causal: of routers, whether tokens are routed without later ones.
    dropless: of routers, whether they can do without a capacity; of dispatches,
      whether they then hold no more rows than there are assignments.
    state: of balancing rules, whether they have one.
    tests: 'oracle' where a row in its test file has one, 'contract' where none
      has, 'none' without a row; '' where the tests are not beside the package.

  What does not apply is None.
  """
  rows = []
  for family in registry.FAMILIES:
    for name in registry.names(family):
      built = registry.method_class(family, name)
      causal = dropless = state = None
      if family == 'routers':
        causal, dropless = built.causal, not built.first_fit
      if family == 'dispatch':
        dropless = not built.padded
      if family == 'balancing':
        state = built.init is not balancing.Balance.init
      summary = _docstring(family, name).strip().split('\n\n')[0]
      rows.append(
        {
          'family': family,
          'name': name,
          'arxiv': (*papers(family, name), '')[0],
          'causal': causal,
          'dropless': dropless,
          'state': state,
          'tests': _tested(family, name),
          'summary': ' '.join(summary.split()),
        }
      )
  return rows


def _tested(family: str, name: str) -> str:
  """How tests/<family>/test_<name>.py tests it, by reading that."""
  tests = pathlib.Path(__file__).parent.parent / 'tests'
  if not tests.exists():
    return ''
  path = tests / family / f'test_{name}.py'
  tree = ast.parse(path.read_text() if path.exists() else '')
  calls = [n for n in ast.walk(tree) if isinstance(n, ast.Call)]
  found = [c for c in calls if getattr(c.func, 'id', '') == 'Row']
  with_oracle = (
    len(row.args) > 2 or any(k.arg == 'oracle' for k in row.keywords)
    for row in found
  )
  return ('oracle' if any(with_oracle) else 'contract') if found else 'none'


_HEADER = ('method', 'family', 'arXiv', 'causal', 'dropless', 'state', 'tests')


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
  says = {None: '', True: 'yes', False: 'no'}
  flags = (says[row[k]] for k in ('causal', 'dropless', 'state'))
  return row['name'], row['family'], row['arxiv'], *flags, row['tests']


def table(rows: list[dict[str, Any]]) -> str:
  """The rows of `methods` as aligned text."""
  return tables.text(_HEADER, [_cells(r) for r in rows])


def markdown(rows: list[dict[str, Any]]) -> str:
  """The rows of `methods` as a table in Markdown."""
  cells = [_HEADER, ('---',) * len(_HEADER), *map(_cells, rows)]
  return '\n'.join(f'| {" | ".join(c)} |' for c in cells)
