"""A decoder language model, by router, with all that its paper sets with it.

  python -m experiments.train --config=configs/lm.py:router=olmoe \\
      --workdir=/tmp/moe_jax/olmoe
  python -m experiments.train --config=configs/lm.py:router=dense,size=tiny \\
      --workdir=/tmp/moe_jax/dense

The argument is `router=NAME,size=NAME`, either left out: `switch` and `small`.
Routers are the presets of configs/routers.py, which all cost a token the same:
switch, top_k (mixtral), olmoe, deepseek_moe, deepseek_v2, deepseek_v3, gpt_oss,
llama4, qwen2_moe, expert_choice, top_p, adamoe, moe_plus_plus, ... (a wrong
name lists them); `dense` is the model without experts. All else is by flag:
--config.moe.num_experts=16, --config.train.steps=1000.

  | size  | d   | blocks | experts | tokens a step | steps  | hardware     |
  | tiny  | 32  | 2      | 8       | 8 x 32        | 20     | 1 CPU core   |
  | small | 128 | 4      | 8       | 8 x 256       | 500    | 2 CPU cores  |
  | base  | 512 | 8      | 32      | 64 x 1024     | 20,000 | a GPU or TPU |

`experts` counts dense FFNs: fine-grained presets cut them. Every second block
is sparse. Bytes of the standard library's text; --config.data.name and
--config.data.tokenizer take others. What to expect: configs/ablations/
routers.py compares the causal ones, seed by seed.
"""

import dataclasses

from configs import base, routers


@dataclasses.dataclass(frozen=True)
class Size:
  """Of model, batch and run; `experts` as in `routers.apply`."""

  d_model: int
  layers: int
  heads: int
  experts: int
  seq_len: int
  batch_size: int
  steps: int
  peak: float


SIZES = {
  'tiny': Size(32, 2, 2, 8, 32, 8, 20, 4e-3),
  'small': Size(128, 4, 2, 8, 256, 8, 500, 4e-3),
  'base': Size(512, 8, 8, 32, 1024, 64, 20_000, 1e-3),
}
DEFAULTS = {'router': 'switch', 'size': 'small'}


def get_config(arg=''):
  """The config; `arg` is 'router=NAME,size=NAME'."""
  chosen = parse(arg)
  if chosen['size'] not in SIZES:
    raise ValueError(f'no size {chosen["size"]!r}; valid: {", ".join(SIZES)}')
  s, config = SIZES[chosen['size']], base.get_config()
  config.moe.layers = 'every_2'
  config.model.update(
    num_layers=s.layers,
    d_model=s.d_model,
    num_heads=s.heads,
    d_head=s.d_model // s.heads,
    dtype='bfloat16' if chosen['size'] == 'base' else 'float32',
  )
  config.data.seq_len = config.moe.group_size = s.seq_len
  config.train.update(
    steps=s.steps,
    batch_size=s.batch_size,
    schedule=f'cosine(peak={s.peak}, warmup={s.steps // 10}, final=1e-4)',
    checkpoint_every=max(s.steps // 2, 1),
  )
  config.eval.batch_size = min(s.batch_size, 32)
  return routers.apply(config, chosen['router'], s.experts).lock()


def parse(arg: str) -> dict[str, str]:
  """'router=olmoe,size=tiny' -> {'router': 'olmoe', 'size': 'tiny'}."""
  chosen = dict(DEFAULTS)
  for part in filter(None, (arg or '').split(',')):
    name, equals, value = part.partition('=')
    if not equals or name not in chosen:
      raise ValueError(f'cannot read {part!r}; expected router=NAME,size=NAME')
    chosen[name] = value
  return chosen
