"""Bytes against a small BPE: which one shows what mixtures do.

  python -m experiments.sweep --workdir=/tmp/moe_jax/tokenizers --jobs=2 \\
      --config=configs/ablations/tokenizers.py:reference
  python -m experiments.verdict --workdir=/tmp/moe_jax/tokenizers

The reference models read bytes. With `bpe(size=2048)`, learned from the
training text, a token is 2.7 bytes of the text of 23 domains that the other
studies ran on: as many steps see 2.7 times the text, and as much text is 376
steps. The vocabulary and its embeddings, which are the head too, grow from 384
to 2,048 rows, so that a step costs more. Losses of different tokens compare as
bits a byte only.

With bytes a hash of the token is far ahead of a learned router here
(`sparse_dense.py`). Roller et al. 2021, arXiv:2106.04426, hash the tokens of a
large BPE, and find it better, too (recalled). Whether 256 kinds of bytes are
the reason is asked here.

The claims are no paper's: they say what the choice of bytes does to the other
studies. Rates are those that are best for bytes (`rates.py`); for pieces none
was looked for.

What came out: bytes show more. 16 experts gain 0.112 bits a byte on the dense
model by bytes and 0.025 by pieces, and lose 0.056 after as much text; the lead
of the hash falls from 0.122 to 0.038. A model that is for use wants pieces: in
as many steps they are 0.32 bits better, and in a third of the steps 0.10.

`reference`: dense, 16 experts by a router and by a hash, by bytes and by
pieces, and the first two by pieces on as much text as by bytes; 3 seeds, 20
minutes on 2 CPU cores. There is no other size.
"""

from configs import reference
from configs.ablations import base

STEPS = {'reference': reference.STEPS}
SEEDS = {'reference': 3}
SECONDS = {'reference': 100}

PIECES = 2048
# Steps by pieces that see as much text as STEPS by bytes, by 2.7 bytes a piece;
# held-out text turned out to have 2.85, so that they may see 5 % more.
SAME_TEXT = 376
KINDS = ('dense', 'moe_16', 'hash')


def get_config(arg='reference'):
  """The config that the arms start from: 16 experts, bytes."""
  return base.small(arg or 'reference', STEPS).lock()


def sweep(add, size, config):
  """Every kind by bytes and by pieces; two of them on as much text."""
  del size, config
  pieces = {'data.tokenizer': f'bpe(size={PIECES})'}
  for kind in KINDS:
    add(f'{kind}_bytes', reference.fields(kind))
    add(f'{kind}_pieces', reference.fields(kind) | pieces)
  for kind in KINDS[:2]:
    short = {
      'train.steps': SAME_TEXT,
      'train.checkpoint_every': SAME_TEXT,
    }
    add(
      f'{kind}_pieces_same_text',
      reference.fields(kind, SAME_TEXT) | pieces | short,
    )


_BITS = 'eval/bits_per_byte'


def _gap(first, second):
  return f'mean_over(metric={_BITS!r}, arms=({first!r},), minus=({second!r},))'


def _claim(name, sentence, metric, arms, smallest):
  return dict(
    name=name,
    paper='none',
    table='the tokenizer',
    sentence=sentence,
    metric=metric,
    direction='lower',
    smallest_effect=smallest,
    arms=arms,
    seeds_needed=3,
  )


CLAIMS = (
  _claim(
    'mixture_wins_with_pieces',
    'With pieces, too, 16 experts are better than the dense model.',
    _BITS,
    ('moe_16_pieces', 'dense_pieces'),
    0.02,
  ),
  _claim(
    'bytes_show_more',
    'After as many steps the gain of 16 experts is larger with bytes.',
    (
      _gap('moe_16_bytes', 'dense_bytes'),
      _gap('moe_16_pieces', 'dense_pieces'),
    ),
    ('moe_16_bytes', 'moe_16_pieces'),
    0.01,
  ),
  _claim(
    'pieces_are_better_by_steps',
    'After as many steps 16 experts are better with pieces.',
    _BITS,
    ('moe_16_pieces', 'moe_16_bytes'),
    0.02,
  ),
  _claim(
    'bytes_are_better_by_text',
    'After as much text 16 experts are better with bytes.',
    _BITS,
    ('moe_16_bytes', 'moe_16_pieces_same_text'),
    0.02,
  ),
  _claim(
    'hash_leads_less_with_pieces',
    'The lead of a hash over a router is smaller with pieces than with bytes.',
    (
      _gap('moe_16_pieces', 'hash_pieces'),
      _gap('moe_16_bytes', 'hash_bytes'),
    ),
    ('moe_16_pieces', 'moe_16_bytes'),
    0.02,
  ),
  _claim(
    'hash_leads_with_pieces',
    'With pieces, too, a hash is better than a router.',
    _BITS,
    ('hash_pieces', 'moe_16_pieces'),
    0.01,
  ),
)

COLUMNS = (
  (_BITS, 'bits a byte', '.4f'),
  ('eval/loss', 'held-out loss, of a token', '.4f'),
  ('parameters', 'parameters', ',.0f'),
  ('flops_per_token', 'FLOPs a token', ',.0f'),
)

FIGURES = (
  dict(
    file='bits.png',
    kind='points',
    title='Bits a byte, by bytes and by pieces',
    y='bits a byte',
    metric=_BITS,
    series={
      kind: tuple(
        (label, f'{kind}_{arm}')
        for label, arm in (
          ('bytes', 'bytes'),
          ('pieces', 'pieces'),
          ('pieces, same text', 'pieces_same_text'),
        )
        if kind != 'hash' or arm != 'pieces_same_text'
      )
      for kind in KINDS
    },
  ),
)

NOTES = {
  'reference': {
    'bytes_are_better_by_text': 'A piece that has a row of its own is bytes '
    'that need not be predicted one by one: even in 376 steps, with 1,024 by '
    'bytes, pieces are ahead.',
    'mixture_wins_with_pieces': 'It wins, by little: much of what experts can '
    'keep of 256 kinds of bytes stands in 2,048 rows of embeddings here, for '
    'dense models, too, and the rates are those of bytes.',
  }
}
