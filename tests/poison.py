"""What no kernel writes, filled with NaN: on real hardware it is garbage."""

import dataclasses

from moe_jax.dispatch import base
from tests.lazy import jnp


def sorted_ops(monkeypatch) -> list[int]:
  """Spoils rows past the last, before and after each operation.

  Returns:
    Rows of each layout that was made, to see that there were some.
  """
  clean, spoilt = base.sorted_ops, []

  def garbage(matmul, size_e, R, *rest, **more):
    ops = clean(matmul, size_e, R, *rest, **more)
    past_R1 = (jnp.arange(R) >= size_e.sum())[:, None]
    spoil = lambda v: jnp.where(past_R1, jnp.nan, v)
    spoilt.append(R)
    return dataclasses.replace(
      ops,
      dot=lambda x, w: spoil(ops.dot(spoil(x), w)),
      spread=lambda b: spoil(ops.spread(b)),
      once=lambda b: spoil(ops.once(b)),
    )

  monkeypatch.setattr(base, 'sorted_ops', garbage)
  return spoilt
