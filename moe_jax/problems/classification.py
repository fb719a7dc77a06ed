"""Text-to-text classification: a prompt goes in, the label's text comes out.

Rows, labels and how an answer is chosen are those of `data.tasks`. The loss is
of the answer's tokens; the floor is the most frequent training label.
"""

import dataclasses

import jax.numpy as jnp

from moe_jax import registry
from moe_jax.data import tasks
from moe_jax.problems import base, language, losses, tokens


@registry.register
@dataclasses.dataclass(frozen=True)
class Classification(language.Language):
  """Accuracy by rank of the labels.

  Attributes:
    max_examples: of validation, spread evenly over them; 0 is all.
  """

  kinds = ('decoder', 'encoder_decoder')
  shown = (
    base.Score(
      'eval/accuracy',
      'accuracy',
      unit='% of examples',
      better='higher',
      floor='eval/majority',
      floor_label='most frequent label',
      best='best/accuracy',
    ),
  )
  max_examples: int = 0

  def target_length(self):
    both = self.kind == 'encoder_decoder'
    return tasks.TARGETS if both else self.data.seq_len

  def check(self, config):
    tasks.chosen(self.data)  # or raises

  def find(self, allow_download=False):
    self.tokenizer().look()
    tasks.look(self.data, allow_download)

  def open(self, *, cache_dir, allow_download=False):
    return tasks.load(
      self.data,
      kind=self.kind,
      cache_dir=cache_dir,
      allow_download=allow_download,
      max_examples=self.max_examples,
    )

  def judge(self, out, batch, data):
    """As of language; where a row asks for all labels, each one's nats."""
    if not data.label_tokens:
      return tokens.of_documents(out, batch, data)
    document_BL = batch['document']
    examples = len(data.documents) // len(data.label_tokens)
    nats = [
      base.by_unit(
        losses.token_nll(out, jnp.full_like(document_BL, token)),
        document_BL,
        examples,
      )
      for token in data.label_tokens
    ]
    asked = (document_BL >= 0).sum(dtype=jnp.int32)
    return {'nats': jnp.stack(nats, -1).ravel(), 'tokens': asked}

  def by_document(self, nats_N, data):
    """In place of the loss of all labels, that of the right ones."""
    return data.scores(nats_N)
