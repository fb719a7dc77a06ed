"""Branches of a seed: a run a domain, from its parameters."""

import json

import numpy as np
import pytest

from moe_jax.conversion import lineage, trees
from moe_jax.kernels import plain
from moe_jax.studies import branches
from tests import mains, saved, tiny
from tests.main_run import read

STEPS = {'train.steps': 2, 'train.checkpoint_every': 1}


@pytest.fixture(scope='module')
def root(tmp_path_factory):
  """A seed on both domains, of a model that takes no time."""
  where = tmp_path_factory.mktemp('branches')
  fields = saved.corpus(where) | {
    'mesh': 'auto()',
    'moe.layers': 'none',
    'model.num_layers': 1,
    'eval.max_bytes': 200,
  }
  saved.run(tiny.config(**fields), where / 'seed')
  return where


@pytest.mark.slow
def test_each_domain_has_its_run_and_lineage(root, monkeypatch):
  """By the program; what is finished is not done again."""
  monkeypatch.setattr(plain, 'rate', lambda dtype: 1e9)
  call = (
    'branch',
    f'--from={root}/seed',
    '--domains=b,a',
    f'--workdir={root}/w',
    '--config.train.steps=2',
    '--config.train.checkpoint_every=1',
  )
  code, out = mains.call(*call)
  assert not code and out.rstrip().splitlines()[-1].startswith('a ')
  seed, found = lineage.of(root / 'seed'), read(root / 'w/summary.json')
  states = {}
  for domain in 'ab':
    path = root / 'w' / domain
    config = read(path / 'config.json')
    assert config['data']['domains'] == [domain]
    assert config['train']['steps'] == 2
    own = lineage.of(path)
    assert seed.digest in own.ancestors and own.digest != seed.digest
    # 2 steps of 8 rows of 16 tokens, at 6 FLOPs a parameter and more.
    (stage,) = found[domain]['stages']
    assert stage['name'] == domain and stage['tokens'] == 2 * 8 * 16
    assert stage['flops'] > 6 * 256 * 1000
    keys = found[domain]['scores'].keys()
    assert keys == {'eval/bits_per_byte'}
    summary = read(path / 'summary.json')
    assert f'eval/{domain}/bits_per_byte' in summary
    states[domain] = trees.read(path).rest['embedding/table']
  lineage.check_related([lineage.of(root / 'w' / d) for d in 'ab'])
  assert not np.array_equal(states['a'], states['b'])
  assert 'finished' in mains.call(*call)[1]


@pytest.mark.parametrize(
  ('domains', 'fields', 'message'),
  [
    (['c'], {}, "unknown domain 'c'; valid: a, b"),
    (['a', 'a'], {}, "domain 'a' twice"),
    ([], {}, 'no domains'),
    (['a'], {'data.domains': ('b',)}, 'data.domains is what makes a branch'),
    (['b'], STEPS | {'train.clip': 2.0}, 'other settings: train.clip is 1.0'),
  ],
)
def test_what_cannot_be_branched(root, tmp_path, domains, fields, message):
  made = branches.plan(root / 'seed', ['b'], tmp_path, STEPS)
  (tmp_path / 'b').mkdir()
  text = json.dumps(trees.configs.to_dict(made['b']))
  (tmp_path / 'b/config.json').write_text(text)
  with pytest.raises(ValueError, match=message):
    branches.plan(root / 'seed', domains, tmp_path, fields)


def test_a_seed_that_was_trained_on(root, tmp_path):
  made = branches.plan(root / 'seed', ['a'], tmp_path, STEPS)
  branches.begin(root / 'seed', tmp_path, made)
  branches.begin(root / 'seed', tmp_path, made)  # goes on
  path = tmp_path / 'a/lineage.json'
  told = read(path)
  assert told['digest'] == '' and told['method'] == "branch(domain='a')"
  told['sources'][0]['digest'] = 'f' * 64
  path.write_text(json.dumps(told))
  with pytest.raises(ValueError, match=r'began with ffffffffffff, .* is now'):
    branches.begin(root / 'seed', tmp_path, made)
