"""The flags of a job with several processes, and its start."""

from absl import flags

from moe_jax.parallel import distributed, job

_ADDRESS = flags.DEFINE_string(
  'coordinator_address', '', 'host:port of process 0, for several processes.'
)
_COUNT = flags.DEFINE_integer('num_processes', 0, 'Processes of the job.')
_ID = flags.DEFINE_integer('process_id', -1, 'Number of this process, from 0.')
_AUTOMATIC = flags.DEFINE_bool(
  'distributed', False, 'Let JAX find the processes (TPU pods, Slurm).'
)


def start(cpu_devices: int) -> None:
  """Sets up simulated devices and joins the job; before any use of JAX.

  Args:
    cpu_devices: simulated devices of the whole job, where there is only a CPU.
  """
  job.end_with_parent()
  distributed.start(
    cpu_devices,
    _ADDRESS.value,
    _COUNT.value,
    _ID.value,
    automatic=_AUTOMATIC.value,
  )
