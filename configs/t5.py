"""T5, the dense baselines of Switch Transformer, and the papers' recipe.

  python -m experiments.train --config=configs/t5.py:base \\
      --workdir=/tmp/t5_base --config.data.dir=/data/tfds \\
      --config.data.tokenizer="sentencepiece(path='/data/cc_all.32000.model')"

Raffel et al. 2020, arXiv:1910.10683, sections 3.1 and 3.7; the T5-Base and
T5-Large of Fedus et al. 2021, arXiv:2101.03961, tables 1 and 9, with ReLU FFNs
and a tied head. Not trained here. Published: GFLOPs forward a sequence; log
perplexity after 100k and 500k steps; sequences per second on 32 TPUv3 cores.

  | argument | d_ff  | parameters             | GFLOPs | loss         | speed |
  | base     | 3,072 | 222,903,552 parameters | 124    | 1.731, 1.556 | 1,600 |
  | large    | 4,096 | 737,668,096 parameters | 425    | 1.550, 1.350 | 470   |

T5-Large took 131.1 hours to 1.50. Table 9's T5-Base has GEGLU of width 2,048
and, with a head of its own, would have 247,577,856 parameters.

The recipe, of Switch Transformer and ST-MoE too: C4, 512 encoder and 114 target
tokens of span corruption, 2^20 encoder tokens a step (section 4.1 there),
Adafactor at 0.01 for 10,000 steps and then as the inverse square root, bf16
activations, no dropout. Prepare the data set in `data.dir` and give T5's
SentencePiece file (32,000 pieces). Anything smaller runs without either, as
--config.data.name=python_stdlib --config.data.tokenizer='bytes()' with smaller
sizes.
"""

import dataclasses

import ml_collections

from configs import base, presets


@dataclasses.dataclass(frozen=True)
class Size:
  """Of a model: both stacks have `layers` blocks.

  Attributes:
    d_model, d_ff, d_head, heads, layers: as published.
    ffn: of dense FFNs and experts alike.
    tied: the head is the embedding table.
    remat: as `model.remat`.
  """

  d_model: int
  d_ff: int
  d_head: int
  heads: int
  layers: int
  ffn: str
  tied: bool
  remat: str = 'full'


# Encoder and target tokens of a sequence.
TOKENS, TARGETS = 512, 114
RELU, GEGLU = "mlp(activation='relu')", "glu(activation='gelu')"

# Where the papers' tables contradict their parameter counts, the released
# configurations decide: these have ReLU, a wider FFN than the table's and a
# tied head. GEGLU goes with a head of its own (T5 1.1).
MODELS = {
  'base': Size(768, 3072, 64, 12, 12, RELU, True, 'none'),
  'large': Size(1024, 4096, 64, 16, 24, RELU, True),
}


def get_config(arg='base'):
  """The config; `arg` is one of MODELS."""
  return dense(choose('t5', arg or 'base', MODELS)).lock()


def choose(family, name, models):
  """The model of that name, or a ValueError that lists them."""
  if name not in models:
    raise ValueError(f'{family} has no {name!r}; valid: {", ".join(models)}')
  return models[name]


def dense(s: Size) -> ml_collections.ConfigDict:
  """An encoder-decoder of that size by the recipe; unlocked."""
  config = base.get_config()
  config.cpu_devices = 8
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
    remat=s.remat,
  )
  config.moe.update(d_ff=s.d_ff, experts=s.ffn)
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


def sparse(s: Size, fields, num_experts: int, sequences: int):
  """The same with experts; unlocked.

  Args:
    s: of the model.
    fields: of a paper, from `presets`.
    num_experts: of each sparse layer.
    sequences: whose tokens make a group, in both stacks (ST-MoE-L's 2,048 and
      456).
  """
  config = dense(s)
  presets.apply(config, fields, decoder={'group_size': sequences * TARGETS})
  config.moe.update(num_experts=num_experts, group_size=sequences * TOKENS)
  return config
