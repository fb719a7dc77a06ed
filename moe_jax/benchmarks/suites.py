"""The suites of `experiments.bench` by name."""

from collections.abc import Sequence

from moe_jax import registry
from moe_jax.benchmarks import cases, costs, layers, peers, products, steps
from moe_jax.errors import UserError

BASELINES = layers.BASELINES + tuple(peers.BASELINES)
SUITES = {
  'layer': lambda o, baselines, naive: _layer(o, baselines, naive),
  'memory': lambda o, *_: costs.memory(o),
  'scaling': lambda o, *_: costs.scaling(o),
  'kernel': lambda *_: products.suite(),
  'step': lambda *_: steps.suite(),
  'compile': lambda *_: costs.compilation(),
  'parallel': lambda *_: costs.parallel(),
}


def build(
  name: str,
  options: layers.Options,
  baselines: Sequence[str] = ('dense',),
  naive: bool = False,
  only: Sequence[str] = (),
) -> list[cases.Case]:
  """The cases of a suite.

  Args:
    name: of SUITES.
    options: of the layer, in the suites that have one.
    baselines: of BASELINES, of suite layer; other codebases get cases of their
      own.
    naive: as in `layers.case`.
    only: cases whose name contains one of these; () is all.

  Raises:
    ValueError: an unknown name, or no case left.
  """
  if name not in SUITES:
    raise registry.unknown('suite', name, SUITES)
  for b in baselines:
    if b not in BASELINES:
      raise registry.unknown('baseline', b, BASELINES)
  every = SUITES[name](options, baselines, naive)
  found = [c for c in every if not only or any(n in c.name for n in only)]
  if not found:
    raise UserError(
      f'cases={",".join(only)} is in the name of none: '
      f'{"; ".join(c.name for c in every)}'
    )
  return found


def _layer(options, baselines, naive):
  ours = tuple(b for b in baselines if b in layers.BASELINES)
  found = []
  if ours:
    found += [layers.case(options, *s, ours, naive) for s in layers.SIZES]
  for b in baselines:
    if b in peers.BASELINES:
      found += peers.BASELINES[b](options, layers.SIZES)
  return found
