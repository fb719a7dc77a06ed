"""Parts of tables of tensors that families share, by letters.

D model width, V vocabulary, H heads, K heads of keys, J head width, E experts,
F hidden width, G the two halves of a gated FFN.
"""

from collections.abc import Mapping
from typing import Any

from moe_jax.conversion import tensors

Part = tensors.Part
GATE, UP = {'G': 0}, {'G': 1}
ONE = {'E': {}, 'Z E': {'Z': 0}}


class Table(list):
  """Tensors, with sizes that they have in common."""

  def __init__(self, **sizes: int):
    super().__init__()
    self.sizes = sizes

  def add(
    self,
    name: str,
    axes: str,
    *parts: Part,
    dtype: str = '',
    sizes: Mapping[str, int] | None = None,
  ) -> None:
    """A tensor that holds these parts."""
    every = self.sizes | dict(sizes or {})
    own = {c: every[c] for c in axes.replace(' ', '')}
    self.append(tensors.Tensor(name, axes, parts, own, dtype))

  def one(self, name: str, axes: str, path: str, ours: str, **options: Any):
    """A tensor that holds one part; `place` is that in the leaf."""
    part = Part(path, ours, options.pop('place', ()))
    self.add(name, axes, part, **options)

  def norm(self, name: str, path: str, axes: str = 'D') -> None:
    self.one(f'{name}.weight', axes, f'{path}/scale', axes)


def table(c: Mapping[str, Any], **sizes: int) -> Table:
  """An empty one of a config with heads, and these sizes."""
  H = c['num_attention_heads']
  return Table(
    V=c['vocab_size'],
    D=c['hidden_size'],
    H=H,
    K=c.get('num_key_value_heads') or H,
    J=c.get('head_dim') or c['hidden_size'] // H,
    **sizes,
  )


def layer(i: int, prefix: str = '') -> tuple[str, str]:
  """What begins the names of a layer's tensors, theirs and ours."""
  return f'{prefix}model.layers.{i}', f'decoder/layer_{i}'


def frame(t: Table, tied: bool, prefix: str = '') -> None:
  """Embedding, final norm and head."""
  model = f'{prefix}model.'
  t.one(f'{model}embed_tokens.weight', 'V D', 'embedding/table', 'V D')
  t.norm(f'{model}norm', 'decoder/final_norm')
  if not tied:
    t.one(f'{prefix}lm_head.weight', 'V D', 'embedding/head', 'D V')


def heads(t: Table, at: str, to: str, bias: str = 'none') -> None:
  """Grouped-query attention; `bias` as in our call string."""
  at, to = f'{at}.self_attn.', f'{to}/attention/'
  for name, ours, axes in (
    ('q_proj', 'query', 'HJ'),
    ('k_proj', 'key', 'KJ'),
    ('v_proj', 'value', 'KJ'),
  ):
    own = ' '.join(axes)
    t.one(f'{at}{name}.weight', f'{axes} D', to + ours, f'D {own}')
    if bias != 'none':
      t.one(f'{at}{name}.bias', axes, f'{to}{ours}_bias', own)
  t.one(f'{at}o_proj.weight', 'D HJ', f'{to}out', 'H J D')
  if bias == 'all':
    t.one(f'{at}o_proj.bias', 'D', f'{to}out_bias', 'D')


def norms(t: Table, at: str, to: str, second: str) -> None:
  """Before attention and FFN; `second` is what ours calls the latter's."""
  t.norm(f'{at}.input_layernorm', f'{to}/attention_norm')
  t.norm(f'{at}.post_attention_layernorm', f'{to}/{second}')


def wide_norms(t: Table, at: str, to: str) -> None:
  """Of queries and keys, over the width of all heads."""
  for name, ours, axes in (
    ('q_norm', 'query_norm', 'HJ'),
    ('k_norm', 'key_norm', 'KJ'),
  ):
    size = t.sizes[axes[0]] * t.sizes['J']
    where = f'{at}.self_attn.{name}', f'{to}/attention/{ours}/scale'
    t.one(f'{where[0]}.weight', 'W', where[1], 'W', sizes={'W': size})


def router(t: Table, name: str, to: str) -> None:
  t.one(name, 'E D', f'{to}/moe/router/kernel', 'D E')


def selection_bias(t: Table, name: str, to: str, axes: str = 'E') -> None:
  """Balancing state of ours, float32 in every folder; 'Z E' of [1, E]."""
  path = f'balance/{to}/moe/state/loss_free_bias'
  t.add(name, axes, Part(path, 'E', pick=ONE[axes]), dtype='float32')


def glu(t: Table, at: str, to: str, names: tuple[str, ...], **options: Any):
  """A gated FFN; `names` of gate, up and down."""
  gate, up, down = names
  t.one(f'{at}.{gate}.weight', 'F D', f'{to}/wi_gate', 'D F', **options)
  t.one(f'{at}.{up}.weight', 'F D', f'{to}/wi_up', 'D F', **options)
  t.one(f'{at}.{down}.weight', 'D F', f'{to}/wo', 'F D', **options)


def dense(t: Table, at: str, to: str, F: int) -> None:
  """The FFN of a layer without experts."""
  glu(t, at, f'{to}/ffn/ffn', PROJECTIONS, sizes={'F': F})


def shared(t: Table, at: str, to: str, F: int) -> None:
  """The FFN of a sparse layer that all tokens take."""
  glu(t, at, f'{to}/moe/dense/ffn', PROJECTIONS, sizes={'F': F})


PROJECTIONS = ('gate_proj', 'up_proj', 'down_proj')


def experts(
  t: Table,
  at: str,
  to: str,
  names: tuple[str, ...] = PROJECTIONS,
  memory: bool = False,
) -> None:
  """Experts of gated FFNs, one by one, or stacked as in memory."""
  if memory:
    stacked(t, f'{at}.gate_up_proj', f'{at}.down_proj', to)
    return
  for e in range(t.sizes['E']):
    glu(t, f'{at}.{e}', to, names, place=(e,))


def pair(t: Table, name: str, axes: str, gate: str, up: str, ours: str):
  """A tensor that holds both products before the activation."""
  both = (Part(gate, ours, pick=GATE), Part(up, ours, pick=UP))
  t.add(name, axes, *both, sizes={'G': 2})


def stacked(t: Table, inner: str, outer: str, to: str) -> None:
  """Stacked experts [E, 2F, D] in halves, and [E, D, F]."""
  pair(t, inner, 'E GF D', f'{to}/wi_gate', f'{to}/wi_up', 'E D F')
  t.one(outer, 'E D F', f'{to}/wo', 'E F D')


def turned(t: Table, at: str, to: str, columns: str) -> None:
  """Stacked experts [E, D, 2F] and [E, F, D]; columns 'GF' or 'FG'."""
  own = f'{to}/wi_gate', f'{to}/wi_up', 'E D F'
  pair(t, f'{at}.gate_up_proj', f'E D {columns}', *own)
  t.one(f'{at}.down_proj', 'E F D', f'{to}/wo', 'E F D')
