"""What of a folder is quantised, by `quantization_config` of its config.json.

Tensors come out as the numbers that they stand for, in float32. Our checkpoints
hold those, and what is written of them is not quantised again.
"""

from typing import Any

from moe_jax import registry
from moe_jax.conversion import folders, fp8, mxfp4
from moe_jax.errors import UserError

METHODS = ('fp8', 'mxfp4')
# What says nothing of how the weights are stored.
_IGNORED = (
  'quant_method',
  'activation_scheme',
  'modules_to_not_convert',
  'dequantize',
)
# What has one value here; a scale that is a power of two is a number as well.
_ONLY = {
  'fp8': {'fmt': ('e4m3',), 'scale_fmt': (None, 'ue8m0', 'float')},
  'mxfp4': {},
}


def unpacked(
  config: dict[str, Any], found: dict[str, folders.Stored]
) -> dict[str, folders.Stored]:
  """The tensors of a folder, none of them quantised.

  Args:
    config: of its config.json.
    found: its tensors.

  Raises:
    ValueError: a method that is not known, with those that are; a field of
      another value; tensors that do not fit.
  """
  own = config.get('quantization_config')
  if own is None:
    return found
  if not isinstance(own, dict):
    raise UserError(f'quantization_config={own!r} is no object')
  method = own.get('quant_method')
  if method not in METHODS:
    raise registry.unknown('quant_method', str(method), METHODS)
  block = own.get('weight_block_size', list(fp8.BLOCK))
  wrong = []
  for name, value in own.items():
    valid = _ONLY[method].get(name, () if name not in _IGNORED else (value,))
    if method == 'fp8' and name == 'weight_block_size':
      valid = (value,) if _is_block(value) else ('[128, 128]',)
    if value not in valid:
      wrong.append(f'{name}={value!r}')
  folders.refuse(f'quantization_config of {method}: cannot read', wrong)
  if method == 'fp8':
    return fp8.unpacked(found, tuple(block))
  return mxfp4.unpacked(found)


def _is_block(value: Any) -> bool:
  return (
    isinstance(value, list)
    and len(value) == 2
    and all(type(n) is int and 0 < n < 1 << 20 for n in value)
  )
