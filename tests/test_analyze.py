"""From a run to its record, its metrics and its page, by one command."""

import json
import re

import pytest

from moe_jax.analysis import analyses, overview, records
from moe_jax.errors import UserError
from tests import mains, saved, tiny

FIELDS = {
  'moe.layers': 'all',
  'moe.router': 'top_k(k=2)',
  'moe.allow_noncausal': True,
  'eval.max_bytes': 0,
}


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  root = tmp_path_factory.mktemp('analyzed')
  config = tiny.config(**FIELDS | saved.corpus(root))
  saved.run(config, root / 'run', scale=3.0, steps=(0, 10, 20), fingerprint='')
  return root / 'run'


def analyze(workdir, *flags):
  # As many devices as there are.
  call = f'--workdir={workdir}', '--cpu_devices=8', *flags
  return mains.call('analyze', *call)[1]


@pytest.mark.parametrize(
  ('flags', 'said'),
  [
    (['--checkpoints=10,15'], 'checkpoints=10,15: no 15; there are 0, 10, 20'),
    (['--checkpoints=last'], 'checkpoints=last: no last; there are 0, 10, 20'),
    (['--capacity_factors=1.0,0'], "--capacity_factors: '0' is no number ab"),
    (['--max_bytes=-1'], r'max_bytes=-1; valid: 0 \(all\) or more'),
    (['--text=/no/where'], "data.dir='/no/where' is not a directory"),
  ],
)
def test_what_is_wrong_is_one_line(run, flags, said):
  with pytest.raises(UserError, match=said):
    analyze(run, *flags)


def test_a_run_without_a_checkpoint(tmp_path):
  with pytest.raises(UserError, match='there is no checkpoint to look at'):
    analyze(tmp_path)


def test_checkpoints_come_newest_first(run):
  of = lambda asked: analyses.steps(run, asked)
  assert (of('newest'), of('all')) == ([20], [20, 10, 0])
  assert of('0, 20') == [20, 0]


METRICS = {
  'domain_specialisation/value': [0.3, 0.1],
  'domain_specialisation/null': [0.03, 0.05],
  'context_independence/id_value': [0.6, None],
  'context_independence/id_null': [0.01, None],
  'context_independence/context_value': [0.2, None],
  'context_independence/context_null': [-0.0004, None],
  'repetition/first_value': [0.5, 0.3],
  'repetition/first_null': [0.25, 0.25],
  'collapse/dead_experts': [[], [1, 3]],
  'outputs/layers': ['decoder/1', 'decoder/3'],
  'outputs/doubles': [[[0, 2]], []],
}


def test_words():
  names = ('decoder/1', 'decoder/3')
  found = overview.words(METRICS, names)
  assert found == [
    'Domains have experts of their own: the loads of a domain are 20.0% away '
    'from those of all, where documents dealt to the domains at random give '
    '4.0%.',
    'The token itself decides more: of the uncertainty about the expert the '
    'token id explains 60% (by chance 1.0%) and the id before it another 20% '
    '(by chance 0.0%).',
    'Neighbours share their first expert in 40% of all cases; by the loads '
    'alone it would be 25%.',
    'Collapse: 2 experts were chosen by no token (decoder/3: 1, 3).',
    'Collapse: doubles, which compute the same (decoder/1: 0 and 2).',
  ]
  alike = {f'domain_specialisation/{k}': [0.3] for k in ('value', 'null')}
  assert overview.words(alike, names) == [
    'Whether domains have experts of their own cannot be told: each has one '
    'document.'
  ]
  even = {k: [0.0] for k in alike}  # as of a single expert
  assert overview.words(even, names)[0].startswith('Domains share experts')
  assert overview.words({'domain_specialisation/undefined': 'one'}, names) == []


@pytest.mark.slow
def test_all_of_it(run):
  out = analyze(
    run,
    '--checkpoints=all',
    '--capacity_factors=0.5,1.0',
    f'--compare={run}',
    '--remove_experts',
    f'--text={run.parent}',
    '--max_bytes=3000',
  )
  at = run / 'analysis'
  assert out.endswith(f'report: {at}/report.html\n')
  assert 'expert 3 of decoder/1: ' in out
  size = sum(p.stat().st_size for p in run.parent.glob('*.txt'))
  said = re.match(f'{run.parent}: ([0-9,]+) of {size:,} bytes, ([0-9]+) d', out)
  read, documents = (int(n.replace(',', '')) for n in said.groups())
  own = records.Record.open(at / 'routing')
  # A byte is a token, and so is the end of a document.
  assert read + documents - 1 <= len(own) <= read + documents
  assert len(own.schema.documents) == documents
  found = json.loads((at / 'metrics.json').read_text())
  assert out.splitlines()[-1 - len(found['words']) : -1] == found['words']
  names = {p.name for p in at.iterdir()}
  assert names == {
    *('routing', 'routing_0', 'routing_10', 'routing_untrained'),
    *('routing_compared', 'metrics.json', 'report.html'),
  }
  made = {n: records.Record.open(at / n) for n in names if '.' not in n}
  assert len({r.schema.fingerprint for r in made.values()}) == 1
  assert {n: r.schema.step for n, r in made.items()} == {
    **{'routing': 20, 'routing_0': 0, 'routing_10': 10},
    **{'routing_untrained': 0, 'routing_compared': 20},
  }
  assert found['drops_at/factors'] == [0.5, 1.0]
  # Parameters grew threefold: choices of step 10 are nearer to those of 20.
  kept = lambda name: found[f'saturation{name}/top_k_value']
  for m in range(2):
    assert kept('_untrained')[m] < kept('_0')[m] < kept('_10')[m] <= 1
  assert kept('') == kept('_0')
  assert found['replication/matched_value'] == [1, 1]
  assert len(found['importance/removed']) == 2
  assert found['outputs/layers'] == ['decoder/0', 'decoder/1']
  page = (at / 'report.html').read_text()
  assert found['words'][1].split(':')[0] in page
