"""Load patterns: relative loads by domain as DeepSeek-V3 draws them."""

import numpy as np
import pytest

from tests.analysis import synthetic


def test_a_loop_over_tokens(tmp_path):
  """Layers of four and of five experts: the fourth's fifth is none."""
  fields = dict(synthetic.small())
  fields['expert'] = fields['expert'].copy()
  fields['expert'][:, 0] %= 4
  fields['expert'][:, 0, 1] = -1
  record = synthetic.write(tmp_path, schema={'experts': (4, 5)}, **fields)
  found = synthetic.measured(record, 'load_patterns()')
  for m, E in enumerate((4, 5)):
    loads = np.zeros((3, E))
    for domain, experts in zip(
      fields['domain'], fields['expert'][:, m], strict=True
    ):
      for e in experts[experts >= 0]:
        loads[domain, e] += 1
    relative = E * loads / loads.sum(-1, keepdims=True)
    np.testing.assert_allclose(found['relative'][m][:, :E], relative)
    assert not found['relative'][m][:, E:].any()
    value = np.abs(relative / E - 1 / E).sum(-1).mean() / 2
    assert found['value'][m] == pytest.approx(value)
    pooled = loads.sum(0) / loads.sum()
    assert found['max_violation'][m] == pytest.approx(E * pooled.max() - 1)
    np.testing.assert_allclose(
      found['by_domain_max_violation'][m], relative.max(-1) - 1
    )
    pooled = np.abs(pooled - 1 / E).sum() / 2
    assert found['pooled_value'][m] == pytest.approx(pooled)


def test_uneven_loads_are_not_taken_for_domains(tmp_path):
  """A skew that all domains share is value and null, and no excess."""
  rng = np.random.default_rng(0)
  n = 12_000
  document = np.arange(n) // 100
  expert = rng.choice(4, (n, 20, 1), p=[0.55, 0.15, 0.15, 0.15])
  fields = {'document': document, 'domain': document // 30}
  found = synthetic.measured(
    synthetic.write(tmp_path, expert, **fields), 'load_patterns()'
  )
  np.testing.assert_allclose(found['value'], 0.3, atol=0.02)
  np.testing.assert_allclose(found['pooled_value'], 0.3, atol=0.02)
  np.testing.assert_allclose(found['excess'], 0, atol=0.01)
  assert (found['p'] <= 0.05).sum() <= 4
