"""Cross-entropies over tokens, and a z-loss on the output logits."""

import jax
import jax.numpy as jnp


def token_nll(logits_BLV: jax.Array, targets_BL: jax.Array) -> jax.Array:
  """f32 [B, L], negative log-likelihood of each target in nats."""
  logits_BLV = logits_BLV.astype(jnp.float32)
  right_BL = jnp.take_along_axis(logits_BLV, targets_BL[..., None], -1)[..., 0]
  return jax.nn.logsumexp(logits_BLV, axis=-1) - right_BL


def counted(batch: dict[str, jax.Array]) -> jax.Array:
  """bool [B, L]: the targets that count.

  All real ones; of a batch with 'loss' [B, L] those where it is 1.
  """
  real_BL = batch['segments'] > 0
  return real_BL & (batch['loss'] > 0) if 'loss' in batch else real_BL


def cross_entropy(
  logits_BLV: jax.Array,
  targets_BL: jax.Array,
  real_BL: jax.Array,
  z_loss: float,
) -> tuple[jax.Array, jax.Array]:
  """Sums over the tokens that count.

  Args:
    logits_BLV: of any float dtype; computed in float32.
    targets_BL: int32.
    real_BL: bool, False where a target does not count.
    z_loss: factor of the squared log-partition (T5X and PaLM, arXiv:2204.02311,
      section 5: 1e-4), which keeps the output logits near 0.

  Returns:
    The negative log-likelihood, and the z-loss times its factor.
  """
  nll_BL = token_nll(logits_BLV, targets_BL)
  log_z_BL = jax.nn.logsumexp(logits_BLV.astype(jnp.float32), axis=-1)
  total = lambda v: jnp.where(real_BL, v, 0.0).sum()
  return total(nll_BL), z_loss * total(log_z_BL**2)


def distillation(
  logits_BLV: jax.Array, teacher_BLV: jax.Array, real_BL: jax.Array
) -> jax.Array:
  """Sum over the real tokens of -sum_v softmax(teacher)_v log softmax_v.

  Args:
    logits_BLV, teacher_BLV: of student and teacher; computed in float32.
    real_BL: bool, False where a token does not count.
  """
  p_BLV = jax.nn.softmax(teacher_BLV.astype(jnp.float32))
  log_q_BLV = jax.nn.log_softmax(logits_BLV.astype(jnp.float32))
  return -jnp.where(real_BL, (p_BLV * log_q_BLV).sum(-1), 0.0).sum()
