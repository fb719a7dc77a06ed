"""One table a family: a method is tested by having a row here."""

import functools

from tests import (
  reference,
  reference_balancing,
  reference_experts,
  reference_groups as groups,
  reference_local,
  reference_losses as losses,
  reference_routers as routers,
  reference_scores as scores,
)
from tests.methods import Row


def _top_k(k, renormalize, **options):
  return routers.plain(reference.top_k, k=k, renormalize=renormalize, **options)


def _of(oracle, **options):
  return functools.partial(oracle, **options)


def _known(oracle, **options):
  return lambda *args, **_: oracle(*args, **options)


_V3 = {
  'groups': 1,
  'kept': 1,
  'by': 'top_2',
  'score': 'sigmoid',
  'scale': 2.5,
  'norm': True,
}

ROUTERS = (
  Row('switch()', '2101.03961', routers.plain(reference.switch), always=True),
  Row('top_k()', '1701.06538', _top_k(2, True), always=True),
  Row(
    'top_k(k=1, renormalize=False)', '1701.06538', _top_k(1, False), always=True
  ),
  Row('top_k(k=3, renormalize=False)', '1701.06538', _top_k(3, False)),
  Row(
    "top_k(k=2, renormalize='kept')",
    '1701.06538',
    _top_k(2, 'kept'),
    always=True,
  ),
  Row(
    "top_k(k=3, second_policy='threshold', threshold=0.3, policy_in_eval=True)",
    '2202.08906',
    _top_k(3, True, threshold=0.3),
  ),
  Row(
    'no_token_left_behind(k=3)',
    '2101.03961',
    routers.plain(reference.no_token_left_behind, k=3),
    always=True,
  ),
  Row('vmoe()', '2106.05974', _top_k(2, False), noisy=True, always=True),
  Row(
    'hash(k=2, seed=7)',
    '2106.04426',
    _known(routers.hash_, k=2, seed=7),
    context=True,
    always=True,
  ),
  Row(
    'adamoe(k=3)',
    '2406.13233',
    _known(routers.adamoe, k=3),
    context=True,
    local=2,
    always=True,
  ),
  Row(
    'moe_plus_plus()',
    '2410.07348',
    _known(routers.moe_plus_plus, k=2),
    context=True,
    always=True,
  ),
  Row(
    'moe_plus_plus(residual=False)',
    '2410.07348',
    _known(routers.moe_plus_plus, k=2, residual=False),
    context=True,
  ),
  Row(
    'autonomy()',
    '2501.13074',
    _known(routers.autonomy, k=2),
    context=True,
    experts='autonomy(d_ff=12, d_low=3)',
    always=True,
  ),
  Row(
    'moe_x()',
    '2503.07639',
    _known(routers.moe_x, k=2),
    context=True,
    always=True,
  ),
  Row(
    'product_keys(heads=3, k=2, d_key=6)',
    '2407.04153',
    _known(routers.product_keys, heads=3, k=2),
    context=True,
    distinct=False,
    experts='mlp(d_ff=1)',
    always=True,
  ),
  Row(
    'segment(size=3, k=2)',
    '2601.21641',
    _known(routers.segment, size=3, k=2),
    context=True,
    causal=False,
    permutes=False,
    always=True,
  ),
  Row('replay()', '', _known(routers.replay), context=True, always=True),
  Row(
    'noisy_top_k(k=2)',
    '1701.06538',
    routers.plain(scores.kept_softmax, k=2),
    noisy=True,
    always=True,
  ),
  Row(
    'gpt_oss(k=3)',
    '2508.10925',
    routers.plain(scores.kept_softmax, k=3, bias=True),
  ),
  Row(
    'sigmoid_top_k(k=2)',
    '2412.19437',
    routers.plain(scores.group_limited, k=2, **_V3),
  ),
  Row(
    'sigmoid_top_k(k=2, groups=2, kept_groups=1)',
    '2412.19437',
    routers.plain(scores.group_limited, k=2, **_V3 | {'groups': 2}),
  ),
  Row(
    "sigmoid_top_k(k=2, score='softmax', groups=4, kept_groups=2, "
    "group_score='max', renormalize=False, scaling=16.0)",
    '2405.04434',
    routers.plain(
      scores.group_limited,
      k=2,
      groups=4,
      kept=2,
      by='max',
      score='softmax',
      scale=16,
      norm=False,
    ),
  ),
  Row(
    'expert_choice(choices=1.5)',
    '2202.09368',
    routers.plain(groups.expert_choice, choices=1.5),
    causal=False,
    by_expert=True,
    always=True,
  ),
  Row(
    'capped_expert_choice(choices=2, cap=2, entropy=0.05, iterations=300)',
    '2202.09368',
    routers.plain(groups.capped_expert_choice, choices=2, cap=2, entropy=0.05),
    causal=False,
    by_expert=True,
  ),
  Row(
    'base_layer(tolerance=1e-5, iterations=5000)',
    '2103.16716',
    routers.plain(groups.base_layer),
    causal=False,
    train=True,
  ),
  Row(
    'sinkhorn()',
    '2202.01169',
    routers.plain(groups.sinkhorn, k=1),
    causal=False,
    train=True,
  ),
  Row(
    "sinkhorn(k=2, score='sigmoid')",
    '2202.01169',
    routers.plain(groups.sinkhorn, k=2, score='sigmoid'),
    causal=False,
    train=True,
  ),
  Row('top_p()', '2403.07652', routers.plain(scores.top_p, p=0.4)),
  Row(
    'top_p(p=0.95, max_choices=3, strict=True)',
    '2403.07652',
    routers.plain(scores.top_p, p=0.95, k=3, strict=True),
  ),
  Row('relu()', '2412.14711', routers.plain(scores.relu), always=True),
  Row('relu(max_choices=2)', '2412.14711', routers.plain(scores.relu, k=2)),
  Row('cosine()', '2204.09179', routers.plain(scores.cosine, k=1)),
  Row('cosine(k=2)', '2204.09179', routers.plain(scores.cosine, k=2)),
  Row(
    'dselect_k()',
    '2106.03760',
    routers.plain(scores.dselect_k, k=2),
    always=True,
  ),
  Row(
    'dselect_k(k=3, width=0.3)',
    '2106.03760',
    routers.plain(scores.dselect_k, k=3, width=0.3),
  ),
  Row('comet()', '2306.02824', routers.plain(scores.comet, k=2), always=True),
  Row(
    'comet(k=3, width=0.3)',
    '2306.02824',
    routers.plain(scores.comet, k=3, width=0.3),
  ),
  Row(
    'round_robin(k=3)',
    '',
    _known(routers.round_robin, k=3),
    context=True,
    permutes=False,
  ),
  Row(
    'random(k=2)',
    '2110.04260',
    _known(routers.random, k=2),
    context=True,
    permutes=False,
    always=True,
  ),
  Row(
    'prototype()', '2410.10469', _known(routers.prototype, k=2), context=True
  ),
  Row(
    'sparse_mixer(eps=0.5)',
    '2409.12136',
    _known(routers.sparse_mixer, eps=0.5),
    context=True,
    noisy=True,
    always=True,
  ),
  # In the tests' layer and step three of its four choices are used.
  Row(
    'scheduled_top_k(k=1, first=(4, 3), until=10)',
    '2512.16248',
    _known(routers.scheduled_top_k, k=4, used=3),
    context=True,
    train=True,
    always=True,
  ),
  Row(
    'rexmoe(start=2, end=8)',
    '2510.17483',
    _top_k(2, False),
    noisy=True,
    always=True,
  ),
)

# Their slots are mixtures of tokens: other contracts, in test_soft.py.
SLOT_ROUTERS = (Row('soft(slots=2)', '2308.00951', causal=False, slots=True),)
SLOT_DISPATCH = (Row('slots()', '2308.00951', slots=True),)

BALANCING = (
  Row('switch_loss()', '2101.03961', reference.switch_loss),
  Row("switch_loss(scope='global')", '2101.03961', reference.switch_loss),
  Row("switch_loss(scope='sequence')", '2101.03961', reference.switch_loss),
  Row(
    "switch_loss(count='all')",
    '2101.03961',
    functools.partial(reference.switch_loss, count='all'),
  ),
  Row(
    "switch_loss(count='union')",
    '2101.03961',
    functools.partial(reference.switch_loss, count='union'),
  ),
  Row(
    'switch_loss(second_weight=0.5)',
    '2101.03961',
    functools.partial(reference.switch_loss, second_weight=0.5),
  ),
  Row(
    "switch_loss(over_padding=True, scope='sequence')",
    '2101.03961',
    functools.partial(reference.switch_loss, over_padding=True),
  ),
  Row('z_loss()', '2202.08906', reference.z_loss),
  Row('z_loss(noisy=False)', '2202.08906', reference.z_loss),
  Row('importance_loss()', '1701.06538', reference.importance_loss),
  Row("load_loss(scope='global')", '2106.05974', reference.load_loss),
  Row('loss_free_bias()', '2408.15664', state=True),
  Row('bip()', '2502.15451', state=True),
  Row('relu_loss()', '2412.14711', state=True),
  Row('bip(clip=False, before=False, iterations=1)', '2502.15451', state=True),
  Row('null_loss()', '2406.13233', reference_balancing.null_loss),
  Row(
    'heterogeneous_loss()', '2410.07348', reference_balancing.heterogeneous_loss
  ),
  Row('sequence_loss()', '2412.19437', losses.sequence_loss),
  Row("sequence_loss(scope='global')", '2412.19437', losses.sequence_loss),
  Row(
    'device_loss(devices=5)', '2401.06066', _of(losses.device_loss, devices=5)
  ),
  Row(
    "device_loss(devices=1, scope='group')",
    '2401.06066',
    _of(losses.device_loss, devices=1),
  ),
  Row(
    'communication_loss(devices=5, limit=2)',
    '2405.04434',
    _of(losses.communication_loss, devices=5, limit=2),
  ),
  Row('entropy_loss()', '2403.07652', losses.entropy_loss),
  Row('mutual_information()', '2306.04640', losses.mutual_information),
  Row(
    "mutual_information(scope='sequence')",
    '2306.04640',
    losses.mutual_information,
  ),
  Row('selector_loss()', '2106.03760'),
  Row('top1_loss()', '2512.16248', losses.top1_loss),
  Row('simbal()', '2506.14038'),
  Row(
    "loss_free_bias(update_by='proportional', centered=True)",
    '2408.15664',
    state=True,
  ),
)

EXPERTS = (
  Row(
    'mlp(d_ff=12)',
    '1706.03762',
    functools.partial(reference.mlp, activation='relu'),
  ),
  Row(
    "mlp(d_ff=12, activation='gelu', bias=True)",
    '1706.03762',
    functools.partial(reference.mlp, activation='gelu', bias=True),
  ),
  Row(
    "mlp(d_ff=12, activation='gelu_exact')",
    '1706.03762',
    functools.partial(reference.mlp, activation='gelu_exact'),
  ),
  Row(
    'glu(d_ff=12)',
    '2002.05202',
    functools.partial(reference.glu, activation='silu'),
  ),
  Row(
    "glu(d_ff=12, activation='gelu')",
    '2002.05202',
    functools.partial(reference.glu, activation='gelu'),
  ),
  Row(
    "glu(d_ff=12, activation='gelu', bias='multiplicative')",
    '2202.08906',
    functools.partial(reference.glu, activation='gelu', bias='multiplicative'),
  ),
  Row(
    "glu(d_ff=12, bias='additive')",
    '2202.08906',
    functools.partial(reference.glu, activation='silu', bias='additive'),
  ),
  Row('autonomy(d_ff=12, d_low=5)', '2501.13074', reference.autonomy),
  Row(
    'clamped_glu(d_ff=12)',
    '2508.10925',
    functools.partial(reference_experts.clamped_glu, alpha=1.702, limit=7.0),
  ),
  Row(
    'clamped_glu(d_ff=12, alpha=1.0, limit=0.5)',
    '2508.10925',
    functools.partial(reference_experts.clamped_glu, alpha=1.0, limit=0.5),
  ),
)

DISPATCH = (
  Row('dense()'),
  Row('einsum()', '2006.16668'),
  Row('gather_reduce()', '2211.15841'),
  Row('lookup()', '2407.04153'),
  Row("ragged_all_to_all(overflow='gather_reduce')", '2211.15841'),
  Row('scatter()', '2006.16668'),
)

LOCAL_EXPERTS = (
  Row('zero()', '2406.13233', reference_local.zero),
  Row('copy(count=2)', '2410.07348', reference_local.copy),
  Row('constant(count=2)', '2410.07348', reference_local.constant),
)

FAMILIES = {
  'routers': ROUTERS + SLOT_ROUTERS,
  'balancing': BALANCING,
  'experts': EXPERTS,
  'local_experts': LOCAL_EXPERTS,
  'dispatch': DISPATCH + SLOT_DISPATCH,
}
