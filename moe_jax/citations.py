"""Papers of the methods: a table of all methods, and BibTeX for a config.

A method's papers are those whose arXiv numbers its file's docstring names; the
first of them is the one it follows.
"""

import ast
import importlib
import pathlib
import re
from typing import Any

import ml_collections

from moe_jax import registry
from moe_jax.balancing import base as balancing
from moe_jax.planning import layers
from moe_jax.plots import tables

# arXiv number: first author (and others, unless marked alone), title.
_PAPERS = {
  '1701.06538': (
    'Shazeer, Noam',
    'Outrageously Large Neural Networks: The Sparsely-Gated '
    'Mixture-of-Experts Layer',
  ),
  '1706.03762': ('Vaswani, Ashish', 'Attention Is All You Need'),
  '1907.05242': (
    'Lample, Guillaume',
    'Large Memory Layers with Product Keys',
  ),
  '2002.05202': ('Shazeer, Noam', 'GLU Variants Improve Transformer'),
  '2006.16668': (
    'Lepikhin, Dmitry',
    'GShard: Scaling Giant Models with Conditional Computation and Automatic '
    'Sharding',
  ),
  '2101.03961': (
    'Fedus, William',
    'Switch Transformers: Scaling to Trillion Parameter Models with Simple '
    'and Efficient Sparsity',
  ),
  '2103.16716': (
    'Lewis, Mike',
    'BASE Layers: Simplifying Training of Large, Sparse Models',
  ),
  '2106.03760': (
    'Hazimeh, Hussein',
    'DSelect-k: Differentiable Selection in the Mixture of Experts with '
    'Applications to Multi-Task Learning',
  ),
  '2106.04426': ('Roller, Stephen', 'Hash Layers For Large Sparse Models'),
  '2106.05974': (
    'Riquelme, Carlos',
    'Scaling Vision with Sparse Mixture of Experts',
  ),
  '2110.04260': (
    'Zuo, Simiao',
    'Taming Sparsely Activated Transformer with Stochastic Experts',
  ),
  '2202.01169': (
    'Clark, Aidan',
    'Unified Scaling Laws for Routed Language Models',
  ),
  '2202.08906': (
    'Zoph, Barret',
    'ST-MoE: Designing Stable and Transferable Sparse Expert Models',
  ),
  '2202.09368': (
    'Zhou, Yanqi',
    'Mixture-of-Experts with Expert Choice Routing',
  ),
  '2204.09179': (
    'Chi, Zewen',
    'On the Representation Collapse of Sparse Mixture of Experts',
  ),
  '2206.03382': (
    'Hwang, Changho',
    'Tutel: Adaptive Mixture-of-Experts at Scale',
  ),
  '2211.15841': (
    'Gale, Trevor',
    'MegaBlocks: Efficient Sparse Training with Mixture-of-Experts',
  ),
  '2212.08066': (
    'Chen, Zitian',
    'Mod-Squad: Designing Mixture of Experts As Modular Multi-Task Learners',
  ),
  '2306.02824': (
    'Ibrahim, Shibal',
    'COMET: Learning Cardinality Constrained Mixture of Experts with Trees '
    'and Local Search',
  ),
  '2306.04640': (
    'Shen, Yikang',
    'ModuleFormer: Modularity Emerges from Mixture-of-Experts',
  ),
  '2308.00951': (
    'Puigcerver, Joan',
    'From Sparse to Soft Mixtures of Experts',
  ),
  '2310.00811': (
    'Liu, Liyuan',
    'Sparse Backpropagation for MoE Training',
  ),
  '2401.04088': ('Jiang, Albert Q.', 'Mixtral of Experts'),
  '2401.06066': (
    'Dai, Damai',
    'DeepSeekMoE: Towards Ultimate Expert Specialization in '
    'Mixture-of-Experts Language Models',
  ),
  '2403.07652': (
    'Huang, Quzhe',
    'Harder Tasks Need More Experts: Dynamic Routing in MoE Models',
  ),
  '2405.04434': (
    '{DeepSeek-AI}',
    'DeepSeek-V2: A Strong, Economical, and Efficient Mixture-of-Experts '
    'Language Model',
  ),
  '2406.13233': (
    'Zeng, Zihao',
    'AdaMoE: Token-Adaptive Routing with Null Experts for Mixture-of-Experts '
    'Language Models',
  ),
  '2407.04153': ('He, Xu Owen', 'Mixture of A Million Experts'),
  '2408.15664': (
    'Wang, Lean',
    'Auxiliary-Loss-Free Load Balancing Strategy for Mixture-of-Experts',
  ),
  '2409.02060': (
    'Muennighoff, Niklas',
    'OLMoE: Open Mixture-of-Experts Language Models',
  ),
  '2409.12136': ('Liu, Liyuan', 'GRIN: GRadient-INformed MoE'),
  '2410.07348': (
    'Jin, Peng',
    'MoE++: Accelerating Mixture-of-Experts Methods with Zero-Computation '
    'Experts',
  ),
  '2410.10469': (
    'Liu, Xu',
    'Moirai-MoE: Empowering Time Series Foundation Models with Sparse Mixture '
    'of Experts',
  ),
  '2412.14711': (
    'Wang, Ziteng',
    'ReMoE: Fully Differentiable Mixture-of-Experts with ReLU Routing',
  ),
  '2412.19437': ('{DeepSeek-AI}', 'DeepSeek-V3 Technical Report'),
  '2501.13074': ('Lv, Ang', 'Autonomy-of-Experts Models'),
  '2502.15451': (
    'Sun, Yuan',
    'Binary-Integer-Programming Based Algorithm for Expert Load Balancing in '
    'Mixture-of-Experts Models',
  ),
  '2503.07639': (
    'Yang, Xingyi',
    'Mixture of Experts Made Intrinsically Interpretable',
  ),
  '2508.10925': ('{OpenAI}', 'gpt-oss-120b & gpt-oss-20b Model Card'),
  '2510.17483': (
    'Tan, Zheyue',
    'ReXMoE: Reusing Experts with Minimal Overhead in Mixture-of-Experts',
  ),
  '2512.16248': ('Hu', 'Sigma-MoE-Tiny Technical Report'),
  '2601.21641': ('Ortigossa', 'Seg-MoE'),
}
_ALONE = ('2002.05202', '2407.04153', '2405.04434', '2412.19437', '2508.10925')


_FIELDS = {
  'router': 'routers',
  'balance': 'balancing',
  'experts': 'experts',
  'local_experts': 'local_experts',
  'dispatch': 'dispatch',
}


def _module(family: str, name: str):
  return importlib.import_module(f'moe_jax.{family}.{name}')


def papers(family: str, name: str) -> tuple[str, ...]:
  """arXiv numbers of a method, the one it follows first; may be none."""
  found = re.findall(r'arXiv:(\d{4}\.\d{5})', _module(family, name).__doc__)
  return tuple(dict.fromkeys(found))


def bibtex(number: str) -> str:
  """An entry, by arXiv number."""
  author, title = _PAPERS[number]
  others = '' if number in _ALONE else ' and others'
  return (
    f'@misc{{arxiv{number.replace(".", "_")},\n'
    f'  author = {{{author}{others}}},\n'
    f'  title = {{{{{title.replace("&", chr(92) + "&")}}}}},\n'
    f'  year = {{20{number[:2]}}},\n'
    f'  eprint = {{{number}}},\n'
    '  archivePrefix = {arXiv},\n'
    '}'
  )


def citation(config: ml_collections.ConfigDict) -> str:
  """BibTeX of the papers behind a config's methods, by number.

  Methods from outside moe_jax, by dotted names, have no papers here.

  Args:
    config: as experiments.train takes it; read are `model.ffn`, what builds
      methods in `moe`, and in `moe.decoder` what differs there.
  """
  specs = [('experts', config.model.ffn)]
  if config.moe.layers != 'none':
    for fields in (config.moe, config.moe.get('decoder', {})):
      for field, family in _FIELDS.items():
        value = fields.get(field, ())
        values = (value,) if isinstance(value, str) else value
        specs += [(family, spec) for spec in values]
  found = set()
  for family, spec in specs:
    name, _ = registry.parse(spec)
    if '.' not in name:
      found.update(papers(family, name))
  return '\n\n'.join(bibtex(number) for number in sorted(found))


def methods() -> list[dict[str, Any]]:
  """A row for each method of every family.

  Keys:
    family, name, arxiv ('' where there is no paper), summary.
    causal: of routers, whether tokens are routed without later ones.
    dropless: of routers, whether they can do without a capacity; of dispatches,
      whether they then hold no more rows than there are assignments.
    state: of balancing rules, whether they have one.
    tests: 'oracle' where a row of tests/ compares it with a reference,
      'contract' where rows have none, 'none' without a row; '' where the
      tests are not beside the package.

  What does not apply is None.
  """
  rows, tested = [], _tested()
  for family in registry.FAMILIES:
    for name in registry.names(family):
      built = registry.method_class(family, name)
      causal = dropless = state = None
      if family == 'routers':
        causal, dropless = built.causal, not built.first_fit
      if family == 'dispatch':
        dropless = name not in (*layers.PADDED, 'dense')
      if family == 'balancing':
        state = built.init is not balancing.Balance.init
      summary = _module(family, name).__doc__.strip().split('\n\n')[0]
      rows.append(
        {
          'family': family,
          'name': name,
          'arxiv': (*papers(family, name), '')[0],
          'causal': causal,
          'dropless': dropless,
          'state': state,
          'tests': '' if tested is None else tested.get((family, name), 'none'),
          'summary': ' '.join(summary.split()),
        }
      )
  return rows


def _tested() -> dict[tuple[str, str], str] | None:
  """How the methods are tested, by reading the rows beside the package."""
  tests = pathlib.Path(__file__).parent.parent / 'tests'
  if not (tests / 'methods.py').exists():
    return None
  found = {}
  for family in registry.FAMILIES:
    for path in (tests / family).glob('test_*.py'):
      read = [oracle for _, oracle in _rows(ast.parse(path.read_text()))]
      found[family, path.stem[5:]] = 'oracle' if any(read) else 'contract'
  tables_ = tests / 'rows.py'
  for table_ in ast.parse(tables_.read_text()).body if tables_.exists() else ():
    if isinstance(table_, ast.Assign):
      family = table_.targets[0].id.lower().removeprefix('slot_')
      for call, oracle in _rows(table_.value):
        key = family, registry.parse(call.args[0].value)[0]
        if oracle or key not in found:
          found[key] = 'oracle' if oracle else 'contract'
  return found


def _rows(tree: ast.AST):
  """The rows in a program, and whether they have an oracle."""
  for call in ast.walk(tree):
    if isinstance(call, ast.Call) and getattr(call.func, 'id', '') == 'Row':
      given = len(call.args) > 2 or 'oracle' in [k.arg for k in call.keywords]
      yield call, given


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
