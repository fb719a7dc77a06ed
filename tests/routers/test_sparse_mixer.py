"""SparseMixer-v2: one sampled expert, and a gradient for having sampled it."""

import numpy as np

from tests.lazy import jax, jnp, routing
from tests.methods import Row
from tests.oracles import Choice, largest, linear, softmax


def sparse_mixer(x_TD, params, bias_E, seen, *, eps):
  """Evaluation: the best of those that jitter could make the largest."""
  z = linear(x_TD, params)
  expert, weight = np.zeros((len(x_TD), 1), int), np.zeros((len(x_TD), 1))
  for t, v in enumerate(z):
    top = max(v)
    near = [
      e for e in range(len(v)) if (top - v[e]) / max(abs(v[e]), top) <= 2 * eps
    ]
    (i,) = largest(v[near] + bias_E[near], 1)
    expert[t], weight[t] = near[i], softmax(v[near])[i]
  return Choice(expert, weight, softmax(z), z)


ROWS = (
  Row(
    'sparse_mixer(eps=0.5)',
    '2409.12136',
    sparse_mixer,
    always=True,
    extremes=True,
    context=True,
    noisy=True,
  ),
)
ERRORS = {'sparse_mixer(eps=0)': 'eps=0 must be above 0'}
E = 4
C = np.array([0.8, -1.5, 0.6, 2.0])  # what each expert gives, of one number
LOGITS = np.array([1.0, 0.9, 0.85, 0.1])  # the last is below the bar
L = lambda y: y + 0.7 * y**2 - 0.4 * y**3
SLOPE = lambda y: 1 + 1.4 * y - 1.2 * y**2


def mixed(n):
  """Experts, weights and gradients by the logits of n tokens of one loss."""

  def losses(z_TE):
    # A token's logits are its own row: the matrix is the identity.
    params = {'kernel': jnp.eye(E)}
    r = routing.route('sparse_mixer()', z_TE, params, E, train=True)
    return L(r.weight_N * jnp.asarray(C)[r.expert_N]).sum(), r

  z_TE = jnp.tile(jnp.asarray(LOGITS, jnp.float32), (n, 1))
  gradient, r = jax.jit(jax.grad(losses, has_aux=True))(z_TE)
  return np.asarray(r.expert_N), np.asarray(r.weight_N), np.asarray(gradient)


def test_it_estimates_the_gradient_of_sampling():
  n = 40000
  expert, weight, gradient = mixed(n)
  p = np.exp(LOGITS[:3]) / np.exp(LOGITS[:3]).sum()
  share = np.bincount(expert, minlength=E) / n
  np.testing.assert_allclose(share, [*p, 0], atol=0.01)
  # A draw at a time: p_i, or p_i / 3, and the derivative of p_i in both cases.
  factor = weight / p[expert]
  third = np.isclose(factor, 1 / 3, rtol=1e-4)
  assert (third | np.isclose(factor, 1, rtol=1e-4)).all()
  assert not third[expert == 0].any()
  for e in (1, 2):
    np.testing.assert_allclose(third[expert == e].mean(), 0.75, atol=0.02)
  jacobian = np.diag(p) - np.outer(p, p)  # of p_i by z_j
  for t in range(50):
    slope = SLOPE(weight[t] * C[expert[t]]) * C[expert[t]]
    np.testing.assert_allclose(
      gradient[t], [*(slope * jacobian[expert[t]]), 0], rtol=1e-3, atol=1e-6
    )
  # The mean: Heun's rule is exact for a cubic, Euler's is the best expert's.
  rise = np.array([L(p[e] * C[e]) - L(0) for e in range(3)])
  rise[0] = p[0] * C[0] * SLOPE(p[0] * C[0])
  np.testing.assert_allclose(
    gradient[:, :3].mean(0), rise @ jacobian, atol=2e-3
  )
  assert np.abs(rise @ jacobian).max() > 0.02


def test_it_starts_where_all_logits_are_zero():
  x, params = np.ones((32, 6)), {'kernel': jnp.zeros((6, E))}
  r = routing.route('sparse_mixer()', x, params, E, train=True)
  assert np.isfinite(r.weight_N).all() and len(set(r.expert_N.tolist())) == E
