"""Decoder-only Transformer language model."""

from typing import Any

import flax.linen as nn

from moe_jax.layers import embeddings
from moe_jax.models import records, stack


class Decoder(nn.Module):
  """Embedding, causal stack, logits.

  Attributes:
    vocab_size: V.
    stack_config: of the stack; causal.
    tied_head: logits by the embedding table.
    embedding_scale, logit_scale: as of `embeddings.Embedding`.
    cache_length: S > 0 for generation with a cache of S positions.
  """

  vocab_size: int
  stack_config: records.StackConfig
  tied_head: bool = True
  embedding_scale: float = 1.0
  logit_scale: float = 0.0
  cache_length: int = 0

  @nn.compact
  def __call__(self, batch: dict[str, Any], *, train: bool):
    """Next-token logits.

    Args:
      batch: int32 'inputs', 'positions', 'segments' [B, L]; segment 0 is
        padding; where there are, 'step' and 'part' of training and 'forced'
        [B, L, M, K], as in types.Tokens.
      train: as in stack.Stack.

    Returns:
      float32 logits [B, L, V], and {'decoder': MoEAux by module}.
    """
    c = self.stack_config
    embed = embeddings.Embedding(
      *(self.vocab_size, c.d_model, self.tied_head, c.dtype, c.mesh),
      *(self.embedding_scale, self.logit_scale),
      name='embedding',
    )
    x_BLD, aux = stack.Stack(c, self.cache_length, name='decoder')(
      embed(batch['inputs']),
      batch['positions'],
      batch['segments'],
      train=train,
      tokens=stack.tokens(batch),
    )
    return embed.logits(x_BLD), {'decoder': aux}

  @property
  def stacks(self) -> dict[str, records.StackConfig]:
    """The stacks by name, as in the aux."""
    return {'decoder': self.stack_config}
