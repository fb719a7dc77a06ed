"""Routers side by side: all causal ones, at the same FLOPs a token.

  python -m experiments.sweep --workdir=/tmp/moe_jax/routers \\
      --config=configs/ablations/routers.py:reference
  python -m experiments.verdict --workdir=/tmp/moe_jax/routers

The presets of configs/routers.py that let no token see later ones, each with
the balancing rules of its paper, in one decoder: same data, same attention,
SwiGLU experts except where the method has its own, and experts as wide as makes
a token cost what the dense model's does (routers.UNEQUAL has the exceptions).
Expert choice is there for reference: it sees the future, and its loss is not to
be compared. Claims are of the papers that the presets follow, by the numbers of
DeepSeekMoE (arXiv:2401.06066), Loss-Free Balancing (arXiv:2408.15664), OLMoE
(arXiv:2409.02060) and others.

`reference`: the decoder of `configs/reference.py`, all blocks sparse, experts
of 8 dense FFNs' parameters, 4.2 million bytes a run; five seeds of an arm that
a claim about the loss is about (three would not see less than 0.01 to 0.05
nats, five half of that), three of others that claims are about and of product
keys, which are slow and come last, one of the rest; 2.8 hours on 2 CPU cores.
What a preset does by steps is set for as many. `quick`: a byte-level decoder of
two blocks, d = 64, the second sparse; three seeds each, at most 60 minutes.
`gpu`: 8 blocks, d = 512, 512 tokens; not yet run. `paper`: 12 blocks, d = 768,
C4; described, not run. Step times had company: `step_time.py` measures alone.

MaxVio here is of one batch of 4,096 tokens (`quick`: 2,048), mean of the last
tenth of the steps; the papers' is of a validation set.
"""

import functools

from configs import lm, routers
from configs.ablations import base, router_notes

STEPS = {'reference': 1024, 'quick': 120, 'gpu': 4000}
SEEDS = {'reference': 5, 'quick': 3, 'gpu': 3, 'paper': 1}
# Compiling and evaluating included, on one core; product keys take the longest.
SECONDS = {'reference': 145, 'quick': 20, 'gpu': 400}
EXPERTS = 8


def _rules(preset, *balance):
  """A variant: a preset with other balancing rules."""
  return preset, {'moe.balance': balance}


def _switch(weight):
  return f"switch_loss(weight={weight}, count='all')"


# Arm: the preset that it changes, and the changes.
VARIANTS = {
  'top_k_free': _rules('top_k'),
  'noisy_free': _rules('noisy_top_k'),
  'olmoe_no_z': _rules('olmoe', routers.PRESETS['olmoe'].balance[0]),
  'olmoe_small_z': _rules(
    *('olmoe', routers.PRESETS['olmoe'].balance[0]),
    'z_loss(weight=0.0001)',
  ),
  # The paper's baseline, alpha = 0.001.
  'loss_free_aux': _rules('loss_free', _switch(0.001)),
  'bip_aux': _rules('bip', _switch(0.1)),
  'top_p_sure': _rules(
    *('top_p', routers.PRESETS['top_p'].balance[0]),
    'entropy_loss(weight=0.01)',
  ),
  'bip_aux_0.01': _rules('bip', _switch(0.01)),
  # As top-2 is here, which it is compared with.
  'moe_plus_plus_dropless': (
    'moe_plus_plus',
    {'moe.capacity_factor': 0.0, 'moe.eval_capacity_factor': 0.0},
  ),
  # The same experts, of low rank, chosen by a router's matrix.
  'autonomy_routed': ('autonomy', {'moe.router': 'top_k(k=2)'}),
}
# By steps: the presets' are the quickstart's.
BY_STEPS = {
  'reference': {
    # 90 %, as Sigma-MoE-Tiny.
    'scheduled_top_k': {'moe.router': 'scheduled_top_k(first=(2,), until=922)'},
  }
}
REFERENCE, SLOWEST = 'expert_choice', 'product_keys'
CAUSAL = tuple(
  n for n, p in routers.PRESETS.items() if not p.moe.get('allow_noncausal')
)


def get_config(arg='reference'):
  """The config that the arms start from: Switch."""
  size = arg or 'reference'
  base.check(size)
  return _config(size, 'switch').lock()


def _config(size, preset):
  """The config of a preset, unlocked."""
  if size != 'paper':
    config = base.small(size, STEPS)
  else:
    config = lm.get_config('size=base')
    config.unlock()
    config.model.update(num_layers=12, d_model=768, num_heads=12, d_head=64)
    config.model.vocab_size = 32_128
    config.data.name = 'c4/en:3.1.0'
    config.data.tokenizer = "sentencepiece(path='cc_all.32000.model')"
    config.train.steps = 100_000
  return routers.apply(config, preset, EXPERTS, ffn=routers.SWIGLU)


def sweep(add, size, config):
  """An arm for each causal preset, the variants, and expert choice."""
  del config
  start = _fields(get_config(size))
  names, few = [*CAUSAL, *VARIANTS, REFERENCE], {}
  if size == 'reference':
    # Those that claims are about first; the others are points of a figure.
    claimed = {a for c in CLAIMS for a in c['arms']}
    by_loss = {a for c in CLAIMS if c['metric'] == _LOSS for a in c['arms']}
    few = {n: {'seeds': 3} for n in claimed - by_loss | {SLOWEST}}
    few |= {n: {'seeds': 1} for n in names if n not in claimed}
    names.sort(key=lambda n: (n == SLOWEST, n not in claimed))
  for name in names:
    preset, changes = VARIANTS.get(name, (name, {}))
    changes = changes | BY_STEPS.get(size, {}).get(name, {})
    own = _config(size, preset)
    found = _fields(own) | changes
    differs = {k: v for k, v in found.items() if v != start[k]}
    if name == 'dense':
      differs |= base.rate(size, name, own.train.steps)
    add(name, differs, **few.get(name, {}))


def _fields(config):
  return {
    f'{group}.{k}': v
    for group in ('model', 'moe')
    for k, v in config[group].items()
    if k != 'decoder'
  }


def _claim(*named, **rest):
  names = """paper table metric name sentence direction smallest_effect
    arms""".split()
  return dict(zip(names, named, strict=True), **rest)


_LOSS, _VIO = 'eval/loss', 'train/max_violation'
_EARLY, _USED = 'train/early_max_violation', 'train/experts_used'
_FIXED = {'kind': 'deterministic'}
# Losses on the Pile, 2B parameters, 100B tokens.
_dai = functools.partial(_claim, 'DeepSeekMoE', 'table 1', _LOSS)
_wang = functools.partial(_claim, 'Loss-Free Balancing', 'table 2')
_sun = functools.partial(_claim, 'BIP')
_shazeer = functools.partial(_claim, 'Sparsely-Gated MoE', 'appendix A')
_olmoe = functools.partial(_claim, 'OLMoE', 'section 4.1')
_huang = functools.partial(_claim, 'Dynamic Routing', 'section 4', _USED)
_zeng = functools.partial(_claim, 'AdaMoE', 'section 3')
_jin = functools.partial(_claim, 'MoE++', 'section 3.3')
_remoe = functools.partial(_claim, 'ReMoE', 'section 3')

CLAIMS = (
  _dai(
    *('switch_over_dense', 'Switch is better than the dense model.'),
    *('lower', 0.01, ('switch', 'dense')),
    published={'Switch': 1.881, 'dense': 2.060},
  ),
  _dai(
    *('hash_over_dense', 'Hash layers are better than the dense model.'),
    *('lower', 0.005, ('hash', 'dense')),
    published={'hash': 1.932, 'dense': 2.060},
  ),
  _dai(
    *('hash_under_switch', 'Hash layers are worse than Switch.'),
    *('higher', 0.005, ('hash', 'switch')),
    published={'hash': 1.932, 'Switch': 1.881},
  ),
  _dai(
    *('top2_over_top1', 'Top-2 (GShard) is a little better than Switch.'),
    *('lower', 0.003, ('top_k', 'switch')),
    published={'GShard': 1.867, 'Switch': 1.881},
  ),
  _dai(
    'fine_and_shared_over_top2',
    'Fine-grained experts and a shared one are better than top-2.',
    *('lower', 0.005, ('deepseek_moe', 'top_k')),
    published={'DeepSeekMoE': 1.808, 'GShard': 1.867},
  ),
  _wang(
    *(_VIO, 'loss_free_balance'),
    'A bias that follows the load balances better than the auxiliary loss.',
    *('lower', 0.1, ('loss_free', 'loss_free_aux')),
    published={'loss-free': 0.04, 'auxiliary': 0.72},
  ),
  _wang(
    *(_LOSS, 'loss_free_loss', 'It costs no loss.'),
    *('equal', 0.02, ('loss_free', 'loss_free_aux')),
    published={'perplexity, loss-free': 9.50, 'auxiliary': 9.56},
  ),
  _sun(
    *('section 4', _EARLY, 'bip_early'),
    'BIP is balanced from the first steps on, the auxiliary loss is not.',
    *('lower', 0.2, ('bip', 'bip_aux')),
  ),
  _sun(
    *('section 4', _VIO, 'bip_late'),
    'At the end, too, BIP is better balanced than the auxiliary loss.',
    *('lower', 0.05, ('bip', 'bip_aux')),
  ),
  _sun(
    *('section 4', _LOSS, 'bip_loss'),
    'BIP has a lower loss than the auxiliary loss.',
    *('lower', 0.003, ('bip', 'bip_aux')),
  ),
  _shazeer(
    *('train/load_cv', 'noisy_balance'),
    'Importance and load losses make loads even.',
    *('lower', 0.2, ('noisy_top_k', 'noisy_free')),
    published={'both losses': 0.05, 'none': 3.01},
  ),
  _shazeer(
    *(_LOSS, 'noisy_loss', 'They lower the loss, too.'),
    *('lower', 0.003, ('noisy_top_k', 'noisy_free')),
    published={'perplexity, both losses': 35.6, 'none': 39.8},
  ),
  _olmoe(
    *(_LOSS, 'granularity'),
    '64 fine experts, 8 of them used, are better than 16, 2 of them used.',
    *('lower', 0.005, ('olmoe', 'top_k')),
  ),
  _olmoe(
    *(_LOSS, 'shared_expert'),
    'A shared expert in place of one routed changes little.',
    *('equal', 0.015, ('deepseek_moe', 'olmoe')),
  ),
  _olmoe(
    *(_VIO, 'unbalanced'),
    'Without a balancing loss few experts take most tokens.',
    *('higher', 0.3, ('top_k_free', 'top_k')),
  ),
  _olmoe(
    *('train/logsumexp', 'z_loss', 'The z-loss makes logits smaller.'),
    *('lower', 0.05, ('olmoe', 'olmoe_no_z')),
  ),
  _huang(
    *('top_p_uses_fewer', 'Top-p uses fewer experts than top-2.'),
    *('lower', 0.1, ('top_p', 'top_k')),
    published={'top-p': 1.76, 'top-2': 2.0},
  ),
  _huang(
    *('entropy_loss', 'A loss on the entropy makes top-p use fewer experts.'),
    *('lower', 0.3, ('top_p_sure', 'top_p')),
  ),
  _zeng(
    *(_USED, 'null_rate'),
    'Of 4 choices among 16 experts and 16 null ones, 2 are experts.',
    *('equal', 0.3, ('adamoe', 'top_k')),
    **_FIXED,
  ),
  _zeng(
    *(_LOSS, 'null_loss', 'AdaMoE is no worse than top-2.'),
    *('equal', 0.02, ('adamoe', 'top_k')),
  ),
  _jin(
    *(_USED, 'fewer_ffn_experts'),
    'Tokens use fewer FFN experts: 4/3 by the rule, not 2.',
    *('lower', 0.4, ('moe_plus_plus', 'top_k')),
    **_FIXED,
  ),
  _jin(
    *(_LOSS, 'moe_plus_plus_loss', 'MoE++ is better than top-2.'),
    *('lower', 0.003, ('moe_plus_plus', 'top_k')),
    published={'accuracy, MoE++': 45.6, 'MoE': 44.3},
  ),
  _remoe(
    *(_USED, 'relu_target', 'The factor finds 1 expert a token.'),
    *('equal', 0.3, ('remoe', 'sigma_moe')),
    **_FIXED,
  ),
  _remoe(
    *(_LOSS, 'relu_loss', 'ReLU routing is better than Switch.'),
    *('lower', 0.003, ('remoe', 'switch')),
  ),
  _claim(
    *('Sigma-MoE-Tiny', 'section 3.2', _VIO, 'top1_balance'),
    'The Top-1 loss balances one choice better than the Switch loss.',
    *('lower', 0.05, ('sigma_moe', 'switch')),
  ),
  _claim(
    *('Expert Choice', 'section 3.2', _VIO, 'expert_choice_balance'),
    'Experts that choose are balanced exactly, top-2 is not.',
    *('lower', 0.05, (REFERENCE, 'top_k')),
    **_FIXED,
  ),
  _claim(
    *('COMET', 'section 3', _USED, 'trees_saturate'),
    'Two trees come to use at most two experts.',
    *('equal', 0.2, ('comet', 'top_k')),
    **_FIXED,
  ),
  _claim(
    *('Autonomy-of-Experts', 'table 1', _LOSS, 'autonomy_loss'),
    'Experts that bid are better than a router.',
    *('lower', 0.003, ('autonomy', 'top_k')),
    published={'accuracy, AoE': 44.46, 'MoE': 43.71},
  ),
  _claim(
    *('PEER', 'figure 4', _LOSS, 'product_keys_over_dense'),
    'Many experts of one neuron are better than the dense model.',
    *('lower', 0.005, ('product_keys', 'dense')),
    published={'perplexity, PEER': 16.45, 'dense': 18.31},
  ),
  _claim(
    *('none', 'a control', _LOSS, 'place_under_learned'),
    'Experts chosen by place alone are worse than learned routing.',
    *('higher', 0.005, ('round_robin', 'switch')),
  ),
  _sun(
    *('section 4', _VIO, 'bip_late_0.01'),
    'At the end BIP is better balanced than the loss at a weight of 0.01.',
    *('lower', 0.05, ('bip', 'bip_aux_0.01')),
    added='2026-11-29',
  ),
  _jin(
    *(_LOSS, 'moe_plus_plus_dropless_loss'),
    'Without drops MoE++ is better than top-2.',
    *('lower', 0.003, ('moe_plus_plus_dropless', 'top_k')),
    published={'accuracy, MoE++': 45.6, 'MoE': 44.3},
    added='2026-11-29',
  ),
  _claim(
    *('Autonomy-of-Experts', 'none: a follow-up', _LOSS, 'bids_over_router'),
    'Over its own experts, bids are better than a router.',
    *('lower', 0.003, ('autonomy', 'autonomy_routed')),
    added='2026-11-30',
  ),
  _olmoe(
    *(_LOSS, 'less_z', 'A tenth of the z-loss is better than all of it.'),
    *('lower', 0.005, ('olmoe_small_z', 'olmoe')),
    added='2026-11-30',
  ),
  _olmoe(
    *(_LOSS, 'granularity_less_z'),
    'With a tenth of the z-loss 64 fine experts are better than 16.',
    *('lower', 0.005, ('olmoe_small_z', 'top_k')),
    added='2026-11-30',
  ),
  _olmoe(
    *(_LOSS, 'shared_expert_less_z'),
    'With a tenth of the z-loss a shared expert changes little.',
    *('equal', 0.015, ('deepseek_moe', 'olmoe_small_z')),
    added='2026-11-30',
  ),
)

COLUMNS = (
  (_LOSS, 'held-out loss', '.4f'),
  ('train/loss', 'train loss', '.4f'),
  (_VIO, 'MaxVio', '.2f'),
  (_EARLY, 'MaxVio, first tenth', '.2f'),
  ('train/dead', 'dead experts', '.1f'),
  ('train/dropped', 'dropped', '.1%'),
  (_USED, 'experts a token', '.2f'),
  ('step_seconds', 'seconds a step', '.4f'),
  ('parameters', 'parameters', ',.0f'),
  ('flops_per_token', 'FLOPs a token', ',.0f'),
)

FIGURES = (
  dict(
    file='routers.png',
    kind='dots',
    title='Routers at the same FLOPs a token, by held-out loss',
    # The first sorts the rows.
    columns=(
      (_LOSS, 'held-out loss, nats'),
      (_VIO, 'MaxVio'),
      ('train/dropped', 'share dropped'),
      (_USED, 'experts a token'),
      ('step_seconds', 'seconds a step'),
    ),
    series={n: n for n in (*CAUSAL, *VARIANTS, REFERENCE)},
    # Drawn hollow.
    apart={REFERENCE: 'sees later tokens: its loss is not to be compared'},
  ),
)

NOTES = {'quick': router_notes.QUICK, 'reference': router_notes.REFERENCE}
