"""The layers of a stack as records, and what they have in common."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from absl import logging

from moe_jax.errors import UserError
from moe_jax.experts import base as experts_base
from moe_jax.layers import attention, causality, heads, moe as moe_layer
from moe_jax.models import pattern

NORM_AT = ('input', 'output')
REMAT = ('none', 'full', 'dots', 'dispatch')
STACKING = ('none', 'before', 'after', 'parallel')


@dataclasses.dataclass(frozen=True)
class Layer:
  """What one block is; equal ones are of one kind.

  Attributes:
    attention: kind of the self-attention; a cross-attention has its sizes.
    ffn: kind of the dense FFN.
    moe: the MoE layer in place of the FFN, or None; blocks give it mesh and
      dtype.
    takes_experts: those of the MoE layer before it, with a router of its own
      (ReXMoE, arXiv:2510.17483).
    extra_ffn: with an MoE, a dense FFN sub-layer with its own norm and residual
      'before' or 'after' it (ST-MoE, arXiv:2202.08906, appendix C) or in
      'parallel' to it, from the same residual (Arctic); 'none'.
    norm_scale: whether norms have a gain; those of queries and keys, too.
  """

  attention: attention.Kind
  ffn: experts_base.Experts
  moe: moe_layer.MoE | None = None
  takes_experts: bool = False
  extra_ffn: str = 'none'
  norm_scale: bool = True

  def __post_init__(self):
    _choose('extra_ffn', self.extra_ffn, STACKING)


@dataclasses.dataclass(frozen=True)
class StackConfig:
  """The layers of a stack, and what they have in common.

  Attributes:
    layers: from the bottom up. Kernels of adjacent layers that repeat are
      stacked (`split`); the final norm is as the last layer's.
    d_model: D.
    causal: no token sees a later one.
    cross: blocks attend to an encoder's output.
    dropout: rate after every sub-layer, on the attention weights, and on the
      stack's input and output, as in T5; FFNs have their own.
    allow_noncausal: let an MoE layer of a causal stack depend on later tokens.
    init_scale: variance factor of the attention's kernels.
    norm_eps: of all norms.
    norm_at: of sub-layers, whether their input is normalised, or their output
      before it is added (OLMo 2, arXiv:2501.00656, section 3.1).
    residual_scale: what is added is multiplied by it (Granite).
    scan: compile one period as a loop; False unrolls it. Parameters have the
      same layout either way.
    remat: what backward may reuse: 'none' recomputes nothing, 'full' a whole
      period, 'dots' all but matrix products, 'dispatch' all but what the
      all-to-alls brought, so that they do not run again.
    mesh, dtype: of the computation.
  """

  layers: tuple[Layer, ...]
  d_model: int
  causal: bool = True
  cross: bool = False
  dropout: float = 0.0
  allow_noncausal: bool = False
  init_scale: float = 1.0
  norm_eps: float = 1e-6
  norm_at: str = 'input'
  residual_scale: float = 1.0
  scan: bool = True
  remat: str = 'none'
  mesh: Any = None
  dtype: Any = jnp.float32

  def __post_init__(self):
    _choose('remat', self.remat, REMAT)
    _choose('norm_at', self.norm_at, NORM_AT)
    if self.cross and not all(
      isinstance(a, heads.Heads) for a in self.attentions
    ):
      raise UserError('mla: a decoder that attends to an encoder has none')
    biased = {
      (a.num_heads, a.positions)
      for a in self.attentions
      if a.positions.relative
    }
    if len(biased) > 1:
      raise UserError(
        'the layers of a stack share their relative positions; these have '
        f'{sorted(H for H, _ in biased)} heads'
      )
    last = None
    for i, layer in enumerate(self.layers):
      if layer.takes_experts and (not last or _experts(layer) != last):
        raise UserError(
          f'layer {i} takes the experts of the MoE layer before it, which must '
          'be the same in number and kind'
        )
      last = _experts(layer) or last
    if self.causal:
      for moe in self.moes:
        self._check_causal(moe)

  def _check_causal(self, moe):
    leak = causality.leak(moe, self.d_model)
    if leak and not self.allow_noncausal:
      raise UserError(
        f'a decoder with this MoE layer is not causal: {leak}, so the model '
        "learns to read the future from its drops; use seating='token_major()',"
        ' a capacity that cannot bind (0 is dropless), or allow_noncausal=True'
      )
    if leak:
      logging.log_first_n(
        logging.WARNING, 'the decoder is not causal: %s', 1, leak
      )

  @property
  def attentions(self) -> tuple[attention.Kind, ...]:
    """The kinds of self-attention."""
    return tuple(dict.fromkeys(layer.attention for layer in self.layers))

  @property
  def sparse(self) -> tuple[bool, ...]:
    """By layer, whether it has an MoE."""
    return tuple(layer.moe is not None for layer in self.layers)

  @property
  def moes(self) -> tuple[moe_layer.MoE, ...]:
    """The different MoE layers."""
    return tuple(dict.fromkeys(x.moe for x in self.layers if x.moe is not None))

  @property
  def moe(self) -> moe_layer.MoE | None:
    """The MoE layer where all are the same; None where there are none.

    Raises:
      ValueError: they differ, which plans and metrics of training do not know.
    """
    if len(self.moes) > 1:
      numbers = [i for i, sparse in enumerate(self.sparse) if sparse]
      raise UserError(
        f'the MoE layers {numbers} of this stack differ; counts, metrics and '
        'training want them equal'
      )
    return self.moes[0] if self.moes else None

  @property
  def share_experts(self) -> float:
    """MoE layers for each set of experts."""
    own = sum(
      s and not x.takes_experts for s, x in zip(self.sparse, self.layers)
    )
    return sum(self.sparse) / max(own, 1)

  @functools.cached_property
  def split(self) -> pattern.Split:
    """The layers as they are scanned; those that share experts together."""
    cuts = [True]
    for layer in reversed(self.layers):
      cuts.append(not layer.takes_experts if layer.moe else cuts[-1])
    return pattern.split(self.layers, cuts[::-1])

  @property
  def places(self) -> tuple[pattern.Place, ...]:
    """By layer, where its parameters are."""
    return pattern.places(self.split)

  def with_moe(
    self, change: Callable[[moe_layer.MoE], moe_layer.MoE]
  ) -> 'StackConfig':
    """The same with every MoE layer changed."""
    new = {moe: change(moe) for moe in self.moes} | {None: None}
    return dataclasses.replace(
      self,
      layers=tuple(dataclasses.replace(x, moe=new[x.moe]) for x in self.layers),
    )


def _choose(name, value, valid):
  if value not in valid:
    raise UserError(f'{name}={value!r}; valid: {", ".join(valid)}')


def _experts(layer: Layer):
  """What layers must agree in to share their experts."""
  if layer.moe is None:
    return None
  return layer.moe.num_experts, layer.moe.experts
