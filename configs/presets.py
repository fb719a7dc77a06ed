"""The papers' and codebases' conventions, each as one set of config fields.

  presets.apply(config, presets.switch(convention='t5x'))
  presets.apply(config, presets.st_moe(), decoder={'group_size': 456})

Top-1 (`switch`):

  | field                 | paper      | mtf        | t5x          | hf        |
  | router init           | 0.1 / D    | 0.1 / D    | normal(0.02) | normal(1) |
  | jitter                | 0.01       | 0.01       | none         | 0.01      |
  | f of the balance loss | first      | first      | all          | first     |
  | its weight            | 0.01       | 0.01       | 0.01         | 0.001     |
  | z-loss                | none       | none       | none         | 0.001     |
  | over layers           | sum        | sum        | mean         | mean (1)  |
  | rows of an expert     | ceil       | int, >= 4  | round, >= 4  | 64 (2)    |
  | factor, in evaluation | 1.25, 2    | 1.25, 2    | 1.25, 2      | -         |
  | group                 | 1024 (3)   | 1024       | 4096         | a row     |
  | padding               | not routed | not routed | routed       | routed    |
  | expert dropout        | by row     | by row     | by unit      | by row    |
  | sparse layer l of n   | n - 1 (4)  | n - 1      | n - 1        | 1         |

  1 Hugging Face concatenates the layers' tokens before f P, which lets layers
    cancel; that is not offered.
  2 Whatever the batch: their `expert_capacity`.
  3 The paper's group is one core's tokens; here it is fixed by the config.
  4 The paper says every other layer, not which.

Top-2 (`st_moe`), where it differs from the above:

  | field         | paper                           | t5x                  |
  | jitter        | none                            | none                 |
  | weights       | renormalised before drops       | raw                  |
  | second choice | with probability min(1, 5 s)    | always               |
  | f             | first choices                   | all, 2 when balanced |
  | z-loss        | 0.001                           | 0.001 (base: 0.0001) |
  | experts       | GEGLU with multiplicative bias  | GEGLU                |
  | sparse layers | each 4th, with a dense FFN after it, in both           |

V-MoE (`vmoe`): top-2, raw weights of a softmax with Gaussian noise of 1 / E,
importance and load losses of 0.005 each, summed over layers; ceil(1.05 T K / E)
rows up to a multiple of 4 (the factor is recalled, not read); routed in the
model's precision; all experts start equal; seated by position, or by
`batch_prioritized`.

Sources: Fedus et al. 2021, arXiv:2101.03961; Zoph et al. 2022,
arXiv:2202.08906; Riquelme et al. 2021, arXiv:2106.05974; the code of
tensorflow/mesh (da90793), google/flaxformer (399ea3a), google-research/t5x
(cc342d4), google-research/vmoe (942a78b) and Hugging Face transformers (5.23).
Group sizes are upper bounds where those shrink them to fit.
"""

CONVENTIONS = ('paper', 'mtf', 't5x', 'hf')
FFN = {'relu': "mlp(activation='relu'{})", 'geglu': "glu(activation='gelu'{})"}


def switch(convention='paper', ffn='relu', min_capacity=4):
  """Switch Transformer's fields by dotted name.

  Args:
    convention: one of CONVENTIONS.
    ffn: 'relu' or 'geglu', of experts and dense layers.
    min_capacity: of mtf and t5x.
  """
  _choose('convention', convention, CONVENTIONS)
  router = {
    'paper': 'switch(jitter=0.01)',
    'mtf': 'switch(jitter=0.01)',
    't5x': 'switch(init_std=0.02)',
    'hf': 'switch(jitter=0.01, init_std=1.0)',
  }
  balance = {
    't5x': ("switch_loss(weight=0.01, count='union')",),
    'hf': ('switch_loss(weight=0.001)', 'z_loss(weight=0.001)'),
  }
  balance = balance.get(convention, ('switch_loss(weight=0.01)',))
  layers = 'every_2_at_1' if convention == 'hf' else 'every_2'
  fields = _common(convention, ffn, '', min_capacity)
  return fields | {
    'moe.layers': layers,
    'moe.router': router[convention],
    'moe.balance': balance,
  }


def st_moe(convention='paper', z_loss=0.001, min_capacity=4):
  """ST-MoE's fields by dotted name.

  Its top-2 is not causal in a decoder where capacity binds, which the paper
  does not mention: the preset allows it.

  Args:
    convention: 'paper' or 't5x'.
    z_loss: weight; T5X's ST-MoE-Base has 0.0001.
    min_capacity: of t5x.
  """
  _choose('convention', convention, ('paper', 't5x'))
  router, count, bias = (
    "top_k(k=2, second_policy='random', threshold=0.2)",
    'first',
    ", bias='multiplicative'",
  )
  if convention == 't5x':
    router, count, bias = (
      'top_k(k=2, renormalize=False, init_std=0.02)',
      'union',
      '',
    )
  return _common(convention, 'geglu', bias, min_capacity) | {
    'moe.layers': 'every_4',
    'moe.router': router,
    'moe.balance': (
      f"switch_loss(weight=0.01, count='{count}')",
      f'z_loss(weight={z_loss})',
    ),
    'moe.extra_ffn': 'after',
    'moe.allow_noncausal': True,
  }


def vmoe(batch_prioritized=False, k=2):
  """V-MoE's fields by dotted name; of an encoder."""
  seating = 'batch_prioritized()' if batch_prioritized else 'rank_major()'
  return {
    'moe.router': f'vmoe(k={k}, selective_precision=False)',
    'moe.balance': ('importance_loss(weight=0.005)', 'load_loss(weight=0.005)'),
    'moe.capacity_rule': 'vmoe()',
    'moe.capacity_factor': 1.05,
    'moe.eval_capacity_factor': 1.05,
    'moe.seating': seating,
    'moe.route_padding': True,
    'moe.identical_experts': True,
    'train.balance_over_layers': 'sum',
  }


def apply(config, fields, decoder=None):
  """Sets fields of an unlocked config.

  Args:
    config: unlocked, with the fields of base.py.
    fields: from a preset.
    decoder: fields of `moe` that differ in an encoder-decoder's decoder.
  """
  for name, value in fields.items():
    group, field = name.split('.')
    if field not in config[group]:
      raise ValueError(f'the config has no field {name!r}')
    config[group][field] = value
  for name, value in (decoder or {}).items():
    config.moe.decoder[name] = value
  return config


def _common(convention, ffn, bias, min_capacity):
  _choose('ffn', ffn, FFN)
  rule = {
    'paper': 'paper()',
    'mtf': f'mesh_tensorflow(min_capacity={min_capacity})',
    't5x': f't5x(min_capacity={min_capacity})',
    'hf': 'fixed(rows=64)',
  }
  shared = ", dropout_mask='shared'" if convention == 't5x' else ''
  return {
    'model.ffn': FFN[ffn].format(''),
    'model.init_scale': 0.1,
    'moe.experts': FFN[ffn].format(bias + shared),
    'moe.capacity_rule': rule[convention],
    'moe.capacity_factor': 1.25,
    'moe.eval_capacity_factor': 2.0,
    'moe.seating': 'rank_major()',
    'moe.group_size': {'t5x': 4096, 'hf': 512}.get(convention, 1024),
    'moe.route_padding': convention in ('t5x', 'hf'),
    'train.balance_over_layers': (
      'mean' if convention in ('t5x', 'hf') else 'sum'
    ),
  }


def _choose(what, value, valid):
  if value not in valid:
    raise ValueError(f'{what}={value!r}; valid: {", ".join(valid)}')
