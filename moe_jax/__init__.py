"""moe_jax: mixture-of-experts research in JAX and Flax."""
