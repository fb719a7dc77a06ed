"""What is about to be saved, or was: all of its numbers are finite."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

from moe_jax.runs import finite


def test_each_leaf_and_place_is_looked_at():
  """One number of one leaf, on any device, in any part of the state."""
  mesh = jax.make_mesh((8,), ('x',), axis_types=(AxisType.Auto,))
  split, whole = (NamedSharding(mesh, P(*s)) for s in (('x',), ()))
  rng = np.random.default_rng(0)
  good = {
    'params/w': (rng.normal(size=(8, 3)), split, jnp.float32),
    'opt_state/h': (rng.normal(size=(16,)), split, jnp.bfloat16),
    'balance/b': (rng.normal(size=(5,)), whole, jnp.float32),
    'opt_state/count': (np.array(2**31 - 1), whole, jnp.int32),
    # Finite, though no sum of them is.
    'balance/big': (np.full(16, 3e38), split, jnp.float32),
    'none': (np.zeros((0, 8)), split, jnp.float32),
  }

  def put(arrays):
    return {
      k: jax.device_put(jnp.asarray(v, dtype), where)
      for k, (v, where, dtype) in arrays.items()
    }

  assert finite.fault(put(good)) == ''
  assert finite.fault({}) == ''
  for name, at, value in (
    ('params/w', (7, 2), np.nan),
    ('params/w', (0, 0), -np.inf),
    ('opt_state/h', 9, np.inf),
    ('balance/b', 4, np.nan),
  ):
    values, *rest = good[name]
    values = values.copy()
    values[at] = value
    found = finite.fault(put(good | {name: (values, *rest)}))
    assert found == f'{name} is not finite'
  bad = {k: (v * np.nan, *rest) for k, (v, *rest) in list(good.items())[:3]}
  assert finite.fault(put(good | bad)) == (
    'params/w is not finite, nor are 2 more'
  )
