"""What a family of open models is, and what most of them share.

A family is one file: what its config.json may say, which fields of ours make
the same model, and which tensor is which part of our parameters. A field that
the file does not know, or a value that it does not handle, is an error that
names it. What a config.json leaves out is the default of the class in
transformers 5.24.0.
"""

import abc
import math
from collections.abc import Mapping, Sequence
from typing import Any

from moe_jax import registry
from moe_jax.conversion import folders, rope, tensors

Config = dict[str, Any]
_LARGEST = 1 << 40
# What changes no number that a model computes.
BOOKKEEPING = frozenset(
  """_name_or_path architectures auto_map bos_token_id dtype eos_token_id
  initializer_range max_position_embeddings model_type output_router_logits
  pad_token_id quantization_config rope_parameters rope_scaling rope_theta
  torch_dtype transformers_version use_cache pretraining_tp
  attention_dropout router_aux_loss_coef output_attentions
  output_hidden_states return_dict
  transformers.js_config unsloth_fixed""".split()
)
# Theirs, and ours in `experts.base`.
ACTIVATIONS = {
  'silu': 'silu',
  'swish': 'silu',
  'gelu': 'gelu_exact',
  'gelu_pytorch_tanh': 'gelu',
  'relu': 'relu',
}


class Family(abc.ABC):
  """A family; all of it is about config.json with its defaults filled in.

  Class attributes:
    model_types: of config.json; the first is written.
    architecture: of config.json.
    defaults: {field: the class's default} of what is read. A whole number is a
      size, from 1; a float any finite number; a tuple stands for a list.
    optional: fields of these that may be null.
    free: fields of these that `check` alone looks at.
    from_0: sizes of these that may be 0.
    only: {field: its valid values}, the first of which is the default.
    ignored: fields that change no number, beside BOOKKEEPING.
    aliases: {other name: field}.
    theta, aux: the defaults of rope_theta and router_aux_loss_coef.
    symbols: the class's ids of start and end of text, or None.
  """

  model_types: tuple[str, ...]
  architecture: str
  defaults: Mapping[str, Any]
  optional: tuple[str, ...] = ()
  free: tuple[str, ...] = ()
  from_0: tuple[str, ...] = ()
  only: Mapping[str, tuple] = {}
  ignored: tuple[str, ...] = ()
  aliases: Mapping[str, str] = {}
  theta = 10_000.0
  aux = 0.001
  symbols: tuple[int | None, int | None] = (None, None)

  def read(self, config: Config) -> Config:
    """config.json with defaults filled in; a ValueError names what is wrong."""
    return filled(self, config)

  def inner(self, config: Config) -> Config:
    """The part of config.json that is of the language model."""
    return config

  @abc.abstractmethod
  def check(self, c: Config) -> list[str]:
    """What of a config that `read` has filled in cannot be represented."""

  @abc.abstractmethod
  def fields(self, c: Config) -> dict[str, Config]:
    """{'model': fields, 'moe': fields} of ours that make the same model."""

  @abc.abstractmethod
  def table(self, c: Config, memory: bool = False) -> list[tensors.Tensor]:
    """Every tensor.

    Args:
      c: as `read` gives it.
      memory: as transformers 5 holds them in memory, where that differs.
    """

  @abc.abstractmethod
  def to_config(self, model: Any, moe: Any, kinds: 'Kinds') -> Config:
    """config.json of our model; what it cannot say, `fields` will not give.

    Args:
      model, moe: of our config.
      kinds: what their call strings say.

    Raises:
      KeyError, ValueError: it is none of this family.
    """

  def skipped(self, name: str, c: Config) -> str:
    """What a tensor is that is left out on purpose; '' of others."""
    del name, c
    return ''

  def copies(self, c: Config) -> dict[str, str]:
    """Tensors that may be there beside `table`'s, and what each must equal."""
    if c['tie_word_embeddings']:
      return {'lm_head.weight': 'model.embed_tokens.weight'}
    return {}

  def stored_copies(self, c: Config) -> dict[str, str]:
    """Of `copies`, those that are written."""
    del c
    return {}

  def counts(self, c: Config) -> dict[str, int]:
    """Layers, and experts: of each there is a tensor at least."""
    names = ('num_hidden_layers',)
    return {k: c[k] for k in names}

  def written(self, config: Config) -> Config:
    """A config.json that was read, as it is written again."""
    own = dict(self.inner(config))
    for name in ('quantization_config', 'prefix'):
      own.pop(name, None)
    return own

  @property
  def name(self) -> str:
    return type(self).__module__.rpartition('.')[2]


def filled(family: Family, config: Config) -> Config:
  """config.json with defaults filled in; fields by their first names.

  Raises:
    ValueError: names all fields that are not known or have another value.
  """
  given, wrong = {}, []
  for k, v in family.inner(config).items():
    name = family.aliases.get(k, k)
    if name in given and given[name] != v:
      wrong.append(f'{name}={given[name]!r} and {k}={v!r}')
    given[name] = v
  defaults = dict(family.defaults)
  defaults |= {k: v[0] for k, v in family.only.items()}
  defaults.setdefault('max_position_embeddings', 2048)
  for k, v in given.items():
    known = k in defaults or k in BOOKKEEPING or k in family.ignored
    if not known and v is not None:
      wrong.append(f'{k}={v!r} (not known to {family.name})')
  c = {k: given.get(k, v) for k, v in defaults.items()}
  c |= {k: given[k] for k in ('rope_scaling', 'rope_parameters') if k in given}
  c['rope_theta'] = given.get('rope_theta', family.theta)
  c['router_aux_loss_coef'] = given.get('router_aux_loss_coef', family.aux)
  for k, v in c.items():
    if k in family.only:
      valid = family.only[k]
      if v not in valid or isinstance(v, bool) != isinstance(valid[0], bool):
        wrong.append(f'{k}={v!r} (ours: {" or ".join(map(repr, valid))})')
    elif k in defaults and (wanted := _wanted(family, k, v, defaults[k])):
      wrong.append(f'{k}={v!r} ({wanted} is wanted)')
  folders.refuse(f'{family.name}: cannot represent', wrong)
  rope.read(c)
  folders.refuse(f'{family.name}: cannot represent', family.check(c))
  return c


def _wanted(family: Family, name: str, value: Any, default: Any) -> str:
  """What a field must be instead; '' where nothing is wrong."""
  if value is None and (name in family.optional or default is None):
    return ''
  if name in family.free:
    return ''
  if isinstance(default, bool):
    return '' if isinstance(value, bool) else 'true or false'
  if isinstance(default, float):
    fits = type(value) in (int, float) and math.isfinite(value)
    return '' if fits else 'a finite number'
  if isinstance(default, tuple):
    return '' if isinstance(value, list | tuple) else 'a list'
  if isinstance(default, str):
    return '' if isinstance(value, str) else 'a string'
  least = 0 if name in family.from_0 else 1
  fits = type(value) is int and least <= value <= _LARGEST
  return '' if fits else f'a whole number from {least}'


# Our call strings.


def attention(kind: str = 'full', **given: Any) -> str:
  """A kind of attention; what is as by default is left out."""
  defaults = {
    'kv_heads': 0,
    'bias': 'none',
    'qk_norm': False,
    'clip': 0.0,
    'sinks': False,
    'scale': 0.0,
    'q_rank': 0,
    'temperature': (),
  }
  return rope.call(
    kind, **{k: v for k, v in given.items() if v != defaults.get(k)}
  )


def cycle(kinds: Sequence[str]) -> tuple[str, ...]:
  """The shortest list that gives these kinds when it is gone round."""
  for n in range(1, len(kinds) + 1):
    if all(k == kinds[i % n] for i, k in enumerate(kinds)):
      return tuple(kinds[:n])
  return tuple(kinds)


def sparse(layers: Sequence[bool]) -> str:
  """`moe.layers`."""
  found = [i for i, s in enumerate(layers) if s]
  if not found or len(found) == len(layers):
    return 'all' if found else 'none'
  first = found[0]
  if found == list(range(first, len(layers))):
    return f'from_{first}'
  if all(s == (i % (first + 1) == first) for i, s in enumerate(layers)):
    return f'every_{first + 1}'
  return ','.join(map(str, found))


class Kinds:
  """What the call strings of our config say, for `to_config`."""

  def __init__(self, model: Any, moe: Any, sparse_layers: Sequence[bool]):
    """Raises ValueError for a string that is none."""
    self.sparse = tuple(sparse_layers)
    n = model.num_layers
    parsed = [registry.parse(s) for s in model.attention]
    self.attentions = [parsed[i % len(parsed)] for i in range(n)]
    self.ffn = registry.parse(model.ffn)[1]
    self.experts = registry.parse(moe.experts)[1]
    self.router = registry.parse(moe.router)[1]

  @property
  def attention(self) -> Config:
    """Arguments of the first layer's."""
    return self.attentions[0][1]

  def of(self, argument: str, default: Any) -> Any:
    return self.attention.get(argument, default)

  def act(self) -> str:
    """Theirs, of the experts."""
    ours = self.experts.get('activation', 'silu')
    return next(k for k, v in ACTIVATIONS.items() if v == ours)


def model_fields(c: Config, **own: Any) -> Config:
  """Of `model`, what is alike in decoders with gated FFNs."""
  return {
    'kind': 'decoder',
    'vocab_size': c['vocab_size'],
    'num_layers': c['num_hidden_layers'],
    'd_model': c['hidden_size'],
    'num_heads': c['num_attention_heads'],
    'd_head': head_dim(c),
    'd_ff': c['intermediate_size'],
    'ffn': rope.call('glu', activation=ACTIVATIONS[c['hidden_act']]),
    'positions': rope.positions(c),
    'qk_norm': False,
    'norm_scale': True,
    'norm_eps': float(c['rms_norm_eps']),
    'norm_at': 'input',
    'tied_head': c['tie_word_embeddings'],
    'embedding_scale': 1.0,
    'residual_scale': 1.0,
    'logit_scale': 1.0,
    'dropout': 0.0,
  } | own


def moe_fields(c: Config, E: int, F: int, router: str, **own: Any) -> Config:
  """Of `moe`, what is alike; without drops."""
  return {
    'layers': 'all',
    'num_experts': E,
    'd_ff': F,
    'experts': rope.call('glu', activation=ACTIVATIONS[c['hidden_act']]),
    'router': router,
    'balance': aux_loss(c),
    'capacity_factor': 0.0,
    'eval_capacity_factor': 0.0,
    'extra_ffn': 'none',
    'dense_branch': 'none',
    'local_experts': (),
    'share_experts': 1,
    'route_padding': False,
  } | own


def aux_loss(c: Config) -> tuple[str, ...]:
  """`moe.balance`: their auxiliary loss counts a token's experts as a union."""
  weight = c['router_aux_loss_coef'] or 0.0
  return (rope.call('switch_loss', weight=float(weight), count='union'),)


def head_dim(c: Config) -> int:
  return c.get('head_dim') or c['hidden_size'] // c['num_attention_heads']


def kv_heads(c: Config) -> int:
  return c.get('num_key_value_heads') or c['num_attention_heads']


def check_heads(c: Config) -> list[str]:
  """What of the heads does not divide."""
  wrong, H = [], c['num_attention_heads']
  if H % kv_heads(c):
    wrong.append(f'num_key_value_heads={kv_heads(c)} of {H} heads')
  if not c.get('head_dim') and c['hidden_size'] % H:
    wrong.append(f'hidden_size={c["hidden_size"]} of {H} heads')
  if c['hidden_act'] not in ACTIVATIONS:
    valid = ', '.join(ACTIVATIONS)
    wrong.append(f'hidden_act={c["hidden_act"]!r} (ours: {valid})')
  return wrong


def sizes_config(model: Any, moe: Any, kinds: Kinds) -> Config:
  """Of a config.json, what `model_fields` reads."""
  return {
    'vocab_size': model.vocab_size,
    'hidden_size': model.d_model,
    'intermediate_size': model.d_ff,
    'num_hidden_layers': model.num_layers,
    'num_attention_heads': model.num_heads,
    'hidden_act': kinds.act(),
    'rms_norm_eps': model.norm_eps,
    'tie_word_embeddings': model.tied_head,
    'num_experts_per_tok': kinds.router['k'],
    **rope.config(model.positions),
  }


def sparse_by_step(c: Config) -> tuple[bool, ...]:
  """By layer, from `decoder_sparse_step` and `mlp_only_layers` (Qwen)."""
  dense, step = c['mlp_only_layers'] or (), c['decoder_sparse_step']
  return tuple(
    i not in dense and (i + 1) % step == 0
    for i in range(c['num_hidden_layers'])
  )
