"""Kept results: verdicts can be made again, and their files are small."""

import pathlib

import pytest

from moe_jax.studies import index, report, results, study as study_lib, verdicts

ROOT = pathlib.Path(__file__).parent.parent
STUDIES = {s['study']: s for s in index.read('experiments/results')}


@pytest.mark.parametrize('name', STUDIES)
def test_verdicts_are_those_of_the_rows(name):
  """By the claims of the study file as it is now."""
  kept = STUDIES[name]
  rows = results.read(pathlib.Path(kept['dir']) / results.FILE)
  spec, flags = report.source(rows, name)
  study = study_lib.load(spec, flags=flags)
  found = [verdicts.judge(c, rows) for c in study.claims]
  last = max(r['date'] for r in rows)
  found = [v for v in found if v.claim.added <= last]
  assert [c['name'] for c in kept['claims']] == [v.claim.name for v in found]
  for v, c in zip(found, kept['claims']):
    assert v.outcome == c['verdict'], v.claim.name
    assert (c['direction'], c['smallest_effect']) == (
      v.claim.direction,
      v.claim.smallest_effect,
    )


@pytest.mark.parametrize('name', STUDIES)
def test_files_are_there_and_small(name):
  where = pathlib.Path(STUDIES[name]['dir'])
  text = (where / report.PAGE).read_text()
  for path in where.iterdir():
    assert path.stat().st_size < 2**19, path
    if path.suffix == '.png':
      assert f']({path.name})' in text, path
  assert {results.FILE, report.PAGE} <= {p.name for p in where.iterdir()}
