"""Published open models: their parameters, by the shapes of our model."""

import json

import pytest

from configs import base, open_models as configs
from moe_jax.conversion import hub, reading, workdirs
from moe_jax.planning import counts
from moe_jax.runs import checkpoint, configs as configs_lib
from moe_jax.training import plans
from tests import mains, open_models

# One of each kind of attention; the others are as those.
QUICK = ('olmoe', 'deepseek_v3', 'llama4_maverick')
slow = pytest.mark.slow


def test_configs_are_what_is_made_of_theirs():
  assert configs.MODELS.keys() == open_models.PUBLISHED.keys()
  for name, said in open_models.PUBLISHED.items():
    family, c = hub.read(said)
    config = configs.get_config(name)
    for group, own in family.fields(c).items():
      for field, value in own.items():
        assert config[group][field] == value, (name, field)
  with pytest.raises(ValueError, match="no model 'x'; valid: olmoe, mixtral"):
    configs.get_config('x')


@pytest.mark.parametrize(
  'name',
  [
    pytest.param(n, marks=() if n in QUICK else slow)
    for n in open_models.PUBLISHED
  ],
)
def test_parameters_of_ours(name):
  """Each is filled once; with the bias, which is state, as published."""
  said = open_models.PUBLISHED[name]
  config = workdirs.described(said, base.get_config())
  configs_lib.validate(config)
  session = plans.make(config, '')
  named = checkpoint.named(session.abstract_state)
  shapes = {k: v.shape for k, v in named.items() if 'opt_state/' not in k}
  del shapes['step']
  family, c = hub.read(said)
  places = {k: s.places for k, s in session.model.stacks.items()}
  reading.fills(family.table(c), shapes, places)
  total = counts.parameters(session.leaves())
  bias = open_models.BIAS_ENTRIES.get(name, 0)
  assert total + bias == open_models.TOTALS[name]


def test_describe(tmp_path):
  """gpt-oss publishes 5.13 billion active, without the input embedding."""
  path = tmp_path / 'config.json'
  path.write_text(json.dumps(open_models.PUBLISHED['gpt_oss_120b']))
  args = f'--hf_config={path}', '--mesh=exact(expert=8)', '--json'
  plan = json.loads(mains.call('describe', *args)[1])
  assert plan['params_total'] == open_models.TOTALS['gpt_oss_120b']
  without = plan['params_active_without_embedding']
  assert round(without / 1e9, 2) == 5.13
  assert plan['params_active'] - without == 201_088 * 2880
