"""Rows and claims for tests of verdicts."""

from moe_jax.studies import study as study_lib


def row(arm, seed, status='done', **metrics):
  return {'arm': arm, 'seed': seed, 'status': status, 'metrics': metrics}


def claim(**fields):
  base = dict(
    name='c',
    paper='',
    table='',
    sentence='',
    metric='loss',
    direction='lower',
    smallest_effect=0.1,
    arms=('a', 'b'),
  )
  return study_lib.Claim(**(base | fields))
