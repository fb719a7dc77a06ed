"""Upcycling: at step 0 a mixture computes what the dense model did."""

import jax
import numpy as np
import pytest

from moe_jax import registry
from moe_jax.errors import UserError
from tests.conversion import loops

RENORMALIZED, RAW = 'top_k(k=2)', 'top_k(k=2, renormalize=False)'


def upcycled(model, spec):
  return registry.build('conversion.methods', spec)(jax.random.key(1), model)


@pytest.mark.parametrize('slices', [1, 4])
@pytest.mark.parametrize('router', [RENORMALIZED, RAW])
def test_outputs_are_those_of_the_dense_ffn(router, slices):
  dense, x_TD = loops.dense(), loops.tokens()
  spec = f'upcycle(num_experts=4, router={router!r}, slices={slices})'
  made = upcycled(dense, spec)
  assert made.sparse == (True,) * 3
  assert made.config.moe.num_experts == 4 * slices
  for i in range(3):
    total_T1 = loops.weights(made, i, x_TD).sum(1, keepdims=True)
    summed = np.allclose(total_T1, 1)
    assert summed == (router == RENORMALIZED)
    expected = loops.outputs(dense, i, x_TD) * total_T1
    np.testing.assert_allclose(
      loops.outputs(made, i, x_TD), expected, rtol=1e-5, atol=1e-6
    )
  # All else is the dense model's, norms by their new names.
  loops.same(dense, made, but=('ffn', 'moe'))
  norms = [
    m.layers[1][f'{n}_norm/scale'] for m, n in ((dense, 'ffn'), (made, 'moe'))
  ]
  np.testing.assert_array_equal(*norms)


def test_experts_are_copies_and_rows_are_not():
  dense = loops.dense()
  made = upcycled(dense, "upcycle(num_experts=4, layers='every_2_at_0')")
  assert made.sparse == (True, False, True)
  for e in range(4):
    wi = made.layers[2]['moe/experts/wi_up'][e]
    np.testing.assert_array_equal(wi, dense.layers[2]['ffn/ffn/wi_up'])
  rows = [made.layers[i]['moe/router/kernel'] for i in (0, 2)]
  assert len({r.tobytes() for v in rows for r in v.T}) == 8
  loops.same(
    dense.replace(layers=dense.layers[1:2], balance=()),
    made.replace(layers=made.layers[1:2], balance=()),
  )


def test_noise_is_drawn_for_its_share():
  dense = loops.dense()
  made = upcycled(dense, 'upcycle(num_experts=4, noise=0.5, noise_std=0.01)')
  for k in ('wi_gate', 'wi_up', 'wo'):
    new_E = made.layers[0][f'moe/experts/{k}']
    moved_E = new_E != dense.layers[0][f'ffn/ffn/{k}']
    assert abs(moved_E.mean() - 0.5) < 0.05
    assert abs(new_E[moved_E].std() / 0.01 - 1) < 0.1
    assert (moved_E[0] != moved_E[1]).any()


def test_moments_are_carried_or_not():
  dense = loops.dense(optimizer=True)
  made = upcycled(dense, 'upcycle(num_experts=4, optimizer=True)')
  assert made.counts == dense.counts and made.counts
  trees = [k for k in made.moments if k.endswith(('mu', 'nu'))]
  assert len(trees) == 2
  for k in trees:
    old, new = dense.moments[k].layers[1], made.moments[k].layers[1]
    for e in range(4):
      np.testing.assert_array_equal(new['moe/experts/wo'][e], old['ffn/ffn/wo'])
    np.testing.assert_array_equal(new['moe_norm/scale'], old['ffn_norm/scale'])
    assert 'moe/router/kernel' not in new
  made = upcycled(dense, 'upcycle(num_experts=4)')
  assert made.moments is None and made.counts == {}


def test_rows_are_given(tmp_path):
  rows_ED = np.random.default_rng(0).standard_normal((4, loops.D))
  np.save(tmp_path / 'rows.npy', rows_ED)
  spec = f'upcycle(num_experts=4, rows={str(tmp_path / "rows.npy")!r})'
  made = upcycled(loops.dense(), spec)
  for layer in made.layers:
    np.testing.assert_array_equal(
      layer['moe/router/kernel'], rows_ED.T.astype(np.float32)
    )
  with pytest.raises(UserError, match='4 rows, 5 experts: no row for expert 4'):
    upcycled(loops.dense(), spec.replace('=4', '=5'))


@pytest.mark.parametrize(
  'spec, message',
  [
    ("upcycle(router='noisy_top_k(k=2)')", 'noisy_top_k starts at zero'),
    ('upcycle(slices=3)', 'd_ff=32: 3 slices do not divide it'),
    ('upcycle(slices=2, optimizer=True)', 'no moments of slices'),
    ('upcycle(noise=1.5)', 'noise=1.5'),
    ("upcycle(router='switch()', slices=2)", 'the router switch has no k'),
    ('upcycle(num_experts=0)', 'num_experts=0; valid from 1'),
  ],
)
def test_errors(spec, message):
  with pytest.raises(UserError, match=message):
    upcycled(loops.dense(), spec)


def test_both_stacks():
  """As the paper's T5; an encoder's layers come first."""
  fields = {
    'model.kind': 'encoder_decoder',
    'data.objective': 'span_corruption()',
    'model.num_layers': 2,
  }
  dense, x_TD = loops.dense(**fields), loops.tokens()
  made = upcycled(dense, "upcycle(num_experts=4, layers='every_2')")
  assert made.sparse == (False, True) * 2
  for i in range(4):
    expected = loops.outputs(dense, i, x_TD)
    np.testing.assert_allclose(
      loops.outputs(made, i, x_TD), expected, 1e-5, 1e-6
    )


def test_a_mixture_is_refused():
  with pytest.raises(UserError, match=r'has experts in the layers \[0, 2\]'):
    upcycled(loops.sparse(), 'upcycle()')
