"""Starting JAX: simulated CPU devices, or many processes.

Both must happen before the backend starts, so mains call `start` first.
"""

import ctypes
import os
import sys

import jax

from moe_jax.errors import UserError

# Seconds without a sign of life, after which a process counts as dead and the
# others end; JAX's own default is 100.
_HEARTBEAT = 30


def simulate(cpu_devices: int) -> None:
  """Asks for this many simulated devices where the platform is CPU.

  Harmless on GPU and TPU. An explicit setting of the environment
  (JAX_NUM_CPU_DEVICES or XLA_FLAGS) wins.
  """
  set_already = 'JAX_NUM_CPU_DEVICES' in os.environ or (
    'host_platform_device_count' in os.environ.get('XLA_FLAGS', '')
  )
  if cpu_devices < 1:
    raise UserError(f'cpu_devices={cpu_devices} must be at least 1')
  if cpu_devices == 1:
    _keep_memory()
  if not set_already:
    try:
      jax.config.update('jax_num_cpu_devices', cpu_devices)
    except RuntimeError:
      # A notebook may have started the backend; it runs with what it has.
      if jax.default_backend() == 'cpu' and jax.device_count() != cpu_devices:
        raise


def _keep_memory() -> None:
  """Freed memory stays with the process, where the C library is glibc.

  XLA on CPU allocates its buffers anew at every step. Large ones glibc returns
  to the kernel, which hands them out again page by page, cleared: a third of a
  small model's step. For one device: the threads of eight simulated ones wait
  for each other's allocations.
  """
  M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8
  if sys.platform == 'linux' and hasattr(libc := ctypes.CDLL(None), 'mallopt'):
    libc.mallopt(M_MMAP_MAX, 0)
    libc.mallopt(M_TRIM_THRESHOLD, -1)
    libc.mallopt(M_ARENA_MAX, 1)


def start(
  cpu_devices: int = 1,
  coordinator_address: str = '',
  num_processes: int = 0,
  process_id: int = -1,
  automatic: bool = False,
) -> None:
  """Starts this process.

  Args:
    cpu_devices: simulated devices over all processes, on CPU alone.
    coordinator_address: host:port of process 0; '' for a single process.
    num_processes, process_id: of the job; both with an address.
    automatic: let `jax.distributed` find all three (TPU pods, Slurm).

  Raises:
    ValueError: some of the three but not all, a process id out of range, or
      devices that do not divide over the processes.
  """
  manual = bool(coordinator_address)
  if manual != (num_processes > 0) or manual != (process_id >= 0):
    raise UserError(
      'coordinator_address, num_processes and process_id go together: got '
      f'{coordinator_address!r}, {num_processes}, {process_id}'
    )
  if manual and process_id >= num_processes:
    raise UserError(f'process_id={process_id}; valid: 0 to {num_processes - 1}')
  if manual and cpu_devices % num_processes:
    raise UserError(
      f'cpu_devices={cpu_devices} is not divisible by the {num_processes} '
      'processes'
    )
  simulate(cpu_devices // max(num_processes, 1))
  if manual or automatic:
    # Programs that overlap on the CPU set up their connections in an order of
    # each process's own, and jax 0.7.2 then waits for ever.
    jax.config.update('jax_cpu_enable_async_dispatch', False)
  if manual:
    job = coordinator_address, num_processes, process_id
    jax.distributed.initialize(*job, heartbeat_timeout_seconds=_HEARTBEAT)
  elif automatic:
    jax.distributed.initialize(heartbeat_timeout_seconds=_HEARTBEAT)
