"""Rotary positions: what a config.json says of them, and our call string.

Two forms, `rope_theta` with `rope_scaling` of older files and `rope_parameters`
of transformers 5; the types of scaling are those of its
`modeling_rope_utils.py`.
"""

import math
from typing import Any

from moe_jax import registry
from moe_jax.conversion import folders
from moe_jax.errors import UserError

Config = dict[str, Any]
_ROPE_KEYS = {
  'default': (),
  'linear': ('factor',),
  'llama3': ('factor', 'low_freq_factor', 'high_freq_factor'),
  'yarn': (
    *('factor', 'beta_fast', 'beta_slow', 'truncate', 'attention_factor'),
    *('mscale', 'mscale_all_dim'),
  ),
}
_ORIGINAL = 'original_max_position_embeddings'
_SHARE = 'partial_rotary_factor'


def read(c: Config) -> Config:
  """What a config says of positions, in either form, by their names in 5.x.

  `rope_scaling`, of older files, goes before `rope_parameters`.

  Raises:
    ValueError: another type of scaling, or a field of it that is not known.
  """
  own = c.get('rope_scaling') or c.get('rope_parameters') or {}
  if not isinstance(own, dict):
    raise UserError(f'rope_scaling={own!r} is no object')
  kind = own.get('rope_type') or own.get('type') or 'default'
  if kind not in _ROPE_KEYS:
    raise registry.unknown('rope_type', str(kind), _ROPE_KEYS)
  out = {'rope_type': kind, 'rope_theta': own.get('rope_theta')}
  out['rope_theta'] = out['rope_theta'] or c['rope_theta']
  keys = _ROPE_KEYS[kind]
  wrong = []
  for k, v in own.items():
    if k in ('rope_type', 'type', 'rope_theta', _ORIGINAL) or k in keys:
      continue
    if k == _SHARE and (v == 1.0 or _SHARE in c):
      continue
    if v is not None:
      wrong.append(f'{k}={v!r}')
  out |= {k: own[k] for k in keys if own.get(k) is not None}
  if kind in ('yarn', 'llama3'):
    out[_ORIGINAL] = own.get(_ORIGINAL) or c['max_position_embeddings']
  if _SHARE in c:
    out[_SHARE] = own.get(_SHARE) or c[_SHARE]
  needed = {'linear': keys, 'llama3': keys, 'yarn': ('factor',)}.get(kind, ())
  wrong += [f'no {k}' for k in needed if k not in out]
  for k, v in out.items():
    number = type(v) in (int, float) and math.isfinite(v) and v >= 0
    if not (k == 'rope_type' or number or (k == 'truncate' and v in (0, 1))):
      wrong.append(f'{k}={v!r}')
  folders.refuse(f'rope of type {kind}: cannot represent', wrong)
  return out


def positions(c: Config, interleaved: bool = False) -> str:
  """`model.positions`."""
  own = read(c)
  kind, scaling = own['rope_type'], ''
  if kind == 'linear':
    scaling = call('linear', factor=float(own['factor']))
  elif kind == 'llama3':
    scaling = call(
      'llama3',
      factor=float(own['factor']),
      low=float(own['low_freq_factor']),
      high=float(own['high_freq_factor']),
      original_length=int(own[_ORIGINAL]),
    )
  elif kind == 'yarn':
    scaling = call(
      'yarn',
      factor=float(own['factor']),
      original_length=int(own[_ORIGINAL]),
      **_unlike(
        beta_fast=(float(own.get('beta_fast') or 32.0), 32.0),
        beta_slow=(float(own.get('beta_slow') or 1.0), 1.0),
        truncate=(bool(own.get('truncate', True)), True),
        attention_factor=(_attention_factor(own), 0.0),
      ),
    )
  return call(
    'rope',
    base=float(own['rope_theta']),
    **_unlike(
      scaling=(scaling, ''),
      interleaved=(interleaved, False),
      share=(float(own.get(_SHARE, 1.0)), 1.0),
    ),
  )


def mscale(factor: float, weight: float = 1.0) -> float:
  """What YaRN multiplies by: 0.1 weight ln(factor) + 1."""
  return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0


def _attention_factor(own: Config) -> float:
  """0 stands for mscale(factor)."""
  if own.get('attention_factor') is not None:
    return float(own['attention_factor'])
  both = own.get('mscale'), own.get('mscale_all_dim')
  if all(both):
    return mscale(own['factor'], both[0]) / mscale(own['factor'], both[1])
  return 0.0


def config(positions_: str) -> Config:
  """`rope_theta` and `rope_scaling` of a config.json, from `positions`."""
  name, own = registry.parse(positions_)
  if name != 'rope':
    raise UserError(f'model.positions={positions_!r} (theirs: rope)')
  out: Config = {'rope_theta': own.get('base', 10_000.0)}
  if 'share' in own:
    out[_SHARE] = own['share']
  if not own.get('scaling'):
    return out
  kind, s = registry.parse(own['scaling'])
  scaling = {'rope_type': kind, 'factor': s['factor']}
  if kind != 'linear':
    scaling[_ORIGINAL] = s['original_length']
  if kind == 'llama3':
    scaling['low_freq_factor'] = s['low']
    scaling['high_freq_factor'] = s['high']
  if kind == 'yarn':
    names = ('beta_fast', 'beta_slow', 'truncate', 'attention_factor')
    scaling |= {k: s[k] for k in names if k in s}
  return out | {'rope_scaling': scaling}


def call(name: str, **given: Any) -> str:
  """`'name(k=v)'`."""
  return f'{name}({", ".join(f"{k}={v!r}" for k, v in given.items())})'


def _unlike(**given: tuple[Any, Any]) -> Config:
  """Of {name: (value, default)} the values that differ."""
  return {k: v for k, (v, default) in given.items() if v != default}
