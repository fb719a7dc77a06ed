"""What metrics say, in words."""

import json

import numpy as np
import pytest

from moe_jax.analysis import metrics, overview
from tests.analysis import synthetic

NAMES = ('decoder/1', 'decoder/3')
MEASURED = {
  'domain_specialisation/value': [0.12, 0.14],
  'domain_specialisation/null': [0.02, 0.02],
  'context_independence/id_value': [0.4, 0.5],
  'context_independence/id_null': [0.001, 0.003],
  'context_independence/context_value': [0.02, 0.04],
  'context_independence/context_null': [0.01, None],
  'repetition/first_value': [0.3, 0.5],
  'repetition/first_null': [0.25, 0.25],
  'token_classes/classes': ['number', 'conjunction_article'],
  'token_classes/value': [[0.1, 0.2], [None, 0.4]],
  'token_classes/null': [[0.1, 0.1], [None, 0.1]],
}
DOMAINS = (
  'Domains have experts of their own: the loads of a domain are 13.0% away '
  'from those of all, where documents dealt to the domains at random give 2.0%.'
)
TOKENS = (
  'The token itself decides more: of the uncertainty about the expert the '
  'token id explains 45% (by chance 0.2%) and the id before it another 3% (by '
  'chance 1.0%).'
)
NEIGHBOURS = (
  'Neighbours share their first expert in 40% of all cases; by the loads alone '
  'it would be 25%.'
)
KINDS = (
  'Of the kinds of token conjunction or article has most experts of its own: '
  'its load is 30.0% away from that of all, where ids as frequent have 10.0% '
  'by chance.'
)
SETTLED = (
  'Of the choices of the earliest checkpoint the end makes 60%, where 13% '
  'would be by the loads alone.'
)


@pytest.mark.parametrize(
  ('change', 'wanted'),
  [
    ({}, [DOMAINS, TOKENS, NEIGHBOURS]),
    ({'domain_specialisation/value': None}, [KINDS, TOKENS, NEIGHBOURS]),
    (
      {'saturation/top_k_value': [0.6], 'saturation/top_k_null': [0.13]},
      [DOMAINS, TOKENS, SETTLED],
    ),
    (
      {
        'domain_specialisation/value': None,
        'token_classes/value': [[None, None]] * 2,
      },
      [TOKENS, NEIGHBOURS],
    ),
    (dict.fromkeys(MEASURED), []),
    ({'context_independence/id_value': [None, None]}, [DOMAINS, NEIGHBOURS]),
  ],
  ids=['all', 'one domain', 'checkpoints', 'no kinds', 'none', 'undefined'],
)
def test_three_sentences_with_their_numbers(change, wanted):
  assert overview.words(MEASURED | change, NAMES) == wanted


def test_what_looks_broken_is_named():
  found = {
    'collapse/dead_experts': [[], [3]],
    'collapse/starved_experts': [[0, 1], list(range(10))],
    'collapse/always_on_experts': [[], []],
    'outputs/doubles': [[[0, 2]], []],
    'outputs/layers': NAMES,
    'outputs/super': [[1, 0]],
    'outputs/largest': [[1.0, 1.0, None], [50.0, 1.0]],
    'drops/value': [0.05, None],
  }
  assert overview.words(found, NAMES) == [
    'Collapse: 1 experts were chosen by no token (decoder/3: 3).',
    'Collapse: 12 experts were chosen by less than a tenth of the mean '
    '(decoder/1: 0, 1; decoder/3: 0, 1, 2, 3, 4, 5, 6, 7 and 2 more).',
    'Collapse: doubles, which compute the same (decoder/1: 0 and 2).',
    'Super experts, whose outputs are far above the median of all (decoder/3: '
    '0, 50 times).',
    'Drops: 5.0% of the choices found no seat, at the most 5.0% in decoder/1.',
  ]
  few = {'drops/value': [0.005, 0.0], 'collapse/dead_experts': [[], []]}
  assert overview.words(few, NAMES) == []


def test_words_are_of_what_is_measured(tmp_path):
  rng = np.random.default_rng(0)
  expert = rng.integers(0, 3, (3_000, 2, 1))
  made = synthetic.write(
    tmp_path,
    expert,
    {'tokenizer': 'bytes()', 'vocab': 384, 'experts': (4, 4)},
    token=100 + synthetic.zipf(rng, 3_000, 26),
    document=np.arange(3_000) // 100,
    domain=np.arange(3_000) // 1_500,
  )
  specs = 'collapse()', 'drops()', 'repetition()', 'domain_specialisation()'
  found = json.loads(json.dumps(metrics.measure(made, specs)))
  domains, neighbours, dead = overview.words(found, NAMES)
  assert domains.startswith('Domains share experts: ')
  assert 'by the loads alone it would be 33%' in neighbours
  assert dead.startswith('Collapse: 2 experts were chosen by no token')
