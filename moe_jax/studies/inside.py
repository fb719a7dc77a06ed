"""A look inside the mixtures of a study: numbers of their routing, in the rows.

    ANALYSIS = {'checkpoints': 'all', 'max_bytes': 200_000}

in a study file has each mixture analysed once it is trained, as
`experiments.analyze` does, whose files stand in the run's workdir. Numbers by
layer become their mean, 'analysis/saturation_80/top_k_value', and one a layer,
'analysis/saturation_80/top_k_value/0' from the first one on; larger tables stay
in the workdir's metrics.json.
"""

import pathlib
import re
import shlex
from collections.abc import Mapping
from typing import Any

import numpy as np

from moe_jax.analysis import analyses
from moe_jax.runs import writers
from moe_jax.studies import study as study_lib

_NAME = re.compile(r'analysis/[\w/]+')


def measured(
  study: study_lib.Study, workdir: str | pathlib.Path, mesh: str = ''
) -> dict[str, float]:
  """Analyses a run, and returns what its study names of that.

  Args:
    study: with `analysis`.
    workdir: of the run, of a model with MoE layers.
    mesh: spec in place of the config's.

  Returns:
    {'analysis/...': number}; without what is not defined for such a model.
  """
  analysis = analyses.Analysis(
    str(workdir), mesh, max_bytes=study.analysis['max_bytes']
  )
  steps = analyses.steps(workdir, study.analysis['checkpoints'])
  found = analyses.run(analysis, steps)
  writers.write_json(analysis.out / 'metrics.json', found)
  names = named(study)
  return {k: v for k, v in flat(found).items() if k in names}


def named(study: study_lib.Study) -> set[str]:
  """The numbers of an analysis that claims, columns and figures speak of."""
  metrics = [c.metrics for c in study.claims]
  told = repr((metrics, study.columns, study.figures))
  return set(_NAME.findall(told))


def flat(metrics: Mapping[str, Any]) -> dict[str, float]:
  """The numbers of metrics.json, and lists of numbers as mean and one each."""
  out = {}
  for name, value in metrics.items():
    key = f'analysis/{name}'
    listed = isinstance(value, list)
    numbers = [v for v in (value if listed else [value]) if _number(v)]
    if not numbers:
      continue
    out[key] = float(np.mean(numbers))
    if listed:
      out |= {f'{key}/{i}': float(v) for i, v in enumerate(value) if _number(v)}
  return out


def command(study: study_lib.Study, workdir: str) -> str:
  """What does the same by hand."""
  flags = [f'--{k}={v}' for k, v in study.analysis.items()]
  words = ' '.join(map(shlex.quote, [f'--workdir={workdir}', *flags]))
  return f'python -m experiments.analyze {words}'


def _number(value: Any) -> bool:
  return isinstance(value, int | float) and not isinstance(value, bool)
