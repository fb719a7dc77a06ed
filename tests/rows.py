"""One table a family: a method is tested by having a row here."""

import dataclasses
import functools
from collections.abc import Callable

from tests import reference, reference_local


@dataclasses.dataclass(frozen=True)
class Row:
  """A call string, the paper it follows, and its independent oracle.

  Attributes:
    spec: call string.
    arxiv: id that the method's docstring must cite.
    oracle: a function of tests/reference.py.
    causal: whether a token's routing may depend on later tokens (routers).
    state: whether the rule has a state (balancing).
    noisy: whether training draws at default options (routers).
  """

  spec: str
  arxiv: str = ''
  oracle: Callable | None = None
  causal: bool = True
  state: bool = False
  noisy: bool = False


def _top_k(k, renormalize):
  return functools.partial(reference.top_k, k=k, renormalize=renormalize)


ROUTERS = (
  Row('switch()', '2101.03961', reference.switch),
  Row('top_k()', '1701.06538', _top_k(2, True)),
  Row('top_k(k=1, renormalize=False)', '1701.06538', _top_k(1, False)),
  Row('top_k(k=3, renormalize=False)', '1701.06538', _top_k(3, False)),
  Row("top_k(k=2, renormalize='kept')", '1701.06538', _top_k(2, 'kept')),
  Row(
    "top_k(k=3, second_policy='threshold', threshold=0.3, policy_in_eval=True)",
    '2202.08906',
    functools.partial(reference.top_k, k=3, renormalize=True, threshold=0.3),
  ),
  Row(
    'no_token_left_behind(k=3)',
    '2101.03961',
    functools.partial(reference.no_token_left_behind, k=3),
  ),
  Row('vmoe()', '2106.05974', _top_k(2, False), noisy=True),
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
  Row(
    "switch_loss(count='union')",
    '2101.03961',
    functools.partial(reference.switch_loss, count='union'),
  ),
  Row(
    'switch_loss(second_weight=0.5)',
    '2101.03961',
    functools.partial(reference.switch_loss, second_weight=0.5),
  ),
  Row(
    "switch_loss(over_padding=True, scope='sequence')",
    '2101.03961',
    functools.partial(reference.switch_loss, over_padding=True),
  ),
  Row('z_loss()', '2202.08906', reference.z_loss),
  Row('z_loss(noisy=False)', '2202.08906', reference.z_loss),
  Row('importance_loss()', '1701.06538', reference.importance_loss),
  Row("load_loss(scope='global')", '2106.05974', reference.load_loss),
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
  Row(
    "glu(d_ff=12, activation='gelu', bias='multiplicative')",
    '2202.08906',
    functools.partial(reference.glu, activation='gelu', bias='multiplicative'),
  ),
  Row(
    "glu(d_ff=12, bias='additive')",
    '2202.08906',
    functools.partial(reference.glu, activation='silu', bias='additive'),
  ),
)

DISPATCH = (
  Row('dense()'),
  Row('einsum()', '2006.16668'),
  Row('gather_reduce()', '2211.15841'),
  Row("ragged_all_to_all(overflow='gather_reduce')", '2211.15841'),
  Row('scatter()', '2006.16668'),
)

LOCAL_EXPERTS = (
  Row('zero()', '2406.13233', reference_local.zero),
  Row('copy(count=2)', '2410.07348', reference_local.copy),
  Row('constant(count=2)', '2410.07348', reference_local.constant),
)

FAMILIES = {
  'routers': ROUTERS,
  'balancing': BALANCING,
  'experts': EXPERTS,
  'local_experts': LOCAL_EXPERTS,
  'dispatch': DISPATCH,
}
