"""Validation: every document once, domains mixed, caps and halves."""

import numpy as np
import pytest

from moe_jax.data import chosen
from tests import test_data_pipeline

# The fixtures.
folder, cache = test_data_pipeline.folder, test_data_pipeline.cache
load, _equal = test_data_pipeline.load, test_data_pipeline._equal


@pytest.mark.parametrize('batch_size', [4, 64])
def test_validation_is_each_document_once_in_order(load, batch_size):
  data = load()
  batches = list(data.validation(batch_size=batch_size))
  rows = {k: np.concatenate([b[k] for b in batches]) for k in batches[0]}
  assert all(b['targets'].shape == (batch_size, 32) for b in batches)
  flat = {k: v.ravel() for k, v in rows.items()}
  real = flat['document'] >= 0
  np.testing.assert_array_equal(real, flat['segments'] > 0)
  assert not flat['targets'][~real].any() and not flat['inputs'][~real].any()
  for i, text in enumerate(data.validation_texts()):
    ids = flat['targets'][flat['document'] == i]
    assert data.tokenizer.decode(ids) == text
    assert ids[-1] == 1 and len(ids) == len(text) + 1
    assert data.documents[i].num_bytes == len(text)
    assert data.documents[i].name.startswith(data.documents[i].domain)
  for document, segment in zip(rows['document'], rows['segments']):
    changes = np.diff(document) != 0
    np.testing.assert_array_equal(changes, np.diff(segment) != 0)
  # A row is of one domain, and only a domain's last is not full.
  domain = np.array([d.domain for d in data.documents])
  for d in data.domains:
    total = sum(x.num_bytes + 1 for x in data.documents if x.domain == d)
    mine = [r for r in rows['document'] if r[0] >= 0 and domain[r[0]] == d]
    assert len(mine) == -(-total // 32)
    mine = np.concatenate(mine)
    assert (np.diff(mine[mine >= 0]) >= 0).all()  # in order


def test_validation_mixes_domains_by_their_shares(load):
  """In any half as in the whole: experts of a domain would be full else."""
  data = load()
  (batch,) = data.validation(batch_size=data.validation_rows)
  domain = np.array([d.domain for d in data.documents])
  of_row = domain[batch['document'][:, 0]]
  half = len(of_row) // 2
  for d in data.domains:
    first, second = (np.sum(h == d) for h in (of_row[:half], of_row[half:]))
    assert abs(first - second) <= 2, d


def test_validation_of_several_processes(load):
  data = load(objective='span_corruption()')
  whole = list(data.validation(batch_size=8))
  for processes in (2, 4):
    parts = [
      list(
        data.validation(batch_size=8, process_index=i, process_count=processes)
      )
      for i in range(processes)
    ]
    assert {len(p) for p in parts} == {len(whole)}
    for k, batch in enumerate(whole):
      slices = [p[k] for p in parts]
      _equal(batch, {n: np.concatenate([s[n] for s in slices]) for n in batch})
  _equal(whole[0], next(data.validation(batch_size=8)))  # same noise again


def test_validation_cap_takes_whole_documents_spread_over_the_list(load):
  data, capped = load(), load(validation_max_bytes=3000)
  for d in data.domains:
    mine, kept = (
      [x for x in s.documents if x.domain == d] for s in (data, capped)
    )
    assert set(kept) <= set(mine) and kept == [x for x in mine if x in kept]
    assert 0 < sum(x.num_bytes for x in kept) <= max(3000, kept[0].num_bytes)
  n = np.arange(1000)
  few = chosen.capped(n, np.full(1000, 10), 500)
  assert len(few) == 50 and np.diff(few).max() < 60 and few[-1] > 900
  assert len(chosen.capped(n, np.full(1000, 10), 3)) == 1
  assert load(validation_max_bytes=1).describe()
  assert capped.fingerprint == data.fingerprint  # of the data, not the cap


def test_halves_of_validation_share_no_document(load):
  """They alternate; a cap is within one; the data is the same."""
  whole, even, odd = (
    load(validation_documents=w) for w in ('all', 'even', 'odd')
  )
  capped = load(validation_documents='odd', validation_max_bytes=3000)
  of = lambda data, d: [x for x in data.documents if x.domain == d]
  for d in whole.domains:
    assert len(of(whole, d)) > 3
    assert of(even, d) == of(whole, d)[::2] and of(odd, d) == of(whole, d)[1::2]
    assert set(of(capped, d)) <= set(of(odd, d))
    assert sum(x.num_bytes for x in of(capped, d)) <= max(
      3000, of(capped, d)[0].num_bytes
    )
  texts = [list(data.validation_texts()) for data in (even, odd)]
  assert not set(texts[0]) & set(texts[1])
  assert [len(t) for t in texts[1]] == [x.num_bytes for x in odd.documents]
  assert {even.fingerprint, odd.fingerprint} == {whole.fingerprint}


def test_single_documents_take_turns_in_the_halves(tmp_path, load):
  rng = np.random.default_rng(0)
  for domain, count in (('a', 2), ('b', 2), ('many', 90)):
    made = [bytes(rng.integers(128, 256, 300).tolist()) for _ in range(count)]
    (tmp_path / f'{domain}.txt').write_bytes(b'\n\n'.join(made))
  fields = dict(dir=str(tmp_path), cache=str(tmp_path / 'cache'))
  for which, mine in (('even', 'a'), ('odd', 'b')):
    data = load(validation_documents=which, **fields)
    assert [d.domain for d in data.documents].count(mine) == 1
    assert {d.domain for d in data.documents} == {mine, 'many'}
    of_rows = [data.validation_row(i) for i in range(data.validation_rows)]
    seen = np.concatenate([row['document'] for row in of_rows])
    assert set(seen[seen >= 0]) == set(range(len(data.documents)))
    assert data.describe() and len(data.domains) == 3
