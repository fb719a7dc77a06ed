"""Float32 parameters as a device's computation takes them.

A gradient is a sum over the tokens of all devices. Where a parameter is cast
first and then used by rows that differ between devices, JAX puts that sum where
the cast one begins to vary, and adds up in bfloat16: 256 + 1 is 256. Here it
varies first and is cast then, so that a device's part, rounded once, is added
to the others' in float32.
"""

from collections.abc import Mapping

import jax

from moe_jax.experts import base as experts_base
from moe_jax.parallel import axes as axes_lib, collectives, compat


def varying(params, over: tuple[str, ...]):
  """Every leaf marked as varying over `over`; gradients are summed there."""
  return jax.tree.map(lambda v: compat.device_varying(v, over), params)


def whole(
  params: experts_base.Params,
  logical: Mapping[str, tuple[str | None, ...]],
  axes: axes_lib.Axes,
  over: tuple[str, ...],
  dtype,
) -> experts_base.Params:
  """This device's experts, gathered over fsdp, cast to `dtype`.

  What all experts share is on all devices of the expert axis; it varies over
  that axis too before it is cast, and its gradient is summed there.

  Weights are gathered as `dtype`; their gradients are scattered and then summed
  over `data` as float32. With W bytes of a device's whole experts in 16 bits, n
  devices of fsdp and m of data, a device puts on the wire (n - 1) / n W forward
  and 2 (n - 1) / n W + 4 (m - 1) / (m n) W backward. Sums in 16 bits, over data
  before the scatter, as JAX does by itself, took (n - 1) / n W +
  2 (m - 1) / m W: half of it without fsdp, 1.2 times as much at n = m = 8.
  Before it is scattered a layer's gradient takes 4 bytes an entry, not 2.

  Not covered are sums of tokens' gradients, which like all activations cross
  the devices of `model`, and those that gathered them, in `dtype`.

  Args:
    params: f32 shards.
    logical: axes of each parameter.
    axes: mesh axes.
    over: axes that those who use the result vary over.
    dtype: of the computation.
  """

  def one(names, shard):
    shard = compat.device_varying(shard, over)
    if 'embed' not in names:
      return shard.astype(dtype)
    return collectives.gather_weights(
      *(shard, axes.fsdp),
      dim=names.index('embed'),
      name='fsdp_gather',
      dtype=dtype,
    )

  return {k: one(logical[k], v) for k, v in params.items()}
