"""Tiny open models as they lie on the hub: weights by formula, frozen numbers.

No weight is stored. A tensor is made of its name, its shape and the case's
seed alone, with bits that NumPy promises never to change; so a folder here
is to the bit the folder that transformers was run on in
`make_open_models.py`. What that gave is in `open_models.npz`.
"""

import functools
import json
import math
import pathlib
import re
import zlib

import numpy as np
import safetensors.numpy

from tests.golden import open_configs

CASES = tuple(open_configs.CONFIGS)
# Token ids from 3 on; 0 is padding. The second row ends early.
ROWS = (24, 17)
# The first row once more, as documents that know nothing of each other.
DOCUMENTS = (10, 14)
# Longer and shorter than any window here; each is continued alone.
PROMPTS = (9, 4)
NEW_TOKENS = 32
# Hidden states are kept at every fifth real position.
EVERY = 5
SAMPLED = 64

_GAIN = re.compile(r'norm\.weight$')
_ROUTER = re.compile(r'\.(gate|router|router\.layer)\.weight$')


def tensor(name: str, shape, seed: int) -> np.ndarray:
  """Float32 values, uniform and scaled by what the name says it is."""
  bits = np.random.PCG64(zlib.crc32(f'{seed}/{name}'.encode()))
  raw = bits.random_raw(math.prod(shape)) >> np.uint64(40)
  u = raw.astype(np.float32) * np.float32(2**-23) - np.float32(1)
  u = u.reshape(shape)
  if _GAIN.search(name):
    return np.float32(1) + np.float32(0.5) * u
  if name.endswith('sinks'):
    return np.float32(1.5) * u
  if name.endswith('bias'):
    return np.float32(0.3) * u
  if _ROUTER.search(name):
    return np.float32(0.8) * u
  return np.float32(0.45) * u


def tokens(case: str, seed: int) -> np.ndarray:
  """Ids [B, 24], 0 where a row has ended."""
  bits = np.random.PCG64(zlib.crc32(f'{seed}/{case}'.encode()))
  shape = len(ROWS), max(ROWS)
  ids = bits.random_raw(math.prod(shape)) % np.uint64(
    open_configs.VOCABULARY - 3
  )
  ids = ids.astype(np.int32).reshape(shape) + 3
  return np.where(np.arange(shape[1]) < np.array(ROWS)[:, None], ids, 0)


def probe(n: int) -> np.ndarray:
  """Weights [n, V] of the scalar whose gradients are frozen.

  The scalar is the sum of the logits at the n real positions, row by row,
  times these.
  """
  shape = n, open_configs.VOCABULARY
  return np.cos(np.arange(math.prod(shape))).astype(np.float32).reshape(shape)


def sampled(shapes: dict[str, tuple]) -> list[tuple[str, int]]:
  """Which entries of the gradients are frozen: (hub name, flat index)."""
  names = sorted(shapes)
  out = []
  for i in range(SAMPLED):
    name = names[i * len(names) // SAMPLED]
    at = zlib.crc32(f'{i}/{name}'.encode()) % math.prod(shapes[name])
    out.append((name, at))
  return out


@functools.cache
def frozen(case: str) -> dict[str, np.ndarray]:
  """What transformers gave for a case.

  config           its own config.json, as JSON, in the names of 5.x
  tensors          {hub name: shape} as JSON
  seed, crc32      of the weights
  tokens           [B, 24] int32, 0 is padding
  logits           [n, V] at the n real positions, row by row
  hidden           [5, ceil(n / 5), D] after each block, before the last
                   norm, at every fifth of them
  document_logits  [24, V] of the first row's documents, run alone
  gradient_norms   [tensors] of d(sum logits * probe), in the order of the
                   sorted names; the bias that balances has none
  gradient_sample  [64], where `sampled` says
  greedy           [P, 32] int32 through the cache, each prompt alone
  greedy_logits    [P, V] of the last of them
  """
  path = pathlib.Path(__file__).parent / 'open_models.npz'
  head = f'{case}/'
  with np.load(path) as f:
    return {k[len(head) :]: f[k] for k in f.files if k.startswith(head)}


def shapes(case: str) -> dict[str, tuple]:
  """{hub name: shape}."""
  named = json.loads(str(frozen(case)['tensors']))
  return {name: tuple(shape) for name, shape in named.items()}


def tensors(case: str) -> dict[str, np.ndarray]:
  """{hub name: float32 values}."""
  seed = int(frozen(case)['seed'])
  return {name: tensor(name, s, seed) for name, s in shapes(case).items()}


def checksum(values: dict[str, np.ndarray]) -> int:
  """One number of all names, shapes and bytes."""
  out = 0
  for name in sorted(values):
    value = values[name]
    out = zlib.crc32(f'{name} {value.dtype} {value.shape}'.encode(), out)
    out = zlib.crc32(np.ascontiguousarray(value).tobytes(), out)
  return out


def fused(values: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  """The layout that transformers 5.x has in memory: experts in one tensor.

  Halves of gate and up [E, 2F, D], and down [E, D, F].
  """
  out, found = {}, {}
  pattern = re.compile(r'(.*\.experts)\.(\d+)\.(\w+)\.weight$')
  kinds = {'w1': 'gate_proj', 'w3': 'up_proj', 'w2': 'down_proj'}
  for name, value in values.items():
    if expert := pattern.match(name):
      stack, i, kind = expert.groups()
      found.setdefault(stack, {})[int(i), kinds.get(kind, kind)] = value
    else:
      for old, new in (
        ('block_sparse_moe.gate', 'mlp.gate'),
        ('input_linear.weight', 'experts.gate_up_proj'),
        ('output_linear.weight', 'experts.down_proj'),
        ('router.layer.weight', 'router.weight'),
        ('mlp.moe_statics', 'mlp.gate.moe_statics'),
      ):
        name = name.replace(old, new)
      out[name] = value
  for stack, experts in found.items():
    E = 1 + max(i for i, _ in experts)
    stack = stack.replace('block_sparse_moe', 'mlp')
    out[f'{stack}.gate_up_proj'] = np.stack(
      [
        np.concatenate([experts[i, 'gate_proj'], experts[i, 'up_proj']])
        for i in range(E)
      ]
    )
    out[f'{stack}.down_proj'] = np.stack(
      [experts[i, 'down_proj'] for i in range(E)]
    )
  return out


def save(
  folder, config: dict, values: dict[str, np.ndarray], shards: int = 1
) -> pathlib.Path:
  """Writes config.json and safetensors, whole or in shards with an index."""
  folder = pathlib.Path(folder)
  folder.mkdir(exist_ok=True)
  (folder / 'config.json').write_text(json.dumps(config, indent=2))
  names = sorted(values)
  if shards == 1:
    files = {'model.safetensors': names}
  else:
    files = {
      f'model-{i + 1:05}-of-{shards:05}.safetensors': names[i::shards]
      for i in range(shards)
    }
    index = {
      'metadata': {'total_size': sum(v.nbytes for v in values.values())},
      'weight_map': {name: f for f, held in files.items() for name in held},
    }
    (folder / 'model.safetensors.index.json').write_text(json.dumps(index))
  for file, held in files.items():
    safetensors.numpy.save_file(
      {name: values[name] for name in held},
      folder / file,
      metadata={'format': 'pt'},
    )
  return folder


def write(
  folder, case: str, shards: int = 1, change=None, **config
) -> pathlib.Path:
  """Writes a case's folder as it would lie on the hub.

  Args:
    folder: where; made if it is not there.
    case: one of CASES.
    shards: into how many files the tensors go.
    change: called with the tensors, which it may change.
    config: fields of config.json that differ; None leaves a field out.
  """
  values = tensors(case)
  if change is not None:
    change(values)
  fields = open_configs.CONFIGS[case] | config
  fields = {k: v for k, v in fields.items() if v is not None or k not in config}
  return save(folder, fields, values, shards)


# Beside Llama 4's text in a multimodal folder.
VISION_CONFIG = {
  'model_type': 'llama4_vision_model',
  'hidden_size': 16,
  'image_size': 28,
  'intermediate_size': 32,
  'num_attention_heads': 2,
  'num_hidden_layers': 1,
  'patch_size': 14,
  'pixel_shuffle_ratio': 0.5,
  'projector_input_dim': 12,
  'projector_output_dim': 12,
  'vision_output_dim': 12,
}
_BLOCK = 'vision_model.model.layers.0'
VISION = {
  'multi_modal_projector.linear_1.weight': (32, 12),
  'vision_model.class_embedding': (16,),
  'vision_model.patch_embedding.linear.weight': (16, 588),
  'vision_model.positional_embedding_vlm': (5, 16),
  'vision_model.vision_adapter.mlp.fc1.weight': (12, 32),
  'vision_model.vision_adapter.mlp.fc2.weight': (12, 12),
  f'{_BLOCK}.mlp.fc1.weight': (32, 16),
  f'{_BLOCK}.mlp.fc1.bias': (32,),
  f'{_BLOCK}.mlp.fc2.weight': (16, 32),
  f'{_BLOCK}.mlp.fc2.bias': (16,),
  **{
    f'{_BLOCK}.self_attn.{kind}_proj.{part}': shape
    for kind in 'qkvo'
    for part, shape in (('weight', (16, 16)), ('bias', (16,)))
  },
  **{
    f'{norm}.{part}': (16,)
    for norm in (
      'vision_model.layernorm_post',
      'vision_model.layernorm_pre',
      f'{_BLOCK}.input_layernorm',
      f'{_BLOCK}.post_attention_layernorm',
    )
    for part in ('weight', 'bias')
  },
}


def predicting(values: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  """A DeepSeek-V3 with the layer that predicts one token further.

  On the hub it is the layer with index num_hidden_layers, and has copies of
  the embedding and the head; a model that only runs forward skips it.
  """
  last = max(int(m[1]) for k in values if (m := re.search(r'layers\.(\d+)', k)))
  old, new = f'model.layers.{last}.', f'model.layers.{last + 1}.'
  out = {
    k.replace(old, new): np.flip(v).copy()
    for k, v in values.items()
    if k.startswith(old)
  }
  table, norm = values['model.embed_tokens.weight'], values['model.norm.weight']
  D = len(norm)
  out |= {
    f'{new}embed_tokens.weight': table,
    f'{new}enorm.weight': norm,
    f'{new}hnorm.weight': norm,
    f'{new}eh_proj.weight': tensor(f'{new}eh_proj.weight', (D, 2 * D), 0),
    f'{new}shared_head.norm.weight': norm,
    f'{new}shared_head.head.weight': values['lm_head.weight'],
  }
  return values | out


def multimodal(config: dict, values: dict[str, np.ndarray]):
  """A Llama 4 whose text is one part of its folder: (config.json, tensors)."""
  own = ('architectures', 'torch_dtype', 'tie_word_embeddings')
  outer = {
    'model_type': 'llama4',
    'architectures': ['Llama4ForConditionalGeneration'],
    'torch_dtype': 'float32',
    'tie_word_embeddings': False,
    # The published ones are beyond this vocabulary.
    'boi_token_index': 47,
    'eoi_token_index': 48,
    'image_token_index': 49,
    'text_config': {k: v for k, v in config.items() if k not in own},
    'vision_config': VISION_CONFIG,
  }
  text = {f'language_model.{k}': v for k, v in values.items()}
  return outer, text | {k: tensor(k, s, 0) for k, s in VISION.items()}
