"""Mains import the modules of dotted names where they were allowed to."""

import json

import pytest

from moe_jax import registry
from moe_jax.parallel import distributed
from moe_jax.runs import configs
from tests import fake_study, mains, tiny

SPEC = 'their_lab.Thing(k=2)'
# How each main comes to build a call string.
CALLS = {
  'train': ('--config={file}', '--config.moe.router={spec}', '--workdir={new}'),
  'evaluate': ('--workdir={workdir}',),
  'generate': ('--workdir={workdir}',),
  'describe': ('--config={file}', '--config.moe.router={spec}'),
  'plan': ('--config={file}', '--config.moe.router={spec}'),
  'parity': ('--dispatch={spec}',),
  'bench': ('--experts={spec}', '--cases=none'),
}


@pytest.fixture
def names(tmp_path, monkeypatch):
  """Where things are; the code of `their_lab` says when it runs."""
  (tmp_path / 'their_lab.py').write_text('raise ValueError("their code runs")')
  monkeypatch.syspath_prepend(tmp_path)
  monkeypatch.setattr(registry, '_allowed', {'moe_jax'})
  monkeypatch.setattr(distributed, 'simulate', lambda devices: None)
  config = configs.to_dict(tiny.config())
  config['moe']['router'] = SPEC
  (tmp_path / 'config.json').write_text(json.dumps(config))
  names = {'file': tiny.__file__, 'spec': SPEC, 'workdir': tmp_path}
  return names | {'new': tmp_path / 'new'}


@pytest.mark.parametrize('name', CALLS)
def test_modules_are_imported_where_they_may(names, name):
  """By a call string of a config.json, too, which may be someone else's."""
  flags = [text.format(**names) for text in CALLS[name]]
  with pytest.raises(ValueError, match='pass --allow_modules=their_lab, or'):
    mains.call(name, *flags)
  with pytest.raises(ValueError, match='their code runs'):
    mains.call(name, *flags, '--allow_modules=my_lab,their_lab')


def test_a_sweeps_commands_name_them(names, tmp_path):
  """Those of a run that needs them, no others."""
  changed = {"{'train.steps': 7}": repr({'moe.router': SPEC})}
  fake_study.study_file(tmp_path, **changed)
  flags = (f'--config={tmp_path}/toy.py:quick', f'--workdir={tmp_path}/w')
  allowed = '--allow_modules=my_lab,their_lab'
  _, out = mains.call('sweep', *flags, '--seeds=1', '--dry_run', allowed)
  lines = [line for line in out.splitlines() if line.startswith('python ')]
  assert [' --allow_modules=their_lab ' in line for line in lines] == [1, 0]
