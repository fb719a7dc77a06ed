"""Configs of theirs and of ours: which convert, and what is refused."""

import json
import re

import pytest

from moe_jax.conversion import hub
from moe_jax.conversion.families import switch_transformers as family
from tests import tiny
from tests.golden import checkpoints, freeze


def read(config):
  return hub.read(config)[1]


def test_sparse_layers_are_theirs():
  """For 1 to 6 layers and any number of sparse ones, as transformers builds.

  Trap: for 0 sparse layers it makes layer 1 sparse.
  """
  frozen = freeze.load('switch_transformers')
  cases = [k for k in frozen if k.startswith('layouts/')]
  assert len(cases) == 33
  for case in cases:
    layers, number = map(int, case.split('/')[1:])
    config = {'num_layers': layers, 'num_sparse_encoder_layers': number}
    sparse = family.sparse_layers(config, 'encoder')
    assert sparse == tuple(frozen[case]), case
    found, step = family.sparse_steps(sparse)
    assert frozen[f'layouts/{layers}/{found}'].tolist() == list(sparse)
    config['encoder_sparse_step'] = step
    assert family.sparse_layers(config, 'encoder') == sparse


@pytest.mark.parametrize(
  ('config', 'message'),
  [
    ({'dense_act_fn': 'gelu_new'}, "dense_act_fn='gelu_new' (ours: 'relu')"),
    ({'router_bias': True}, 'router_bias=True (ours: False)'),
    ({'router_dtype': 'bfloat16'}, "router_dtype='bfloat16' (ours: 'float32')"),
    ({'layer_norm_epsilon': 1e-5}, 'layer_norm_epsilon=1e-05 (ours: 1e-06)'),
    ({'num_decoder_layers': 3}, 'num_layers=4 but num_decoder_layers=3'),
    ({'num_layers': 12, 'd_kv': None}, 'd_kv=None (a whole number from 1 is'),
    ({'dropout_rate': -0.5}, 'dropout_rate=-0.5 (from 0)'),
    ({'is_gated_act': True}, 'is_gated_act=True (ours: False)'),
    ({'use_fog': 1}, 'use_fog=1 (not known to switch_transformers)'),
  ],
)
def test_configs_of_theirs_that_ours_cannot_be(config, message):
  said = json.loads(str(freeze.load('switch_transformers')['tight/config']))
  with pytest.raises(ValueError, match=re.escape(message)):
    read(said | config)


def test_what_is_left_out_is_the_default_of_the_class():
  c = read({'model_type': 'switch_transformers', 'num_decoder_layers': None})
  assert (c['d_kv'], c['d_ff'], c['expert_capacity']) == (64, 2048, 64)
  # 12 layers, 3 of them sparse: every fourth.
  assert family.sparse_layers(c, 'decoder') == (False, True, False, False) * 3


@pytest.mark.parametrize(
  ('field', 'value', 'message'),
  [
    ('model.kind', 'decoder', 'no family can say this model'),
    ('model.attention', ('full()', 'window(size=9)'), "(theirs: ('full()',))"),
    ('model.positions', 'rope', "model.positions='rope' (theirs: 'relative')"),
    ('model.qk_norm', True, 'model.qk_norm=True'),
    ('model.norm_scale', False, 'model.norm_scale=False'),
    ('model.ffn', "mlp(activation='silu')", 'theirs: mlp with relu)'),
    ('moe.d_ff', 24, 'theirs: mlp with relu and d_ff=20'),
    ('moe.router', 'top_k(k=1, renormalize=False)', '(theirs: switch in'),
    (
      'moe.router',
      'switch(selective_precision=False)',
      '(theirs: switch in float32)',
    ),
    ('moe.capacity_rule', 'paper()', "moe.capacity_rule='paper()' (theirs: f"),
    ('moe.eval_capacity_factor', 0.0, 'moe.eval_capacity_factor=0.0 (theirs: '),
    ('moe.seating', 'token_major()', "'token_major()' (theirs: rank_major())"),
    ('moe.extra_ffn', 'after', "moe.extra_ffn='after' (theirs: none)"),
    ('moe.dense_branch', 'shared', "moe.dense_branch='shared' (theirs: none)"),
    ('moe.local_experts', ('zero()',), 'moe.local_experts='),
    ('model.norm_eps', 1e-5, 'model.norm_eps=1e-05 (theirs: 1e-06)'),
    ('moe.layers', '0,3', "moe.layers='0,3' (theirs: l mod step = 1)"),
    (
      'moe.balance',
      ('loss_free_bias()',),
      'moe.balance: loss_free_bias (theirs: switch_loss, z_loss)',
    ),
    (
      'moe.decoder.capacity_rule',
      'fixed(rows=9)',
      'expert_capacity is 9 in the decoder (theirs: 2 in both)',
    ),
  ],
)
def test_configs_of_ours_that_theirs_cannot_be(tmp_path, field, value, message):
  config, _, params = checkpoints.twin(
    checkpoints.write(tmp_path / 'a', 'tight')
  )
  *groups, name = field.split('.')
  target = config
  with config.unlocked():
    for group in groups:
      target = target[group]
    target[name] = value
    if value == 'decoder':
      config.moe.decoder = {}
  with pytest.raises(ValueError, match=re.escape(message)):
    checkpoints.save(tmp_path / 'b', params, config)


def test_fields(tmp_path):
  """They exist in our configs, with their types, and say what theirs said."""
  change = {'router_aux_loss_coef': 0.25, 'router_jitter_noise': 0.5}
  directory = checkpoints.write(tmp_path, 'tight', **change)
  found = hub.opened(directory)
  fields = found.family.fields(found.config)
  config = tiny.config()
  for group, values in fields.items():
    for name, value in values.items():
      assert name in config[group], name
      if name != 'decoder':
        assert type(value) is type(config[group][name]), name
  moe = fields['moe']
  assert moe['router'] == 'switch(jitter=0.5)'
  assert moe['balance'] == ('switch_loss(weight=0.25)', 'z_loss(weight=0.001)')
  assert moe['capacity_rule'] == 'fixed(rows=2)'
  assert moe['route_padding'] and fields['model']['dropout'] == 0.1
  assert moe['layers'] == '1,3' and moe['group_size'] == 512
  assert moe['decoder'] == {'layers': '1', 'group_size': 114}
