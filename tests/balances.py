"""Choices of a few groups, as balancing rules see them and as oracles do."""

import numpy as np

from moe_jax import registry
from tests import methods
from tests.lazy import balancing, jax, jnp, types
from tests.oracles import LOCAL, Choice, softmax

G, T, E, K = 4, 6, 6, 2
B = 2  # sequences, of two groups each


def routing(logits_GTE, expert_GTK, probs_GTE=None, mask_GT=None, **terms):
  """Edges by choice; softmax affinities where none are given."""
  G, T, E = np.shape(logits_GTE)
  K = np.shape(expert_GTK)[-1]
  if mask_GT is not None:
    expert_GTK = np.where(mask_GT[..., None], expert_GTK, E)
  probs_GTE = softmax(logits_GTE) if probs_GTE is None else probs_GTE
  edges = np.swapaxes(expert_GTK, 1, 2).reshape(G, K * T)
  f32 = lambda v: jnp.asarray(v, jnp.float32)
  return types.Routing(
    token_N=jnp.tile(jnp.arange(T), (G, K)),
    expert_N=jnp.asarray(edges, jnp.int32),
    weight_N=jnp.ones((G, K * T)),
    logits_TE=f32(logits_GTE),
    probs_TE=f32(probs_GTE),
    terms=jax.tree.map(f32, {'smooth_load': probs_GTE} | terms),
    num_experts=E,
    num_local=LOCAL,
    choices=K,
  )


def as_choices(logits_GTE, expert_GTK, probs_GTE=None, smooth_GTE=None):
  """The same for oracles, by group."""
  probs_GTE = softmax(logits_GTE) if probs_GTE is None else probs_GTE
  smooth_GTE = probs_GTE if smooth_GTE is None else smooth_GTE
  groups = zip(expert_GTK, probs_GTE, logits_GTE, smooth_GTE)
  return [Choice(e, None, p, z, smooth_load=s) for e, p, z, s in groups]


def uneven(padding=5):
  """A routing, its choices and the mask; the last tokens are padding."""
  rng = np.random.default_rng(0)
  mask = np.arange(G * T).reshape(G, T) < G * T - padding
  logits = rng.normal(size=(G, T, E)) + np.linspace(0, 1, E)
  expert, smooth = largest(logits), rng.uniform(0.1, 1, (G, T, E))
  r = routing(logits, expert, mask_GT=mask, smooth_load=smooth)
  return r, as_choices(logits, expert, smooth_GTE=smooth), mask


def even():
  """Choices of every expert as often; a token's are in different halves."""
  first = np.broadcast_to(np.arange(T) % E, (G, T))
  return np.stack([first, (first + E // 2) % E], -1)


def largest(scores_GTE):
  return np.argsort(-scores_GTE, -1)[..., :K]


def rows(reads_matrix=False):
  """Rows with an oracle, of rules that read the router's matrix or not."""
  rule = lambda row: registry.build('balancing', row.spec)
  found = [row for row in methods.rows('balancing') if row.oracle]
  return [r for r in found if rule(r).reads_matrix == reads_matrix]


def evaluate(spec, r, mask_GT=None, sequences=1, router=()):
  """The weighted loss, the loss and the stats of a rule on one device."""
  mask = np.ones(r.probs_TE.shape[:2], bool) if mask_GT is None else mask_GT
  rules = [registry.build('balancing', spec)]
  states = balancing.init_states(rules, r.num_experts)
  args = (jnp.asarray(mask), sequences, (), states, None, router)
  total, losses, stats = balancing.evaluate(rules, r, *args)
  (name,) = stats
  return total, losses.get(name), stats[name]


def loss(spec, r, mask_GT=None, sequences=1):
  return evaluate(spec, r, mask_GT, sequences)[1]


def expected(row, choices, mask_GT, sequences, *matrix):
  """The oracle's loss, by the scope of the row's rule; of its matrix, too."""
  scope = registry.build('balancing', row.spec).scope
  options = registry.parse(row.spec)[1]
  options.pop('scope', None)
  size = {'global': len(choices), 'sequence': len(choices) // sequences}
  size = size.get(scope, 1)
  cut = lambda v: [v[i : i + size] for i in range(0, len(v), size)]
  parts = list(zip(cut(choices), cut(mask_GT)))
  losses = [row.oracle(*matrix, c, m, **options) for c, m in parts]
  # Mesh-TensorFlow's convention counts padding here too.
  over = np.size if 'over_padding' in options else np.sum
  return np.average(losses, weights=[over(m) for _, m in parts])
