"""What a traced program does."""

import jax

HIGHEST = (jax.lax.Precision.HIGHEST,) * 2


def products(jaxpr):
  """Every product in a program, its inner ones included."""
  for eqn in jaxpr.eqns:
    if eqn.primitive.name in ('dot_general', 'ragged_dot_general'):
      yield eqn
    for value in jax.tree.leaves(
      list(eqn.params.values()), is_leaf=lambda v: hasattr(v, 'eqns')
    ):
      inner = getattr(value, 'jaxpr', value)
      if hasattr(inner, 'eqns'):
        yield from products(inner)
