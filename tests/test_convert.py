"""`experiments.convert`: a folder becomes a workdir that programs take."""

import json
import re

import numpy as np
import pytest
import tokenizers as library

from configs import base
from experiments import cli
from moe_jax.conversion import hub, workdirs, writing
from moe_jax.data import tokenizers
from moe_jax.errors import UserError
from moe_jax.models import factory
from moe_jax.runs import checkpoint, workdir as workdir_lib
from tests import hub_folders, mains
from tests.golden import checkpoints

CONVERTED = 'hub/lineage.json'


def convert(*args):
  return mains.call('convert', '--cpu_devices=8', *args)


def vocabulary(directory, words):
  """A tokenizer.json of whole words."""
  model = library.models.WordLevel({w: i for i, w in enumerate(words)}, '<u>')
  made = library.Tokenizer(model)
  made.pre_tokenizer = library.pre_tokenizers.Whitespace()
  made.save(str(directory / 'tokenizer.json'))


def folder(path, case, dtype='bfloat16', **fields):
  said = hub_folders.config(case, **fields)
  values = hub_folders.tensors(said, dtype)
  return hub_folders.write(path, said, values, shards=2)


def test_there_and_back(tmp_path):
  """DeepSeek-V3 with its bias, its tokenizer, and types of its own."""
  old = folder(tmp_path / 'old', 'deepseek_v3', eos_token_id=1, bos_token_id=0)
  words = ['<s>', '</s>', '<u>', 'the', 'expert']
  vocabulary(old, words)
  (old / 'generation_config.json').write_text('{}')
  run = tmp_path / 'run'
  _, said = convert(
    f'--from_hf={old}', f'--workdir={run}', '--mesh=auto(expert=4)'
  )
  assert 'deepseek_v3: 91 tensors, 5,501 parameters' in said, said
  config = workdir_lib.read_config(run)
  spec = "hf(pad='<s>', eos='</s>', sentinels=0, size=5)"
  assert config['data']['tokenizer'] == spec
  made = tokenizers.build(tokenizers.at(spec, str(run / 'tokenizer.json')))
  assert made.encode(b'the expert').tolist() == [3, 4]
  assert (made.pad_id, made.eos_id, made.vocab_size) == (0, 1, 5)
  names = checkpoint.shapes(run / 'checkpoints')
  assert sum('loss_free_bias' in n for n in names) == 1
  new = tmp_path / 'new'
  convert(f'--to_hf={new}', f'--workdir={run}')
  hub_folders.same_bits(hub_folders.stored(old), hub_folders.stored(new))
  assert json.loads((new / 'config.json').read_text()) == (
    json.loads((old / 'config.json').read_text())
    | {'num_nextn_predict_layers': 0}
    | dict.fromkeys(('dtype', 'torch_dtype'), 'bfloat16')
  )
  assert {'tokenizer.json', 'generation_config.json'} <= {
    p.name for p in new.iterdir()
  }
  # The bias of the selection has its type whatever is asked for.
  half = tmp_path / 'half'
  args = f'--to_hf={half}', f'--workdir={run}', '--dtype=float16'
  convert(*args, '--max_shard=3000')
  types = {k: v.dtype for k, v in hub_folders.stored(half).items()}
  bias = {k for k in types if k.endswith('e_score_correction_bias')}
  assert len(bias) == 2
  assert {types.pop(k) for k in bias} == {np.dtype(np.float32)}
  assert set(types.values()) == {np.dtype(np.float16)}
  assert (half / 'model.safetensors.index.json').exists()


def test_selection_without_a_bias_is_one_of_zeros(tmp_path):
  """A run that balances by a loss has none to write."""
  said = hub_folders.config('deepseek_v3')
  values = hub_folders.tensors(said, 'float32')
  config = workdirs.described(said, base.get_config())
  found = hub.opened(hub_folders.write(tmp_path / 'old', said, values))
  places = {k: s.places for k, s in factory.stacks(config).items()}
  leaves = hub_folders.load(found, places)[1]
  assert sum(k.startswith('balance/') for k in leaves) == 1
  with config.unlocked():
    config.moe.balance = ('switch_loss(weight=0.01)',)
  leaves = {k: v for k, v in leaves.items() if k.startswith('params/')}
  shapes = {k: v.shape for k, v in leaves.items()}
  made = workdirs.fitted(config, shapes, said)
  part = writing.parts(leaves | made.zeros, made.own)
  got = {t.name: writing.whole(t, part, 'float32') for t in made.table}
  bias = {k for k in values if k.endswith('e_score_correction_bias')}
  want = values | {k: np.zeros_like(values[k]) for k in bias}
  hub_folders.same_bits(got, want)
  # But a rule of ours that moves another bias is more than theirs can say.
  other = {'balance/decoder/layer_1/moe/state/fog': (8,)}
  with pytest.raises(UserError, match='state/fog is filled by 0 tensors'):
    workdirs.fitted(config, shapes | other, said)


@pytest.mark.slow
@pytest.mark.parametrize('case', ['tight', 'untied'])
def test_switch_transformers_go_the_same_way(tmp_path, case):
  old = checkpoints.write(tmp_path / 'old', case)
  run, new = tmp_path / 'run', tmp_path / 'new'
  convert(f'--from_hf={old}', f'--workdir={run}')
  convert(f'--to_hf={new}', f'--workdir={run}')
  hub_folders.same_bits(hub_folders.stored(old), hub_folders.stored(new))


def test_nothing_is_written_of_what_does_not_fit(tmp_path):
  old = folder(tmp_path / 'old', 'olmoe')
  vocabulary(old, [f'w{i}' for i in range(41)])
  run = tmp_path / 'run'
  call = lambda *args: convert(f'--workdir={run}', *args)
  with pytest.raises(UserError, match='has 41 tokens, but vocab_size is 40'):
    call(f'--from_hf={old}')
  with pytest.raises(UserError, match='give one of --from_hf'):
    call()
  with pytest.raises(UserError, match='holds no run'):
    call(f'--to_hf={tmp_path / "new"}')
  with pytest.raises(UserError, match='exists; a checkpoint needs a new'):
    call(f'--from_hf={old}', f'--workdir={old}')
  assert [p.name for p in tmp_path.iterdir()] == ['old']


def test_a_config_of_json(tmp_path):
  from configs import saved

  path = tmp_path / 'config.json'
  said = {'seed': 3, 'model': {'attention': ['full()'], 'norm_eps': 1}}
  path.write_text(json.dumps(said))
  config = saved.get_config(str(path))
  assert config.seed == 3 and config.model.norm_eps == 1.0
  assert config.model.attention == ('full()',)
  assert config.train.to_dict() == base.get_config().train.to_dict()
  args = cli.of_json(['x', f'--config={path}', '--config.seed=4'])
  assert args[1].endswith(f'saved.py:{path}') and args[2] == '--config.seed=4'
  for wrong, message in (
    ({'fog': 1}, "there is no field 'fog'"),
    ({'model': {'d_model': 'x'}}, "model.d_model='x'; the type int is"),
    ({'model': 3}, 'model. is no JSON object'),
  ):
    path.write_text(json.dumps(wrong))
    with pytest.raises(ValueError, match=re.escape(message)):
      saved.get_config(str(path))
