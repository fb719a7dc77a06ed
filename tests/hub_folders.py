"""Tiny folders as they lie on the hub, written by the safetensors library."""

import json
import math
import re

import ml_dtypes
import numpy as np
import safetensors.numpy

from moe_jax.conversion import hub, reading
from tests import open_models

SMALL = {
  'vocab_size': 40,
  'hidden_size': 8,
  'num_hidden_layers': 3,
  'num_attention_heads': 4,
  'num_key_value_heads': 2,
  'intermediate_size': 6,
  'max_position_embeddings': 32,
}
_HEADS = {'head_dim': 4}
_LATENT = {
  'num_key_value_heads': 4,
  'kv_lora_rank': 5,
  'qk_nope_head_dim': 3,
  'qk_rope_head_dim': 2,
  'v_head_dim': 4,
  'moe_intermediate_size': 7,
  'n_routed_experts': 8,
  'num_experts_per_tok': 2,
  'first_k_dense_replace': 1,
}
_LOCAL = {'num_local_experts': 3, 'num_experts_per_tok': 2}
_BIASED = _HEADS | {
  'moe_intermediate_size': 7,
  'n_routed_experts': 8,
  'n_shared_experts': 2,
  'num_experts_per_tok': 2,
  'first_k_dense_replace': 1,
}
# Those of which no total is known.
OTHERS = {
  'ernie4_5_moe': {'model_type': 'ernie4_5_moe'},
  'dots1': {'model_type': 'dots1', 'sliding_window': None},
  'glm4_moe': {
    'model_type': 'glm4_moe',
    'attention_bias': True,
    'use_qk_norm': True,
  },
}
# By model, what makes it small.
CASES = {
  'olmoe': {'num_experts': 4, 'num_experts_per_tok': 2},
  'mixtral_8x7b': _HEADS | _LOCAL | {'sliding_window': 5},
  'qwen1_5_a2_7b': {
    'num_experts': 4,
    'moe_intermediate_size': 5,
    'shared_expert_intermediate_size': 9,
    'decoder_sparse_step': 2,
  },
  'qwen3_30b': _HEADS
  | {
    'num_experts': 4,
    'num_experts_per_tok': 2,
    'moe_intermediate_size': 5,
    'mlp_only_layers': [1],
  },
  'deepseek_v2_lite': _LATENT,
  'deepseek_v2': _LATENT | {'q_lora_rank': 6, 'n_group': 4, 'topk_group': 2},
  'deepseek_v3': _LATENT | {'q_lora_rank': 6, 'n_group': 4, 'topk_group': 2},
  'gpt_oss_20b': _HEADS | _LOCAL,
  'llama4_scout': _HEADS | {'num_local_experts': 3, 'intermediate_size_mlp': 9},
  'llama4_maverick': _HEADS
  | {'num_local_experts': 3, 'intermediate_size_mlp': 9},
  'flex_olmo': {},
  'ernie4_5_moe': _HEADS
  | {
    'moe_intermediate_size': 7,
    'moe_num_experts': 5,
    'moe_k': 2,
    'moe_layer_end_index': 1,
  },
  'dots1': _BIASED,
  'glm4_moe': _BIASED,
  'granite_1b_a400m': {'num_local_experts': 4, 'num_experts_per_tok': 2},
}
DTYPES = {
  'float32': np.float32,
  'bfloat16': ml_dtypes.bfloat16,
  'float16': np.float16,
}


def config(case, **fields):
  """config.json; a field of None is left out."""
  out = (open_models.PUBLISHED | OTHERS)[case] | SMALL | CASES[case] | fields
  return {k: v for k, v in out.items() if k not in fields or v is not None}


def tensors(said, dtype='bfloat16', memory=False):
  """Random ones of a config.json, by name."""
  family, c = hub.read(said)
  rng = np.random.default_rng(0)
  return {
    t.name: rng.standard_normal(t.shape).astype(DTYPES[t.dtype or dtype])
    for t in family.table(c, memory)
  }


def write(directory, said, values, shards=1):
  """Writes a folder, in so many files."""
  directory.mkdir(parents=True)
  names = sorted(values)
  where = {}
  for i in range(shards):
    name = 'model.safetensors'
    if shards > 1:
      name = f'model-{i + 1:05}-of-{shards:05}.safetensors'
    own = {n: np.ascontiguousarray(values[n]) for n in names[i::shards]}
    safetensors.numpy.save_file(own, directory / name, {'format': 'pt'})
    where |= dict.fromkeys(own, name)
  if shards > 1:
    index = {'metadata': {}, 'weight_map': where}
    (directory / 'model.safetensors.index.json').write_text(json.dumps(index))
  (directory / 'config.json').write_text(json.dumps(said))
  return directory


def stored(directory):
  """The tensors of a folder, by the library."""
  found = {}
  for file in sorted(directory.glob('*.safetensors')):
    found |= safetensors.numpy.load_file(file)
  return found


def shapes(table, places=None):
  """Of leaves that a table fills, each layer on its own.

  Args:
    table: of a family.
    places: by stack, where its layers are; those that it scans over are then
      stacked, as in the model.
  """
  found, lead = {}, {}
  for t in table:
    for p in t.parts:
      path, first = _stacked(p.path, places or {})
      at = lead.setdefault(path, [])
      at.append((*first, *p.at))
      found[path] = t.ours(p)
  full = lambda k: tuple(1 + max(n) for n in zip(*lead[k]))
  name = lambda k: k if k.startswith('balance/') else f'params/{k}'
  return {name(k): (*full(k), *v) for k, v in found.items()}


def _stacked(path, places):
  """'decoder/layer_3/x' -> ('decoder/period/block_0/x', its place in it)."""
  found = re.fullmatch(r'(balance/)?(\w+)/layer_(\d+)/(.*)', path)
  if not found or found[2] not in places:
    return path, ()
  module, block, repeat = places[found[2]][int(found[3])]
  names = [(found[1] or '') + found[2], module, block, found[4]]
  names = [n for n in names if n]
  return '/'.join(names), (repeat,) if block else ()


class Leaf:
  """One that is wanted in host memory."""

  dtype, sharding = np.float32, None

  def __init__(self, shape):
    self.shape = shape


def load(found, places=None):
  """What fills the leaves of a folder that was opened, and these."""
  own = shapes(found.table, places)
  fills = reading.fills(found.table, own, places or {})
  wanted = {k: Leaf(v) for k, v in own.items()}
  return fills, reading.load(found.tensors, fills, wanted)


def same_bits(a, b):
  """Raises AssertionError unless two dicts of arrays agree to the last bit."""
  assert a.keys() == b.keys(), set(a) ^ set(b)
  for k in a:
    assert a[k].dtype == b[k].dtype and a[k].shape == b[k].shape, k
    assert a[k].tobytes() == b[k].tobytes(), k


def numbers(table):
  """(parameters, entries of balancing state)."""
  sizes = {True: 0, False: 0}
  for t in table:
    balance = t.parts[0].path.startswith('balance/')
    sizes[balance] += math.prod(t.shape)
  return sizes[False], sizes[True]
