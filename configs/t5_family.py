"""What the encoder-decoders of T5, Switch and ST-MoE share; no config itself.

The fields and their defaults are the quickstart's; here stand the papers'
recipe and the table of sizes. A config file calls one of `t5`, `switch` and
`st_moe` and changes what is its own.

The recipe: C4, 512 encoder and 114 target tokens of span corruption, 2^20
encoder tokens a step (Fedus et al. 2021, arXiv:2101.03961, section 4.1),
Adafactor at 0.01 for 10,000 steps and then as the inverse square root, bf16
activations, no dropout. Prepare the data set in `data.dir` and give T5's
SentencePiece file (32,000 pieces):

  --config.data.dir=/data/tfds \\
  --config.data.tokenizer="sentencepiece(path='/data/cc_all.32000.model')"

Anything smaller runs without either, as --config.data.name=python_stdlib
--config.data.tokenizer='bytes()' with smaller sizes.
"""

import dataclasses

import ml_collections

from configs import presets, quickstart


@dataclasses.dataclass(frozen=True)
class Size:
  """Of a model: both stacks have `layers` blocks.

  Attributes:
    d_model, d_ff, d_head, heads, layers: as published.
    ffn: of dense FFNs and experts alike.
    tied: the head is the embedding table.
  """

  d_model: int
  d_ff: int
  d_head: int
  heads: int
  layers: int
  ffn: str
  tied: bool


# Encoder and target tokens of a sequence.
TOKENS, TARGETS = 512, 114
RELU, GEGLU = "mlp(activation='relu')", "glu(activation='gelu')"

# Where the papers' tables contradict their parameter counts, the released
# configurations decide: Base and Large have ReLU, a wider FFN than the table's
# and a tied head; C has 30 heads. GEGLU goes with a head of its own (T5 1.1).
SIZES = {
  'base': Size(768, 3072, 64, 12, 12, RELU, True),
  'large': Size(1024, 4096, 64, 16, 24, RELU, True),
  'xxl': Size(4096, 10240, 64, 64, 24, GEGLU, False),
  'c': Size(2080, 6144, 64, 30, 15, RELU, True),
  'base_geglu': Size(768, 2048, 64, 12, 12, GEGLU, False),
  'large_geglu': Size(1024, 2816, 64, 16, 24, GEGLU, False),
  '32b': Size(5120, 20480, 128, 64, 24, GEGLU, False),
}


def t5(size: str, arg: str = '') -> ml_collections.ConfigDict:
  """A dense T5; unlocked.

  Args:
    size: a key of SIZES.
    arg: of the caller's get_config, which must be ''.
  """
  if arg:
    raise ValueError(f'this config takes no argument, got {arg!r}')
  s, config = SIZES[size], quickstart.get_config('dense')
  config.unlock()
  config.mesh = 'auto()'
  config.model.update(
    kind='encoder_decoder',
    num_layers=s.layers,
    d_model=s.d_model,
    num_heads=s.heads,
    d_head=s.d_head,
    d_ff=s.d_ff,
    ffn=s.ffn,
    positions='relative',
    qk_norm=False,
    tied_head=s.tied,
    # 32,000 pieces and 100 sentinels, padded to a multiple of 128.
    vocab_size=32_128,
    dtype='bfloat16',
  )
  config.moe.d_ff = s.d_ff
  config.moe.experts = s.ffn
  config.data.update(
    name='c4/en:3.1.0',
    seq_len=TOKENS,
    tokenizer="sentencepiece(path='cc_all.32000.model')",
    objective='span_corruption()',
  )
  config.train.update(
    steps=500_000,
    batch_size=2048,
    clip=0.0,
    optimizer='adafactor()',
    schedule='rsqrt(peak=0.01, warmup=10000)',
    log_every=100,
    checkpoint_every=5000,
  )
  config.eval.update(batch_size=2048, max_bytes=10_000_000)
  return config


def switch(
  size: str, arg: str, num_experts: int, sequences: int
) -> ml_collections.ConfigDict:
  """A Switch Transformer by the paper's conventions; unlocked.

  Args:
    size, arg: as in `t5`.
    num_experts: of each sparse layer, every other one.
    sequences: whose tokens make a group.
  """
  config = t5(size, arg)
  ffn = 'relu' if SIZES[size].ffn == RELU else 'geglu'
  return _sparse(config, presets.switch(ffn=ffn), num_experts, sequences)


def st_moe(
  size: str, arg: str, num_experts: int, sequences: int, z_loss: float = 0.001
) -> ml_collections.ConfigDict:
  """An ST-MoE by the paper's conventions, less its bias; unlocked.

  The multiplicative bias of appendix C is left out: neither the parameter
  counts that are known nor the released configurations have it.

  Args:
    size, arg, num_experts, sequences: as in `switch`; every fourth layer.
    z_loss: weight of the router's.
  """
  config = t5(size, arg)
  fields = presets.st_moe(z_loss=z_loss) | {'moe.experts': SIZES[size].ffn}
  return _sparse(config, fields, num_experts, sequences)


def _sparse(config, fields, num_experts, sequences):
  # Groups of whole sequences in both stacks, as ST-MoE-L's 2,048 and 456.
  presets.apply(config, fields, decoder={'group_size': sequences * TARGETS})
  config.moe.num_experts = num_experts
  config.moe.group_size = sequences * TOKENS
  return config
