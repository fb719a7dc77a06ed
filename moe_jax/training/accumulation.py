"""Micro-batches of an optimizer step that give what the whole batch gives.

A mean of products is not the product of means, and micro-batches hold unequal
numbers of real tokens: so a micro-batch returns sums, which add up, and the
loss is a function of the total. Where that function is linear once the batch's
masks are known (cross-entropies, balancing losses by group or sequence), each
micro-batch has its share of the loss, and the gradients add up. Where it is not
(f P of the whole batch, squared coefficients of variation), the gradient is
taken through a loop over micro-batches that keeps nothing but the sums, which
costs a second forward pass of each.

A micro-batch is adjacent rows of every device: routing groups, and by their
numbers the routers' noise, are those of the whole batch.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from moe_jax import types
from moe_jax.balancing import base as balancing
from moe_jax.errors import UserError
from moe_jax.parallel import axes as axes_lib, mesh as mesh_lib

Tree = Any


def check(rules: Sequence[balancing.Balance]) -> None:
  """Raises ValueError where a balancing rule needs the whole batch at once."""
  for rule in rules:
    if rule.solves:
      raise UserError(
        f'train.accumulate: {balancing.name(rule)} solves for the selection '
        'bias from the scores of the whole batch, which micro-batches do not '
        'have; valid with it: 1'
      )


def rules(model) -> dict[str, tuple[balancing.Balance, ...]]:
  """The balancing rules of the stacks that have MoE layers."""
  return {
    name: c.moe.balance for name, c in model.stacks.items() if c.moe is not None
  }


def micro_batches(batch: Tree, parts: int, mesh) -> Tree:
  """Arrays [B, ...] as [parts, B / parts, ...].

  Args:
    batch: rows, sharded over the batch axes of the mesh.
    parts: micro-batches.
    mesh: None for one device. Each of its devices keeps its own rows.
  """
  axes = axes_lib.make((mesh or mesh_lib.single()).shape)
  devices = axes.size(axes.batch)

  def cut(v):
    v = v.reshape(devices, parts, -1, *v.shape[1:]).swapaxes(0, 1)
    return v.reshape(parts, -1, *v.shape[3:])

  return jax.tree.map(cut, batch)


def gradient(
  forward: Callable[[Tree, jax.Array, Tree], Tree],
  whole: Callable[[Tree, Tree], jax.Array],
  share: Callable[[Tree, Tree], jax.Array] | None,
  params: Tree,
  batches: Tree,
) -> tuple[Tree, Tree]:
  """The sums over all micro-batches, and the gradient of a loss of them.

  Args:
    forward: (params, number, micro-batch) -> its sums.
    whole: (params, sums of the whole batch) -> loss.
    share: (params, sums of a micro-batch) -> its share of the loss; None where
      the loss is no sum of such shares.
    params: floating point.
    batches: from `micro_batches`.
  """
  parts = jax.tree.leaves(batches)[0].shape[0]
  numbers = jnp.arange(parts, dtype=jnp.int32)
  first = jax.tree.map(lambda v: v[0], batches)

  def own(loss, params, number, batch):
    sums = forward(params, number, batch)
    return loss(params, sums), sums

  def one(loss, number, batch):
    of = functools.partial(own, loss)
    (_, sums), grads = jax.value_and_grad(of, has_aux=True)(
      params, number, batch
    )
    return sums, grads

  if parts == 1:
    return one(whole, numbers[0], first)
  zeros = lambda f, *args: jax.tree.map(
    lambda v: jnp.zeros(v.shape, v.dtype), jax.eval_shape(f, *args)
  )
  add = lambda a, b: jax.tree.map(jnp.add, a, b)

  if share is None:

    def through(params):
      body = lambda sums, at: (add(sums, forward(params, *at)), None)
      body = jax.checkpoint(body, prevent_cse=False)
      start = zeros(forward, params, numbers[0], first)
      sums, _ = jax.lax.scan(body, start, (numbers, batches))
      return whole(params, sums), sums

    (_, sums), grads = jax.value_and_grad(through, has_aux=True)(params)
    return sums, grads

  body = lambda total, at: (add(total, one(share, *at)), None)
  start = zeros(functools.partial(one, share), numbers[0], first)
  return jax.lax.scan(body, start, (numbers, batches))[0]


def balanced(
  model, balance: Tree, params: Tree, aux: Tree, weights: Tree = None
) -> Tree:
  """MoEAux whose losses are those of its sums.

  Args:
    model: from models.factory.
    balance: state of the balancing rules.
    params: of the model, for the rules that read the router's; what flows into
      those of 'global' scope flows from here, not from the layers.
    aux: by stack, summed over micro-batches, or of one.
    weights: from `total_weights`; the losses of one are then its share.
  """

  def walk(rules, aux, states, params, weights):
    if not isinstance(aux, types.MoEAux):
      return {
        k: walk(rules, v, states.get(k, {}), params[k], weights)
        for k, v in aux.items()
      }
    one = lambda stats, states, router: balancing.losses(
      rules, stats, states, weights, router
    )
    states = states['moe']['state'] if states else {}
    # Those of a scanned layer have a leading axis of repeats.
    many = jax.vmap(one) if aux.loss.ndim else one
    router = params['moe'].get('router', {})
    loss, losses = many(aux.stats, states, router)
    return aux.replace(loss=loss, losses=losses)

  out = dict(aux)
  for name, found in rules(model).items():
    if found:
      own = weights and weights[name]
      states = balance.get(name, {})
      out[name] = walk(found, aux[name], states, params[name], own)
  return out


def total_weights(model, batch: Tree) -> dict[str, dict[str, jax.Array]]:
  """What the segments of the whole batch weigh, by stack and rule."""
  out = {}
  for name, found in rules(model).items():
    prefix = 'encoder_' if name == 'encoder' else ''
    mask_BL = batch[prefix + 'segments'] > 0
    if model.stacks[name].moe.route_padding:
      mask_BL = jnp.ones_like(mask_BL)
    out[name] = balancing.total_weights(found, mask_BL)
  return out
