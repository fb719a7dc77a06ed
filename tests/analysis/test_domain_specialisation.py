"""Domain specialisation: a loop, planted domains, and the null of documents."""

import itertools

import numpy as np
import pytest

from tests.analysis import synthetic


def clustered(seed, layers=1, documents=48, length=400, E=8, concentration=2.0):
  """A router that reads documents and no domains: each has loads of its own."""
  rng = np.random.default_rng(seed)
  document = np.repeat(np.arange(documents), length)
  shape = documents, layers
  load = rng.dirichlet(np.full(E, concentration), shape).cumsum(-1)
  drawn = rng.random((len(document), layers, 1))
  expert = np.minimum((drawn > load[document]).sum(-1), E - 1)
  return {
    'expert': expert[..., None],
    'document': document,
    'domain': document // (documents // 4),
  }


def distance(loads):
  """The metric of [G][E] loads, in words of Python."""
  shares = [[v / sum(load) for v in load] for load in loads]
  mean = [sum(v) / len(v) for v in zip(*shares, strict=True)]
  from_mean = lambda s: (
    sum(abs(a - b) for a, b in zip(s, mean, strict=True)) / 2
  )
  return [from_mean(s) for s in shares]


def test_a_loop_over_tokens(tmp_path):
  fields = synthetic.small()
  record = synthetic.write(tmp_path, **fields)
  found = synthetic.measured(record, 'domain_specialisation()')
  for m in range(2):
    loads = np.zeros((3, 5), int)
    for domain, experts in zip(
      fields['domain'], fields['expert'][:, m], strict=True
    ):
      for e in experts[experts >= 0]:
        loads[domain, e] += 1
    tokens = np.bincount(fields['domain'])[:, None]
    np.testing.assert_allclose(found['shares'][m], loads / tokens)
    np.testing.assert_allclose(found['by_domain_value'][m], distance(loads))
    assert found['value'][m] == pytest.approx(np.mean(distance(loads)))


def test_the_null_is_all_ways_to_share_out_documents(tmp_path):
  """Of six documents over two domains: twenty, each as likely."""
  rng = np.random.default_rng(0)
  document = np.repeat(np.arange(6), 20)
  expert = rng.integers(0, 3, 120)
  fields = {'document': document, 'domain': document // 3}
  record = synthetic.write(tmp_path, expert[:, None, None], **fields)
  found = synthetic.measured(record, 'domain_specialisation(draws=2000)')
  count = np.array(
    [np.bincount(expert[document == d], minlength=3) for d in range(6)]
  )
  all_values = []
  for chosen in itertools.combinations(range(6), 3):
    rest = [d for d in range(6) if d not in chosen]
    sums = count[list(chosen)].sum(0), count[rest].sum(0)
    all_values.append(np.mean(distance(sums)))
  assert found['null'] == pytest.approx(np.mean(all_values), rel=0.02)
  as_high = np.mean(np.array(all_values) >= found['value'] - 1e-12)
  assert found['p'] == pytest.approx(as_high, abs=0.04)


def test_planted_domains_are_found_and_measured(tmp_path):
  """Half of the tokens go to their domain's own two experts of eight."""
  rng = np.random.default_rng(0)
  fields = clustered(0, concentration=1e6)
  own = 2 * fields['domain'] + rng.integers(0, 2, len(fields['domain']))
  planted = rng.random(len(own)) < 0.5
  fields['expert'][planted, 0, 0] = own[planted]
  found = synthetic.measured(
    synthetic.write(tmp_path, **fields), 'domain_specialisation()'
  )
  # Of the most, 1 - 1 / 4, half; shuffled documents have some of it, too.
  assert found['value'] == pytest.approx(0.375, abs=0.01)
  assert 0.4 < found['excess'] < 0.5
  assert found['p'] < 0.01
  assert found['low'] < 0.375 < found['high']
  assert found['high'] - found['low'] < 0.03


def test_a_router_that_reads_documents_alone_has_no_domains(tmp_path):
  """Of 40 layers at the level of 5 % fewer than seven are above the null."""
  record = synthetic.write(tmp_path, **clustered(0, layers=40))
  found = synthetic.measured(record, 'domain_specialisation()')
  assert (found['value'] > found['null_high']).sum() <= 4  # of one side
  assert (found['p'] <= 0.05).sum() <= 6
  assert abs(found['excess'].mean()) < 0.01
  # As often as not the interval would be above the value, were it not moved.
  assert (found['low'] < found['value']).all()
  assert (found['value'] < found['high']).all()


def test_a_null_of_tokens_would_find_domains_in_it(tmp_path):
  """It is too narrow by the root of what documents make tokens alike by.

  Intra-class correlation 1 / (E c + 1) of a token's one expert, of a Dirichlet
  distribution of E times c, makes L tokens 1 + (L - 1) / (E c + 1) times as
  variable: the root is 17 for 4 experts of c = 1 and 1,500 tokens.
  """
  sizes = {'documents': 32, 'length': 1500, 'E': 4, 'concentration': 1.0}
  fields = clustered(1, layers=8, **sizes)
  record = synthetic.write(tmp_path / 'a', **fields)
  by_document = synthetic.measured(record, 'domain_specialisation()')
  rng = np.random.default_rng(0)
  # Every token a document of its own, so that tokens are shuffled.
  n = len(fields['document'])
  by_token = []
  for _ in range(20):
    domain = rng.permutation(fields['domain'])
    loads = np.zeros((8, 4, 4))
    for m in range(8):
      np.add.at(loads[m], (domain, fields['expert'][:, m, 0]), 1)
    by_token.append([np.mean(distance(load)) for load in loads])
  assert n == 48_000
  # Of a total variation mean and spread grow alike.
  ratio = by_document['null'].mean() / np.mean(by_token)
  assert ratio == pytest.approx(np.sqrt(1 + 1499 / 5), rel=0.15)  # 17.3
  assert (by_document['value'] > np.max(by_token, 0)).all()
  assert (by_document['p'] > 0.05).sum() >= 7


def test_what_cannot_be_told(tmp_path):
  fields = dict(synthetic.small())
  one = synthetic.write(tmp_path / 'a', **fields | {'domain': np.zeros(240)})
  found = synthetic.measured(one, 'domain_specialisation()')
  assert found == {'undefined': 'a text of 1 domains'}
  alone = fields | {'document': fields['domain']}
  found = synthetic.measured(
    synthetic.write(tmp_path / 'b', **alone), 'domain_specialisation()'
  )
  np.testing.assert_allclose(found['null'], found['value'])
  np.testing.assert_allclose(found['p'], 1)
  assert np.isnan(found['low']).all()
