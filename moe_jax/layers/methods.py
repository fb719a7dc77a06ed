"""The methods of an MoE layer by call string: `MoE(router='top_k(k=2)')`.

A string stands for what its family builds from it, with all sizes written out:
`experts='mlp(d_ff=512)'`. Configs know sizes, and build objects
(`models.factory`).
"""

import functools
from typing import Any

from moe_jax import registry
from moe_jax.parallel import mesh as mesh_lib
from moe_jax.seating import capacity, orders

_family = lambda name: functools.partial(registry.build, name)
# Field of the layer -> what makes its value from a call string.
BUILDERS = {
  'router': _family('routers'),
  'experts': _family('experts'),
  'dispatch': _family('dispatch'),
  'dense': _family('experts'),
  'capacity_rule': capacity.build,
  'seating': orders.build,
  'mesh': mesh_lib.make,
}
# Fields that hold a tuple; one method may stand alone.
TUPLES = {
  'balance': _family('balancing'),
  'local_experts': _family('local_experts'),
}


def build(layer: Any) -> None:
  """Puts objects where a layer's fields hold call strings.

  For `__post_init__`. Objects stay as they are, so that a copy is built once.

  Raises:
    ValueError: as `registry.build`, of the first wrong string.
  """
  put = functools.partial(object.__setattr__, layer)  # it is frozen
  made = lambda builder, v: builder(v) if isinstance(v, str) else v
  for field, builder in BUILDERS.items():
    put(field, made(builder, getattr(layer, field)))
  for field, builder in TUPLES.items():
    value = getattr(layer, field)
    each = value if isinstance(value, tuple | list) else (value,)
    put(field, tuple(made(builder, v) for v in each))
