"""What a family of open models is, and what most of them share.

A family is one file: what its config.json may say, which fields of ours make
the same model, and which tensor is which part of our parameters. A field that
the file does not know, or a value that it does not handle, is an error that
names it. What a config.json leaves out is the default of the class in
transformers 5.24.0.
"""

import abc
from collections.abc import Mapping, Sequence
from typing import Any

from moe_jax import registry
from moe_jax.conversion import filling, predicting, rope, tensors
from moe_jax.errors import UserError
from moe_jax.models import pattern

Config = dict[str, Any]
# What fields say of training alone, in which a run may differ.
_TRAINING = ('dropout', 'balance', 'capacity_factor', 'eval_capacity_factor')
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
    ignored: fields that change no number, beside `filling.BOOKKEEPING`.
    aliases: {other name: field}.
    flags: fields of true or false that early files give as a number.
    theta, aux: the defaults of rope_theta and router_aux_loss_coef.
    scaling: the default of rope_scaling.
    symbols: the class's ids of start and end of text, or None.
    layers: the field that counts layers.
    each: that of experts, where each has tensors of its own on the hub.
    tied: {tensor that may be there where the head is tied: whose copy it is}.
    again: the same of any folder; stored where the head is not tied, or
      transformers would draw new ones.
    nested: the field of a folder of several models in which this one's config
      is, and what begins the names of its tensors.
    beside: {what it is: beginnings of names} of what is left out of such.
    predicts: whether layers behind the last predict further tokens.
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
  flags: tuple[str, ...] = ()
  theta = 10_000.0
  aux = 0.001
  scaling: Mapping[str, Any] | None = None
  symbols: tuple[int | None, int | None] = (None, None)
  layers = 'num_hidden_layers'
  each = ''
  tied: Mapping[str, str] = {'lm_head.weight': 'model.embed_tokens.weight'}
  again: Mapping[str, str] = {}
  nested = ('', '')
  beside: Mapping[str, tuple[str, ...]] = {}
  predicts = False

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
    """config.json of our model; what it cannot say, `unlike` will find.

    Args:
      model, moe: of our config.
      kinds: what their call strings say.

    Raises:
      KeyError, ValueError: it is none of this family.
    """

  @abc.abstractmethod
  def unlike(self, c: Config, config: Any) -> list[str]:
    """In what our config differs from theirs, but for training."""

  def read(self, config: Config) -> Config:
    """config.json with defaults filled in; a ValueError names what is wrong."""
    return filling.filled(self, config)

  def inner(self, config: Config) -> Config:
    """The part of config.json that is of the language model."""
    field, prefix = self.nested
    if field in config:
      if not isinstance(config[field], dict):
        raise UserError(f'{field}={config[field]!r} is no object')
      config = config[field] | {'prefix': prefix}
    said = config.get('rope_scaling') or config.get('rope_parameters')
    if self.scaling and not said:
      config = config | {'rope_scaling': dict(self.scaling)}
    numbers = [k for k in self.flags if type(config.get(k)) is int]
    return config | {k: config[k] > 0 for k in numbers}

  def written(self, config: Config) -> Config:
    """A config.json that was read, as it is written again."""
    own = {'model_type': self.model_types[0]} | self.inner(config)
    for name in ('quantization_config', 'prefix'):
      own.pop(name, None)
    return predicting.written(own) if self.predicts else own

  def skipped(self, name: str, c: Config) -> str:
    """What a tensor is that is left out on purpose; '' of others."""
    for why, beginnings in self.beside.items():
      if c.get('prefix') and name.startswith(beginnings):
        return why
    return predicting.skipped(name, c) if self.predicts else ''

  def copies(self, c: Config) -> dict[str, str]:
    """Tensors that may be there beside `table`'s, and what each must equal."""
    prefix = c.get('prefix', '')
    found = self.again | (self.tied if c['tie_word_embeddings'] else {})
    return {prefix + k: prefix + v for k, v in found.items()}

  def stored_copies(self, c: Config) -> dict[str, str]:
    """Of `copies`, those that are written."""
    return {} if c['tie_word_embeddings'] else self.copies(c)

  @property
  def name(self) -> str:
    return type(self).__module__.rpartition('.')[2]


class Decoder(Family):
  """A family of whose models `fields` says all."""

  def unlike(self, c, config):
    return unlike(self.fields(c), config)


def unlike(fields: dict[str, Config], config: Any) -> list[str]:
  """In what our config differs from fields, but for training."""
  wrong = []
  for group, own in fields.items():
    for name, theirs in own.items():
      ours = config[group][name]
      if name not in _TRAINING and _plain(ours) != _plain(theirs):
        wrong.append(f'{group}.{name}={ours!r} (theirs: {theirs!r})')
  return wrong


def _plain(value: Any) -> Any:
  """Call strings by name and arguments, whatever their order."""
  if isinstance(value, tuple | list):
    return [_plain(v) for v in value]
  if isinstance(value, str) and '(' in value:
    name, keywords = registry.parse(value)
    return name, {k: _plain(v) for k, v in keywords.items()}
  return value


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

  def __init__(self, config: Any):
    """Raises ValueError for a string that is none."""
    self.config, model, moe = config, config.model, config.moe
    n = model.num_layers
    self.sparse = pattern.sparse_layers(moe.layers, n)
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


def bias(c: Config) -> str:
  """Of the attention, as our call string has it."""
  return 'all' if c['attention_bias'] else 'none'


def top_k(c: Config) -> str:
  """Our router: a softmax over all, the chosen renormalised or not."""
  k, renormalize = c['num_experts_per_tok'], c['norm_topk_prob']
  return rope.call('top_k', k=k, renormalize=renormalize)


def other_layers(c: Config) -> list[str]:
  """What of `layer_types` is not of full attention."""
  kinds = c['layer_types'] or ()
  return [f'layer_types: {k!r}' for k in kinds if k != 'full_attention']


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
    'num_key_value_heads': kinds.of('kv_heads', 0) or model.num_heads,
    'hidden_act': kinds.act(),
    'rms_norm_eps': model.norm_eps,
    'tie_word_embeddings': model.tied_head,
    'num_experts_per_tok': kinds.router['k'],
    **rope.config(model.positions),
  }
