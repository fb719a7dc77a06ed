"""T5-style encoder-decoder (Raffel et al. 2020, arXiv:1910.10683, section 2.1).

Pre-norm without biases, relative position biases shared by the layers of each
stack, one embedding for both stacks.
"""

from typing import Any

import flax.linen as nn

from moe_jax.layers import embeddings
from moe_jax.models import records, stack


class EncoderDecoder(nn.Module):
  """Encoder over 'encoder_inputs', decoder over 'inputs'.

  Attributes:
    vocab_size: V.
    encoder_config, decoder_config: of the stacks.
    tied_head: logits by the embedding table.
    embedding_scale, logit_scale: as of `embeddings.Embedding`.
    cache_length: S > 0 for generation with a decoder cache of S positions.
  """

  vocab_size: int
  encoder_config: records.StackConfig
  decoder_config: records.StackConfig
  tied_head: bool = True
  embedding_scale: float = 1.0
  logit_scale: float = 0.0
  cache_length: int = 0

  def setup(self):
    c = self.encoder_config
    self.embedding = embeddings.Embedding(
      *(self.vocab_size, c.d_model, self.tied_head, c.dtype, c.mesh),
      *(self.embedding_scale, self.logit_scale),
    )
    self.encoder = stack.Stack(c)
    self.decoder = stack.Stack(self.decoder_config, self.cache_length)

  def __call__(self, batch: dict[str, Any], *, train: bool):
    """Next-token logits of the decoder.

    Args:
      batch: int32 'encoder_inputs', 'encoder_positions', 'encoder_segments'
        [B, S] and 'inputs', 'positions', 'segments' [B, L]; a decoder token
        sees the encoder tokens of its own segment; segment 0 is padding.
      train: as in stack.Stack.

    Returns:
      float32 logits [B, L, V], and {'encoder': ..., 'decoder': ...} aux.
    """
    encoded_BSD, aux = self.encode(batch, train=train)
    logits_BLV, aux_decoder = self.decode(encoded_BSD, batch, train=train)
    return logits_BLV, aux | aux_decoder

  def encode(self, batch, *, train: bool):
    """Encoder output [B, S, D] and its aux."""
    x_BSD, aux = self.encoder(
      self.embedding(batch['encoder_inputs']),
      batch['encoder_positions'],
      batch['encoder_segments'],
      train=train,
      tokens=stack.tokens(batch, 'encoder_'),
    )
    return x_BSD, {'encoder': aux}

  def decode(self, encoded_BSD, batch, *, train: bool):
    """Decoder logits [B, L, V] and its aux."""
    x_BLD, aux = self.decoder(
      self.embedding(batch['inputs']),
      batch['positions'],
      batch['segments'],
      train=train,
      encoded_BSD=encoded_BSD,
      encoded_segment_BS=batch['encoder_segments'],
      tokens=stack.tokens(batch),
    )
    return self.embedding.logits(x_BLD), {'decoder': aux}

  @property
  def stacks(self) -> dict[str, records.StackConfig]:
    """The stacks by name, as in the aux."""
    return {'encoder': self.encoder_config, 'decoder': self.decoder_config}
