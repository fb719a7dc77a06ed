"""The MoE layers of other codebases, in PyTorch on the CPU, beside ours.

Both run in this process, on as many threads. Sizes, weights and tokens are the
same, so that routing is, and results are compared. PyTorch's threads spin for
some milliseconds after their work; a pause before every run keeps them out of
the next one's time. Each codebase's own dense FFN of the same FLOPs stands
beside its layer, as ours beside ours.

Neither is compiled (`torch.compile`): that is how their users run them.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from moe_jax.benchmarks import cases, layers, machine

SETTLE = 0.05  # seconds


def hugging_face(o: layers.Options, sizes) -> list[cases.Case]:
  """transformers' OlmoeSparseMoeBlock: SwiGLU, dropless, raw probabilities.

  `hf` is its `grouped_mm`, the default of its models; `hf_eager` its loop over
  the experts.
  """
  o = dataclasses.replace(
    o,
    experts='glu()',
    router='top_k(renormalize=False)',
    capacity_factor=None,
    balance=(),
  )
  found = []
  for E, K, F in sizes:
    theirs = [
      _torch(name, o, E, K, F, functools.partial(_olmoe, implementation=i))
      for name, i in (('hf', 'grouped_mm'), ('hf_eager', 'eager'))
    ]
    ours = [
      layers.sparse(name, o, E, K, F, dispatch, compare=True)
      for name, dispatch in layers.DROPLESS.items()
    ]
    dense = _torch('torch_dense', o, E, K, F, _swiglu, compare=False)
    found.append(_case('hf', o, E, K, F, [*theirs, dense], ours))
  return found


def st_moe_pytorch(o: layers.Options, sizes) -> list[cases.Case]:
  """st_moe_pytorch.MoE, top-2, GEGLU experts with a multiplicative bias.

  Groups are its sequences, and its capacity is int(f T / E) at f = 1.25 and 2.
  Off in both: the random policy of second experts, which would make results
  differ; in theirs the straight-through gradient of the dispatch. Their
  additive biases are zero, but computed.
  """
  found = []
  for E, K, F in sizes:
    if K != 2:
      continue
    for factor in (1.25, 2.0):
      mine = dataclasses.replace(
        o,
        experts="glu(activation='gelu_exact', bias='multiplicative')",
        router='top_k()',
        capacity_factor=factor,
        capacity_rule='mesh_tensorflow()',
        group_size=o.tokens // layers.SEQUENCES,
        balance=('switch_loss(weight=0.01)', 'z_loss(weight=0.001)'),
      )
      ours = [
        layers.sparse(d, mine, E, K, F, f'{d}()', compare=True)
        for d in ('scatter', 'einsum')
      ]
      theirs = [
        _torch('st_moe_pytorch', mine, E, K, F, _st_moe),
        _torch('torch_dense', mine, E, K, F, _st_moe_ffn, compare=False),
      ]
      case = _case('st_moe_pytorch', mine, E, K, F, theirs, ours)
      found.append(dataclasses.replace(case, name=f'{case.name} f={factor:g}'))
  return found


BASELINES: dict[str, Callable] = {
  'hf': hugging_face,
  'st_moe_pytorch': st_moe_pytorch,
}


def torch():
  """PyTorch on as many threads as XLA has.

  Raises:
    ImportError: one line that says what to install.
  """
  library = _library('torch')
  library.set_num_threads(machine.threads())
  return library


def _library(name: str):
  import importlib

  try:
    return importlib.import_module(name)
  except ImportError as e:
    raise ImportError(
      f"this baseline needs {name!r}: pip install -e '.[oracle]' ({e})"
    ) from None


def _case(baseline, o, E, K, F, theirs, ours) -> cases.Case:
  return cases.Case(
    'layer',
    f'{baseline} E={E} K={K} F={F}',
    {'E': E, 'K': K, 'F': F} | dataclasses.asdict(o),
    [
      machine.matmul(o.dtype),
      machine.copy(),
      _matmul(),
      *ours,
      layers.dense(o, K, F),
      *theirs,
    ],
    (baseline, 'dense', 'torch_dense'),
    SETTLE,
  )


def _matmul(size: int = 2048) -> cases.Candidate:
  def build():
    x = torch().ones(size, size)
    return lambda: x @ x, {}

  return cases.Candidate(
    'torch_matmul', build, flops=2.0 * size**3, reference=True
  )


def _torch(
  name, o, E, K, F, make: Callable[..., Any], compare: bool = True
) -> cases.Candidate:
  """Forward and backward of what `make(params, o, E, K, F)` returns.

  `make` returns a function of tokens, its result or a pair of the result and a
  loss, and the parameters whose gradients are taken.
  """

  def build():
    library = torch()
    _, params, x, dy = layers.setup(o, E, K, F, 'gather_reduce()')
    f, weights = make(jax.tree.map(_tensor, params), o, E, K, F)
    x, dy = _tensor(x).requires_grad_(), _tensor(dy)

    def run():
      y, *loss = f(x)
      outputs = [y, *loss]
      ones = [library.ones_like(v) for v in loss]
      return library.autograd.grad(outputs, [x, *weights], [dy, *ones])

    return run, {}

  result = (lambda out: out[0].numpy()) if compare else None
  return cases.Candidate(name, build, *layers.work(o, E, K, F), result)


def _tensor(x: jax.Array):
  return torch().from_numpy(np.array(x))


def _olmoe(params, o, E, K, F, implementation):
  from_transformers = _library('transformers.models.olmoe.modeling_olmoe')
  config = _library('transformers').OlmoeConfig(
    hidden_size=o.D,
    intermediate_size=F,
    num_experts=E,
    num_experts_per_tok=K,
    norm_topk_prob=False,
  )
  config._experts_implementation = implementation
  block = from_transformers.OlmoeSparseMoeBlock(config)
  (w_DE,), w = jax.tree.leaves(params['router']), params['experts']
  block.gate.weight.data = w_DE.T.contiguous()
  up = torch().cat([w['wi_gate'], w['wi_up']], dim=2)
  block.experts.gate_up_proj.data = up.transpose(1, 2).contiguous()
  block.experts.down_proj.data = w['wo'].transpose(1, 2).contiguous()
  return (lambda x: (block(x),)), list(block.parameters())


def _swiglu(params, o, E, K, F):
  del params, E
  functional = torch().nn.functional
  shapes = ((K * F, o.D), (K * F, o.D), (o.D, K * F))
  weights = [torch().randn(s).div_(s[1] ** 0.5) for s in shapes]
  gate, up, out = (w.requires_grad_() for w in weights)

  def ffn(x):
    hidden = functional.silu(functional.linear(x, gate))
    return (functional.linear(hidden * functional.linear(x, up), out),)

  return ffn, [gate, up, out]


def _st_moe(params, o, E, K, F):
  moe = _library('st_moe_pytorch').MoE(
    o.D,
    num_experts=E,
    expert_hidden_mult=_multiple(o.D, F),
    threshold_train=1e-9,
    capacity_factor_train=o.capacity_factor,
    gating_top_n=K,
    straight_through_dispatch_tensor=False,
    differentiable_topk=False,
  )
  (w_DE,), w = jax.tree.leaves(params['router']), params['experts']
  moe.gate.to_gates.weight.data = w_DE.T.contiguous()
  for e, expert in enumerate(moe.experts.experts):
    wi, act, wo = (m for m in expert.net if list(m.parameters()))
    # Its activation gates the first half by the second.
    up = torch().cat([w['wi_up'][e], w['wi_gate'][e]], dim=1)
    wi.weight.data, wi.bias.data = up.T.contiguous(), torch().zeros(2 * F)
    wo.weight.data, wo.bias.data = w['wo'][e].T.contiguous(), wo.bias.data * 0
    act.mult_bias.data = w['bias'][e].clone()
  moe.train()
  return (lambda x: moe(x)[:2]), list(moe.parameters())


def _st_moe_ffn(params, o, E, K, F):
  del params, E
  ffn = _library('st_moe_pytorch.st_moe_pytorch').Expert(
    o.D, hidden_mult=_multiple(o.D, K * F)
  )
  return (lambda x: (ffn(x),)), list(ffn.parameters())


def _multiple(D: int, F: int) -> float:
  """The argument that makes int(D * multiple * 2 / 3) equal F."""
  return (F + 0.5) * 1.5 / D
