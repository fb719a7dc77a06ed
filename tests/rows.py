"""One table a family: a method is tested by having a row here."""

import dataclasses
import functools
from collections.abc import Callable

from tests import reference


@dataclasses.dataclass(frozen=True)
class Row:
  """A call string, the paper it follows, and its independent oracle.

  Attributes:
    spec: call string.
    arxiv: id that the method's docstring must cite.
    oracle: a function of tests/reference.py.
    causal: whether a token's routing may depend on later tokens (routers).
    state: whether the rule has a state (balancing).
  """

  spec: str
  arxiv: str = ''
  oracle: Callable | None = None
  causal: bool = True
  state: bool = False


def _top_k(k, renormalize):
  return functools.partial(reference.top_k, k=k, renormalize=renormalize)


ROUTERS = (
  Row('switch()', '2101.03961', reference.switch),
  Row('top_k()', '1701.06538', _top_k(2, True)),
  Row('top_k(k=1, renormalize=False)', '1701.06538', _top_k(1, False)),
  Row('top_k(k=3, renormalize=False)', '1701.06538', _top_k(3, False)),
  Row("top_k(k=2, renormalize='kept')", '1701.06538', _top_k(2, 'kept')),
)

BALANCING = (
  Row('switch_loss()', '2101.03961', reference.switch_loss),
  Row("switch_loss(scope='global')", '2101.03961', reference.switch_loss),
  Row("switch_loss(scope='sequence')", '2101.03961', reference.switch_loss),
  Row(
    "switch_loss(count='all')",
    '2101.03961',
    functools.partial(reference.switch_loss, count='all'),
  ),
  Row('z_loss()', '2202.08906', reference.z_loss),
  Row('loss_free_bias()', '2408.15664', state=True),
)

EXPERTS = (
  Row(
    'mlp(d_ff=12)',
    '1706.03762',
    functools.partial(reference.mlp, activation='relu'),
  ),
  Row(
    "mlp(d_ff=12, activation='gelu', bias=True)",
    '1706.03762',
    functools.partial(reference.mlp, activation='gelu', bias=True),
  ),
  Row(
    "mlp(d_ff=12, activation='gelu_exact')",
    '1706.03762',
    functools.partial(reference.mlp, activation='gelu_exact'),
  ),
  Row(
    'glu(d_ff=12)',
    '2002.05202',
    functools.partial(reference.glu, activation='silu'),
  ),
  Row(
    "glu(d_ff=12, activation='gelu')",
    '2002.05202',
    functools.partial(reference.glu, activation='gelu'),
  ),
)

DISPATCH = (
  Row('dense()'),
  Row('einsum()', '2006.16668'),
  Row('scatter()', '2006.16668'),
)

FAMILIES = {
  'routers': ROUTERS,
  'balancing': BALANCING,
  'experts': EXPERTS,
  'dispatch': DISPATCH,
}
