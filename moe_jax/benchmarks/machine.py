"""What a benchmark ran on, and what that machine reaches at best."""

import importlib.metadata
import os
import pathlib
import platform
from typing import Any

import jax
import jax.numpy as jnp

from moe_jax.benchmarks import cases
from moe_jax.kernels import plain

_PACKAGES = ('jax', 'jaxlib', 'flax', 'numpy', 'torch', 'transformers')
_PACKAGES += ('st-moe-pytorch', 'tokamax')


def describe() -> dict[str, Any]:
  """Processor, accelerator, threads, versions."""
  device = jax.devices()[0]
  return {
    'platform': device.platform,
    'device': device.device_kind if device.platform != 'cpu' else cpu_model(),
    'devices': jax.device_count(),
    'cpu': cpu_model(),
    'threads': threads(),
    'python': platform.python_version(),
    'versions': versions(),
  }


def load() -> float:
  """Mean of the processes that ran in the last minute; 0 where unknown.

  Before a benchmark, what others do. They slow PyTorch on the CPU more than
  XLA: with one core of two taken, its threads wait for each other and a layer
  took eight times longer, where XLA's took twice as long.
  """
  return os.getloadavg()[0] if hasattr(os, 'getloadavg') else 0.0


def cpu_model() -> str:
  """'AMD EPYC 7B13', as the system calls it."""
  info = pathlib.Path('/proc/cpuinfo')
  if info.exists():
    for line in info.read_text().splitlines():
      if line.startswith('model name'):
        return line.partition(':')[2].strip()
  return platform.processor() or platform.machine()


def threads() -> int:
  """Cores this process may use, which is also XLA's number of threads."""
  if hasattr(os, 'sched_getaffinity'):
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1


def versions() -> dict[str, str]:
  """Of the packages that are there."""
  found = {}
  for name in _PACKAGES:
    try:
      found[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
      continue
  return found


def matmul(dtype: Any, size: int = 0) -> cases.Candidate:
  """`plain.products`, as a candidate beside others."""
  run, factors, flops = plain.products(dtype, size)
  build = lambda: cases.compiled(run, *factors())
  return cases.Candidate(cases.MATMUL, build, flops=flops, reference=True)


def copy(size: int = 0) -> cases.Candidate:
  """x + 1 in place on a large array: the rate that bytes are measured by.

  In place, because a fresh result costs a page fault every 4 KiB: on CPU that
  is ten times slower, and a matter of the allocator, not of the memory.

  Args:
    size: float32 numbers; 0 chooses 64 Mi on CPU and 1 Gi elsewhere.
  """
  size = size or (2**26 if jax.default_backend() == 'cpu' else 2**30)

  def build():
    add = jax.jit(lambda x: x + 1, donate_argnums=0)
    held = [jnp.ones(size, jnp.float32)]

    def run():
      held[0] = jax.block_until_ready(add(held[0]))

    return run, {}

  return cases.Candidate(cases.COPY, build, bytes=8.0 * size, reference=True)
