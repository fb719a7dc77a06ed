"""How long a sweep will take, by what its runs took before."""

from collections.abc import Iterable, Sequence

from moe_jax.studies import results, study as study_lib


def a_run(study: study_lib.Study, rows: Sequence[results.Row]) -> float:
  """Mean seconds of the finished runs, or the file's; 0 is unknown."""
  done = [r['seconds'] for r in rows if r['status'] == results.DONE]
  return sum(done) / len(done) if done else study.seconds


def ahead(
  study: study_lib.Study, names: Iterable[str], rows: Sequence[results.Row]
) -> float:
  """Seconds of the runs ahead, one after the other; 0 is unknown.

  An arm takes what it took before, one that has not run by its steps.

  Args:
    study: of the sweep.
    names: of the arm of each run.
    rows: of the runs that are over.
  """
  steps = {a.name: study.config_of(a, 0).train.steps for a in study.arms}
  took: dict[str, list[float]] = {}
  for row in rows:
    if row['status'] == results.DONE and row['arm'] in steps:
      took.setdefault(row['arm'], []).append(row['seconds'])
  if not took:
    return study.seconds * len(list(names))
  total = sum(sum(v) for v in took.values())
  a_step = total / sum(steps[name] * len(v) for name, v in took.items())
  mean = {name: sum(v) / len(v) for name, v in took.items()}
  return sum(mean.get(name, a_step * steps[name]) for name in names)


def duration(seconds: float) -> str:
  """'40 s', '12 min', '3 h 05 min'."""
  if seconds < 90:
    return f'{seconds:.0f} s'
  minutes = round(seconds / 60)
  hours, minutes = divmod(minutes, 60)
  return f'{hours} h {minutes:02} min' if hours else f'{minutes} min'
