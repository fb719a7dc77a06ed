"""What is done to files: bytes changed anywhere, values of JSON by worse ones.

Each mutation follows from a seed, so that one found once is found again.
"""

import copy
import json
import random
import re

# What a reader may not expect, of each of JSON's types.
VALUES = (
  *(None, True, False, 0, 1, -1, 2, 2**31, 2**63, -(2**63), 10**30, 10**400),
  *(0.5, -0.5, 1e-300, 1e300, float('nan'), float('inf'), float('-inf')),
  *('', 'x', '..', '../x', '/dev/zero', 'a\0b', '\ud800', 'a/b', 'x' * 300),
  *('os.system', 'switch(**{})', '9' * 20, '1.5', 'null'),
  *([], {}, [[]], [0], [1, 'x'], [None], [[1], 2], {'x': 1}, {'': {}}),
)
_NUMBERS = (b'0', b'-1', b'1e999', b'9' * 30, b'99', b'1.5', b'', b'NaN', b'[')


def mutated(data: bytes, rng: random.Random) -> bytes:
  """Other bytes: of a file of JSON, one value or one a line, or of any."""
  for _ in range(rng.choice((1, 1, 1, 2, 4))):
    if rng.random() < 0.6 and data[:1] in (b'{', b'['):
      new = _json(data, rng)
    elif rng.random() < 0.3 and len(data) > 8 and data[8:9] == b'{':
      new = _headed(data, rng)
    else:
      new = _bytes(data, rng)
    data = new
  return data


def _bytes(data: bytes, rng: random.Random) -> bytes:
  at = rng.randrange(len(data) + 1)
  end = min(len(data), at + rng.choice((1, 1, 2, 8, 64, 1000)))
  kind = rng.randrange(9)
  if kind == 0:  # a bit
    at = min(at, len(data) - 1)
    if at < 0:
      return b'x'
    flipped = data[at] ^ (1 << rng.randrange(8))
    return data[:at] + bytes([flipped]) + data[at + 1 :]
  if kind == 1:
    return data[:at]
  if kind == 2:
    return data[:at] + data[end:]
  if kind == 3:
    return data[:at] + data[at:end] * 2 + data[end:]
  if kind == 4:
    noise = rng.randbytes(rng.choice((1, 2, 8, 64)))
    return data[:at] + noise + data[at:]
  if kind == 5:
    extreme = rng.choice((b'\0', b'\xff', b'\x7f', b'\x80'))
    return data[:at] + extreme * (end - at) + data[end:]
  if kind == 6:  # a number, where there are digits
    found = list(re.finditer(rb'\d+', data[: 1 << 16]))
    if not found:
      return data[:at]
    m = rng.choice(found)
    return data[: m.start()] + rng.choice(_NUMBERS) + data[m.end() :]
  if kind == 7:
    many = rng.choice((b'[', b'{"a":', b'"', b'\n', b'(', b'-', b'9'))
    return data[:at] + many * rng.choice((1, 100, 100_000)) + data[at:]
  return rng.choice((b'', b'\n', b'{}', b'[]', b'null', b'0', b'{', data * 2))


def _json(data: bytes, rng: random.Random) -> bytes:
  """A value in it changed, moved, copied or left out."""
  lines = data.split(b'\n')
  many = len(lines) > 1 and lines[0][-1:] in (b'}', b']')
  i = rng.randrange(len(lines)) if many else 0
  try:
    value = json.loads(lines[i] if many else data)
  except (ValueError, RecursionError):
    return _bytes(data, rng)
  if not isinstance(value, dict | list):
    return _bytes(data, rng)
  text = json.dumps(_changed(value, rng)).encode()
  return b'\n'.join([*lines[:i], text, *lines[i + 1 :]]) if many else text


def _changed(value, rng: random.Random):
  value = copy.deepcopy(value)
  places = _places(value)
  if not places:
    return rng.choice(VALUES)
  where, key = rng.choice(places)
  kind = rng.randrange(8)
  if kind == 0:
    del where[key]
  elif kind == 1:  # another one's
    other, name = rng.choice(places)
    where[key] = copy.deepcopy(other[name])
  elif kind == 2 and isinstance(where, dict):
    where[rng.choice(('', 'x', 'a\0b', '../x', 'a.b', key + 'x'))] = where[key]
  elif kind == 3 and isinstance(where, list):
    where.insert(key, where[key])
  elif kind == 4:
    where[key] = [where[key]]
  elif kind == 5 and not isinstance(where[key], dict | list):
    where[key] = str(where[key])
  else:
    where[key] = copy.deepcopy(rng.choice(VALUES))
  return value


def _places(value) -> list[tuple]:
  """(container, key) of all values inside, whatever their depth."""
  found, left = [], [value]
  while left:
    at = left.pop()
    pairs = at.items() if isinstance(at, dict) else enumerate(at)
    for key, inner in list(pairs):
      found.append((at, key))
      if isinstance(inner, dict | list):
        left.append(inner)
  return found


def _headed(data: bytes, rng: random.Random) -> bytes:
  """JSON after its length in eight bytes, as safetensors has it."""
  size = int.from_bytes(data[:8], 'little')
  try:
    header = json.loads(data[8 : 8 + size])
  except (ValueError, RecursionError):
    return _bytes(data, rng)
  if not isinstance(header, dict):
    return _bytes(data, rng)
  text = json.dumps(_changed(header, rng)).encode()
  return len(text).to_bytes(8, 'little') + text + data[8 + size :]
