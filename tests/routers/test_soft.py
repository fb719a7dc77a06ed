"""Soft MoE against loops over tokens, slots and experts; and on meshes."""

import numpy as np
import pytest

from moe_jax import registry
from tests.lazy import hlo, jax, jnp, linen, mesh_lib, moe, nn, types
from tests.methods import Row
from tests.oracles import softmax

# Its slots are mixtures of tokens, which have no edges to compare.
ROWS = (
  Row(
    'soft(slots=2)',
    '2308.00951',
    causal=False,
    slots=True,
    initial=lambda r, E, D: {'kernel': 1 / D, 'scale': np.ones(())},
  ),
)
B, L, D, E, S, T = 8, 6, 8, 4, 2, 6
X, OUT = np.float32(np.random.default_rng(5).normal(size=(2, B, L, D)))
MASK = np.arange(L) < np.array([6, 6, 4, 6, 0, 6, 5, 6])[:, None]


def layer(mesh, **fields):
  sizes = mesh_lib.exact(**mesh)
  devices = jax.devices()[: int(np.prod(list(sizes.values())))]
  return linen.MoE(
    moe.MoE(
      num_experts=E,
      router=registry.build('routers', f'soft(slots={S})'),
      experts=registry.build('experts', 'mlp(d_ff=12)'),
      group_size=T,
      mesh=mesh_lib.make(sizes, devices),
      **{'dispatch': 'slots()', 'capacity_factor': None} | fields,
    )
  )


def variables():
  m = layer({})
  v = nn.unbox(jax.jit(lambda k: m.init(k, X, train=True))(jax.random.key(0)))
  v['params']['router']['scale'] = jnp.float32(3.0)
  return v['params']


def run(m, params):
  def loss(params, x):
    tokens = types.Tokens(jnp.asarray(MASK))
    y, _, aux = m.apply({'params': params}, x, tokens, train=True)
    return (y * OUT).sum(), (y, aux)

  f = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))
  return jax.device_get(f(params, X))


def by_loop(params):
  p = jax.tree.map(lambda v: np.asarray(v, np.float64), params)
  x = np.asarray(X, np.float64)
  y = np.zeros_like(x)
  kernel = p['router']['kernel']
  kernel = p['router']['scale'] * kernel / np.linalg.norm(kernel, axis=0)
  for b in range(B):
    real = np.flatnonzero(MASK[b])
    if not real.size:
      continue
    unit = x[b] / np.linalg.norm(x[b], axis=1, keepdims=True)
    logits = unit @ kernel
    outs = []
    for n in range(E * S):
      share = softmax(logits[real, n])
      row = sum(w * x[b, t] for w, t in zip(share, real))
      hidden = np.maximum(row @ p['experts']['wi'][n // S], 0)
      outs.append(hidden @ p['experts']['wo'][n // S])
    for t in real:
      share = softmax(logits[t])
      y[b, t] = sum(w * out for w, out in zip(share, outs))
  return y


def test_equals_loops_on_all_meshes():
  params = variables()
  want = run(layer({}), params)
  np.testing.assert_allclose(want[0][1][0], by_loop(params), atol=2e-5)
  aux = want[0][1][1]
  assert (aux.load_E == S * B).all() and aux.cause[types.KEPT] == B * E * S
  for sizes in ({'data': 2, 'expert': 2, 'model': 2}, {'expert': 4, 'fsdp': 2}):
    got = run(layer(sizes), params)
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5),
      got,
      want,
    )
  for leaf in jax.tree.leaves(want[1]):
    assert np.isfinite(leaf).all() and np.abs(leaf).max() > 1e-6


def test_two_exchanges():
  m = layer({'expert': 4})
  params = jax.eval_shape(variables)
  f = jax.jit(lambda p: m.apply({'params': p}, X, train=True)[0])
  text = f.lower(params).compile().as_text()
  assert hlo.count_collectives(text)['all-to-all'] == 2


def test_what_does_not_go_together():
  init = lambda m: jax.eval_shape(
    lambda: m.init(jax.random.key(0), X, train=True)
  )
  with pytest.raises(ValueError, match='2 slots of an expert and a capacity'):
    init(layer({}, capacity_factor=0.5))
  with pytest.raises(ValueError, match='Soft and the dispatch Scatter do not'):
    init(layer({}, dispatch='scatter()'))
