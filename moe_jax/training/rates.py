"""The rate that a model's FLOPs are measured against."""

import time

import jax
import jax.numpy as jnp
import numpy as np


def matmul_flops_per_second(dtype, size: int = 0, repeats: int = 7) -> float:
  """What plain square matrix products reach on all devices together.

  Simulated CPU devices share the machine's cores, so one product on one of
  them is the machine's rate; real devices count each.

  Args:
    dtype: of the factors.
    size: rows and columns; 0 chooses 2048 on CPU and 8192 elsewhere.
    repeats: the median is taken of this many, after a first to compile.
  """
  device = jax.local_devices()[0]
  on_cpu = device.platform == 'cpu'
  size = size or (2048 if on_cpu else 8192)
  x = jax.device_put(jnp.ones((size, size), dtype), device)
  product = jax.jit(jnp.matmul)
  product(x, x).block_until_ready()
  seconds = []
  for _ in range(repeats):
    start = time.perf_counter()
    product(x, x).block_until_ready()
    seconds.append(time.perf_counter() - start)
  one = 2 * size**3 / float(np.median(seconds))
  return one * (jax.process_count() if on_cpu else jax.device_count())
