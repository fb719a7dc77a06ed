"""Rows: a method is tested by having some in the file beside its facts.

`moe_jax/<family>/<method>.py` is the method, `tests/<family>/test_<method>.py`
holds `ROWS`, which the contracts take from here, and may hold `ERRORS`, call
strings and the messages that refuse them. `MOE_JAX_METHODS=my_lab` adds those
of `my_lab/<family>/test_*.py`, whose call strings have dotted names. Neither
this nor a method's tests load jax when they are imported: `tests.lazy`.
"""

import dataclasses
import importlib
import importlib.util
import os
import pkgutil
from collections.abc import Callable

from moe_jax import registry


@dataclasses.dataclass(frozen=True)
class Row:
  """A call string, the paper it follows, and its independent oracle.

  Attributes:
    spec: call string.
    arxiv: id that the method's docstring must cite.
    oracle: a function of NumPy arrays and of the call string's options.
    always: whether costly contracts take it in the default suite, too: one row
      of each kind of `Routing` and of all that a router may read or draw.
    extremes: whether the default suite takes it to the ends of its arithmetic:
      one row of each (routers).
    causal: whether a token's routing ignores later tokens (routers).
    state: whether the rule has a state (balancing).
    context: whether it routes by more than tokens and a mask: ids, positions,
      step, layer, the experts' weights (routers).
    noisy: whether training draws at default options (routers).
    local: zero-computation experts among those of the test (routers).
    local_learns: whether their logits get a gradient.
    experts: kind that the router goes with (routers).
    distinct: whether a token's experts differ (routers).
    permutes: whether permuting tokens permutes what they get (routers).
    train: whether contracts are tested in training, where the method differs
      from evaluation (routers).
    by_expert: whether edges are stored by expert, without first choices.
    balanced: the loss of even loads (tests/balances.py), where all affinities
      are equal, and where tokens are sure of their first choice (balancing).
    flat: whether the loss is one number whatever the affinities (balancing).
    slots: whether it goes with `SlotRouting`, which has contracts of its own.
    initial: (router, E, D) -> by leaf the variance of its initial values, or an
      array: the values; where it is not 0.1 / D, or `init_std` squared.
  """

  spec: str
  arxiv: str = ''
  oracle: Callable | None = None
  always: bool = False
  extremes: bool = False
  causal: bool = True
  state: bool = False
  context: bool = False
  noisy: bool = False
  local: int = 0
  local_learns: bool = True
  experts: str = 'mlp(d_ff=12)'
  distinct: bool = True
  permutes: bool = True
  train: bool = False
  by_expert: bool = False
  balanced: tuple[float, float] = (1, 1)
  flat: bool = False
  slots: bool = False
  initial: Callable | None = None

  def expected(self, *args):
    """What the oracle says, under the options of the call string."""
    return self.oracle(*args, **registry.parse(self.spec)[1])


def _roots() -> list[str]:
  roots = os.environ.get('MOE_JAX_METHODS', '').split(',')
  return [r for r in roots if r]


registry.allow(*_roots())


def files(family: str) -> tuple[str, ...]:
  """Modules of a family's tests, ours and those of MOE_JAX_METHODS."""
  found = []
  for root in ('tests', *_roots()):
    spec = importlib.util.find_spec(f'{root}.{family}')
    path = spec.submodule_search_locations if spec else ()
    names = sorted(m.name for m in pkgutil.iter_modules(path))
    found += [f'{root}.{family}.{n}' for n in names if n.startswith('test_')]
  return tuple(found)


def rows(family: str, slots: bool = False) -> tuple[Row, ...]:
  """All rows of a family, by file; with or without those of `SlotRouting`."""
  modules = map(importlib.import_module, files(family))
  found = [row for module in modules for row in module.ROWS]
  return tuple(r for r in found if slots or not r.slots)


def errors(family: str) -> list[tuple[str, str]]:
  """(call string, message) of what a family's methods refuse, by `ERRORS`."""
  modules = map(importlib.import_module, files(family))
  found = (getattr(module, 'ERRORS', {}) for module in modules)
  return [pair for table in found for pair in table.items()]
