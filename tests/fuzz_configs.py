"""Random small configs over all families, and what must hold of each.

A config is sane for the most part: what methods say of each other in their
rows, sizes that mostly divide. Of the rest something is wild: one field or one
option has a value that need not fit. Whatever it is, a config is refused in one
line, or its step is computed: losses finite, no assignment lost.
"""

import dataclasses
import math
from typing import Any

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np

from configs import base
from moe_jax import registry, types
from moe_jax.data import objectives
from moe_jax.errors import UserError
from moe_jax.layers import statistics
from moe_jax.runs import configs
from moe_jax.training import (
  session as session_lib,
  state as state_lib,
  step as step_lib,
  tuning,
)
from tests import methods

_ROUTERS = methods.rows('routers', slots=True)
_SPECS = {
  family: tuple(r.spec for r in methods.rows(family))
  for family in ('balancing', 'experts', 'local_experts')
}
_SPECS['dispatch'] = (
  *('scatter()', 'scatter(pipeline_degree=2)', 'scatter(host=2)', 'einsum()'),
  *('gather_reduce()', 'dense()', 'ragged_all_to_all()'),
  *('ragged_all_to_all(buffer_factor=1.0)', 'lookup()', 'slots()'),
)
_LISTS = {
  'moe.balance': 'balancing',
  'moe.local_experts': 'local_experts',
}
# A choice is as likely as it is listed; the first ones are of what is usual.
_FIELDS: dict[str, tuple] = {
  'seed': (0, 1),
  'mesh': (
    *('auto()', 'auto(expert=4)', 'auto(expert=2, fsdp=2)'),
    *('exact(data=8)', 'exact(expert=8)', 'exact(data=2, expert=2, model=2)'),
    *('auto(model=2)', 'exact(data=2, fsdp=2, expert=2)', 'exact(fsdp=8)'),
  ),
  'model.num_layers': (2, 1, 3),
  'model.d_model': (8, 16, 12),
  'model.num_heads': (2, 1, 4),
  'model.d_head': (4, 2, 8),
  'model.d_ff': (8, 12, 16),
  'model.ffn': (
    *("mlp(activation='relu')", "glu(activation='silu')", 'clamped_glu()'),
  ),
  'model.attention': (
    *(('full()',), ('window(size=4)', 'full()'), ('window(size=100)',)),
    *(("full(positions='none')",), ('chunk(size=4)', 'full()')),
    *(
      ('full(kv_heads=1)',),
      ('mla(kv_rank=4, d_nope=4, d_rope=2, d_value=4)',),
    ),
  ),
  'model.positions': ('rope', 'relative', 'none', 'rope(base=100.0)'),
  'model.qk_norm': (True, False),
  'model.norm_scale': (True, False),
  'model.norm_at': ('input', 'output'),
  'model.residual_scale': (1.0, 0.5),
  'model.embedding_scale': (1.0, 4.0),
  'model.logit_scale': (0.0, 0.5),
  'model.vocab_size': (0, 0, 400, 512),
  'model.tied_head': (True, False),
  'model.dropout': (0.0, 0.1),
  'model.init_scale': (1.0, 0.1),
  'model.dtype': ('float32', 'bfloat16'),
  'model.scan': (True, False),
  'model.remat': ('none', 'full', 'dots', 'dispatch'),
  'moe.layers': ('all', 'every_2', 'from_1', '0', 'none'),
  'moe.num_experts': (8, 4, 16, 2, 6),
  'moe.d_ff': (8, 12, 16),
  'moe.share_experts': (1, 1, 1, 2),
  'moe.group_size': (8, 8, 16, 4, 1),
  'moe.dense_branch_d_ff': (8, 12),
  'moe.capacity_factor': (1.25, 1.0, 0.0, 0.25, 4.0),
  'moe.eval_capacity_factor': (2.0, 0.0, 0.5),
  'moe.capacity_rule': (
    *('per_choice()', 'paper()', 'mesh_tensorflow()', 't5x()', 'vmoe()'),
    *('lingvo()', 'fixed(rows=3)', 'moe_plus_plus()'),
  ),
  'moe.seating': (
    *('rank_major()', 'token_major()', 'batch_prioritized()'),
    *('highest_weight()', 'random_tokens()'),
  ),
  'moe.allow_noncausal': (True, True, False),
  'moe.route_padding': (False, True),
  'moe.identical_experts': (False, True),
  'moe.extra_ffn': ('none', 'none', 'before', 'after', 'parallel'),
  'moe.dense_branch': ('none', 'none', 'shared', 'gated'),
  'data.seq_len': (16, 8, 32),
  'data.problem': (
    *('', '', '', 'markov_chains(chains=4, states=8)'),
    'two_skills(facts=9, symbols=3, values=4, modulus=5)',
  ),
  'train.batch_size': (8, 16),
  'train.accumulate': (1, 1, 1, 2),
  'train.clip': (1.0, 0.0),
  'train.z_loss': (1e-4, 0.0),
  'train.balance_over_layers': ('sum', 'mean'),
  'train.optimizer': ('sgd()', 'adamw()', 'adafactor()'),
  'train.schedule': (
    *('constant(value=0.1)', 'cosine(peak=0.1, warmup=5, final=0.01)'),
    'rsqrt(peak=0.1, warmup=5)',
  ),
  'train.on_nonfinite': ('stop', 'skip'),
  'train.trainable': ('all', 'all', 'all', *tuning.CHOICES),
  'eval.batch_size': (8, 16),
}
_WILD = (
  *(0, 1, -1, 2, 3, 5, 7, 64, 1000, 2**31, 2**63, -(2**31), 0.0, 0.5, -0.5),
  *(1e-30, 1e30, math.inf, -math.inf, math.nan, True, False, None),
  *('', 'none', 'auto', 'x', 'x(', 'x()', 'os.system', 'top_k(k=99)', '1,2'),
  *((), ('full()',), (0,), ('',), (1.0, math.nan), 'switch(**{})', 'all'),
)
# Whoever asks for billions of these gets them, or an error of the system.
_SIZES = ('model.', 'moe.', 'data.', 'train.batch', 'eval.batch')
_LARGE = 1000
_SPANS = objectives.build('span_corruption()')


@st.composite
def sane(draw) -> dict[str, Any]:
  """{dotted name: value}, of which most fit each other."""
  flat = {}
  # Few differ at once from what is usual: else few would fit.
  for name, values in _FIELDS.items():
    usual = draw(st.integers(0, 2)) > 0
    flat[name] = values[0] if usual else draw(st.sampled_from(values))
  flat['moe.group_size'] = min(flat['moe.group_size'], flat['data.seq_len'])
  router = draw(st.sampled_from(_ROUTERS))
  pick = lambda family: draw(st.sampled_from(_SPECS[family]))
  flat['moe.router'] = router.spec
  flat['moe.experts'] = router.experts
  if draw(st.integers(0, 2)) == 0:
    flat['moe.experts'] = pick('experts')
  flat['moe.dispatch'] = 'slots()' if router.slots else pick('dispatch')
  for name, family in _LISTS.items():
    count = draw(st.sampled_from((0, 1, 1, 2, 3)))
    flat[name] = tuple(pick(family) for _ in range(count))
  if router.slots or draw(st.booleans()):
    flat['moe.local_experts'] = ()
  if draw(st.integers(0, 3)) == 0:
    flat |= {
      'model.kind': 'encoder_decoder',
      'data.objective': 'span_corruption()',
      'data.problem': '',
      'moe.decoder.group_size': _SPANS.targets_length(flat['data.seq_len']),
    }
  return flat


@st.composite
def wild(draw) -> dict[str, Any]:
  """As `sane`, but for one value: of a field, or an option of a method."""
  flat = draw(sane())
  if draw(st.booleans()):
    name = draw(st.sampled_from(sorted(flat)))
    value = draw(st.sampled_from(_WILD))
    if name.startswith(_SIZES) and type(value) is int:
      value = max(min(value, _LARGE), -_LARGE)
    if name in ('model.num_layers', 'data.seq_len', 'moe.num_experts'):
      value = 64 if value == _LARGE else value  # traced one by one
    return flat | {name: value}
  called = [n for n, v in flat.items() if isinstance(v, str) and '(' in v]
  name = draw(st.sampled_from(called))
  method, options = registry.parse(flat[name])
  family = dict(_OF_FIELD).get(name)
  known = list(options)
  if family:
    cls = registry.method_class(family, method)
    known = [f.name for f in dataclasses.fields(cls) if f.init]
  if known:
    value = draw(st.sampled_from([v for v in _WILD if v == v]))
    if type(value) is int:
      value = max(min(value, _LARGE), -_LARGE)
    options = {**options, draw(st.sampled_from(known)): value}
  given = ', '.join(f'{k}={v!r}' for k, v in options.items())
  return flat | {name: f'{method}({given})'}


_OF_FIELD = (
  ('moe.router', 'routers'),
  ('moe.experts', 'experts'),
  ('moe.dispatch', 'dispatch'),
)


def made(flat: dict[str, Any]):
  """The config, as flags would make it, but that no type is checked."""
  config = base.get_config()
  with config.ignore_type():
    config.update_from_flattened_dict({'cpu_devices': 8} | flat)
  return config


@st.composite
def masks(draw, rows: int, length: int) -> np.ndarray:
  """int32 [rows, length], segments of a batch: whole, padded, packed, empty."""
  seed = draw(st.integers(0, 99))
  rng = np.random.default_rng(seed)
  kind = draw(st.sampled_from(('whole', 'padded', 'packed', 'mixed')))
  segments = np.ones((rows, length), np.int32)
  if kind in ('packed', 'mixed'):
    cut = rng.integers(1, length + 1, (rows, 1))
    segments += np.arange(length) >= cut
  if kind in ('padded', 'mixed'):
    real = rng.integers(0, length + 1, (rows, 1))  # none at all, now and then
    segments *= np.arange(length) < real
  return segments


def batch(session, segments, seed: int) -> dict[str, jax.Array]:
  """Ids drawn at random; `segments` is a function of rows and length."""
  rng = np.random.default_rng(seed)
  rows = session.config.train.batch_size
  vocab = session.model.vocab_size
  shapes = {k: v.shape for k, v in session.problem.dummy(rows).items()}
  out, same = {}, {}
  for name, shape in shapes.items():
    prefix = 'encoder_' if name.startswith('encoder_') else ''
    if prefix not in same:
      same[prefix] = segments(*shape)
    if name.endswith('segments'):
      out[name] = same[prefix]
    elif name.endswith('positions'):
      out[name] = np.broadcast_to(np.arange(shape[1], dtype=np.int32), shape)
    else:
      out[name] = rng.integers(0, vocab, shape, dtype=np.int32)
  ids = rng.integers(0, vocab, shapes['inputs'], dtype=np.int32)
  out['targets'] = np.where(out['segments'] > 0, ids, 0).astype(np.int32)
  return out


def step(session):
  """The train step, not yet compiled."""
  c = session.config.train
  return step_lib.make_train_step(
    session.model,
    session.tx,
    problem=session.problem,
    seed=0,
    accumulate=c.accumulate,
    over_layers=c.balance_over_layers,
    trained=session.trained,
    skip=c.on_nonfinite == 'skip',
  )


def planned(flat: dict[str, Any]):
  """The session of a config; None where it is refused, in one line."""
  try:
    config = configs.from_dict(configs.to_dict(made(flat)))
    return session_lib.plan(config)
  except UserError as e:
    refused(e)
    return None


def refused(e: UserError) -> None:
  text = str(e)
  assert text and '\n' not in text and len(text) < 2500, text


def traced(flat: dict[str, Any]) -> bool:
  """Traces training and evaluation; whether the config was not refused."""
  session = planned(flat)
  if session is None:
    return False
  whole = lambda rows, length: np.ones((rows, length), np.int32)
  rows = batch(session, whole, 0)
  try:
    state = session.abstract_state
    new, metrics = jax.eval_shape(step(session), state, rows)
    params, held = (
      state.params,
      session.problem.dummy(session.config.eval.batch_size),
    )
    variables = {'params': params} | (
      {'balance': state.balance} if state.balance else {}
    )
    run = lambda v, b: step_lib.evaluated(session.model, v, b)
    jax.eval_shape(run, variables, held)
  except UserError as e:
    refused(e)
    return False
  same = lambda a, b: a.shape == b.shape and a.dtype == b.dtype
  assert jax.tree.all(jax.tree.map(same, new, state))
  assert metrics['loss'].dtype == jnp.float32
  return True


def trained(flat: dict[str, Any], segments, seed: int) -> bool:
  """Makes a state, does a step; whether the config was not refused."""
  session = planned(flat)
  if session is None:
    return False
  rows = batch(session, segments, seed)
  try:
    state = state_lib.init(
      *(session.model, session.tx, session.dummy, 0, session.shardings)
    )
    new, metrics = jax.jit(step(session))(state, session.put(rows))
  except UserError as e:
    refused(e)
    return False
  for name in ('loss', 'total_loss', 'grad_norm'):
    assert np.isfinite(metrics[name]), (name, metrics[name])
  assert not np.any(metrics.get('skipped', False))
  for leaf in jax.tree.leaves(new):
    assert np.all(np.isfinite(np.asarray(leaf, np.float32)))
  if 'cause' in metrics:
    conserved(session, metrics, rows)
  return True


def conserved(session, metrics, rows) -> None:
  """Each assignment is kept, or has one cause for which it is not."""
  layer = 0
  for name, stack in session.model.stacks.items():
    prefix = 'encoder_' if name == 'encoder' else ''
    for _ in range(sum(stack.sparse)):
      cause = np.asarray(metrics['cause'][layer])
      health = {k: v[layer] for k, v in metrics['health'].items()}
      used = np.asarray(health['used'])
      mask = rows[f'{prefix}segments'] > 0
      real = mask.size if stack.moe.route_padding else mask.sum()
      assert used.sum() == health['tokens'] == real
      by = dict(zip(types.CAUSES, cause.tolist()))
      assert min(by.values()) >= 0
      if not used[-1]:
        kept = int((used * np.arange(statistics.USED)).sum())
        assert kept == by['kept'], (kept, by)
      # Those of real tokens; a policy may have left some unused.
      wanted = np.asarray(metrics['load'][layer]).sum()
      sent = sum(by[k] for k in ('kept', 'capacity', 'receiver', 'local'))
      assert sent <= wanted <= sent + by['unsent'], (wanted, by)
      layer += 1
