"""What differs between jax 0.7.2 and today, in one place."""

from typing import Any

import jax
from jax._src import config, distributed, hardware_utils


def varying(x: jax.Array) -> frozenset[str]:
  """The mesh axes over which `x` may differ, inside `jax.shard_map`."""
  t = jax.typeof(x)
  return frozenset(t.vma if hasattr(t, 'vma') else t.manual_axis_type.varying)


def device_varying(x: jax.Array, axes) -> jax.Array:
  """Marks `x` as varying over `axes` too.

  The transpose sums the cotangent over the axes that are new. Needed before a
  `custom_vjp`, whose backward pass must return cotangents of the very type of
  its arguments. Where `check_vma` is off nothing has such a type, and the marks
  of jax 0.7.2 would sum a cotangent twice: it is then left alone.
  """
  new = tuple(a for a in axes if a not in varying(x))
  if not new or not varying(jax.lax.axis_index(new[0])):
    return x
  if hasattr(jax.lax, 'pcast'):
    return jax.lax.pcast(x, new, to='varying')
  return jax.lax.pvary(x, new)


def untyped(f):
  """f, traced as if `check_vma` were off; its results vary as its arguments do.

  For Pallas kernels of others, whose results carry no varying-axes types, and
  for interpreted ones, which fail inside a region that checks. The switch has
  no public name; it has this one from jax 0.7.2 on.
  """

  def run(*args):
    axes = frozenset().union(*map(varying, args))
    with config._check_vma(False):
      out = f(*args)
    return jax.tree.map(lambda v: device_varying(v, axes), out)

  return run


def service() -> tuple[Any, int, int]:
  """JAX's service of a job: (client or None, this process, how many).

  Its keys and values have no public name; they need no device, nor start one.
  """
  state = distributed.global_state
  return state.client, state.process_id or 0, state.num_processes or 1


def lacks_gpu() -> bool:
  """Whether CUDA is asked for by name, and this host has no NVIDIA GPU.

  JAX then takes the next platform of the list without a word. Starts nothing.
  """
  asked = (jax.config.jax_platforms or '').split(',')
  named = asked[0] in ('cuda', 'gpu')
  return named and not hardware_utils.has_visible_nvidia_gpu()
