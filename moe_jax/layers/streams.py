"""Keys of what a layer draws from."""

from collections.abc import Mapping

import jax

from moe_jax.errors import UserError

# What draws -> the random stream of Flax modules: the router and the seating;
# the dropout of experts and a dispatch that is random; the dense branch.
STREAMS = {'router': 'router', 'dropout': 'dropout', 'dense': 'dropout'}
Key = jax.Array | Mapping[str, jax.Array] | None


def split(key: Key) -> dict[str, jax.Array | None]:
  """A key for each of STREAMS, from one or from those that there are."""
  if key is None:
    key = {}
  elif not isinstance(key, Mapping):
    key = dict(zip(STREAMS, jax.random.split(key, len(STREAMS))))
  return dict.fromkeys(STREAMS) | {**key}


def wanted(key: jax.Array | None, draws: bool) -> jax.Array | None:
  """The key where something draws, else None.

  Raises:
    ValueError: there is none.
  """
  if draws and key is None:
    raise UserError(
      'dropout, or a dispatch that is random, draws in training, and the layer '
      'has no key for it'
    )
  return key if draws else None
