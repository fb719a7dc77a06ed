"""A run's config.json as a config: `--config=RUN/config.json` is short for it.

  python -m experiments.train --config=RUN/config.json --workdir=NEW \\
      --config.train.init_from=RUN

`arg` is the path. Fields that the file does not have are as in `base.py`.
"""

import json

from configs import base


def get_config(arg=''):
  """The config of the file."""
  config = base.get_config()
  if arg:
    with open(arg, 'rb') as f:
      try:
        said = json.load(f)
      except (ValueError, RecursionError) as e:
        raise ValueError(f'{arg}: broken JSON: {e}') from None
    _set(config, said, arg, '')
  return config.lock()


def _set(config, said, path, group):
  if not isinstance(said, dict):
    raise ValueError(f'{path}: {group or "it"} is no JSON object')
  for name, value in said.items():
    where = f'{group}{name}'
    if name not in config and group != 'moe.decoder.':
      raise ValueError(f'{path}: there is no field {where!r}')
    if hasattr(config.get(name), 'items'):
      _set(config[name], value, path, f'{where}.')
      continue
    value = tuple(value) if isinstance(value, list) else value
    old = config.get(name)
    if isinstance(old, float) and type(value) is int:
      value = float(value)
    if old is not None and type(value) is not type(old):
      kind = type(old).__name__
      raise ValueError(f'{path}: {where}={value!r}; the type {kind} is wanted')
    config[name] = value
