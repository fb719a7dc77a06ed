"""The frozen Switch Transformers as Hugging Face directories, and our twins."""

import json
import pathlib

import numpy as np
import safetensors.numpy
from flax import traverse_util

from moe_jax.conversion import hub, workdirs, writing
from moe_jax.models import factory
from tests import hub_folders, tiny
from tests.golden import freeze

CASES = ('ample', 'tight', 'untied')


def tensors(case: str) -> dict[str, np.ndarray]:
  """What transformers saved, by name."""
  frozen = freeze.load('switch_transformers')
  head = 'tensors/'
  out = {k[len(head) :]: v for k, v in frozen.items() if k.startswith(head)}
  if case == 'untied':
    out['lm_head.weight'] = frozen['untied/lm_head.weight']
    for stack in ('encoder', 'decoder'):
      out[f'{stack}.embed_tokens.weight'] = out['shared.weight']
  assert sorted(out) == list(frozen[f'{case}/names'])
  return out


def write(directory, case: str, change=None, **config) -> pathlib.Path:
  """Writes the checkpoint; `change` is of its tensors, `config` of its config.

  A config value of None takes the field out.
  """
  directory = pathlib.Path(directory)
  directory.mkdir(exist_ok=True)
  frozen = freeze.load('switch_transformers')
  values = tensors(case)
  if change is not None:
    change(values)
  safetensors.numpy.save_file(
    values, directory / 'model.safetensors', metadata={'format': 'pt'}
  )
  fields = json.loads(str(frozen[f'{case}/config'])) | config
  fields = {k: v for k, v in fields.items() if v is not None or k not in config}
  (directory / 'config.json').write_text(json.dumps(fields))
  return directory


def twin(directory, encoder_length: int = 10, decoder_length: int = 7):
  """Our config and model for a checkpoint, and its parameters."""
  found = hub.opened(directory)
  fields = found.family.fields(found.config)
  config = tiny.config()
  with config.unlocked():
    config.model.update(fields['model'])
    config.moe.update(fields['moe'])
    config.moe.group_size = encoder_length
    config.moe.decoder.group_size = decoder_length
  model = factory.make(config, config.model.vocab_size)
  places = {k: s.places for k, s in model.stacks.items()}
  leaves = hub_folders.load(found, places)[1]
  return config, model, tree(leaves)


def load(directory):
  """The parameters."""
  return twin(directory)[2]


def tree(leaves):
  """Parameters by path, 'params/a/b', as a model has them."""
  named = {k.removeprefix('params/'): v for k, v in leaves.items()}
  return traverse_util.unflatten_dict(named, sep='/')


def named(params):
  """And the other way."""
  leaves = traverse_util.flatten_dict(params, sep='/')
  return {f'params/{k}': v for k, v in leaves.items()}


def fitted(params, config):
  """What is to be written of a model, and what gives its parts."""
  leaves = named(params)
  shapes = {k: np.shape(v) for k, v in leaves.items()}
  made = workdirs.fitted(config, shapes)
  return made, writing.parts(leaves, made.own)


def tensors_of(params, config):
  """float32 tensors by their names."""
  made, part = fitted(params, config)
  return {t.name: writing.whole(t, part, 'float32') for t in made.table}


def save(directory, params, config, dtype: str = 'float32') -> None:
  """Writes the parameters as a checkpoint."""
  made, part = fitted(params, config)
  said = made.config | {'dtype': dtype}
  copies = made.copies
  writing.save(directory, made.table, part, said, dtype=dtype, copies=copies)


def batch() -> dict[str, np.ndarray]:
  """The frozen inputs as ours."""
  frozen = freeze.load('switch_transformers')
  out = {}
  for prefix, ids, real in (
    ('encoder_', frozen['batch/input_ids'], frozen['batch/attention_mask']),
    ('', frozen['batch/decoder_input_ids'], 1),
  ):
    B, L = ids.shape
    out[f'{prefix}inputs'] = ids
    out[f'{prefix}positions'] = np.tile(np.arange(L), (B, 1))
    out[f'{prefix}segments'] = np.broadcast_to(real, ids.shape)
  return {k: v.astype(np.int32) for k, v in out.items()}
