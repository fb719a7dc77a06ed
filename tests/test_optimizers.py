"""Optimizers and schedules against loops in NumPy and closed forms."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from moe_jax.training import optimizers

SHAPES = {
  'experts': (2, 3, 8, 6),  # Layers, experts, model width, expert width.
  'bias': (2, 3, 6),
  'gain': (2, 3),  # One number a layer and expert.
  'kernel': (5, 8),
  'heads': (2, 8, 2, 6),  # Layers; the two largest axes are 8 and 6.
  'norm': (4,),
}
BATCH = {
  'experts': 2,
  'bias': 2,
  'gain': 2,
  'kernel': 0,
  'heads': 1,
  'norm': 0,
}


def draw(seed, scale=1.0):
  rng = np.random.default_rng(seed)
  return {
    k: np.asarray(scale * rng.normal(size=s), np.float32)
    for k, s in SHAPES.items()
  }


def run(tx, grads, params):
  """Parameters after each gradient, in float32, jitted."""
  state = tx.init(params)

  @jax.jit
  def step(grad, state, params):
    updates, state = tx.update(grad, state, params)
    return optax.apply_updates(params, updates), state

  for grad in grads:
    params, state = step(grad, state, params)
  # The caller may change its NumPy arrays, which jax may still be reading.
  return jax.block_until_ready((params, state))


def slices(shape, n):
  return np.ndindex(*shape[:n])


def adafactor_slice(
  w, grads, rates, min_dim, *, momentum=0.0, rms_clip=1.0, scale=True
):
  """One slice in float64, after the paper's algorithms 4 to 6, in loops."""
  w = np.asarray(w, np.float64)
  factored = w.ndim >= 2 and sorted(w.shape)[-2] >= min_dim
  if factored:
    small, large = np.argsort(w.shape)[-2:]
  row = col = full = average = 0.0
  for t, (g, rate) in enumerate(zip(grads, rates), start=1):
    g = np.asarray(g, np.float64)
    beta2 = 1 - t**-0.8
    square = g**2 + 1e-30
    if factored:
      row = beta2 * row + (1 - beta2) * square.mean(large, keepdims=True)
      col = beta2 * col + (1 - beta2) * square.mean(small, keepdims=True)
      v = row * col / row.mean(small, keepdims=True)
    else:
      full = beta2 * full + (1 - beta2) * square
      v = full
    u = g / np.sqrt(v)
    u = u / max(1.0, math.sqrt((u**2).mean()) / rms_clip)
    if scale:
      u = u * max(1e-3, math.sqrt((w**2).mean()))
    u = rate * u
    average = momentum * average + (1 - momentum) * u
    w = w - average
  return w


@pytest.mark.parametrize(
  'spec,options',
  [
    ('adafactor(min_dim=6)', {}),
    ('adafactor(min_dim=6, momentum=0.9)', {'momentum': 0.9}),
    (
      'adafactor(min_dim=6, rms_clip=0.1, scale=False)',
      {'rms_clip': 0.1, 'scale': False},
    ),
  ],
)
def test_adafactor_is_the_papers_on_every_slice(spec, options):
  tx, rate = optimizers.make(
    spec, 'constant(value=0.05, warmup=3)', steps=9, clip=0.0, batch_dims=BATCH
  )
  params = draw(0, 0.3)
  params['kernel'] *= 1e-4  # Below the least scale.
  # Slices and steps of unlike size, so that a shared clip would show.
  grads = [draw(s, 10.0 ** (s % 3 - 1)) for s in range(1, 5)]
  for g in grads:
    g['experts'][:, 1] *= 30
  got, _ = run(tx, grads, params)
  rates = [0.05 / 3, 0.1 / 3, 0.05, 0.05]
  np.testing.assert_allclose([rate(i) for i in range(4)], rates, rtol=1e-6)
  for k, n in BATCH.items():
    for i in slices(SHAPES[k], n):
      want = adafactor_slice(
        params[k][i], [g[k][i] for g in grads], rates, 6, **options
      )
      np.testing.assert_allclose(
        got[k][i], want, rtol=2e-5, atol=1e-7, err_msg=f'{k}{i}'
      )


def test_stacked_adafactor_equals_optax_on_each_slice():
  shape = (2, 3, 130, 140)  # Factored at the default of 128.
  rng = np.random.default_rng(3)
  w, *grads = (rng.normal(size=(4, *shape)) * 0.02).astype(np.float32)
  tx, rate = optimizers.make(
    'adafactor()',
    'rsqrt(peak=0.01, warmup=2)',
    steps=9,
    clip=0.0,
    batch_dims={'w': 2},
  )
  got, state = run(tx, [{'w': g} for g in grads], {'w': jnp.asarray(w)})
  one = optax.adafactor(rate)
  for i in slices(shape, 2):
    want, _ = run(one, [g[i] for g in grads], jnp.asarray(w[i]))
    np.testing.assert_allclose(got['w'][i], want, rtol=1e-6, atol=1e-9)
  moments = state[0]
  assert moments.v_row['w'].shape == (2, 3, 130)
  assert moments.v_col['w'].shape == (2, 3, 140)
  assert moments.v['w'].size == 6  # No full second moment is kept.
  assert moments.count == 3 and moments.count.shape == ()


@pytest.mark.parametrize(
  'spec', ['adafactor(min_dim=2, momentum=0.5)', 'adamw']
)
def test_an_expert_does_not_feel_anothers_gradient(spec):
  tx, _ = optimizers.make(
    spec, 'constant(value=0.1)', steps=9, clip=0.0, batch_dims=BATCH
  )
  params, grads = draw(0), [draw(1), draw(2)]
  base, _ = run(tx, grads, params)
  for g in grads:
    g['experts'][1, 2] *= -7.0
    g['experts'][1, 2, 0] = 0.0
  other, _ = run(tx, grads, params)
  mine = np.zeros((2, 3), bool)
  mine[1, 2] = True
  np.testing.assert_array_equal(base['experts'][~mine], other['experts'][~mine])
  assert (base['experts'][mine] != other['experts'][mine]).mean() > 0.9


def test_adamw_decays_matrices_only():
  """Against a loop; decay reaches leaves with two axes besides the batch's."""
  b1, b2, eps, decay, rate = 0.8, 0.95, 1e-6, 0.3, 0.01
  tx, _ = optimizers.make(
    f'adamw(b1={b1}, b2={b2}, eps={eps}, weight_decay={decay})',
    f'constant(value={rate})',
    steps=9,
    clip=0.0,
    batch_dims=BATCH,
  )
  params, grads = draw(0), [draw(s) for s in (1, 2, 3)]
  got, _ = run(tx, grads, params)
  decayed = {'experts', 'kernel', 'heads'}
  for k in SHAPES:
    w, m, v = params[k].astype(np.float64), 0.0, 0.0
    for t, g in enumerate(grads, start=1):
      m = b1 * m + (1 - b1) * g[k]
      v = b2 * v + (1 - b2) * g[k] ** 2.0
      u = m / (1 - b1**t) / (np.sqrt(v / (1 - b2**t)) + eps)
      w = w - rate * (u + (decay if k in decayed else 0.0) * w)
    np.testing.assert_allclose(got[k], w, rtol=1e-5, atol=1e-6, err_msg=k)


@pytest.mark.parametrize('momentum', [0.0, 0.5])
def test_sgd_and_the_global_clip(momentum):
  clip = 2.0
  tx, _ = optimizers.make(
    f'sgd(momentum={momentum})',
    'constant(value=0.1)',
    steps=9,
    clip=clip,
    batch_dims=BATCH,
  )
  params, grads = draw(0), [draw(1), draw(2, 1e-3)]  # Clipped, and not.
  got, state = run(tx, grads, params)
  norms = [math.sqrt(sum((v**2.0).sum() for v in g.values())) for g in grads]
  assert norms[0] > clip > norms[1]
  for k in SHAPES:
    w, m = params[k], 0.0
    for g, norm in zip(grads, norms):
      m = momentum * m + g[k] * min(1.0, clip / norm)
      w = w - 0.1 * m
    np.testing.assert_allclose(got[k], w, rtol=1e-5, atol=1e-6)
  leaves = [x for x in jax.tree.leaves(state) if x.ndim]
  assert len(leaves) == (len(SHAPES) if momentum else 0)


def test_rsqrt_is_t5s():
  _, rate = optimizers.make(
    'sgd', 'rsqrt(peak=0.01, warmup=10000)', steps=20000, clip=0, batch_dims={}
  )
  got = [float(rate(i)) for i in (0, 1, 9999, 10000, 19999)]
  want = [1 / math.sqrt(max(i, 10000)) for i in (0, 1, 9999, 10000, 19999)]
  np.testing.assert_allclose(got, want, rtol=1e-6)


def test_a_run_shorter_than_its_warmup_ends_in_it():
  _, rate = optimizers.make(
    'sgd()', 'cosine(peak=1.0, warmup=8)', steps=4, clip=0.0, batch_dims={}
  )
  np.testing.assert_allclose([rate(s) for s in range(4)], np.arange(1, 5) / 8)


def test_rsqrt_with_linear_warmup():
  _, rate = optimizers.make(
    'sgd',
    'rsqrt(peak=0.5, warmup=4, linear=True)',
    steps=99,
    clip=0,
    batch_dims={},
  )
  got = [float(rate(i)) for i in (0, 1, 2, 3, 4, 16, 64)]
  want = [0.125, 0.25, 0.375, 0.5, 0.5, 0.25, 0.125]
  np.testing.assert_allclose(got, want, rtol=1e-6)


def test_cosine():
  _, rate = optimizers.make(
    'sgd',
    'cosine(peak=1.0, warmup=4, final=0.2)',
    steps=12,
    clip=0,
    batch_dims={},
  )
  got = [float(rate(i)) for i in (0, 3, 4, 6, 8, 12, 99)]
  quarter = 0.2 + 0.8 * (1 + math.sqrt(0.5)) / 2
  want = [0.25, 1.0, 1.0, quarter, 0.6, 0.2, 0.2]
  np.testing.assert_allclose(got, want, rtol=1e-5)


@pytest.mark.parametrize(
  'spec',
  [
    'rsqrt(peak=0.1, warmup=0)',
    'rsqrt(peak=0.1, warmup=5)',
    'rsqrt(peak=0.1, warmup=5, linear=True)',
    'cosine(peak=0.1, warmup=0)',
    'cosine(peak=0.1, warmup=5)',
    'constant(value=0.1)',
    'constant(value=0.1, warmup=5)',
  ],
)
def test_every_step_moves_and_jit_agrees(spec):
  tx, rate = optimizers.make(
    'sgd', spec, steps=5, clip=0.0, batch_dims={'w': 0}
  )
  eager = np.array([rate(i) for i in range(5)])
  assert (eager > 0).all() and (eager <= np.float32(0.1)).all()
  jitted = jax.jit(jax.vmap(rate))(jnp.arange(5))
  assert jitted.dtype == jnp.float32
  np.testing.assert_allclose(jitted, eager, rtol=1e-6)
  w = {'w': jnp.zeros(1)}
  for t in range(1, 6):
    got, _ = run(tx, [{'w': jnp.ones(1)}] * t, w)
    np.testing.assert_allclose(got['w'], -eager[:t].sum(), rtol=1e-5)


GOOD = {
  'optimizer': 'sgd',
  'schedule': 'constant(value=0.1)',
  'steps': 10,
  'clip': 1.0,
}


@pytest.mark.parametrize(
  'field,value,message',
  [
    ('steps', 0, 'steps is 0'),
    ('clip', -1.0, 'clip is -1.0'),
    ('clip', float('nan'), 'clip is nan'),
    ('schedule', 'constant(value=0)', 'value is 0; wanted: a learning rate'),
    ('schedule', 'rsqrt(peak=-1.0, warmup=2)', 'peak is -1.0'),
    ('schedule', 'rsqrt(peak=1.0, warmup=-2)', 'warmup is -2'),
    ('schedule', 'cosine(peak=1.0, warmup=1, final=2.0)', 'final is 2.0'),
    ('schedule', 'cosine(peak=1.0)', "schedule 'cosine'.*warmup"),
    ('schedule', 'cosine(peak="a", warmup=1)', "schedule 'cosine'"),
    ('schedule', 'linear(peak=1.0)', 'valid: constant, cosine, rsqrt'),
    ('optimizer', 'adam', "valid: adafactor, adamw, sgd; did you mean 'adamw'"),
    ('optimizer', 'adafactor(clip=1.0)', 'rms_clip'),
    ('optimizer', 'adafactor(decay=0.0)', 'decay is 0.0'),
    ('optimizer', 'adafactor(eps1=0.0)', 'eps1 is 0.0'),
    ('optimizer', 'adafactor(eps2=0.0)', 'eps2 is 0.0'),
    ('optimizer', 'adafactor(rms_clip=0.0)', 'rms_clip is 0.0'),
    ('optimizer', 'adafactor(min_dim=0)', 'min_dim is 0'),
    ('optimizer', 'adafactor(momentum=1.0)', 'momentum is 1.0'),
    ('optimizer', 'adamw(b1=1.0)', 'b1 is 1.0'),
    ('optimizer', 'adamw(b2=-0.1)', 'b2 is -0.1'),
    ('optimizer', 'adamw(eps=0.0)', 'eps is 0.0'),
    ('optimizer', 'adamw(weight_decay=-1)', 'weight_decay is -1'),
    ('optimizer', 'sgd(momentum=1.5)', 'momentum is 1.5'),
  ],
)
def test_bad_values_are_named(field, value, message):
  optimizers.make(**GOOD, batch_dims={})
  with pytest.raises(ValueError, match=message) as e:
    optimizers.make(**{**GOOD, field: value}, batch_dims={})
  assert '\n' not in str(e.value)
