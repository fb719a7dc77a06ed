"""A run that is over: what its next start says, and what mends it."""

from moe_jax.runs import checkpoint
from tests import test_resume

made, runs = test_resume.made, test_resume.runs


def test_a_damaged_checkpoint_is_told_and_made_again(runs, capsys):
  """The files that are gone; a flipped bit is for those who read it."""
  runs(train__steps=4)
  capsys.readouterr()
  done = runs(train__steps=4)
  assert capsys.readouterr().out.endswith('--restart begins anew\n')
  newest = runs.workdir / 'checkpoints/4'
  (newest / 'meta.json').unlink()
  assert runs(train__steps=4) == done
  said = capsys.readouterr().out
  assert '; its checkpoint of step 4 is damaged (meta.json: No such' in said
  (runs.workdir / 'summary.json').unlink()  # as it says
  runs.rows.clear()
  runs(train__steps=4)
  assert len(runs.rows) == 2 * 8  # of steps 3 and 4
  assert not checkpoint.manifest.fault(newest)
  capsys.readouterr()
  runs(train__steps=4)
  assert capsys.readouterr().out.endswith('--restart begins anew\n')
