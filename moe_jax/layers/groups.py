"""How many tokens a routing group has."""

from moe_jax.errors import UserError
from moe_jax.routers import base as routers


def size(
  wanted: int,
  tokens: int,
  router: routers.Router,
  factor: float | None,
  train: bool,
) -> int:
  """The group size to use for this many tokens of a device.

  Dropless routing has no groups to speak of, and takes any divisor. With a
  capacity, or a router that compares the tokens of a group, the size is part of
  the method and must fit.

  Args:
    wanted: by the config.
    tokens: of a device.
    router: of the layer.
    factor: capacity factor; None is dropless.
    train: which a router may go by.

  Raises:
    ValueError: names the sizes that fit.
  """
  if tokens % wanted == 0:
    return wanted
  sizes = [n for n in range(1, tokens + 1) if tokens % n == 0]
  compared = router.compares == 'always' or (
    train and router.compares != 'never'
  )
  if factor is None and not compared:
    return max(n for n in sizes if n <= wanted)
  near = sorted(sizes, key=lambda n: abs(n - wanted))[:6]
  name, why = type(router).__name__, ''
  if factor is None:
    why = f', and the router {name} compares the tokens of a group'
  raise UserError(
    f'moe.group_size={wanted} does not divide the {tokens} tokens of a '
    f'device{why}; sizes that do, nearest first: {", ".join(map(str, near))}'
  )
