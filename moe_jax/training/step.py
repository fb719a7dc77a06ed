"""One optimizer step, and one evaluation step."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from moe_jax import types
from moe_jax.balancing import base as balancing
from moe_jax.errors import UserError
from moe_jax.models import stack
from moe_jax.problems import base as problems
from moe_jax.training import accumulation, skips, tuning
from moe_jax.training.state import TrainState

OVER_LAYERS = ('sum', 'mean')


def moe_aux(model, aux) -> list[tuple[str, Any]]:
  """('decoder/1', MoEAux) of every MoE layer, encoder first."""
  return [
    (f'{name}/{layer}', a)
    for name, config in model.stacks.items()
    for layer, a in stack.aux_by_layer(aux[name], config.places)
  ]


def moe_layers(model) -> list[str]:
  """'decoder/1' of every MoE layer, encoder first."""
  return [
    f'{name}/{layer}'
    for name, config in model.stacks.items()
    for layer, sparse in enumerate(config.sparse)
    if sparse
  ]


def evaluated(model, variables: dict[str, Any], batch) -> tuple[Any, Any]:
  """What a model returns in evaluation mode: its output, MoEAux by stack."""
  # The same draws for every batch, for the few routers that are random in
  # evaluation too.
  rngs = {'router': jax.random.key(0)}
  return model.apply(variables, batch, train=False, rngs=rngs)


def make_train_step(
  model,
  tx: optax.GradientTransformation,
  *,
  problem: problems.Problem,
  seed: int,
  accumulate: int = 1,
  over_layers: str = 'sum',
  trained: Any = None,
  teacher: Any = None,
  distill: float = 0.0,
  skip: bool = False,
) -> Callable:
  """The step function, to be jitted with pinned shardings.

  Args:
    model: the problem's.
    tx: the optimizer.
    problem: whose loss is minimised.
    seed: of dropout and router noise; a step's keys follow from it and the
      step, so that a resumed run draws the same.
    accumulate: micro-batches of a step, which give what the whole batch gives:
      losses, statistics, gradient, noise of the routers; dropout draws for each
      by itself. Where a balancing rule's loss is a function of 'global' sums
      they cost an extra forward pass: see `accumulation`.
    over_layers: 'sum' of the MoE layers' losses (Switch Transformer) or their
      'mean' (T5X).
    trained: of each leaf what is trained, as `tuning.trained` has it; None
      trains all.
    teacher: a model whose probabilities are learnt, too; see `teacher`.
    distill: weight of the teacher's cross-entropy, 1 - that of the labels'.
    skip: a step whose loss or gradient is not finite changes nothing; the
      metrics then say 'skipped'.

  Returns:
    (state, batch, key, teacher's variables) -> (state, metrics); metrics are
    arrays. The key, by default that of `seed`, lets one compiled step serve
    runs of any seed.
  """
  if over_layers not in OVER_LAYERS:
    raise UserError(
      f'balance_over_layers={over_layers!r}; valid: {", ".join(OVER_LAYERS)}'
    )

  rules = sum(accumulation.rules(model).values(), ())
  if accumulate > 1:
    accumulation.check(rules)
  splits = balancing.splits(rules)

  def forward(own, params, balance, batch, keys, taught):
    """Sums over a micro-batch: of what counts, of a teacher's, MoEAux."""
    variables = {'params': tuning.merge(own, params, trained)}
    if balance:
      variables['balance'] = balance
    out, aux = model.apply(variables, batch, train=True, rngs=keys)
    own = jax.tree.map(jnp.float32, problem.loss(out, batch))
    soft = jnp.float32(0)
    if teacher is not None:
      learnt, _ = jax.lax.stop_gradient(evaluated(teacher, taught, batch))
      soft = problem.distillation(out, learnt, batch)
    return own, soft, aux

  def total(sums, count):
    """The loss that sums over the batch make, or sums over a part its share."""
    (fit, penalty), soft, aux = sums
    if teacher is not None:
      fit = (1 - distill) * fit + distill * soft
    layers = [a.loss for _, a in moe_aux(model, aux)]
    balancing_loss = sum(layers, jnp.float32(0))
    if over_layers == 'mean' and layers:
      balancing_loss /= len(layers)
    return (fit + penalty) / count + balancing_loss

  def step_fn(state: TrainState, batch, key=None, taught=None):
    key = jax.random.key(seed) if key is None else key
    key = jax.random.fold_in(key, state.step)
    keys_of = lambda part: jax.random.split(jax.random.fold_in(key, part))
    count = jnp.maximum(problem.count(batch), 1).astype(jnp.float32)
    own = tuning.select(state.params, trained)

    def part(own, number, rows):
      # Routers tell groups apart by their numbers, dropout by its key.
      keys = {'dropout': keys_of(number)[0], 'router': keys_of(0)[1]}
      rows = rows | {
        'step': state.step,
        'part': jnp.stack([number, accumulate]),
      }
      return forward(own, state.params, state.balance, rows, keys, taught)

    def finish(own, sums, weights=None):
      params = tuning.merge(own, state.params, trained)
      aux = accumulation.balanced(
        model, state.balance, params, sums[-1], weights
      )
      return (*sums[:-1], aux)

    weights = accumulation.total_weights(model, batch)
    sums, grads = accumulation.gradient(
      part,
      lambda own, sums: total(finish(own, sums), count),
      (lambda own, sums: total(finish(own, sums, weights), count))
      if splits
      else None,
      own,
      accumulation.micro_batches(batch, accumulate, _mesh(model)),
    )
    sums = finish(own, sums)
    fit, soft, aux = sums

    updates, opt_state = tx.update(grads, state.opt_state, own)
    own = optax.apply_updates(own, updates)
    params = tuning.merge(own, state.params, trained)
    balance = _update_balance(model, state.balance, aux, trained)
    metrics = {
      'loss': fit.loss / count,
      'total_loss': total(sums, count),
      'grad_norm': optax.tree.norm(grads),
      'tokens': (batch['segments'] > 0).sum(dtype=jnp.float32),
    }
    if teacher is not None:
      metrics['distill_loss'] = soft / count
    metrics |= moe_metrics(moe_aux(model, aux))
    new = TrainState(state.step + 1, params, opt_state, balance)
    if skip:
      new, metrics['skipped'] = skips.choose(new, state, metrics)
    return new, metrics

  return step_fn


def moe_metrics(layers: list[tuple[str, Any]]) -> dict[str, Any]:
  """Arrays of all MoE layers, from `moe_aux`; {} for a dense model."""
  if not layers:
    return {}
  shapes = [a.load_E.shape for _, a in layers]
  if len(set(shapes)) > 1:
    raise UserError(
      f'the MoE layers {", ".join(name for name, _ in layers)} differ in their '
      f'experts, {", ".join(map(str, shapes))}; metrics want as many in each'
    )
  stacked = jax.tree.map(lambda *v: jnp.stack(v), *(a for _, a in layers))
  return {
    'load': stacked.load_E,
    'cause': stacked.cause,
    'entropy': stacked.entropy,
    'health': stacked.health,
    'balance': stacked.losses,
  }


def _mesh(model):
  return next(iter(model.stacks.values())).mesh


def _update_balance(model, balance, aux, trained):
  """New state of every MoE layer that moves, wherever its module put it."""

  def walk(layer, state, aux, trained):
    if isinstance(aux, types.MoEAux):
      if not tuning.router_moves(trained):
        return state
      return {'moe': {'state': layer.update(state['moe']['state'], aux.stats)}}
    within = lambda k: None if trained is None else trained[k]
    return {k: walk(layer, v, aux[k], within(k)) for k, v in state.items()}

  of = lambda k: None if trained is None else trained[k]
  stacks = model.stacks
  return {k: walk(stacks[k].moe, v, aux[k], of(k)) for k, v in balance.items()}


def make_eval_step(model, judge: Callable[[Any, Any], Any]) -> Callable:
  """(params, balance, batch) -> sums of an evaluation batch.

  Args:
    model: the problem's.
    judge: (what the model returned, batch) -> sums.

  Returns:
    A function to jit: {'sums': those of `judge`, 'load', 'cause', ...};
    replicated, the same for every process.
  """

  def eval_fn(params, balance, batch):
    variables = {'params': params}
    if balance:
      variables['balance'] = balance
    out, aux = evaluated(model, variables, batch)
    return {'sums': judge(out, batch)} | moe_metrics(moe_aux(model, aux))

  return eval_fn
