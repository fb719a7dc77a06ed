"""Inside mixtures: when routing settles, who is specialised, what decides.

  python -m experiments.sweep --workdir=/tmp/moe_jax/inside --jobs=2 \\
      --config=configs/ablations/inside.py:reference
  python -m experiments.verdict --workdir=/tmp/moe_jax/inside

Four questions about the same runs. Saturation: OLMoE (Muennighoff et al. 2024,
arXiv:2409.02060, section 5.1) finds up to 60 % of the final choices after 1 %
of the training and 80 % after 40 %, top-1 later than top-k, and later layers
sooner than earlier ones; OpenMoE (Xue et al. 2024, arXiv:2402.01739, section 4)
calls it early routing learning. Specialisation: OLMoE's sections 5.2 to 5.4,
against Mixtral (Jiang et al. 2024, arXiv:2401.04088), which OLMoE takes for
upcycled and finds less specialised. Context independence: OpenMoE's section 4,
and that it finds no experts of domains. And DeepSeek-V3's figure 9 (2024,
arXiv:2412.19437): without an auxiliary loss experts are more specialised.

`reference`: the deep models of `configs/deep.py`, four blocks, d = 64, 2,048
pieces, at half their steps: 3.3 million tokens, some 10 MB of text. `fine` has
32 experts a quarter as wide as the dense FFN, top-4, and `coarse` 8 whole ones,
top-1, both with raw weights of a softmax and the loss over all choices; `aux`
and `loss_free` are the deep models of these names; `scratch` and `upcycled`
have 8 whole experts, top-2, from the beginning and from the dense model, whose
steps `upcycled` adds half as many to. `fine_cool`, at a quarter of the rate,
was added when the last layer of `fine` was seen to settle last. Each is looked
at on 400 kB of held-out text, at eight checkpoints, and untrained. 24 runs; 50
minutes on 2 CPU cores.
"""

from configs import deep, reference

STEPS = {'reference': deep.STEPS // 2}
SEEDS = {'reference': 3}
SECONDS = {'reference': 280}
# What a look inside a run takes.
ANALYSIS = {'checkpoints': 'all', 'max_bytes': 400_000}

_LOSS = ("switch_loss(weight=0.01, count='all')",)


def get_config(arg='reference'):
  """The config that the arms start from: the deep model with a loss."""
  size = arg or 'reference'
  if size not in STEPS:
    raise ValueError(f'no size {size!r}; valid: {", ".join(STEPS)}')
  config = deep.get_config('aux').unlock()
  steps = STEPS[size]
  config.train.update(
    steps=steps,
    schedule=reference.schedule(steps, deep.PEAK),
    checkpoint_every=steps,
  )
  return config.lock()


def softmax(count, k):
  """Fields of a mixture with raw weights, each token using as much of it."""
  return {
    'moe.num_experts': count,
    'moe.d_ff': deep.D_FF // k,
    'moe.router': f'top_k(k={k}, renormalize=False)',
  }


def sweep(add, size, config):
  """Seven mixtures, and the dense model that one of them is made of."""
  steps, seeds = STEPS[size], SEEDS[size]
  add('dense', deep.fields('dense'), stage='pretrain', seeds=seeds)
  add('fine', softmax(deep.EXPERTS, deep.CUT))
  cool = {'train.schedule': reference.schedule(steps, deep.PEAK / 4)}
  add('fine_cool', softmax(deep.EXPERTS, deep.CUT) | cool)
  add('coarse', softmax(8, 1))
  add('aux', {})
  add('loss_free', deep.fields('loss_free'))
  whole = {'moe.num_experts': 8, 'moe.d_ff': deep.D_FF}
  whole |= {'moe.router': 'top_k(k=2)'}
  add('scratch', whole)
  # What goes on warms up anew, to half the rate.
  more = {
    'train.steps': steps // 2,
    'train.checkpoint_every': steps // 2,
    'train.schedule': reference.schedule(steps // 2, deep.PEAK / 2),
  }
  up = {'sources': ('dense',), 'convert': 'upcycle(num_experts=8)'}
  add('upcycled', whole | more, **up)


OLMOE, OPENMOE, MIXTRAL, V3 = 'OLMoE', 'OpenMoE', 'Mixtral', 'DeepSeek-V3'
# Checkpoints at 10, 20 and 40 %, and layers, by number.
_TENTH, _FIFTH, _LATE = (
  f'saturation_{round(share * STEPS["reference"])}' for share in (0.1, 0.2, 0.4)
)
FIRST, LAST = 0, deep.LAYERS - 1


def _of(name, layer=None):
  return f'analysis/{name}' + ('' if layer is None else f'/{layer}')


def _beyond(name, what='', layer=None):
  """A number less what chance gives; of `repetition`, say, by kind."""
  metric, null = (_of(f'{name}/{what}{k}', layer) for k in ('value', 'null'))
  return f"gap(metric='{metric}', less='{null}')"


def _claim(paper, table, name, sentence, metric, how, smallest, arms, **fields):
  return {
    'name': name,
    'paper': paper,
    'table': table,
    'sentence': sentence,
    'metric': metric,
    'direction': how,
    'smallest_effect': smallest,
    'arms': (arms, arms) if isinstance(arms, str) else arms,
    'added': '2026-11-29',
  } | fields


def _pair(name, what, layer=None):
  """A metric and its null, two looks at one arm."""
  return tuple(_of(f'{name}/{what}{k}', layer) for k in ('value', 'null'))


_VOCABULARY = 'vocabulary_specialisation'


def _predicted_beyond_input(layer):
  value, less = (
    _of(f'{_VOCABULARY}/{k}_excess', layer) for k in ('predicted', 'token')
  )
  return f"gap(metric='{value}', less='{less}')"


CLAIMS = (
  _claim(
    *(OPENMOE, 'section 4', 'saturation_early'),
    'After a tenth of the training a token has many of its final experts.',
    *(_pair(_TENTH, 'top_k_'), 'higher', 0.2, 'fine'),
  ),
  _claim(
    *(OPENMOE, 'section 4', 'saturation_early_beyond_untrained'),
    'They are more than an untrained router shares with the final one.',
    (_of(f'{_TENTH}/top_k_value'), _of('saturation_untrained/top_k_value')),
    *('higher', 0.1, 'fine'),
  ),
  _claim(
    *(OLMOE, 'section 5.1', 'saturation_grows'),
    'After two fifths more choices are final than after a tenth.',
    (_of(f'{_LATE}/top_k_value'), _of(f'{_TENTH}/top_k_value')),
    *('higher', 0.05, 'fine'),
  ),
  _claim(
    *(OLMOE, 'section 5.1', 'saturation_first_choice_later'),
    'The first choice settles later than the set of choices.',
    (_of(f'{_LATE}/top_1_value'), _of(f'{_LATE}/top_k_value')),
    *('lower', 0.02, 'fine'),
  ),
  _claim(
    *(OLMOE, 'section 5.1', 'saturation_later_layers_first'),
    'The last layer settles sooner than the first.',
    (
      _of(f'{_FIFTH}/top_k_value', LAST),
      _of(f'{_FIFTH}/top_k_value', FIRST),
    ),
    *('higher', 0.02, 'fine'),
  ),
  _claim(
    *(OLMOE, 'section 5.3', 'domains_of_fine'),
    'Fine-grained experts are specialised in domains.',
    *(_pair('domain_specialisation', ''), 'higher', 0.02, 'fine'),
  ),
  _claim(
    *(OPENMOE, 'section 4', 'domains_of_coarse'),
    'Coarse experts are not.',
    *(_pair('domain_specialisation', ''), 'equal', 0.02, 'coarse'),
  ),
  _claim(
    *(OLMOE, 'section 5.3', 'domains_fine_over_coarse'),
    'Fine-grained experts are more specialised in domains than coarse ones.',
    _beyond('domain_specialisation'),
    *('higher', 0.01, ('fine', 'coarse')),
  ),
  _claim(
    *(OLMOE, 'section 5.3', 'domains_scratch_over_upcycled'),
    'Experts that were never one FFN are more specialised in domains.',
    _beyond('domain_specialisation'),
    *('higher', 0.01, ('scratch', 'upcycled')),
  ),
  _claim(
    *(OLMOE, 'section 5.4', 'vocabulary_of_fine'),
    'Fine-grained experts are specialised in token ids.',
    *(_pair(_VOCABULARY, 'token_'), 'higher', 0.1, 'fine'),
  ),
  _claim(
    *(OLMOE, 'section 5.4', 'vocabulary_prediction_in_later_layers'),
    'From the first to the last layer it moves from input to predicted ids.',
    (_predicted_beyond_input(LAST), _predicted_beyond_input(FIRST)),
    *('higher', 0.02, 'fine'),
  ),
  _claim(
    *(OLMOE, 'section 5.4', 'vocabulary_scratch_over_upcycled'),
    'Experts that were never one FFN are more specialised in token ids.',
    _of(f'{_VOCABULARY}/token_excess'),
    *('higher', 0.02, ('scratch', 'upcycled')),
  ),
  _claim(
    *(OLMOE, 'section 5.2', 'coactivation_is_weak'),
    'An expert has no partner that it nearly always comes with.',
    (_of('coactivation/value'), _of('coactivation/null')),
    *('equal', 0.2, 'fine'),
  ),
  _claim(
    *(MIXTRAL, 'table 5', 'repetition_beyond_chance'),
    'In the last layer neighbours share their first expert beyond chance.',
    _pair('repetition', 'first_', LAST),
    *('higher', 0.02, 'scratch'),
  ),
  _claim(
    *(MIXTRAL, 'table 5', 'repetition_in_later_layers'),
    'They do so more in the last layer than in the first.',
    (
      _beyond('repetition', 'first_', LAST),
      _beyond('repetition', 'first_', FIRST),
    ),
    *('higher', 0.02, 'scratch'),
  ),
  _claim(
    *(OPENMOE, 'section 4', 'context_independence'),
    'The token itself tells far more of its experts than its context adds.',
    tuple(_of(f'context_independence/{k}_value') for k in ('id', 'context')),
    *('higher', 0.2, 'fine'),
  ),
  _claim(
    *(OPENMOE, 'section 4', 'context_independence_of_top_2'),
    'So it does of two choices of whole experts.',
    tuple(_of(f'context_independence/{k}_value') for k in ('id', 'context')),
    *('higher', 0.2, 'scratch'),
  ),
  _claim(
    *(OPENMOE, 'section 4', 'context_in_later_layers'),
    'In the last layer the token itself tells less than in the first.',
    tuple(_of('context_independence/id_value', n) for n in (LAST, FIRST)),
    *('lower', 0.02, 'fine'),
  ),
  _claim(
    *(V3, 'figure 9', 'loss_free_domains'),
    'Without an auxiliary loss experts are more specialised in domains.',
    _beyond('domain_specialisation'),
    *('higher', 0.01, ('loss_free', 'aux')),
  ),
  _claim(
    *(V3, 'figure 9', 'loss_free_patterns'),
    'Loads of domains are further from even ones.',
    _of('load_patterns/value'),
    *('higher', 0.01, ('loss_free', 'aux')),
  ),
  _claim(
    *(V3, 'section 4.5.2', 'loss_free_loss'),
    'It costs no loss.',
    *('eval/loss', 'equal', 0.02, ('loss_free', 'aux')),
  ),
  # The last layer was the later one: added when that was seen, before its runs.
  # What it reads moves with the layers below, and more at a high rate.
  _claim(
    *(OLMOE, 'none: a follow-up', 'saturation_by_layer_at_a_low_rate'),
    'At a quarter of the rate the last layer is less far behind the first.',
    f"gap(metric='{_of(f'{_FIFTH}/top_k_value', LAST)}', "
    f"less='{_of(f'{_FIFTH}/top_k_value', FIRST)}')",
    *('higher', 0.05, ('fine_cool', 'fine')),
  ),
)

COLUMNS = (
  ('eval/loss', 'held-out loss', '.4f'),
  (_of(f'{_TENTH}/top_k_value'), 'final choices, 10 %', '.1%'),
  (_of(f'{_LATE}/top_k_value'), '40 %', '.1%'),
  (_of(f'{_LATE}/top_k_null'), 'by chance', '.1%'),
  (_of('domain_specialisation/value'), 'by domain', '.1%'),
  (_of('domain_specialisation/null'), 'by chance', '.1%'),
  (_of(f'{_VOCABULARY}/token_value'), 'by id', '.1%'),
  (_of(f'{_VOCABULARY}/token_null'), 'by chance', '.1%'),
  (_of('context_independence/id_value'), 'id tells', '.1%'),
  (_of('context_independence/context_value'), 'context adds', '.1%'),
  (_of('load_patterns/max_violation'), 'MaxVio', '.2f'),
  ('parameters', 'parameters', ',.0f'),
)

MIXTURES = ('fine', 'coarse', 'aux', 'loss_free', 'scratch', 'upcycled')


def _kept(arm):
  """(share of the run, arm, metric) of an arm's checkpoints but the last."""
  return tuple(
    (
      share,
      arm,
      _of(f'saturation_{round(share * STEPS["reference"])}/top_k_value'),
    )
    for share in deep.KEPT[:-1]
  )


FIGURES = (
  dict(
    file='saturation.png',
    kind='lines',
    title='Choices that the end makes too',
    x='share of the training',
    y='share of the choices',
    metric='eval/loss',
    series={a: _kept(a) for a in ('fine', 'coarse', 'aux', 'loss_free')},
  ),
  dict(
    file='domains.png',
    kind='points',
    title='How far loads of a domain are from those of all',
    y='total variation',
    metric=_of('domain_specialisation/value'),
    series={
      'measured': tuple((a, a) for a in MIXTURES),
      'documents shuffled': tuple(
        (a, a, _of('domain_specialisation/null')) for a in MIXTURES
      ),
    },
  ),
  dict(
    file='context.png',
    kind='points',
    title='What tells the expert',
    y='share of the entropy explained',
    metric=_of('context_independence/id_value'),
    series={
      'token id': tuple((a, a) for a in MIXTURES),
      'the id before it adds': tuple(
        (a, a, _of('context_independence/context_value')) for a in MIXTURES
      ),
    },
  ),
)
