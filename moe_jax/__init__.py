"""moe_jax: mixture-of-experts research in JAX and Flax."""

from typing import Any


def citation(config: Any) -> str:
  """BibTeX of the papers behind a config's methods; see `citations`."""
  from moe_jax import citations  # loads jax; `import moe_jax` must not

  return citations.citation(config)
