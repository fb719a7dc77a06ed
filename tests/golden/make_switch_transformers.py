"""Freezes Hugging Face's Switch Transformer: whole models and one layer.

  python -m tests.golden.make_switch_transformers [--check]

What of transformers 5.23.0 is matched, and what is not:

  * capacity is an integer and counts by sequence: a group is one row;
  * a dropped token's FFN gives 0 (earlier versions returned p * LN(x));
  * padding is routed and takes seats; here it stands at the end of its row,
    where it takes none from a token;
  * jitter and dropout are off (model.eval(), or rates of 0 in the layer);
  * losses are taken by layer with its functions: the model would concatenate
    the logits of its layers first, where they cancel;
  * untied, the three embedding tables are apart: here they are made equal.

Every size differs from the others, so that no transposed matrix fits.
"""

import json
import tempfile

import safetensors.numpy
import torch
import transformers
from transformers.models.switch_transformers import (
  modeling_switch_transformers as theirs,
)

from tests.golden import freeze

SEED = 0
CONFIG = dict(
  vocab_size=40,
  d_model=16,
  d_kv=6,
  num_heads=2,
  d_ff=20,
  num_layers=4,
  num_decoder_layers=4,
  num_experts=4,
  # MoE in layers 1 and 3 of the encoder, in layer 1 alone of the decoder.
  num_sparse_encoder_layers=2,
  num_sparse_decoder_layers=1,
)
ENCODER = (3, 10)
DECODER = (3, 7)
# Parameters whose gradients are kept.
PROBED = (
  'shared.weight',
  'encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight',
  'encoder.block.1.layer.1.mlp.router.classifier.weight',
  'encoder.block.3.layer.1.mlp.experts.expert_2.wo.weight',
  'decoder.block.1.layer.2.mlp.router.classifier.weight',
  'decoder.block.1.layer.2.mlp.experts.expert_1.wi.weight',
  'decoder.block.3.layer.1.EncDecAttention.q.weight',
)


def weights(shape):
  """A fixed scalar of any output: its sum with these weights."""
  n = torch.Size(shape).numel()
  return torch.cos(torch.arange(n, dtype=torch.float32)).reshape(shape)


def batch():
  inputs = torch.randint(3, CONFIG['vocab_size'], ENCODER)
  mask = torch.ones(ENCODER, dtype=torch.long)
  mask[1, 7:] = 0
  mask[2, 4:] = 0
  outputs = torch.randint(3, CONFIG['vocab_size'], DECODER)
  outputs[:, 0] = 0
  return dict(
    input_ids=inputs * mask, attention_mask=mask, decoder_input_ids=outputs
  )


def clear(router_logits) -> float:
  """The smallest lead of a first choice over the second, in logits."""
  best = torch.cat([v.flatten(0, 1) for v in router_logits]).topk(2).values
  return (best[:, 0] - best[:, 1]).min().item()


def seats(router_logits, capacity) -> int:
  """Tokens that find their expert full."""
  dropped = 0
  for logits in router_logits:
    hot = torch.nn.functional.one_hot(logits.argmax(-1), logits.shape[-1])
    dropped += (hot.cumsum(1) * hot > capacity).sum().item()
  return dropped


def models(out):
  torch.manual_seed(SEED)
  inputs = batch()
  out |= {f'batch/{k}': v.numpy() for k, v in inputs.items()}
  state = None
  for case, extra in (
    ('ample', dict(expert_capacity=64)),
    ('tight', dict(expert_capacity=2)),
    ('untied', dict(expert_capacity=2, tie_word_embeddings=False)),
  ):
    config = transformers.SwitchTransformersConfig(**CONFIG, **extra)
    model = transformers.SwitchTransformersForConditionalGeneration(config)
    model.eval()
    if state is None:
      state = model.state_dict()
      # T5 starts its norms at 1, where a lost scale would not show.
      for name, value in state.items():
        if 'layer_norm' in name:
          value += 0.3 * torch.randn_like(value)
    elif case == 'untied':
      state = state | {
        'lm_head.weight': torch.randn_like(state['lm_head.weight'])
      }
    model.load_state_dict(state)
    result = model(**inputs, output_router_logits=True)
    routers = result.encoder_router_logits, result.decoder_router_logits
    assert min(map(clear, routers)) > 1e-3
    dropped = [seats(r, config.expert_capacity) for r in routers]
    assert (min(dropped) > 0) == (case != 'ample'), dropped
    loss = (result.logits * weights(result.logits.shape)).sum()
    loss.backward()
    out[f'{case}/logits'] = result.logits.detach().numpy()
    if case == 'tight':
      found = dict(model.named_parameters())
      for name in PROBED:
        out[f'{case}/grads/{name}'] = found[name].grad.numpy()
    with tempfile.TemporaryDirectory() as directory:
      model.save_pretrained(directory)
      with open(f'{directory}/config.json') as f:
        out[f'{case}/config'] = json.dumps(json.load(f), sort_keys=True)
      saved = safetensors.numpy.load_file(f'{directory}/model.safetensors')
    if case == 'ample':
      out |= {f'tensors/{k}': v for k, v in saved.items()}
    # The names that Hugging Face writes; untied, only lm_head is new.
    out[f'{case}/names'] = sorted(saved)
    if case == 'untied':
      out['untied/lm_head.weight'] = saved['lm_head.weight']


def layer(out):
  config = dict(
    d_model=8,
    d_ff=12,
    num_experts=4,
    router_jitter_noise=0.0,
    dropout_rate=0.0,
  )
  torch.manual_seed(SEED)
  x = torch.randn(3, 10, 8)
  out['layer/x'] = x.numpy()
  for capacity in (2, 64):
    torch.manual_seed(SEED + 1)
    module = theirs.SwitchTransformersSparseMLP(
      transformers.SwitchTransformersConfig(**config, expert_capacity=capacity)
    )
    mine = x.clone().requires_grad_()
    y = module(mine)
    (y * weights(y.shape)).sum().backward()
    kept, _, logits = module.router(x)
    assert clear([logits]) > 1e-3
    at = f'layer/capacity_{capacity}'
    out[f'{at}/y'] = y.detach().numpy()
    out[f'{at}/kept'] = kept.sum(-1).bool().numpy()
    out[f'{at}/grads/x'] = mine.grad.numpy()
    for name, p in module.named_parameters():
      out[f'layer/params/{name}'] = p.detach().numpy()
      out[f'{at}/grads/{name}'] = p.grad.numpy()
  assert not out['layer/capacity_2/kept'].all()

  kernel = module.router.classifier.weight
  _, _, logits = module.router(x)
  values = {
    'z_loss': theirs.router_z_loss_func(logits),
    'switch_loss': theirs.load_balancing_loss_func(
      logits.softmax(-1), logits.argmax(-1)
    ),
  }
  for name, value in values.items():
    (grad,) = torch.autograd.grad(value, kernel, retain_graph=True)
    out[f'layer/{name}'] = value.item()
    out[f'layer/{name}_grad'] = grad.numpy()


def layouts(out):
  """Which layers are sparse, by (layers, wanted sparse layers)."""
  for layers in range(1, 7):
    for number in range(layers + 2):
      config = transformers.SwitchTransformersConfig(
        vocab_size=2,
        d_model=2,
        d_kv=1,
        num_heads=1,
        d_ff=2,
        num_experts=2,
        num_layers=layers,
        num_decoder_layers=layers,
        num_sparse_encoder_layers=number,
        num_sparse_decoder_layers=number,
      )
      model = transformers.SwitchTransformersForConditionalGeneration(config)
      kinds = [
        [block.is_sparse for block in stack.block]
        for stack in (model.encoder, model.decoder)
      ]
      assert kinds[0] == kinds[1]
      out[f'layouts/{layers}/{number}'] = kinds[0]


def make():
  out = {'seed': SEED}
  models(out)
  layer(out)
  layouts(out)
  return out


if __name__ == '__main__':
  freeze.main(
    'switch_transformers', ('torch', 'transformers', 'safetensors'), make
  )
