"""Hugging Face's SwitchTransformersForConditionalGeneration, in and out.

The format of google/switch-base-8 and its siblings (Fedus et al. 2021,
arXiv:2101.03961), as in transformers 5.23:

  theirs = switch_config.read_config(directory)
  fields = switch_config.fields(theirs, 512, 114)
  config.model.update(fields['model'])
  config.moe.update(fields['moe'])
  params = switch_transformers.load(directory)

In evaluation the logits are theirs to rounding, dropped tokens included, where
padding stands at the end of its row. Padding before the tokens takes seats in
theirs with other hidden states than ours: their padding sees the tokens.

Training differs: theirs shows the router's jitter to the experts, and computes
the balancing losses over the concatenated tokens of all layers of a stack; ours
by layer.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from flax import traverse_util

from moe_jax.conversion import folders, hugging_face, switch_config
from moe_jax.errors import UserError
from moe_jax.models import pattern


def table(config: switch_config.Config) -> list[hugging_face.Tensor]:
  """Every tensor of a checkpoint with this config."""
  V, D, H = config['vocab_size'], config['d_model'], config['num_heads']
  vocab = ('embedding', 'table'), (V, D)
  out = [hugging_face.Tensor('shared.weight', (V, D), *vocab)]
  if not config['tie_word_embeddings']:
    head = ('embedding', 'head'), (D, V)
    out.append(
      hugging_face.Tensor('lm_head.weight', (V, D), *head, transpose=True)
    )
  for stack in switch_config.STACKS:
    sparse = switch_config.sparse_layers(config, stack)
    parts = pattern.split(sparse)
    norm = (stack, 'final_norm', 'scale'), (D,)
    bias = (stack, 'relative', 'table'), (32, H)
    name = f'{stack}.block.0.layer.0.SelfAttention.relative_attention_bias'
    out += [
      hugging_face.Tensor(f'{stack}.final_layer_norm.weight', (D,), *norm),
      hugging_face.Tensor(f'{name}.weight', (32, H), *bias),
    ]
    for l, (module, block, repeat) in enumerate(pattern.places(parts)):
      at, lead, index = (stack, module), (), ()
      if block is not None:
        at, lead, index = (*at, block), (parts.repeats,), (repeat,)
      for name, shape, path, leaf, expert in _block(config, stack, sparse[l]):
        out.append(
          hugging_face.Tensor(
            f'{stack}.block.{l}.layer.{name}.weight',
            shape,
            (*at, *path.split('/')),
            (*lead, *leaf),
            (*index, *expert),
            transpose=len(shape) > 1,
          )
        )
  return out


def _block(
  config: switch_config.Config, stack: str, sparse: bool
) -> Iterator[tuple]:
  """(name, shape, path, leaf, expert's index) of a block's tensors."""
  D, F, H, J = (config[k] for k in ('d_model', 'd_ff', 'num_heads', 'd_kv'))
  E = config['num_experts']
  cross = stack == 'decoder'
  attentions = [('0.SelfAttention', 'attention')]
  if cross:
    attentions.append(('1.EncDecAttention', 'cross'))
  for name, ours in attentions:
    yield f'{name[0]}.layer_norm', (D,), f'{ours}_norm/scale', (D,), ()
    for letter, kernel in (('q', 'query'), ('k', 'key'), ('v', 'value')):
      leaf = D, H, J
      yield f'{name}.{letter}', (H * J, D), f'{ours}/{kernel}', leaf, ()
    yield f'{name}.o', (D, H * J), f'{ours}/out', (H, J, D), ()
  last = f'{len(attentions)}'
  norm = 'moe_norm/scale' if sparse else 'ffn_norm/scale'
  yield f'{last}.layer_norm', (D,), norm, (D,), ()
  mlp = f'{last}.mlp'
  if not sparse:
    yield f'{mlp}.wi', (F, D), 'ffn/ffn/wi', (D, F), ()
    yield f'{mlp}.wo', (D, F), 'ffn/ffn/wo', (F, D), ()
    return
  yield f'{mlp}.router.classifier', (E, D), 'moe/router/kernel', (D, E), ()
  for e in range(E):
    name = f'{mlp}.experts.expert_{e}'
    yield f'{name}.wi', (F, D), 'moe/experts/wi', (E, D, F), (e,)
    yield f'{name}.wo', (D, F), 'moe/experts/wo', (E, F, D), (e,)


def copies(config: switch_config.Config) -> dict[str, str]:
  """Tensors that may be stored beside `table`'s, and what each is a copy of.

  Ours has one embedding for both stacks. Theirs has, with
  tie_word_embeddings=False, one for each and a third: what is read must agree,
  and what is written repeats it, or transformers would draw new ones.
  """
  names = [f'{stack}.embed_tokens.weight' for stack in switch_config.STACKS]
  if config['tie_word_embeddings']:
    names.append('lm_head.weight')
  return dict.fromkeys(names, 'shared.weight')


def load(directory: hugging_face.Path) -> dict[str, Any]:
  """The checkpoint as our parameters, float32, `model.init(...)['params']`.

  Raises:
    ValueError: as `read_config` and `hugging_face.load`.
  """
  config = switch_config.read_config(directory)
  # Before a table of them is made; layers first, whose kinds are listed.
  found = folders.count(directory)
  for name in ('num_layers', 'num_experts'):
    if config[name] > found and (name == 'num_layers' or _is_sparse(config)):
      raise UserError(
        f'{directory}: {name} is {config[name]}, but there are {found} tensors'
      )
  return hugging_face.load(directory, table(config), copies(config))


def _is_sparse(config: switch_config.Config) -> bool:
  return any(
    any(switch_config.sparse_layers(config, s)) for s in switch_config.STACKS
  )


def save(
  directory: hugging_face.Path,
  params: Mapping[str, Any],
  config: Any,
  dtype: str = 'float32',
) -> None:
  """Writes a checkpoint that transformers' `from_pretrained` reads.

  Args:
    directory: new or empty.
    params: ours, unboxed.
    config: ours, with fields `model` and `moe`.
    dtype: of the tensors; 'bfloat16' and 'float16' round.

  Raises:
    ValueError: a config that theirs cannot represent, parameters that do not
      fit it, or a directory with files in it.
  """
  leaves = traverse_util.flatten_dict(params)
  table_VD = leaves.get(('embedding', 'table'))
  if table_VD is None:
    raise UserError(f'params has no embedding/table; keys: {", ".join(params)}')
  theirs = switch_config.config_from(config, len(table_VD)) | {'dtype': dtype}
  tensors = hugging_face.export(params, table(theirs), dtype)
  if not theirs['tie_word_embeddings']:
    for name, of in copies(theirs).items():
      tensors[name] = tensors[of]
  hugging_face.save(directory, tensors, theirs)
