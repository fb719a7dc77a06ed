"""Forced: experts that are given, weights and all else the router's own."""

import re

import numpy as np
import pytest

from tests.lazy import routing
from tests.methods import Row, rows
from tests.oracles import Choice, linear, softmax

OWN = -2


def forced(x_TD, params, bias_E, seen, *, router):
  """Of top_k(k=2): the best others fill what names nobody, and are not sent."""
  assert router == 'top_k(k=2)'
  logits = linear(x_TD, params)
  probs, E = softmax(logits), len(bias_E)
  expert = np.array(seen['forced_TK'])
  weight = np.zeros(expert.shape)
  for t, row in enumerate(expert):
    left = [e for e in range(E) if e not in row]
    left.sort(key=lambda e: -(probs[t, e] + bias_E[e]))
    filled = [e if 0 <= e < E else left.pop(0) for e in row]
    for j, e in enumerate(filled):
      if row[j] == e:
        weight[t, j] = probs[t, e] / probs[t, filled].sum()
      else:
        row[j] = E
  return Choice(expert, weight, probs, logits)


ROWS = (
  Row(
    "forced(router='top_k(k=2)')",
    '2510.11370',
    forced,
    always=True,
    extremes=True,
    context=True,
  ),
)
ERRORS = {"forced(router='none()')": "unknown method of routers 'none'"}


def recorded(r, T):
  """int32 [T, K] of a routing: each token's experts, -1 is nobody."""
  if r.choices:
    expert = routing.choices(r)
    return np.where(expert < r.num_experts, expert, -1)
  found = [[] for _ in range(T)]
  for t, e, w in zip(r.token_N, r.expert_N, r.weight_N):
    if e < r.num_experts:
      found[int(t)].append((-float(w), int(e)))
  out = np.full((T, r.num_experts), -1)
  for t, edges in enumerate(found):
    out[t, : len(edges)] = [e for _, e in sorted(edges)]
  return out


QUICK = (
  'top_k()',
  'sigmoid_top_k(k=2)',
  'top_p()',
  'expert_choice(choices=1.5)',
)
REFUSED = ('product_keys', 'soft', 'replay', 'forced')
SAME = [
  pytest.param(row, marks=() if row.spec in QUICK else pytest.mark.slow)
  for row in rows('routers')
  if not row.spec.startswith(REFUSED)
]


@pytest.mark.parametrize('row', SAME, ids=lambda row: row.spec)
def test_its_own_choices_give_the_same_to_the_bit(row):
  """Biased choices, too, of training where training differs.

  To the bit in one program; and as the router alone has it.
  """
  import jax
  import jax.numpy as jnp

  x_TD, ctx = routing.group(masked=2, row=row)
  bias_E = jnp.array([0.3, -0.2, 0.0, 0.1])
  ctx = ctx.replace(selection_bias_E=bias_E, train=row.train)
  router, params, _ = routing.build(row)
  live = jax.jit(router)(params, x_TD, ctx)
  run, given_TK = forcing(router), jnp.asarray(recorded(live, len(x_TD)), int)
  own_TK = jnp.full_like(given_TK, OWN)
  own, again = (
    run(params, x_TD, ctx.replace(forced_TK=v)) for v in (own_TK, given_TK)
  )
  assert again.given and not live.given
  for name in ('token_N', 'expert_N', 'weight_N', 'probs_TE'):
    wanted, a, b = (getattr(r, name) for r in (live, own, again))
    np.testing.assert_array_equal(a, b, name)
    if wanted is not None:
      np.testing.assert_allclose(a, wanted, rtol=1e-5, atol=1e-7)
  np.testing.assert_array_equal(again.terms['agreed'], again.terms['given'])


def forcing(router):
  import jax

  from moe_jax import registry

  made = registry.method_class('routers', 'forced')(router)
  return jax.jit(made)


def test_other_choices_have_the_weights_of_the_router():
  """Sigmoids over their sum times 2.5, whoever has the largest scores."""
  logits = np.log([[0.5, 1.0, 2.0, 4.0]])  # sigmoids 1/3, 1/2, 2/3, 4/5
  spec = "forced(router='sigmoid_top_k(k=2)')"
  given = np.array([[0, 1]], np.int32)
  r = routing.by_logits(spec, logits, forced_TK=given)
  np.testing.assert_array_equal(routing.choices(r), given)
  np.testing.assert_allclose(routing.weights(r), [[1.0, 1.5]], rtol=1e-6)
  assert (int(r.terms['given'][0]), int(r.terms['agreed'][0])) == (2, 0)


def test_tokens_of_its_own_choice():
  """OWN is a token that is routed as ever; -1 beside it means nothing."""
  logits = np.log([[0.1, 0.2, 0.7], [0.7, 0.1, 0.2], [0.7, 0.1, 0.2]])
  given = np.array([[OWN, -1], [1, -1], [0, -1]], np.int32)
  r = routing.by_logits("forced(router='top_k(k=2)')", logits, forced_TK=given)
  np.testing.assert_array_equal(routing.choices(r), [[2, 1], [1, 3], [0, 3]])
  # The shares of the best others, 7/8 and 2/9, are not sent.
  want = [[7 / 9, 2 / 9], [1 / 8, 0], [7 / 9, 0]]
  np.testing.assert_allclose(routing.weights(r), want, rtol=1e-6)


def test_tokens_that_experts_are_given():
  """Each has room for two, and the first is given one."""
  probs = np.array([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3], [0.6, 0.4]])
  given = np.array([[-1, -1], [1, -1], [1, 0], [-1, -1]], np.int32)
  spec = "forced(router='expert_choice(choices=1.0)')"
  r = routing.by_logits(spec, np.log(probs), forced_TK=given)
  found = {k: round(v, 4) for k, v in routing.table(r).items() if k[1] < 2}
  assert found == {(1, 1): 0.2, (2, 1): 0.3, (2, 0): 0.7}


@pytest.mark.parametrize(
  ('spec', 'E', 'said'),
  [
    ('product_keys(heads=1, k=2, d_key=4)', 4, 'the router product_keys, whi'),
    ('switch()', 4, '2 experts of a token were given to a router that choos'),
  ],
)
def test_what_cannot_be_given(spec, E, said):
  given = np.zeros((3, 2), np.int32)
  with pytest.raises(ValueError, match=re.escape(said)):
    routing.route(
      f'forced(router={spec!r})', np.ones((3, 4)), E=E, forced_TK=given
    )
