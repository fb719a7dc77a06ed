"""Language modelling: each token from those before it, in bits per byte.

The floor is a bigram model of the bytes (`data.bigram`), fitted on the training
text. The end of a document costs bits and counts no byte.
"""

import dataclasses
import math

import numpy as np

from moe_jax import registry
from moe_jax.data import intervals
from moe_jax.problems import base, language

_FLOOR = 'bigram_bits_per_byte'


@registry.register
@dataclasses.dataclass(frozen=True)
class CausalLM(language.Corpus):
  """Scores are 'eval/[<domain>/]bits_per_byte' with their intervals."""

  kinds = ('decoder',)
  shown = (
    base.Score(
      'eval/bits_per_byte',
      'bits/byte',
      unit='bits per byte',
      floor=f'eval/{_FLOOR}',
      floor_label='bigram',
    ),
  )

  def by_document(self, nats_N, data):
    return _by_domain(nats_N / math.log(2), data, 'bits_per_byte')

  def difference(self, sums, others, data):
    """'difference/[<domain>/]bits_per_byte', over documents that both read."""
    nats_N = (np.asarray(s['nats'], np.float64) for s in (sums, others))
    bits_N = np.subtract(*nats_N) / math.log(2)
    found = _by_domain(bits_N, data, 'bits_per_byte')
    return {
      k.replace('eval/', 'difference/', 1): v
      for k, v in found.items()
      if 'bits_per_byte' in k
    }

  def floor(self, data):
    """'eval/[<domain>/]bigram_bits_per_byte'."""
    from moe_jax.data import bigram  # as in `Corpus.find`

    found = _by_domain(bigram.floor(data).bits_N, data, _FLOOR)
    return {k: v for k, v in found.items() if k.endswith(_FLOOR)}


def _by_domain(bits_N, data, name: str) -> dict[str, float]:
  """With interval, documents and bytes; overall and of each domain."""
  domain_N = np.array([d.domain for d in data.documents])
  bytes_N = np.array([d.num_bytes for d in data.documents])
  out = {}
  # One without documents is not in the half that is judged.
  for domain in (None, *dict.fromkeys(d.domain for d in data.documents)):
    mine = slice(None) if domain is None else domain_N == domain
    prefix = 'eval/' if domain is None else f'eval/{domain}/'
    found = intervals.ratio(bits_N[mine], bytes_N[mine], domain_N[mine])
    out |= found.named(f'{prefix}{name}')
    out[f'{prefix}documents'] = int(bytes_N[mine].size)
    out[f'{prefix}bytes'] = int(bytes_N[mine].sum())
  return out
