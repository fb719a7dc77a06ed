"""The frozen Switch Transformers as Hugging Face directories, and our twins."""

import json
import pathlib

import numpy as np
import safetensors.numpy

from moe_jax.conversion import switch_config, switch_transformers
from moe_jax.models import factory
from tests import tiny
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
  theirs = switch_config.read_config(directory)
  fields = switch_config.fields(theirs, encoder_length, decoder_length)
  config = tiny.config()
  with config.unlocked():
    config.model.update(fields['model'])
    config.moe.update(fields['moe'])
  model = factory.make(config, config.model.vocab_size)
  return config, model, switch_transformers.load(directory)


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
