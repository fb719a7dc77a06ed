"""Layers behind the last, which predict further tokens, and are left out.

Multi-token prediction (DeepSeek-V3, arXiv:2412.19437, section 2.2): on the hub
they have the numbers from `num_hidden_layers` on; a model that only runs
forward has none of them.
"""

import re
from collections.abc import Mapping
from typing import Any


def skipped(name: str, c: Mapping[str, Any]) -> str:
  """What a tensor of theirs is; '' of others."""
  found = re.match(r'model\.layers\.(\d+)\.', name)
  first = c['num_hidden_layers']
  last = first + c['num_nextn_predict_layers']
  if found and first <= int(found[1]) < last:
    return 'layers that predict further tokens'
  return ''


def written(config: dict[str, Any]) -> dict[str, Any]:
  """A config.json that says of a folder that it has none."""
  config.pop('num_mtp_layers', None)
  return config | {'num_nextn_predict_layers': 0}
