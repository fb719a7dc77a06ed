"""Hugging Face checkpoints in and out: to the bit, and nothing lost."""

import json
import re

import flax.linen as nn
import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.numpy

from moe_jax.conversion import hub
from tests import hub_folders
from tests.golden import checkpoints

HALF = {'bfloat16': ml_dtypes.bfloat16, 'float16': np.float16}


def stored(directory) -> dict[str, np.ndarray]:
  with safetensors.safe_open(directory / 'model.safetensors', 'numpy') as f:
    assert f.metadata() == {'format': 'pt'}
    return {name: f.get_tensor(name) for name in f.keys()}


def half(dtype):
  def change(tensors):
    for name, value in tensors.items():
      tensors[name] = value.astype(HALF[dtype])

  return change


@pytest.mark.parametrize(
  ('case', 'dtype'),
  [
    ('tight', 'float32'),
    ('untied', 'float32'),
    ('untied', 'bfloat16'),
    ('tight', 'float16'),
  ],
)
def test_theirs_to_ours_to_theirs(tmp_path, case, dtype):
  """Names, shapes, types and bits of the tensors, and config.json."""
  change = None if dtype == 'float32' else half(dtype)
  old = checkpoints.write(tmp_path / 'old', case, change, dtype=dtype)
  config, _, params = checkpoints.twin(old)
  new = tmp_path / 'some' / 'new'
  checkpoints.save(new, params, config, dtype)
  hub_folders.same_bits(stored(old), stored(new))
  assert sorted(p.name for p in new.iterdir()) == [
    'config.json',
    'model.safetensors',
  ]
  theirs = json.loads((old / 'config.json').read_text())
  ours = json.loads((new / 'config.json').read_text())
  assert ours.pop('decoder_start_token_id') == 0
  assert ours.items() <= theirs.items()
  # What is left at transformers' defaults; none of it changes the model.
  assert set(theirs) - set(ours) == {
    'add_cross_attention',
    'add_router_probs',
    'bos_token_id',
    'initializer_factor',
    'is_decoder',
    'router_ignore_padding_tokens',
    'transformers_version',
    'use_cache',
  }


@pytest.mark.parametrize(
  'case', ['tight', pytest.param('untied', marks=pytest.mark.slow)]
)
def test_ours_to_theirs_to_ours(tmp_path, case):
  """The tree is the one that `init` makes, and comes back bit by bit."""
  old = checkpoints.write(tmp_path / 'old', case)
  config, model, loaded = checkpoints.twin(old)
  init = lambda: nn.unbox(
    model.init(jax.random.key(0), checkpoints.batch(), train=False)
  )
  shapes = jax.eval_shape(init)['params']
  rng = np.random.default_rng(0)
  params = jax.tree.map(
    lambda s: rng.standard_normal(s.shape).astype(s.dtype), shapes
  )
  checkpoints.save(tmp_path / 'new', params, config)
  again = checkpoints.load(tmp_path / 'new')
  assert jax.tree.structure(again) == jax.tree.structure(params)
  for a, b, c in zip(*map(jax.tree.leaves, (again, params, loaded))):
    np.testing.assert_array_equal(a, b, strict=True)
    assert c.shape == b.shape and c.dtype == np.float32


@pytest.mark.parametrize('dtype', list(HALF))
def test_half_precision_is_read_exactly(tmp_path, dtype):
  name = 'encoder.block.3.layer.1.mlp.experts.expert_2.wi.weight'
  directory = checkpoints.write(tmp_path, 'tight', half(dtype))
  leaf = checkpoints.load(directory)['encoder']['period']['block_1']
  wanted = checkpoints.tensors('tight')[name].astype(HALF[dtype])
  # Layer 3 is the second repeat of the period.
  np.testing.assert_array_equal(
    leaf['moe']['experts']['wi'][1, 2], wanted.T.astype(np.float32)
  )


def shards(directory, names=None):
  """Cuts the weights into two files with an index."""
  whole = stored(directory)
  (directory / 'model.safetensors').unlink()
  names = sorted(whole) if names is None else names
  half = len(names) // 2
  index = {}
  for i, part in enumerate((names[:half], names[half:])):
    file = f'model-0000{i + 1}-of-00002.safetensors'
    safetensors.numpy.save_file({n: whole[n] for n in part}, directory / file)
    index |= dict.fromkeys(part, file)
  text = json.dumps({'weight_map': index})
  (directory / 'model.safetensors.index.json').write_text(text)


def test_shards(tmp_path):
  directory = checkpoints.write(tmp_path, 'tight')
  whole = checkpoints.load(directory)
  shards(directory)
  parts = checkpoints.load(directory)
  jax.tree.map(np.testing.assert_array_equal, whole, parts)

  second = directory / 'model-00002-of-00002.safetensors'
  values = safetensors.numpy.load_file(second)
  first = safetensors.numpy.load_file(
    directory / 'model-00001-of-00002.safetensors'
  )
  name = sorted(first)[0]
  safetensors.numpy.save_file(values | {name: first[name]}, second)
  with pytest.raises(ValueError, match=f'{name} is stored twice'):
    hub.opened(directory)
  second.unlink()
  with pytest.raises(ValueError, match='lacks shards: model-00002-of-00002'):
    hub.opened(directory)


EXPERT = 'decoder.block.1.layer.2.mlp.experts.expert_{}.{}.weight'


def drop(*names):
  return lambda tensors: [tensors.pop(n) for n in names]


def put(name, make):
  def change(tensors):
    tensors[name] = make(tensors)

  return change


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    (drop(EXPERT.format(3, 'wo')), f'{EXPERT.format(3, "wo")} is missing'),
    (
      put(EXPERT.format(4, 'wi'), lambda t: t[EXPERT.format(3, 'wi')]),
      f'{EXPERT.format(4, "wi")} is unexpected',
    ),
    (
      put(EXPERT.format(0, 'wi'), lambda t: t[EXPERT.format(0, 'wo')]),
      f'{EXPERT.format(0, "wi")} has shape (16, 20), not (20, 16)',
    ),
    (
      put('shared.weight', lambda t: t['shared.weight'].astype(np.int8)),
      'shared.weight is I8, not one of F32, BF16, F16',
    ),
    (
      put('lm_head.weight', lambda t: t['shared.weight'] + 1),
      'lm_head.weight differs from shared.weight, which it is tied to here',
    ),
    (
      lambda tensors: [
        tensors.pop(n) for n in list(tensors) if '.mlp.experts.' in n
      ],
      'is missing; and 14 more',
    ),
  ],
  ids=['missing', 'extra', 'shape', 'type', 'tied', 'many'],
)
def test_tensors_that_do_not_fit_are_named(tmp_path, change, message):
  directory = checkpoints.write(tmp_path, 'tight', change)
  with pytest.raises(ValueError, match=re.escape(message)) as e:
    hub.opened(directory)
  assert '\n' not in str(e.value)


def test_every_missing_expert_is_counted(tmp_path):
  """3 sparse layers of 4 experts of 2 matrices; ten are named."""
  lost = [n for n in checkpoints.tensors('tight') if '.mlp.experts.' in n]
  directory = checkpoints.write(tmp_path, 'tight', drop(*lost))
  with pytest.raises(ValueError) as e:
    hub.opened(directory)
  assert len(lost) == 24
  assert sum(n in str(e.value) for n in lost) == 10


def test_tied_copies_may_be_stored(tmp_path):
  copy = lambda t: t['shared.weight'].copy()
  directory = checkpoints.write(tmp_path, 'tight', put('lm_head.weight', copy))
  hub.opened(directory)


def test_untied_embeddings_must_agree(tmp_path):
  """Transformers 5 unties the stacks' embeddings too; ours has one."""
  name = 'decoder.embed_tokens.weight'
  change = put(name, lambda t: t['shared.weight'][::-1].copy())
  directory = checkpoints.write(tmp_path, 'untied', change)
  with pytest.raises(ValueError, match=f'{name} differs from shared.weight'):
    hub.opened(directory)


def test_pickles_are_refused(tmp_path):
  directory = checkpoints.write(tmp_path, 'tight')
  (directory / 'model.safetensors').unlink()
  with pytest.raises(ValueError, match=r'has no model\.safetensors'):
    hub.opened(directory)
  (directory / 'pytorch_model-00001-of-00002.bin').write_bytes(b'')
  with pytest.raises(ValueError, match=r'pickled.*python -c "import.*save_pre'):
    hub.opened(directory)
  (directory / 'config.json').unlink()
  with pytest.raises(ValueError, match=r'has no config\.json'):
    hub.opened(directory)


def test_nothing_is_overwritten(tmp_path):
  config, _, params = checkpoints.twin(
    checkpoints.write(tmp_path / 'a', 'tight')
  )
  before = stored(tmp_path / 'a')
  with pytest.raises(ValueError, match='exists; a checkpoint needs a new'):
    checkpoints.save(tmp_path / 'a', params, config)
  hub_folders.same_bits(before, stored(tmp_path / 'a'))
  (tmp_path / 'empty').mkdir()
  checkpoints.save(tmp_path / 'empty', params, config)
  assert sorted(p.name for p in tmp_path.iterdir()) == ['a', 'empty']


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    (
      lambda p: p['decoder']['prefix_1']['moe'].pop('router'),
      'decoder/layer_1/moe/router/kernel of decoder.block.1.layer.2.mlp.router.'
      'classifier.weight is not in the model',
    ),
    (
      lambda p: p.update(head=np.zeros(3)),
      'params/head is filled by 0 tensors of 0 numbers',
    ),
    (
      lambda p: p['encoder']['final_norm'].update(scale=np.zeros(3)),
      'weight is (16,), params/encoder/final_norm/scale (3,)',
    ),
    (
      lambda p: p.update(params=p.pop('embedding')),
      'embedding/table of shared.weight is not in the model',
    ),
  ],
)
def test_parameters_that_do_not_fit_are_named(tmp_path, change, message):
  config, _, params = checkpoints.twin(
    checkpoints.write(tmp_path / 'a', 'tight')
  )
  change(params)
  with pytest.raises(ValueError, match=re.escape(message)):
    checkpoints.save(tmp_path / 'b', params, config)
  assert not (tmp_path / 'b').exists()


def test_unknown_dtype(tmp_path):
  config, _, params = checkpoints.twin(
    checkpoints.write(tmp_path / 'a', 'tight')
  )
  with pytest.raises(ValueError, match="'int8'; valid: bfloat16, float16, fl"):
    checkpoints.save(tmp_path / 'b', params, config, 'int8')
