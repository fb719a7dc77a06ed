"""A config.json with what it leaves out, checked field by field."""

import math
from typing import Any

from moe_jax.conversion import folders, rope

Config = dict[str, Any]
_LARGEST, _LAYERS = 1 << 40, 1 << 16
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


def filled(family: Any, config: Config) -> Config:
  """config.json with defaults filled in; fields by their first names.

  Args:
    family: a `families.base.Family`.
    config: as it was read.

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
  defaults['router_aux_loss_coef'] = family.aux
  for k, v in given.items():
    known = k in defaults or k in BOOKKEEPING or k in family.ignored
    if not known and v is not None:
      wrong.append(f'{k}={v!r} (not known to {family.name})')
  c = {k: given.get(k, v) for k, v in defaults.items()}
  c |= {k: given[k] for k in ('rope_scaling', 'rope_parameters') if k in given}
  c['rope_theta'] = given.get('rope_theta', family.theta)
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


def _wanted(family: Any, name: str, value: Any, default: Any) -> str:
  """What a field must be instead; '' where nothing is wrong."""
  optional = *family.optional, 'router_aux_loss_coef'
  if value is None and (name in optional or default is None):
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
  most = _LAYERS if name == family.layers else _LARGEST
  if type(value) is int and value > most:
    return f'a whole number up to {most}'
  fits = type(value) is int and value >= least
  return '' if fits else f'a whole number from {least}'
