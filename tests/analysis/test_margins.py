"""Margins: a loop over tokens, and intervals over documents."""

import itertools

import ml_dtypes
import numpy as np
import pytest

from tests.analysis import synthetic


def test_a_loop_over_tokens(tmp_path):
  fields = synthetic.small()
  rng = np.random.default_rng(0)
  margin = (10.0 ** rng.uniform(-12, 0.1, (240, 2))).astype(np.float32)
  margin[rng.random((240, 2)) < 0.1] = np.nan
  record = synthetic.write(tmp_path, margin=margin, **fields)
  found = synthetic.measured(record, 'margins(thresholds=(1e-3, 0.1))')
  for m in range(2):
    own = [float(v) for v in margin[:, m] if not np.isnan(v)]
    share = lambda limit, own=own: np.mean([v < limit for v in own])
    # Five experts: affinities near 1 / 5 are 2^-10 apart.
    assert found['bf16_value'][m] == pytest.approx(share(2.0**-10))
    for i, limit in enumerate((1e-3, 0.1)):
      assert found['below'][m][i] == pytest.approx(share(limit))
    edges = [0, *found['edges'], np.inf]
    bins = [
      np.mean([a <= v < b for v in own]) for a, b in itertools.pairwise(edges)
    ]
    np.testing.assert_allclose(found['histogram'][m], bins)
    assert found['median'][m] / 2 <= np.median(own) <= found['median'][m]


def test_bfloat16_flips_what_it_says_it_can(tmp_path):
  """Where rounding turned two affinities into one, their margin was below."""
  rng = np.random.default_rng(0)
  n, E = 5000, 64
  logits = rng.normal(size=(n, E)) * 0.1
  affinity = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
  top = -np.sort(-affinity.astype(np.float32))[:, :2]
  rounded = top.astype(ml_dtypes.bfloat16)
  tied = rounded[:, 0] == rounded[:, 1]
  margin = (top[:, 0] - top[:, 1])[:, None]
  schema = {'experts': (E,)}
  expert = np.zeros((n, 1, 1), int)
  record = synthetic.write(tmp_path, expert, schema, margin=margin)
  found = synthetic.measured(record, 'margins()')
  assert 0.05 < tied.mean() < found['bf16_value'][0]
  assert margin[tied].max() <= found['spacing'][0]


def test_intervals_are_over_documents(tmp_path):
  """Of documents whose tokens are alike, as many as there are documents."""
  n = 4000
  rng = np.random.default_rng(0)
  document = np.arange(n) // 100
  narrow = rng.random(40) < 0.5
  margin = np.where(narrow[document], 1e-6, 0.5)[:, None]
  expert = np.zeros((n, 1, 1), int)
  record = synthetic.write(tmp_path, expert, margin=margin, document=document)
  found = synthetic.measured(record, 'margins()')
  width = found['bf16_high'] - found['bf16_low']
  assert width == pytest.approx(4 * np.sqrt(0.25 / 40), rel=0.2)


def test_routers_without_margins(tmp_path):
  record = synthetic.write(tmp_path, **synthetic.small())
  found = synthetic.measured(record, 'margins()')
  assert list(found) == ['undefined']
