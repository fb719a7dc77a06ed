"""Switch Transformers: an encoder and a decoder.

Fedus et al. 2021, arXiv:2101.03961; transformers' `switch_transformers`. What
the two configs cannot say to each other is in `conversion.switch_config`. Rows
are of 512 tokens, as theirs were trained: capacity is counted by row.
"""

from moe_jax.conversion import parts, switch_config
from moe_jax.conversion.families import base
from moe_jax.data import objectives

LENGTH = 512


class SwitchTransformers(base.Family):
  model_types = ('switch_transformers',)
  architecture = 'SwitchTransformersForConditionalGeneration'
  symbols = (0, 1)
  defaults = switch_config.DEFAULTS

  def read(self, config):
    return switch_config.filled(config, self.name)

  def fields(self, c):
    short = objectives.SpanCorruption().targets_length(LENGTH)
    own = switch_config.fields(c, LENGTH, short)
    data = {'objective': 'span_corruption()', 'seq_len': LENGTH}
    return own | {'data': data}

  def table(self, c, memory=False):
    t = parts.Table(
      V=c['vocab_size'],
      D=c['d_model'],
      H=c['num_heads'],
      J=c['d_kv'],
      F=c['d_ff'],
      E=c['num_experts'],
      B=32,
    )
    t.one('shared.weight', 'V D', 'embedding/table', 'V D')
    if not c['tie_word_embeddings']:
      t.one('lm_head.weight', 'V D', 'embedding/head', 'D V')
    for stack in switch_config.STACKS:
      t.norm(f'{stack}.final_layer_norm', f'{stack}/final_norm')
      first = f'{stack}.block.0.layer.0.SelfAttention'
      bias = f'{first}.relative_attention_bias.weight'
      t.one(bias, 'B H', f'{stack}/relative/table', 'B H')
      for i, sparse in enumerate(switch_config.sparse_layers(c, stack)):
        self._block(t, f'{stack}.block.{i}.layer', f'{stack}/layer_{i}', sparse)
    return t

  def _block(self, t, at, to, sparse):
    kinds = [('SelfAttention', 'attention')]
    kinds += [('EncDecAttention', 'cross')] * to.startswith('decoder')
    for n, (name, ours) in enumerate(kinds):
      t.norm(f'{at}.{n}.layer_norm', f'{to}/{ours}_norm')
      for letter, kernel in (('q', 'query'), ('k', 'key'), ('v', 'value')):
        own = f'{at}.{n}.{name}.{letter}.weight'
        t.one(own, 'HJ D', f'{to}/{ours}/{kernel}', 'D H J')
      t.one(f'{at}.{n}.{name}.o.weight', 'D HJ', f'{to}/{ours}/out', 'H J D')
    last = f'{at}.{len(kinds)}'
    t.norm(f'{last}.layer_norm', f'{to}/{"moe" if sparse else "ffn"}_norm')
    if not sparse:
      _mlp(t, f'{last}.mlp', f'{to}/ffn/ffn')
      return
    parts.router(t, f'{last}.mlp.router.classifier.weight', to)
    for e in range(t.sizes['E']):
      own = f'{last}.mlp.experts.expert_{e}', f'{to}/moe/experts'
      _mlp(t, *own, place=(e,))

  def to_config(self, model, moe, kinds):
    raise KeyError('made of the whole config, by `written_of`')

  def written_of(self, config):
    return switch_config.config_from(config, config.model.vocab_size)

  def copies(self, c):
    names = [f'{stack}.embed_tokens.weight' for stack in switch_config.STACKS]
    names += ['lm_head.weight'] * c['tie_word_embeddings']
    return dict.fromkeys(names, 'shared.weight')

  def stored_copies(self, c):
    # Or transformers would draw new ones.
    return {} if c['tie_word_embeddings'] else self.copies(c)

  def counts(self, c):
    sparse = (switch_config.sparse_layers(c, s) for s in switch_config.STACKS)
    names = ['num_layers'] + ['num_experts'] * any(map(any, sparse))
    return {k: c[k] for k in names}

  def check(self, c):
    return []


def _mlp(t, at, to, **options):
  t.one(f'{at}.wi.weight', 'F D', f'{to}/wi', 'D F', **options)
  t.one(f'{at}.wo.weight', 'D F', f'{to}/wo', 'F D', **options)
