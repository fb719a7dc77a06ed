"""Papers of methods, BibTeX of a config, the table of methods."""

import dataclasses
import importlib
import json
import re

import pytest

import moe_jax
from configs import quickstart
from moe_jax import citations, registry
from tests import mains, methods

METHODS = [(f, n) for f in registry.FAMILIES for n in registry.names(f)]


def docstring(family, name):
  return importlib.import_module(f'moe_jax.{family}.{name}').__doc__


def check(text, known):
  """A docstring's citations: the first in full, none unknown, none otherwise.

  Format: moe_jax/citations.py.
  """
  numbers = re.findall(r'arXiv:([\d.]+\d)', text)
  full = citations.cited(text)
  assert [p.number for p in full][:1] == numbers[:1], 'the first is not in full'
  for number in numbers:
    assert number in known, f'{number} is nowhere in full'
  for paper in full:
    assert paper == known[paper.number], 'another file cites it otherwise'
    names = re.split(', | and | et al.', paper.authors)
    assert len(names) == 1 or all(' ' in n for n in names if n), 'first names?'
  return full


@pytest.mark.parametrize(('family', 'name'), METHODS)
def test_methods_cite_their_papers_in_one_form(family, name):
  for paper in check(docstring(family, name), citations.known()):
    entry = paper.bibtex()
    assert entry.count('{') == entry.count('}')
    assert f'eprint = {{{paper.number}}}' in entry


ZHOU = """Expert choice.

Yanqi Zhou et al., "Mixture-of-Experts with
Expert Choice Routing", NeurIPS 2022, arXiv:2202.09368, section 3.2: what
follows. As gpt-oss (OpenAI, "Cards & Co", 2025, arXiv:2508.10925).

After Fedus et al. 2021, arXiv:2101.03961.
"""


def test_a_citation_by_hand():
  zhou, card = citations.cited(ZHOU)
  assert dataclasses.astuple(zhou) == (
    'Yanqi Zhou et al.',
    'Mixture-of-Experts with Expert Choice Routing',
    *('NeurIPS', '2022', '2202.09368'),
  )
  assert (
    zhou.bibtex()
    == """@misc{arxiv2202_09368,
  author = {Zhou, Yanqi and others},
  title = {{Mixture-of-Experts with Expert Choice Routing}},
  year = {2022},
  eprint = {2202.09368},
  archivePrefix = {arXiv},
}"""
  )
  assert card.venue == '' and 'author = {{OpenAI}},' in card.bibtex()
  assert 'title = {{Cards \\& Co}},' in card.bibtex()
  assert citations.citation_lines(ZHOU) == {2, 3, 4}
  many = dataclasses.replace(zhou, authors='Jan van der Aa, B. Ce and Łu Dé')
  wanted = 'author = {van der Aa, Jan and Ce, B. and Dé, Łu},'
  assert wanted in many.bibtex()


@pytest.mark.parametrize(
  ('old', 'new', 'fault'),
  [
    ('"Mixture-of-Experts with\nExpert Choice Routing", ', '', 'not in full'),
    ('Yanqi Zhou et al., ', '', 'not in full'),
    ('\n\nYanqi Zhou', '\n\nAs in Yanqi Zhou', 'not in full'),
    (' 2022, arXiv', ', arXiv', 'not in full'),
    ('Yanqi Zhou', 'Zhou', 'first names'),
    ('NeurIPS 2022', 'ICML 2022', 'otherwise'),
    ('2101.03961', '2101.03962', '2101.03962 is nowhere in full'),
    ('2101.03961', '2101.039611', '2101.039611 is nowhere in full'),
  ],
)
def test_citations_in_another_form_are_found(old, new, fault):
  zhou, card = citations.cited(ZHOU)
  known = {p.number: p for p in (zhou, card)}
  known['2101.03961'] = card
  check(ZHOU, known)
  changed = ZHOU.replace(old, new)
  if fault == 'first names':
    known[zhou.number] = citations.cited(changed)[0]
  with pytest.raises(AssertionError, match=fault):
    check(changed, known)


def cited(**moe):
  config = quickstart.get_config()
  with config.unlocked():
    config.moe.update(moe)
  text = moe_jax.citation(config)
  return {n for n in citations.known() if f'eprint = {{{n}}}' in text}


def test_citation_follows_the_config():
  assert {'2101.03961', '2202.08906', '2006.16668'} <= cited()
  assert '2202.09368' not in cited()
  assert '2202.09368' in cited(router='expert_choice()')
  assert '2406.13233' in cited(local_experts=('zero(count=2)',))
  assert '2103.16716' in cited(decoder={'router': 'base_layer()'})
  ffns = {'1706.03762', '2101.03961'}  # ReLU's
  assert cited(layers='none', router='expert_choice()') == ffns


def test_citation_of_a_method_from_elsewhere(tmp_path, monkeypatch):
  """Its docstring is read, as those of moe_jax are."""
  monkeypatch.syspath_prepend(tmp_path)
  allowed = {'moe_jax', 'cites_in_full', 'does_not'}
  monkeypatch.setattr(registry, '_allowed', allowed)
  says = """'''A. Be, "Mine", 2030, arXiv:3001.00001{}.'''\nclass Mine: pass"""
  for name, more in (('cites_in_full', ''), ('does_not', ', arXiv:3001.00002')):
    (tmp_path / f'{name}.py').write_text(says.format(more))
  config = quickstart.get_config()
  config.moe.router = 'cites_in_full.Mine(k=2)'
  assert 'author = {Be, A.},' in moe_jax.citation(config)
  config.moe.router = 'does_not.Mine(k=2)'
  with pytest.raises(
    ValueError, match=r'^does_not\.Mine: expected .*3001\.00002'
  ):
    moe_jax.citation(config)


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
