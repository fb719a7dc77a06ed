"""Runs a main in several processes, which end together, in one line.

  python -m experiments.job --processes=2 -- experiments.train \\
      --config=configs/quickstart.py --workdir=/tmp/run

Where one of them dies, the others are ended within a minute, and the last line
names it and the newest checkpoint. On several machines each process gets its
own, with the flags that say which it is:

  srun python -m experiments.job -- experiments.train ... --distributed
"""

import signal

from absl import flags

from experiments import cli
from moe_jax.errors import UserError
from moe_jax.parallel import job as job_lib

_PROCESSES = flags.DEFINE_integer(
  'processes', 0, 'Of the job, all here; 0 is one, of a job of many machines.'
)


def main(argv: list[str]) -> int:
  """Starts the processes and waits."""
  call = argv[1:]
  if not call:
    raise UserError('no main is given; after -- comes what is to run')
  job = job_lib.Job(job_lib.calls(call, _PROCESSES.value))
  tell = lambda number, frame: job.tell(number)
  for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
    signal.signal(number, tell)
  try:
    return job.wait(lambda: job_lib.last_checkpoint(call))
  finally:
    job.kill()


if __name__ == '__main__':
  cli.run(main, arguments=True)
