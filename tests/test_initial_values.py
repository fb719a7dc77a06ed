"""The variance of every initialiser, from the papers' formulas."""

import re

import flax.linen as nn
import jax
import numpy as np
import pytest

from moe_jax import registry
from moe_jax.models import factory
from tests import methods, tiny

D, H, J, F, V, E = 96, 2, 32, 80, 200, 8
SCALE = 0.1  # of all kernels; routers and gates have it by themselves
CUT = 2 / 0.87962566  # a normal cut at 2 sigma, in units of what is left
# A pattern of the path -> variance, and where the distribution ends.
KERNELS = [
  (r'(attention|cross)/(key|value)$', SCALE / D, CUT),
  (r'(attention|cross)/out$', SCALE / (H * J), CUT),
  (r'(ffn|experts)/wi(_gate|_up)?$', SCALE / D, CUT),
  (r'(ffn|experts)/wo$', SCALE / F, CUT),
  (r'dense_gate$', 0.1 / D, CUT),
  (r'router/kernel$', 0.1 / D, CUT),
  (r'relative/table$', 1.0, np.inf),
  (r'embedding/table$', 1.0, np.inf),
  (r'embedding/head$', 1 / D, CUT),
  (r'local_experts/\d+/(kernel|vector)$', 0.02**2, np.inf),
]
T5 = {
  'model.kind': 'encoder_decoder',
  'model.positions': 'relative',
  'model.qk_norm': False,
  'data.objective': 'span_corruption()',
}


def check(name, v, variance, end=None):
  """Within five standard errors of a normal's; its end is its end."""
  std = variance**0.5
  n = v.size
  assert n >= 16 and v.dtype == np.float32, name
  np.testing.assert_allclose(v.var(), variance, rtol=5 * (2 / n) ** 0.5)
  assert abs(v.mean()) < 5 * std / n**0.5, name
  if end is not None and n > 2000:
    most = np.abs(v).max() / std
    assert min(0.9 * end, 2.5) < most < end, name


@pytest.mark.parametrize(
  ('fields', 'query'),
  [
    # T5 leaves the products unscaled and starts smaller by as much.
    (T5 | {'model.num_layers': 1, 'moe.layers': 'none'}, SCALE / (D * J)),
    (
      {
        'model.num_layers': 4,  # a period of two, scanned
        'moe.layers': 'every_2',
        'model.tied_head': False,
        'moe.dense_branch': 'gated',
        'moe.dense_branch_d_ff': F,
        'moe.local_experts': ('constant(count=4)',),
        'model.ffn': 'glu()',
      },
      SCALE / D,
    ),
  ],
  ids=['T5', 'rotary'],
)
def test_models(fields, query):
  config = tiny.config(
    **fields,
    **{
      'model.d_model': D,
      'model.num_heads': H,
      'model.d_head': J,
      'model.d_ff': F,
      'moe.dispatch': 'dense()',
      'model.init_scale': SCALE,
      'moe.num_experts': E,
      'moe.d_ff': F,
    },
  )
  model = factory.make(config, V)
  b = factory.dummy_batch(config, 1, 16)
  init = jax.jit(lambda k: nn.unbox(model.init(k, b, train=False)))
  params = jax.device_get(init(jax.random.key(0)))['params']
  table = [(r'(attention|cross)/query$', query, CUT), *KERNELS]
  seen, values, count = set(), set(), 0
  for path, leaf in jax.tree_util.tree_leaves_with_path(params):
    name = '/'.join(re.findall(r'\w+', jax.tree_util.keystr(path)))
    if name.endswith('scale'):
      np.testing.assert_array_equal(leaf, 1, name)
      continue
    (found,) = [row for row in table if re.search(row[0], name)]
    seen.add(found[0])
    check(name, leaf, *found[1:])
    # No layer, repeat or kernel starts as another does.
    parts = leaf if 'period' in name else [leaf]
    values |= {float(v) for part in parts for v in part.reshape(-1)[:3]}
    count += 3 * len(parts)
  assert len(values) == count
  rest = {'relative/table$'}
  if 'model.kind' in fields:
    rest = {'dense_gate$', 'router/kernel$', 'embedding/head$', KERNELS[-1][0]}
  assert {row[0] for row in table} - seen == rest


WIDTH, MANY = 128, 16


def test_routers():
  """Of all files, with each deviation; by the formulas of their rows."""
  rows = methods.rows('routers', slots=True)
  routers = {row: registry.build('routers', row.spec) for row in rows}
  formulas = {type(routers[r]): r.initial for r in rows if r.initial}
  # One of each class and deviation: the other options are not read.
  few = {(type(r), getattr(r, 'init_std', None)): r for r in routers.values()}
  for router in few.values():
    std = getattr(router, 'init_std', None)
    plain = {'kernel': 0.1 / WIDTH if std is None else std**2}
    formula = formulas.get(type(router), lambda *_, plain=plain: plain)
    want = formula(router, MANY, WIDTH)
    params = router.init(jax.random.key(0), MANY, WIDTH)
    assert params.keys() <= want.keys() or not params, router
    for leaf, v in params.items():
      name = f'{type(router).__name__}: {leaf}'
      if isinstance(want[leaf], np.ndarray):
        np.testing.assert_allclose(v - want[leaf], 0, atol=1e-6, err_msg=name)
      else:
        check(name, np.asarray(v), want[leaf])


def test_router_by_hand():
  """0.5 squared; Switch's 0.1 / D, cut at two of its sigmas."""
  for spec, variance, end in (
    ('switch(init_std=0.5)', 0.25, np.inf),
    ('switch()', 0.1 / WIDTH, CUT),
  ):
    router = registry.build('routers', spec)
    kernel = np.asarray(router.init(jax.random.key(0), 64, WIDTH)['kernel'])
    check(spec, kernel, variance, end)
