"""config.json of open models: what it makes, and what is refused."""

import itertools
import pathlib
import re

import pytest
from ml_collections import config_dict

from configs import base
from moe_jax.conversion import hub, rope
from moe_jax.errors import UserError
from tests import hub_folders, open_models


def fields(said):
  family, c = hub.read(said)
  return family.fields(c)


def ours(said):
  """Our config of a config.json."""
  config = base.get_config()
  for group, own in fields(said).items():
    config[group].update(own)
  config.model.vocab_size = said.get('vocab_size') or config.model.vocab_size
  return config


@pytest.mark.parametrize('name', open_models.PUBLISHED)
def test_totals_are_the_published_ones(name):
  """Bias entries of DeepSeek-V3 are state of ours, and in its total."""
  family, c = hub.read(open_models.PUBLISHED[name])
  found, balance = hub_folders.numbers(family.table(c))
  assert found + balance == open_models.TOTALS[name]
  assert balance == open_models.BIAS_ENTRIES.get(name, 0)


@pytest.mark.parametrize('name', hub_folders.CASES)
def test_ours_says_what_theirs_said(name):
  """Our config, without theirs, makes a config.json of the same fields."""
  said = hub_folders.config(name)
  family, theirs = hub.config_of(ours(said))
  assert family.name == hub.read(said)[0].name
  assert fields(theirs) == fields(said)


def test_no_concrete_method_is_overridden():
  """Of families: abstract, or final."""
  for family in hub.all_families().values():
    own, *bases = type(family).__mro__
    given = {k for k, v in vars(own).items() if callable(v)}
    for other in bases[:-1]:
      final = {k for k, v in vars(other).items() if callable(v)}
      final -= getattr(other, '__abstractmethods__', frozenset())
      wrong = {k for k in given & final if not k.startswith('__')}
      assert not wrong, (family.name, wrong)


def test_fields_are_those_of_the_schema():
  config = base.get_config()
  for said in open_models.PUBLISHED.values():
    for group, own in fields(said).items():
      for name, value in own.items():
        assert name in config[group], name
        assert type(value) is type(config[group][name]), name


@pytest.mark.parametrize(
  ('name', 'change', 'message'),
  [
    (
      'olmoe',
      {'model_type': 'olmo9'},
      "model_type 'olmo9'; valid: deepseek_v2",
    ),
    ('olmoe', {'use_fog': True}, 'use_fog=True (not known to olmoe)'),
    ('olmoe', {'num_experts': 0}, 'num_experts=0 (a whole number from 1 is'),
    ('olmoe', {'rms_norm_eps': 'x'}, "rms_norm_eps='x' (a finite number"),
    ('olmoe', {'hidden_act': 'tanh'}, "hidden_act='tanh' (ours: silu, swish"),
    ('olmoe', {'clip_qkv': -1}, 'clip_qkv=-1'),
    ('olmoe', {'rope_scaling': {'type': 'longrope'}}, "rope_type 'longrope'"),
    (
      'olmoe',
      {'rope_scaling': {'type': 'yarn', 'factor': 2.0, 'fog': 1}},
      'rope of type yarn: cannot represent: fog=1',
    ),
    (
      'olmoe',
      {'num_local_experts': 3},
      'num_experts=4 and num_local_experts=3',
    ),
    ('mixtral_8x7b', {'num_key_value_heads': 3}, 'num_key_value_heads=3 of 4'),
    (
      'mixtral_8x7b',
      {'router_jitter_noise': 0.1},
      'router_jitter_noise=0.1 (ours: 0.0)',
    ),
    (
      'qwen3_30b',
      {'use_sliding_window': True},
      'use_sliding_window=True (ours: False)',
    ),
    ('deepseek_v2', {'norm_topk_prob': True}, 'norm_topk_prob=True (ours: F'),
    ('deepseek_v2', {'topk_method': 'best'}, "topk_method='best' (ours: gr"),
    ('deepseek_v3', {'scoring_func': 'softmax'}, "scoring_func='softmax'"),
    ('gpt_oss_20b', {'layer_types': ['linear'] * 3}, "layer_types: 'linear'"),
    ('llama4_scout', {'moe_layers': [7]}, 'moe_layers=[7]'),
    ('llama4_scout', {'text_config': [1]}, 'text_config=[1] is no object'),
    ('qwen1_5_a2_7b', {'layer_types': ['x'] * 3}, "layer_types: 'x'"),
    ('olmoe', {'router_aux_loss_coef': 'x'}, "router_aux_loss_coef='x' (a fin"),
    (
      'ernie4_5_moe',
      {'num_hidden_layers': 1 << 39},
      'num_hidden_layers=549755813888 (a whole number up to 65536',
    ),
  ],
)
def test_what_is_not_handled_is_named(name, change, message):
  with pytest.raises(UserError, match=re.escape(message)):
    hub.read(hub_folders.config(name, **change))


JUNK = (None, True, -1, 0.5, 'x', [[1]], [1, 'a'], {'a': 1}, 1 << 70)


def test_whatever_stands_in_a_field_is_read_or_named():
  """Each field of each family's."""
  cases = [{'model_type': 'switch_transformers'}]
  cases += map(hub_folders.config, hub_folders.CASES)
  cases = {said['model_type']: said for said in cases}
  assert len(cases) == len(hub.names())
  more = {'rope_scaling', 'rope_theta', 'router_aux_loss_coef', 'text_config'}
  for model_type, said in cases.items():
    family = hub.of_type(model_type)
    fields(said)
    names = {*more, *family.defaults, *family.only, *family.aliases}
    for name, junk in itertools.product(sorted(names), JUNK):
      try:
        fields(said | {name: junk})
      except UserError as e:
        assert '\n' not in str(e)


def test_positions_in_both_forms():
  """And what a config.json leaves out is the class's default."""
  old = {'rope_theta': 7.0, 'rope_scaling': {'type': 'linear', 'factor': 2}}
  new = {
    'rope_parameters': {'rope_type': 'linear', 'factor': 2, 'rope_theta': 7}
  }
  for said in (old, new):
    model = fields(hub_folders.config('olmoe', **said))['model']
    scaling = '"linear(factor=2.0)"'
    assert model['positions'].replace("'", '"') == (
      f'rope(base=7.0, scaling={scaling})'
    )
  assert fields({'model_type': 'mixtral'})['model']['positions'] == (
    'rope(base=1000000.0)'
  )
  left_out = fields({'model_type': 'gpt_oss'})['model']['positions']
  said = fields(open_models.PUBLISHED['gpt_oss_120b'])['model']['positions']
  assert left_out == said


def test_yarn_of_deepseek():
  """mscale_all_dim is on the scores, twice, and off the turned pairs."""
  model = fields(open_models.PUBLISHED['deepseek_v2'])['model']
  by = rope.mscale(40, 0.707)
  assert f'scale={192**-0.5 * by * by}' in model['attention'][0]
  assert 'attention_factor=1.0' in model['positions']


@pytest.mark.parametrize(
  ('field', 'value', 'message'),
  [
    ('model.norm_at', 'output', "olmoe: model.norm_at='output' (theirs: 'inp"),
    ('moe.extra_ffn', 'after', "moe.extra_ffn='after' (theirs: 'none')"),
    ('moe.share_experts', 3, 'moe.share_experts=3 (theirs: 1)'),
  ],
)
def test_models_that_no_family_can_say(field, value, message):
  config = ours(hub_folders.config('olmoe'))
  group, _, name = field.partition('.')
  config[group][name] = value
  if field == 'model.norm_at':
    config.model.logit_scale = 3.0
    message = 'model.logit_scale=3.0'
  with pytest.raises(UserError, match=re.escape(message)):
    hub.config_of(config)


def test_what_a_run_changed_in_training_alone_stays():
  said = hub_folders.config('olmoe', bos_token_id=7)
  config = ours(said)
  config.moe.balance = ('switch_loss(weight=0.5)',)
  config.moe.capacity_factor = 2.0
  family, theirs = hub.config_of(config, said)
  assert family.name == 'olmoe' and theirs == said
  config.model.tied_head = True
  _, theirs = hub.config_of(config, said)
  assert theirs['tie_word_embeddings'] and theirs['bos_token_id'] == 7
  assert isinstance(config, config_dict.ConfigDict)


def test_the_table_of_families():
  page = pathlib.Path(hub.__file__).parent / 'README.md'
  assert hub.markdown() in page.read_text(), hub.markdown()
