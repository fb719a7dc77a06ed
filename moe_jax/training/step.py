"""One optimizer step, and one evaluation step."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from moe_jax import types
from moe_jax.balancing import base as balancing
from moe_jax.models import stack
from moe_jax.training import losses, tuning
from moe_jax.training.state import TrainState

OVER_LAYERS = ('sum', 'mean')


def moe_aux(model, aux) -> list[tuple[str, Any]]:
  """('decoder/1', MoEAux) of every MoE layer, encoder first."""
  return [
    (f'{name}/{layer}', a)
    for name, config in model.stacks.items()
    for layer, a in stack.aux_by_layer(aux[name], config.places)
  ]


def teacher_logits(model, variables: dict[str, Any], batch) -> jax.Array:
  """f32 [B, L, V] in evaluation mode; nothing flows back."""
  # As in evaluation, for the few routers that are random there too.
  rngs = {'router': jax.random.key(0)}
  out, _ = model.apply(variables, batch, train=False, rngs=rngs)
  return jax.lax.stop_gradient(out)


def make_train_step(
  model,
  tx: optax.GradientTransformation,
  *,
  seed: int,
  accumulate: int = 1,
  z_loss: float = 0.0,
  over_layers: str = 'sum',
  trained: Any = None,
  teacher: Any = None,
  distill: float = 0.0,
) -> Callable:
  """The step function, to be jitted with pinned shardings.

  Args:
    model: from models.factory.
    tx: the optimizer.
    seed: of dropout and router noise; a step's keys follow from it and the
      step, so that a resumed run draws the same.
    accumulate: micro-batches of a step; the gradient is that of the whole
      batch's mean over the targets that count (`losses.counted`), balancing
      losses are the micro-batches' mean.
    z_loss: factor of the output z-loss.
    over_layers: 'sum' of the MoE layers' losses (Switch Transformer) or their
      'mean' (T5X).
    trained: tree of bools, as from `tuning.trained`; None trains all.
    teacher: a model whose probabilities are learnt, too; see `teacher`.
    distill: weight of the teacher's cross-entropy, 1 - that of the labels'.

  Returns:
    (state, batch, key, teacher's variables) -> (state, metrics); metrics are
    arrays. The key, by default that of `seed`, lets one compiled step serve
    runs of any seed.
  """
  if over_layers not in OVER_LAYERS:
    raise ValueError(
      f'balance_over_layers={over_layers!r}; valid: {", ".join(OVER_LAYERS)}'
    )

  def loss_fn(own, params, balance, batch, step, tokens, key, taught):
    variables = {'params': tuning.merge(own, params, trained)}
    if balance:
      variables['balance'] = balance
    keys = dict(zip(('dropout', 'router'), jax.random.split(key)))
    logits, aux = model.apply(
      variables, batch | {'step': step}, train=True, rngs=keys
    )
    nll, z = losses.cross_entropy(
      logits, batch['targets'], losses.counted(batch), z_loss
    )
    fit, soft = nll, jnp.float32(0)
    if teacher is not None:
      soft = losses.distillation(
        logits,
        teacher_logits(teacher, taught, batch),
        losses.counted(batch),
      )
      fit = (1 - distill) * nll + distill * soft
    layers = [a for _, a in moe_aux(model, aux)]
    balancing_loss = sum((a.loss for a in layers), jnp.float32(0))
    if over_layers == 'mean' and layers:
      balancing_loss /= len(layers)
    loss = (fit + z) / tokens + balancing_loss / accumulate
    return loss, (nll, soft, aux)

  def step_fn(state: TrainState, batch, key=None, taught=None):
    key = jax.random.key(seed) if key is None else key
    key = jax.random.fold_in(key, state.step)
    tokens = jnp.maximum(losses.counted(batch).sum(), 1).astype(jnp.float32)
    own = tuning.select(state.params, trained)

    def gradient(rows, key):
      (loss, sums), grads = jax.value_and_grad(loss_fn, has_aux=True)(
        own, state.params, state.balance, rows, state.step, tokens, key, taught
      )
      return loss, *sums, grads

    def micro(carry, at):
      index, rows = at
      sums = gradient(rows, jax.random.fold_in(key, index))
      return jax.tree.map(jnp.add, carry, sums), None

    # Micro-batch a holds rows a, a + A, ...: each device keeps its own rows.
    rows = jax.tree.map(
      lambda v: v.reshape(-1, accumulate, *v.shape[1:]).swapaxes(0, 1), batch
    )
    first = jax.tree.map(lambda v: v[0], rows)
    if accumulate == 1:
      sums = gradient(first, jax.random.fold_in(key, 0))
    else:
      shapes = jax.eval_shape(gradient, first, key)
      zero = jax.tree.map(lambda v: jnp.zeros(v.shape, v.dtype), shapes)
      sums, _ = jax.lax.scan(micro, zero, (jnp.arange(accumulate), rows))
    loss, nll, soft, aux, grads = sums

    updates, opt_state = tx.update(grads, state.opt_state, own)
    own = optax.apply_updates(own, updates)
    params = tuning.merge(own, state.params, trained)
    balance = _update_balance(model, state.balance, aux)
    metrics = {
      'loss': nll / tokens,
      'total_loss': loss,
      'grad_norm': optax.tree.norm(grads),
      'tokens': (batch['segments'] > 0).sum(dtype=jnp.float32),
    }
    if teacher is not None:
      metrics['distill_loss'] = soft / tokens
    metrics |= moe_metrics(moe_aux(model, aux), accumulate)
    return TrainState(state.step + 1, params, opt_state, balance), metrics

  return step_fn


def moe_metrics(layers: list[tuple[str, Any]], parts: int) -> dict[str, Any]:
  """Arrays of all MoE layers; {} for a dense model.

  Args:
    layers: from `moe_aux`, summed over micro-batches.
    parts: micro-batches.
  """
  if not layers:
    return {}
  stacked = jax.tree.map(lambda *v: jnp.stack(v), *(a for _, a in layers))
  return {
    'load': stacked.load_E,
    'cause': stacked.cause,
    'entropy': stacked.entropy / parts,
    'health': stacked.health,
    'balance': {k: v / parts for k, v in stacked.losses.items()},
  }


def _update_balance(model, balance, aux):
  """New state of every MoE layer, wherever its module put it."""

  def walk(rules, state, aux):
    if isinstance(aux, types.MoEAux):
      state = balancing.update_states(rules, state['moe']['state'], aux.stats)
      return {'moe': {'state': state}}
    return {k: walk(rules, v, aux[k]) for k, v in state.items()}

  rules = {
    k: c.moe.keywords['balance'] for k, c in model.stacks.items() if c.moe
  }
  return {k: walk(rules[k], v, aux[k]) for k, v in balance.items()}


def make_eval_step(model, num_documents: int) -> Callable:
  """(params, balance, batch) -> sums of an evaluation batch.

  Args:
    model: from models.factory.
    num_documents: of the validation set; 'document' in a batch indexes them.

  Returns:
    A function to jit: {'nats': f32 [documents], 'tokens', 'load', 'cause'};
    replicated sums, the same for every process.
  """

  def eval_fn(params, balance, batch):
    variables = {'params': params}
    if balance:
      variables['balance'] = balance
    # The same draws for every batch, for the few routers that are random in
    # evaluation too.
    logits, aux = model.apply(
      variables, batch, train=False, rngs={'router': jax.random.key(0)}
    )
    nll_BL = losses.token_nll(logits, batch['targets'])
    # What does not count goes to a row of its own, past the end.
    real_BL = losses.counted(batch)
    document_BL = jnp.where(real_BL, batch['document'], num_documents)
    nats = jnp.zeros(num_documents + 1, jnp.float32)
    nats = nats.at[document_BL.reshape(-1)].add(nll_BL.reshape(-1))
    tokens = real_BL.sum(dtype=jnp.int32)
    return {'nats': nats[:-1], 'tokens': tokens} | moe_metrics(
      moe_aux(model, aux), 1
    )

  return eval_fn
