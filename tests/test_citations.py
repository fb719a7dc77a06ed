"""Papers of methods, BibTeX of a config, the table of methods."""

import json

import moe_jax
from configs import quickstart
from moe_jax import citations, registry
from tests import mains, methods


def test_every_paper_that_a_method_names_has_an_entry():
  named = set()
  for family in registry.FAMILIES:
    for name in registry.names(family):
      named.update(citations.papers(family, name))
  assert named == set(citations._PAPERS)
  for number in named:
    entry = citations.bibtex(number)
    assert entry.count('{') == entry.count('}')
    assert f'eprint = {{{number}}}' in entry


def cited(**moe):
  config = quickstart.get_config()
  with config.unlocked():
    config.moe.update(moe)
  text = moe_jax.citation(config)
  return {n for n in citations._PAPERS if f'eprint = {{{n}}}' in text}


def test_citation_follows_the_config():
  assert {'2101.03961', '2202.08906', '2006.16668'} <= cited()
  assert '2202.09368' not in cited()
  assert '2202.09368' in cited(router='expert_choice()')
  assert '2406.13233' in cited(local_experts=('zero(count=2)',))
  assert '2103.16716' in cited(decoder={'router': 'base_layer()'})
  own = cited(router='my_lab.routers.Mine(k=2)', dispatch='dense()', balance=())
  assert own == {'1706.03762', '2101.03961'}  # of its ReLU FFNs alone
  assert cited(layers='none', router='expert_choice()') == own


def test_methods_agree_with_the_rows():
  by_name = {(m['family'], m['name']): m for m in citations.methods()}
  for family in registry.FAMILIES:
    for row in methods.rows(family, slots=True):
      m = by_name.pop((family, registry.parse(row.spec)[0]), None)
      if m and family == 'routers':
        assert m['causal'] == row.causal, row.spec
      if m and family == 'balancing':
        assert m['state'] == row.state, row.spec
  assert not by_name


def test_describe_methods():
  found = json.loads(mains.call('describe', '--methods', '--json')[1])
  assert found == citations.methods()
  (switch,) = (m for m in found if m['name'] == 'switch')
  assert switch['arxiv'] == '2101.03961' and switch['causal']
  lines = citations.table(found).splitlines()
  assert len(lines) == len(found) + 2


def test_the_table_by_hand():
  by_name = {(m['family'], m['name']): m for m in citations.methods()}
  cells = lambda *key: citations._cells(by_name[key])[2:]
  assert cells('routers', 'switch') == (
    *('2101.03961', 'yes', 'yes', '', 'oracle'),
  )
  assert cells('routers', 'expert_choice')[1:3] == ('no', 'yes')
  assert cells('routers', 'no_token_left_behind')[2] == 'no'
  assert cells('balancing', 'bip') == ('2502.15451', '', '', 'yes', 'contract')
  assert cells('dispatch', 'scatter')[2] == 'no'
  assert cells('dispatch', 'gather_reduce')[2] == 'yes'
  # Two methods of one name.
  assert cells('experts', 'autonomy') == ('2501.13074', '', '', '', 'oracle')


def test_tests_column_agrees_with_the_rows():
  for m in citations.methods():
    found = [
      row
      for row in methods.rows(m['family'], slots=True)
      if registry.parse(row.spec)[0] == m['name']
    ]
    oracle = any(row.oracle for row in found)
    assert m['tests'] == ('oracle' if oracle else 'contract'), m['name']
