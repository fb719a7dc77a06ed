"""A study from the terminal: two arms, one of them badly; and its verdict."""

import subprocess
import sys

import pytest

from moe_jax.studies import results

TINY = (
  *('--config.train.steps=2', '--config.model.d_model=16'),
  *('--config.model.d_ff=16', '--config.model.d_head=7'),
  '--config.moe.d_ff=16',
  '--config.data.seq_len=16',
  '--config.moe.group_size=16',
  '--config.eval.batch_size=8',
  '--config.eval.max_bytes=100',
)


@pytest.mark.slow
def test_sweep_and_verdict_from_the_terminal(tmp_path):
  """Two arms run, one of them badly; again; and the verdict."""
  work = tmp_path / 'w'

  def call(program, *flags):
    return subprocess.run(
      [sys.executable, '-m', f'experiments.{program}', *flags],
      capture_output=True,
      text=True,
    )

  spec = '--config=configs/ablations/capacity_factor.py:quick'
  flags = (spec, f'--workdir={work}', '--only=top1_0.5,encoder_0.75', *TINY)
  # Heads of odd width cannot be rotated, as the decoder would: it fails.
  first = call('sweep', *flags, '--seeds=2')
  assert first.returncode == 1, first.stderr
  lines = first.stdout.splitlines()
  # The arm that bears a claim comes first, with all its seeds.
  assert lines[0].startswith('[1/4] encoder_0.75 seed 0  loss '), first.stdout
  assert lines[1].startswith('[2/4] encoder_0.75 seed 1  loss '), first.stdout
  assert '[3/4] top1_0.5 seed 0  FAILED: UserError: d_head=7' in lines[2]
  assert '2 of 4 runs failed' in first.stderr
  dry = call('sweep', *flags, '--seeds=2', '--dry_run')
  assert dry.stdout.count('# finished: ') == 2, dry.stdout + dry.stderr
  text = (work / results.FILE).read_text()
  assert str(tmp_path) not in text and len(text.splitlines()) == 4
  judged = call('verdict', f'--workdir={work}', f'--out={tmp_path / "kept"}')
  assert judged.returncode == 0, judged.stderr
  assert 'train_1_to_1.25' in judged.stdout and 'not run' in judged.stdout
  assert (tmp_path / 'kept' / 'loss_by_factor.png').stat().st_size > 10_000
  wrong = call('sweep', spec, f'--workdir={work}', '--only=encoder_0.75')
  assert wrong.returncode == 1 and len(wrong.stderr.splitlines()) == 1
  assert 'with another config (data.seq_len is 16 there, the d' in wrong.stderr
