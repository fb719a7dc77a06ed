"""Counts the parameters of published open models, on torch's meta device.

  python -m tests.golden.make_published_configs [--check]

Writes `published_configs.json`: for each model its config.json (the fields
that decide its shape and its computation), how many parameters transformers
gives it, and how many entries of the bias that balances, which is a buffer.
The fields are as recalled from the published files: no file was read here.
"""

import json
import pathlib
import sys
import tempfile

import torch
import transformers

from tests.golden import published_fields

PATH = pathlib.Path(__file__).parent / 'published_configs.json'


def count(config: dict) -> dict[str, int]:
  with tempfile.TemporaryDirectory() as folder:
    (pathlib.Path(folder) / 'config.json').write_text(json.dumps(config))
    theirs = transformers.AutoConfig.from_pretrained(folder)
  with torch.device('meta'):
    model = transformers.AutoModelForCausalLM.from_config(theirs)
  model.tie_weights()
  # A tied head is one parameter, named twice.
  parameters = {id(p): p.numel() for _, p in model.named_parameters()}
  biases = [b.numel() for n, b in model.named_buffers() if 'e_score' in n]
  table = model.get_input_embeddings().weight.numel()
  return {
    'parameters': sum(parameters.values()),
    'input_embedding': table,
    'bias_entries': sum(biases),
  }


def main():
  transformers.logging.set_verbosity_error()
  out = {
    'versions': f'torch=={torch.__version__} '
    f'transformers=={transformers.__version__}',
    'models': {
      name: {'config': config} | count(config)
      for name, config in published_fields.CONFIGS.items()
    },
  }
  for name, found in out['models'].items():
    total = found['parameters'] + found['bias_entries']
    print(f'{name}: {total:,}')
    assert total == published_fields.TOTALS[name], name
  if sys.argv[1:] == ['--check']:
    assert json.loads(PATH.read_text())['models'] == out['models']
    return
  PATH.write_text(json.dumps(out, indent=1) + '\n')


if __name__ == '__main__':
  main()
