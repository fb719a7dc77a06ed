"""Kept results: verdicts can be made again, and their files are small."""

import json
import pathlib

import pytest

from moe_jax.studies import pages, report, results, study as study_lib, verdicts

# Of all sizes, those that the index does not show among them.
STUDIES = sorted(pathlib.Path('experiments/results').glob(f'*/{report.CLAIMS}'))
WHERE = [path.parent for path in STUDIES]


@pytest.mark.parametrize('where', WHERE, ids=lambda w: w.name)
def test_verdicts_are_those_of_the_rows(where):
  """By the claims of the study file as it is now."""
  kept = json.loads((where / report.CLAIMS).read_text())
  rows = results.read(where / results.FILE)
  spec, flags = report.source(rows, where)
  study = study_lib.load(spec, flags=flags)
  untestable = report.decided(where, rows)
  found = [verdicts.judge(c, rows, untestable) for c in study.claims]
  last = max(r['date'] for r in rows)
  found = [v for v in found if v.claim.added <= last]
  assert [c['name'] for c in kept['claims']] == [v.claim.name for v in found]
  for v, c in zip(found, kept['claims']):
    assert v.outcome == c['verdict'], v.claim.name
    assert (v.reason, v.pairs) == (c['reason'], c['pairs']), v.claim.name
    assert c.get('units', v.pairs) == (v.units or v.pairs)
    for name in ('difference', 'low', 'high'):
      nan = float('nan') if c[name] is None else c[name]
      assert getattr(v, name) == pytest.approx(nan, rel=1e-6, nan_ok=True)
    assert c['note'] == study.notes.get(v.claim.name, ''), v.claim.name
    assert (c['direction'], c['smallest_effect']) == (
      v.claim.direction,
      v.claim.smallest_effect,
    )
  # And so are the words; laws, which are not fitted here, are more of them.
  page = pages.page(study, rows, found, folder=where.name).split('\n')
  text = (where / report.PAGE).read_text().split('\n')
  assert [line for line in page if line not in text] == []
  if not study.laws:
    assert page == text


@pytest.mark.parametrize('where', WHERE, ids=lambda w: w.name)
def test_files_are_there_and_small(where):
  text = (where / report.PAGE).read_text()
  for path in where.iterdir():
    assert path.stat().st_size < 2**19, path
    if path.suffix == '.png':
      assert f']({path.name})' in text, path
  assert {results.FILE, report.PAGE} <= {p.name for p in where.iterdir()}


def test_rows_are_of_the_arms_that_the_study_declares():
  """An arm that has changed since its runs is another arm."""
  seen = 0
  for where in WHERE:
    rows = results.read(where / results.FILE)
    if rows[0]['size'] != 'reference':
      continue
    spec, flags = report.source(rows, where)
    study = study_lib.load(spec, flags=flags)
    for row in rows:
      arm = json.loads(json.dumps(dict(study.arm(row['arm']).overrides)))
      assert arm == row['overrides'], (where.name, row['arm'], row['seed'])
      seen += 1
  assert seen > 1000
