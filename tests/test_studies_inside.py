"""What a study keeps of a look inside its mixtures."""

import numpy as np
import pytest

from moe_jax.analysis import analyses, metrics
from moe_jax.errors import UserError
from moe_jax.studies import (
  commands,
  inside,
  origins,
  results,
  runner,
  study as study_lib,
)
from tests import fake_study
from tests.analysis import synthetic
from tests.fake_study import fake, path  # noqa: F401  fixtures
from tests.test_study_files import FILES, load

LOOKING = [f for f in FILES if load(f).analysis]


def test_numbers_by_layer_are_a_mean_and_one_each():
  found = {
    'a/value': [0.25, None, 0.75],
    'a/null': 0.5,
    'a/undefined': 'no token',
    'a/table': [[1.0], [2.0], [3.0]],
    'a/none': [None, None, None],
    'words': ['A sentence.'],
    'yes': True,
  }
  assert inside.flat(found) == {
    'analysis/a/value': 0.5,
    'analysis/a/value/0': 0.25,
    'analysis/a/value/2': 0.75,
    'analysis/a/null': 0.5,
  }


@pytest.mark.parametrize('file', LOOKING)
def test_what_a_study_names_is_measured(file, tmp_path):
  """Of layers and checkpoints that its runs have."""
  study = load(file)
  config = study.config
  arrays = dict(synthetic.small())
  layers = config.model.num_layers
  arrays['expert'] = np.repeat(arrays['expert'], layers // 2, 1)
  record = synthetic.write(tmp_path / 'r', **arrays)
  known = set(inside.flat(metrics.measure(record, metrics.default())))
  pair = inside.flat(metrics.measure(record, ('saturation()',), record))
  steps = {round(s * config.train.steps) for s in config.train.keep_at}
  for step in {*steps, 'untrained'} - {config.train.steps}:
    known |= {k.replace('saturation', f'saturation_{step}') for k in pair}
  assert inside.named(study)
  assert inside.named(study) <= known


ANALYSIS = """
ANALYSIS = {'checkpoints': 'all', 'max_bytes': 1000}
CLAIMS = ("""
CLAIM = "metric='loss', direction='lower'"


@pytest.fixture
def looking(path, tmp_path, fake, monkeypatch):  # noqa: F811
  """A study of a mixture and a dense model, which would be analysed so."""
  asked = []

  def run(analysis, steps):
    asked.append((analysis.workdir, analysis.max_bytes, steps))
    analysis.out.mkdir()
    return {'a/value': [1.0, 2.0], 'a/other': [3.0]}

  monkeypatch.setattr(analyses, 'run', run)
  monkeypatch.setattr(analyses, 'steps', lambda workdir, which: [which])
  more = "  add('c', {'moe.layers': 'none'})"
  named = CLAIM.replace('loss', 'analysis/a/value/1')
  sparse = "'moe.layers': 'all'"
  replaced = {
    'CLAIMS = (': ANALYSIS,
    CLAIM: named,
    "{'train.steps': 7}": f"{{'train.steps': 7, {sparse}}}",
    "'moe.decoder.router': 'switch()'": sparse,
  }
  fake_study.study_file(tmp_path, more=more, **replaced)
  return study_lib.load(path), asked


def test_runs_are_looked_at(looking, tmp_path):
  study, asked = looking
  failed = fake_study.sweep(study, tmp_path / 'w')
  assert not failed and len(asked) == 6
  assert asked[0] == (str(tmp_path / 'w/runs/a/0'), 1000, ['all'])
  rows = results.latest(results.read(tmp_path / 'w' / results.FILE))
  found = {
    k: [n for n in row['metrics'] if n.startswith('analysis/')]
    for k, row in rows.items()
  }
  assert found['a', 0] == found['b', 2] == ['analysis/a/value/1']
  assert rows['a', 0]['metrics']['analysis/a/value/1'] == 2.0
  assert found['c', 0] == []  # has no experts
  assert (tmp_path / 'w/runs/a/0/analysis/metrics.json').exists()


def test_the_command_looks_too(looking):
  study, _ = looking
  at = origins.Origins('W')
  of = lambda arm: commands.of(study, runner.Run(study.arm(arm), 1), at, 'f.py')
  assert of('a').endswith(
    ' && python -m experiments.analyze --workdir=W/runs/a/1 '
    '--checkpoints=all --max_bytes=1000'
  )
  assert 'analyze' not in of('c')


def test_an_unknown_option(path, tmp_path):  # noqa: F811
  wrong = ANALYSIS.replace('max_bytes', 'bytes')
  fake_study.study_file(tmp_path, **{'CLAIMS = (': wrong})
  with pytest.raises(UserError, match="'bytes'; valid: checkpoints, max_bytes"):
    study_lib.load(path)
