"""One table a family: a method is tested by having a row here."""

import functools

from tests import (
  reference,
  reference_balancing,
  reference_experts,
  reference_local,
  reference_losses as losses,
)
from tests.methods import Row


def _of(oracle, **options):
  return functools.partial(oracle, **options)


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
  'balancing': BALANCING,
  'experts': EXPERTS,
  'local_experts': LOCAL_EXPERTS,
  'dispatch': DISPATCH + SLOT_DISPATCH,
}
