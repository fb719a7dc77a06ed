"""Which kinds of attention there are, by call string."""

import dataclasses
import functools
from typing import Any

from moe_jax import registry
from moe_jax.layers import attention, heads, latent

KINDS = {
  'full': heads.Full,
  'window': heads.Window,
  'chunk': heads.Chunk,
  'mla': latent.Latent,
}


def build(spec: str, **sizes: Any) -> attention.Kind:
  """A kind from its call string, `'window(size=128)'`.

  Args:
    spec: the call string.
    **sizes: fields that the call string need not set, of those that a kind has.

  Raises:
    ValueError: an unknown name or argument; the message lists the valid ones.
  """
  made = {}
  for name, cls in KINDS.items():
    own = {f.name for f in dataclasses.fields(cls)}
    given = {k: v for k, v in sizes.items() if k in own}
    made[name] = functools.partial(cls, **given)
  return registry.call(spec, made, 'attention')
