"""The standing committee: experts that serve all domains."""

import numpy as np

from moe_jax.analysis import metrics
from tests.analysis import synthetic


def record(tmp_path, rng, share_DE, n=6_000, K=2, tilt=0.0):
  """Domains with their loads, in documents of 50 tokens that differ."""
  document = np.arange(n) // 50
  domain = document * len(share_DE) // (n // 50)
  own = rng.dirichlet(np.ones(share_DE.shape[1]), n // 50)
  p = (1 - tilt) * share_DE[domain] + tilt * own[document]
  expert = synthetic.choose(rng, p, K)[:, None]
  made = synthetic.write(tmp_path, expert, document=document, domain=domain)
  return made, domain, expert[:, 0]


def test_numbers_are_those_of_a_loop(tmp_path):
  rng = np.random.default_rng(0)
  share = rng.dirichlet(np.ones(6), 3)
  made, domain, expert = record(tmp_path, rng, share)
  found = synthetic.measured(made, 'committee(mass=0.6, draws=5)')
  p = np.zeros((3, 6))
  for d, chosen in zip(domain, expert, strict=True):
    for e in chosen:
      p[d, e] += 1
  p /= p.sum(1, keepdims=True)
  common = sum(min(p[d, e] for d in range(3)) for e in range(6))
  members = []
  for e in sorted(range(6), key=lambda e: -p[:, e].mean()):
    if all(p[d, members].sum() >= 0.6 for d in range(3)):
      break
    members.append(e)
  np.testing.assert_allclose(found['value'], common)
  assert found['members'][0].tolist() == members
  assert found['size_value'] == len(members)
  assert found['size_even'] == 4


def test_domains_with_experts_of_their_own_have_little_in_common(tmp_path):
  rng = np.random.default_rng(1)
  share = np.kron(np.eye(2), np.ones(4)) * 0.24 + 0.005
  made, *_ = record(tmp_path, rng, share)
  found = synthetic.measured(made, 'committee()')
  assert found['high'][0] < 0.5 * found['null_low'][0]
  assert found['size_value'][0] > found['size_null'][0]


def test_documents_that_differ_are_no_domains(tmp_path):
  # Tokens dealt anew in place of documents would have 97 % in common, and call
  # this specialised.
  rng = np.random.default_rng(2)
  inside = []
  for seed in range(10):
    same = np.full((2, 8), 1 / 8)
    made, *_ = record(tmp_path / str(seed), rng, same, n=3_000, tilt=0.8)
    found = synthetic.measured(made, 'committee(draws=100)')
    inside.append(found['null_low'][0] <= found['value'][0])
  assert found['null'][0] < 0.95
  assert sum(inside) >= 8  # of 10 at 39 in 40: fewer once in 500


def test_a_few_that_serve_all_are_the_committee(tmp_path):
  rng = np.random.default_rng(3)
  share = np.tile(np.array([6.0, 6, 1, 1, 1, 1, 1, 1]) / 18, (2, 1))
  made, *_ = record(tmp_path, rng, share, K=1)
  found = synthetic.measured(made, 'committee()')
  assert sorted(found['members'][0]) == [0, 1]
  assert found['size_value'][0] == 2 < found['size_even'][0] == 4
  assert found['value'][0] > found['null_low'][0]


def test_one_domain_has_none(tmp_path):
  made = synthetic.write(tmp_path, np.zeros((9, 1, 1), int))
  found = metrics.measure(made, ('committee()',))
  assert found == {'committee/undefined': 'the text is of one domain'}
