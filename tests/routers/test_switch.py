"""Switch routing: its one most probable expert, and all that may disturb it."""

import numpy as np
import pytest

from moe_jax import registry
from tests.lazy import jax, jnp, routing
from tests.methods import Row
from tests.oracles import linear, most_probable


def switch(x_TD, params, bias_E, seen):
  return most_probable(linear(x_TD, params), bias_E, 1)


ROWS = (Row('switch()', '2101.03961', switch, always=True, extremes=True),)
ERRORS = {
  "switch(jitter_on='x')": "jitter_on 'x'; valid: input, logits, logits_",
  'switch(jitter=-1)': 'jitter=-1 must not be negative',
  'switch(input_dropout=1.0)': 'input_dropout=1.0 must be from 0 to below',
}
E, D, T = 4, 8, 12
X = np.float32(np.random.default_rng(0).normal(size=(T, D)))
KERNEL = np.float32(0.1 * np.random.default_rng(1).normal(size=(D, E)))
JITTERS = {
  # What (clean logits, noisy logits) differ by, and its largest size.
  'input': lambda z: (np.abs(X) @ np.abs(KERNEL)).max(),
  'logits': lambda z: np.abs(z).max(),
  'logits_added': lambda z: 1.0,
}


def route(options='', x=X, train=True, **known):
  spec, params = f'switch({options})', {'kernel': KERNEL}
  return routing.route(spec, x, params, E, train=train, **known)


@pytest.mark.parametrize('eps', [0.0, 0.3])
@pytest.mark.parametrize('on', JITTERS)
def test_jitter_in_its_three_published_meanings(eps, on):
  """Switch appendix C, ST-MoE section 3.2, Switch appendix F; training only."""
  options = f'jitter={eps}, jitter_on={on!r}'
  clean, noisy = route(options, train=False), route(options)
  difference = noisy.logits_TE - clean.logits_TE
  if on == 'logits_added' and eps:
    difference -= 1  # U(1 - eps, 1 + eps) is added, not eps alone
  bound = eps * JITTERS[on](np.asarray(clean.logits_TE))
  assert np.abs(difference).max() <= bound + 1e-6
  assert (np.abs(difference).max() > 0.3 * bound) == (eps > 0)
  if eps:
    np.testing.assert_allclose(
      noisy.terms['clean_logits'], clean.logits_TE, rtol=1e-6
    )
    with pytest.raises(ValueError, match="'router' random stream"):
      route(options, key=None)


def test_jitter_on_logits_is_a_factor_of_each():
  r = route("jitter=0.5, jitter_on='logits'")
  factor = r.logits_TE / r.terms['clean_logits']
  assert 0.5 <= factor.min() < 0.7 and 1.3 < factor.max() <= 1.5


def test_input_dropout():
  """Switch Transformer, table 11: some inputs are 0, the rest scaled up."""
  spec, params = 'switch(input_dropout=0.5)', {'kernel': jnp.ones((D, E))}
  x = np.ones((T, D))
  r = routing.route(spec, x, params, E, train=True)
  kept = np.asarray(r.logits_TE[:, 0]) / 2
  np.testing.assert_allclose(kept, np.round(kept), atol=1e-6)
  assert 0.3 < kept.mean() / D < 0.7 and len(set(kept.round())) > 2
  r = routing.route(spec, x, params, E)
  np.testing.assert_allclose(r.logits_TE, D)


def test_sampling_draws_from_the_softmax():
  logits = np.log([0.5, 0.3, 0.15, 0.05])
  expert, weight, r = routing.many('switch(sample=1.0)', logits)
  share = np.bincount(expert[:, 0], minlength=4) / 4000
  np.testing.assert_allclose(share, np.exp(logits), atol=0.03)
  np.testing.assert_allclose(
    weight[:, 0], np.asarray(r.probs_TE)[0][expert[:, 0]], rtol=1e-6
  )
  quiet, _, _ = routing.many('switch(sample=1.0)', logits, train=False)
  assert (quiet == 0).all()
  cold, _, _ = routing.many('switch(sample=0.01)', logits)
  assert (cold == 0).mean() > 0.99


def test_selective_precision():
  """Off, a bf16 model routes in bf16 (Switch Transformer, table 2)."""
  x = jnp.asarray(X, jnp.bfloat16)
  want = np.asarray(x, np.float32) @ KERNEL
  with jax.disable_jit():  # XLA's fusions would not round
    exact, rough = route(x=x), route('selective_precision=False', x)
  np.testing.assert_allclose(exact.logits_TE, want, rtol=1e-5)
  assert rough.logits_TE.dtype == rough.probs_TE.dtype == jnp.float32
  for v in (rough.logits_TE, rough.probs_TE):  # rounded to bf16 on the way
    np.testing.assert_array_equal(v, v.astype(jnp.bfloat16))
  np.testing.assert_allclose(rough.logits_TE, want, atol=0.02)
  # Without bf16 tokens there is nothing to give up.
  a, b = route(), route('selective_precision=False')
  np.testing.assert_allclose(a.probs_TE, b.probs_TE, rtol=1e-6)


@pytest.mark.parametrize(
  ('options', 'std'), [('', (0.1 / 256) ** 0.5), ('init_std=0.02', 0.02)]
)
def test_router_initialisation(options, std):
  """Scale 0.1 by fan-in, truncated at two deviations; or a plain normal."""
  router = registry.build('routers', f'switch({options})')
  w = np.asarray(router.init(jax.random.key(0), 64, 256)['kernel'])
  np.testing.assert_allclose(w.std(), std, rtol=0.03)
  # Truncated at 2 deviations of a normal that is wider by 1 / 0.8796.
  assert (np.abs(w).max() <= 2 / 0.8796 * std * 1.001) == (options == '')


def test_router_is_exact_in_float32():
  """ST-MoE, footnote 7: ten logits of 128 and one of 128.5."""
  logits = np.full(11, 128.0, np.float32)
  logits[-1] = 128.5
  params = {'kernel': logits[None]}
  x = jnp.ones((1, 1), jnp.bfloat16)
  r = routing.route('switch()', x, params, 11)
  np.testing.assert_allclose(r.probs_TE[0, -1], 0.1415, atol=5e-5)
