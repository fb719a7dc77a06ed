"""The tokenizer of a folder, as a call string of `data.tokenizers`.

Text begins with a start symbol where the model has one, and otherwise with the
symbol that ends a document, which in training stood before the next one: from
it a document's first token is predicted. Nothing else is added to a text.
"""

import json
import pathlib
from typing import Any

from moe_jax import json_files
from moe_jax.conversion import folders, hub, rope
from moe_jax.errors import UserError

FILE = 'tokenizer.json'


def spec(directory: folders.Path, found: hub.Folder) -> str:
  """`data.tokenizer`.

  Raises:
    ValueError: more tokens than rows of the embedding table, or symbols that
      no token has.
  """
  path = pathlib.Path(directory) / FILE
  rows = found.config['vocab_size']
  first, last = _symbols(pathlib.Path(directory), found)
  if not path.is_file():
    return rope.call('hf', size=rows, sentinels=0)
  by_id = _tokens(path)
  size = max(by_id, default=0) + 1
  if size > rows:
    raise UserError(f'{path} has {size} tokens, but vocab_size is {rows}')
  last = last if last in by_id else None
  first = first if first in by_id else last
  last = first if last is None else last
  if last is None:
    raise UserError(
      f'{path} has no token with the id of an end or a start symbol'
    )
  return rope.call(
    'hf', pad=by_id[first], eos=by_id[last], sentinels=0, size=size
  )


def described(directory: folders.Path, found: hub.Folder) -> list[str]:
  """Lines for people."""
  path = pathlib.Path(directory) / FILE
  if path.is_file():
    return []
  return [f'no {FILE}: the model reads token ids, but no text']


def _symbols(directory: pathlib.Path, found: hub.Folder):
  """(id of the start symbol or None, id of the end symbol or None)."""
  said = found.family.inner(found.said)
  start, end = found.family.symbols
  start = said.get('bos_token_id', start)
  end = said.get('eos_token_id', end)
  end = end[0] if isinstance(end, list) and end else end
  return (v if type(v) is int else None for v in (start, end))


def _tokens(path: pathlib.Path) -> dict[int, str]:
  """{id: token} of a tokenizer.json, read as JSON."""
  content = json_files.read(path)
  model = content.get('model')
  vocab: Any = model.get('vocab') if isinstance(model, dict) else None
  if isinstance(vocab, dict):
    found = {i: t for t, i in vocab.items()}
  elif isinstance(vocab, list):  # of Unigram: tokens and their scores
    found = {i: v[0] for i, v in enumerate(vocab) if isinstance(v, list) and v}
  else:
    raise UserError(f'{path} has no vocabulary')
  for token in content.get('added_tokens') or ():
    found[token.get('id')] = token.get('content')
  wrong = [k for k, v in found.items() if type(k) is not int or k < 0]
  wrong += [v for v in found.values() if not isinstance(v, str)]
  if wrong:
    raise UserError(f'{path}: {json.dumps(wrong[0])} in its vocabulary')
  return found
