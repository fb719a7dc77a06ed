"""Plain square matrix products: the rate that FLOPs are measured by."""

import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

PRODUCTS = 4  # in a row, lest one be measured while threads wake up


def products(
  dtype: Any, size: int = 0
) -> tuple[Callable, Callable[[], tuple[jax.Array, jax.Array]], float]:
  """A function of two matrices, what makes these, and the FLOPs of a call.

  Args:
    dtype: of the factors.
    size: rows and columns; 0 chooses 2048 on CPU and 8192 elsewhere.
  """
  size = size or (2048 if jax.default_backend() == 'cpu' else 8192)

  def run(x, y):
    return jax.lax.fori_loop(0, PRODUCTS, lambda _, x: x @ y, x)

  def factors():
    # Random numbers: matrix units run faster on constants, for the power saved.
    x, y = jax.random.normal(jax.random.key(0), (2, size, size), dtype)
    return x, y / size**0.5

  return run, factors, PRODUCTS * 2.0 * size**3


def rate(dtype: Any, size: int = 0, repeats: int = 3) -> float:
  """FLOPs per second that they reach on all devices together.

  Simulated CPU devices share the machine's cores, so one product on one of
  them is the machine's rate; real devices count each.

  Args:
    dtype, size: as in `products`.
    repeats: the median is taken of this many, after a first to compile.
  """
  run, factors, flops = products(dtype, size)
  run, args = jax.jit(run), factors()
  seconds = []
  for _ in range(repeats + 1):
    start = time.perf_counter()
    run(*args).block_until_ready()
    seconds.append(time.perf_counter() - start)
  one = flops / float(np.median(seconds[1:]))
  on_cpu = jax.default_backend() == 'cpu'
  return one * (jax.process_count() if on_cpu else jax.device_count())
