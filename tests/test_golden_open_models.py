"""The oracle of open models cannot drift: weights, folders, frozen numbers."""

import json
import pathlib

import numpy as np
import pytest
import safetensors.numpy

from tests.golden import open_configs, open_models, published_fields

PUBLISHED = pathlib.Path(__file__).parent / 'golden/published_configs.json'


@pytest.mark.parametrize('case', open_models.CASES)
def test_weights_and_tokens_are_what_transformers_was_given(case):
  frozen = open_models.frozen(case)
  seed = int(frozen['seed'])
  values = open_models.tensors(case)
  assert open_models.checksum(values) == frozen['crc32']
  np.testing.assert_array_equal(
    open_models.tokens(case, seed), frozen['tokens']
  )
  theirs = json.loads(str(frozen['config']))
  ours = open_configs.CONFIGS[case]
  assert theirs['transformers_version'] == '5.24.0'
  assert theirs['hidden_size'] == ours['hidden_size']
  assert theirs['model_type'] == ours['model_type']


@pytest.mark.parametrize('case', open_models.CASES)
def test_the_frozen_numbers_agree_with_each_other(case):
  frozen = open_models.frozen(case)
  logits, ids = frozen['logits'], frozen['tokens']
  tolerance = 1e-5 * np.abs(logits).max()
  V, n = open_configs.VOCABULARY, sum(open_models.ROWS)
  assert logits.shape == (n, V) and (ids > 0).sum() == n
  # Nothing after a prompt is seen from it.
  for length, text in zip(open_models.PROMPTS, frozen['greedy'], strict=True):
    assert logits[length - 1].argmax() == text[0]
    assert len(text) == open_models.NEW_TOKENS
  np.testing.assert_array_equal(
    frozen['greedy_logits'].argmax(-1), frozen['greedy'][:, -1]
  )
  first, second = open_models.DOCUMENTS
  alone = frozen['document_logits']
  assert len(alone) == first + second == open_models.ROWS[0]
  np.testing.assert_allclose(alone[:first], logits[:first], 0, tolerance)
  apart = np.abs(alone[first:] - logits[first : first + second]).max(-1)
  assert apart.min() > 100 * tolerance
  # The head of the last block's states, if it is normed, gives the logits.
  hidden = frozen['hidden']
  assert hidden.shape == (5, -(-n // open_models.EVERY), 32)
  values = open_models.tensors(case)
  config = open_configs.CONFIGS[case]
  x = hidden[-1] / np.sqrt(
    (hidden[-1] ** 2).mean(-1, keepdims=True) + config['rms_norm_eps']
  )
  head = values.get('lm_head.weight', values['model.embed_tokens.weight'])
  y = (x * values['model.norm.weight']) @ head.T
  y = y / config.get('logits_scaling', 1)
  np.testing.assert_allclose(
    y, logits[:: open_models.EVERY], rtol=0, atol=tolerance
  )
  held = [name for name in values if 'e_score' not in name]
  assert len(frozen['gradient_norms']) == len(held)
  assert frozen['gradient_norms'].min() > 0
  assert len(frozen['gradient_sample']) == open_models.SAMPLED


@pytest.mark.parametrize('shards', [1, 3])
def test_a_folder_is_written_as_on_the_hub(tmp_path, shards):
  case = 'mixtral'
  folder = open_models.write(tmp_path, case, shards, sliding_window=7)
  files = sorted(folder.glob('*.safetensors'))
  assert len(files) == shards
  found = {}
  for file in files:
    found |= safetensors.numpy.load_file(file)
  assert open_models.checksum(found) == open_models.frozen(case)['crc32']
  config = json.loads((folder / 'config.json').read_text())
  assert config == open_configs.CONFIGS[case] | {'sliding_window': 7}
  index = folder / 'model.safetensors.index.json'
  assert index.exists() == (shards > 1)
  if shards > 1:
    where = json.loads(index.read_text())['weight_map']
    assert where.keys() == found.keys()
    assert set(where.values()) == {file.name for file in files}


def test_the_totals_of_published_models_are_those_reckoned_by_hand():
  frozen = json.loads(PUBLISHED.read_text())['models']
  assert {
    name: model['config'] for name, model in frozen.items()
  } == published_fields.CONFIGS
  assert {
    name: model['parameters'] + model['bias_entries']
    for name, model in frozen.items()
  } == published_fields.TOTALS
  assert frozen['DeepSeek-V3']['bias_entries'] == 14_848
