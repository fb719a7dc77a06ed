"""Causal importance of experts: the loss without one, by domain.

Who routes where is a correlation; what the model loses without an expert is
not. For each expert of each layer the nats of every document

  removed   with it out: tokens go to the next best (`analysis.removal`)
  replaced  with its tokens computed by its nearest sibling, routing unchanged

less those of the model as it is, by domain, over the tokens (or bytes) of the
domain's documents. Pruning chooses by it (Lu et al., "Not All Experts are
Equal", 2024, arXiv:2402.14800, by a layer's output; here by the loss, one
expert at a time). One that is replaced without a loss has a double; one that is
removed without a loss is not needed, for its neighbours will do. Intervals:
documents drawn again, the same for both models; their null is 0.
"""

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from moe_jax.analysis import inside, removal
from moe_jax.analysis.metrics import base
from moe_jax.errors import NotFiniteError

DRAWS = 200


def measure(
  model: Any,
  variables: dict[str, Any],
  judge: Callable[[Any, Any], jax.Array],
  batches: Iterable[Any],
  domain_D: Sequence[int],
  size_D: Sequence[float],
  siblings: Sequence[np.ndarray] | None = None,
  shown: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
  """Every expert out once, and replaced once; the model compiles once.

  Args:
    model: with MoE layers, evaluated as it is: with its capacity.
    variables: 'params', and 'balance' where it has any.
    judge: (what the model returned, batch) -> f32 [D], nats of the documents.
    batches: of the text, kept and read as often as there are experts.
    domain_D: number of the domain of each document.
    size_D: what nats are divided by: a document's targets, or its bytes.
    siblings: by layer, of `inside.places`, int [E]: who replaces each expert,
      as `outputs.siblings` finds; None replaces none.
    shown: gets a line an expert.

  Returns:
    'layers', their names; 'loss' [X] of the model as it is, by domain, the last
    of them all; 'removed', 'removed_low', 'removed_high' [M, E, X], nan at
    experts that a layer lacks, the limits also where a domain has one document;
    and with siblings 'replaced', ...

  Raises:
    ValueError: a router from which no expert can be taken.
    FloatingPointError: a loss that is not finite.
  """
  batches, places = list(batches), inside.places(model)
  program = _program(model, judge)
  # All of one sharding, or the program would compile again.
  pin = lambda v, like: jax.device_put(v, like.sharding)
  params = jax.tree.map(jnp.asarray, variables['params'])
  params, balance = jax.tree.map(pin, params, params), variables.get('balance')

  def nats(params, out=None):
    states = removal.states(model, balance, out)
    sums = [program(params, states, batch) for batch in batches]
    total_D = np.sum(jax.device_get(sums), 0, dtype=np.float64)
    if not np.isfinite(total_D).all():
      raise NotFiniteError(
        f'the loss without {_name(places, out)} is not finite'
      )
    return total_D

  whole_D = nats(params)
  E = max(p.moe.num_routed for p in places)
  lost = {'removed': np.full((len(places), E, len(whole_D)), np.nan)}
  if siblings is not None:
    lost['replaced'] = lost['removed'].copy()
  for i, place in enumerate(places):
    for e in range(place.moe.num_routed):
      lost['removed'][i, e] = nats(params, (i, e)) - whole_D
      line = f'{_name(places, (i, e))}: {lost["removed"][i, e].sum():+.2f} nats'
      if siblings is not None and e < place.moe.num_experts:
        other = _swapped(place, params, e, int(siblings[i][e]))
        other = jax.tree.map(pin, other, params)
        lost['replaced'][i, e] = nats(other) - whole_D
        line += f', replaced {lost["replaced"][i, e].sum():+.2f}'
      shown(line)
  found = {'layers': [p.name for p in places]}
  found['loss'] = _by_domain(whole_D, domain_D, size_D, np.ones(len(whole_D)))
  for name, of in lost.items():
    by = functools.partial(_by_domain, of, domain_D, size_D)
    found[name] = by(np.ones(len(whole_D)))
    times = base.resample(len(whole_D), DRAWS, 0, domain_D)
    limits = base.interval([by(times_D) for times_D in times], f'{name}_')
    for limit_MEX in limits.values():  # one document says nothing of others
      limit_MEX[..., :-1][..., np.bincount(domain_D) < 2] = np.nan
    found |= limits
  return found


def correlation(
  removed_MEX: np.ndarray, share_MEX: np.ndarray, draws: int = DRAWS
) -> dict[str, np.ndarray]:
  """How importance goes with routing, by layer: Spearman's correlation.

  Args:
    removed_MEX: of `measure`, without that of all domains.
    share_MEX: share of a domain's choices that an expert has.
    draws: of the null, in which the experts of a layer are permuted.

  Returns:
    'value', 'null', 'null_low', 'null_high' [M].
  """
  rng = np.random.default_rng(0)
  kept = [np.isfinite(v).all(-1) for v in removed_MEX]
  pairs = [
    (r[k], s[k]) for r, s, k in zip(removed_MEX, share_MEX, kept, strict=True)
  ]
  drawn = [
    [_ranked(rng.permutation(r), s) for r, s in pairs] for _ in range(draws)
  ]
  null = {'null': np.mean(drawn, 0)} | base.interval(drawn, 'null_')
  return {'value': np.array([_ranked(*pair) for pair in pairs])} | null


def _program(model, judge):
  """(params, states, batch) -> nats, jitted."""
  changed = removal.removable(model)

  def run(params, states, batch):
    rngs = {'router': jax.random.key(0)}
    variables = {'params': params, 'balance': states}
    out, _ = changed.apply(variables, batch, train=False, rngs=rngs)
    return judge(out, batch)

  return jax.jit(run, out_shardings=inside.everywhere(model))


def _swapped(place, params, expert, by):
  lead = () if place.repeat is None else (place.repeat,)
  return _replaced(
    place.experts,
    params,
    (*lead, expert),
    (*lead, by),
    tuple(place.moe.experts.axes.items()),
  )


@functools.partial(jax.jit, static_argnums=(0, 4))
def _replaced(path, params, at, by, axes):
  return removal.replaced(path, params, at, by, dict(axes))


def _by_domain(of_D, domain_D, size_D, times_D):
  """[..., X]: sums of [..., D] over sizes, by domain, last of all."""
  is_XD = np.equal.outer(np.arange(max(domain_D) + 1), domain_D)
  is_XD = np.concatenate([is_XD, np.ones_like(is_XD[:1])]) * times_D
  size_X = is_XD @ np.asarray(size_D, float)
  return of_D @ is_XD.T / np.where(size_X > 0, size_X, np.nan)


def _name(places, out):
  return f'expert {out[1]} of {places[out[0]].name}' if out else 'nothing'


def _ranked(a, b):
  if min(np.ptp(a), np.ptp(b)) == 0:
    return np.nan
  ranks = [stats.rankdata(v.reshape(-1)) for v in (a, b)]
  return np.corrcoef(*ranks)[0, 1]
