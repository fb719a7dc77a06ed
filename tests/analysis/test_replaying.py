"""A record happens again: to the bit, elsewhere, in training."""

import dataclasses
import types as python_types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe_jax import types
from moe_jax.analysis import recording, records, replaying
from moe_jax.errors import UserError
from moe_jax.training import step as step_lib
from tests import saved, tiny

E, K = 4, 3
# Weights that are no plain softmax, a bias, and drops.
FIELDS = {
  'moe.layers': 'all',
  'moe.router': f'sigmoid_top_k(k={K}, scaling=2.5)',
  'moe.balance': ('loss_free_bias()',),
  'moe.group_size': 16,
  'moe.capacity_factor': 1.0,
  'moe.eval_capacity_factor': 1.0,
  'moe.allow_noncausal': True,
  'eval.max_bytes': 0,
}


@pytest.fixture(scope='module')
def made(tmp_path_factory):
  root = tmp_path_factory.mktemp('replayed')
  config = tiny.config(**FIELDS | saved.corpus(root))
  opened, state = recording.opened(config, root / 'run'), saved.state(config)
  bias = lambda v: jnp.linspace(-0.2, 0.2, v.size).reshape(v.shape)
  state = state.replace(balance=jax.tree.map(bias, state.balance))
  recording.record(opened, state, root / 'routing', max_bytes=0)
  return opened, state, root


def program(session):
  """A compiled one: logits, drops, and choices the router would not make."""

  @jax.jit
  def run(params, balance, batch):
    variables = {'params': params, 'balance': balance}
    out, aux = step_lib.evaluated(session.model, variables, batch)
    layers = [a for _, a in step_lib.moe_aux(session.model, aux)]
    other = [
      a.health['given'] - a.health['agreed']
      for a in layers
      if 'given' in a.health
    ]
    return out, sum(a.cause for a in layers), sum(other, jnp.float32(0))

  def over(params, balance, change=lambda batch: batch):
    found = [
      run(params, balance, session.put(change(batch)))
      for batch in session.validation()
    ]
    outs, causes, others = zip(*jax.device_get(found))
    return np.concatenate(outs), sum(causes), sum(others)

  return over


def test_the_same_logits_to_the_bit(made):
  """Other biases, which would choose other experts, change nothing.

  To the bit within one program, whose tokens choose for themselves, or take
  what was recorded: any two programs may round otherwise.
  """
  opened, state, root = made
  want, cause, _ = program(opened)(state.params, state.balance)
  assert cause[types.CAPACITY] > 0
  again = replaying.opened(opened.config, root / 'run', root / 'routing')
  run = program(again)
  own = lambda b: b | {'forced': np.full_like(b['forced'], types.OWN)}
  live, cause_, others = run(state.params, state.balance, own)
  np.testing.assert_array_equal(cause_, cause)
  np.testing.assert_allclose(live, want, atol=1e-6 * np.abs(want).max())
  other = jax.tree.map(lambda v: -2 * v, state.balance)
  found, cause_, others = run(state.params, other)
  assert others > 100
  np.testing.assert_array_equal(cause_, cause)
  np.testing.assert_array_equal(found, live)


@pytest.mark.slow
def test_the_same_logits_on_another_mesh(made):
  opened, state, root = made
  want, cause, _ = program(opened)(state.params, state.balance)
  mesh = 'exact(data=2,expert=2,model=2)'
  again = replaying.opened(
    opened.config, root / 'run', root / 'routing', mesh_spec=mesh
  )
  other = jax.tree.map(lambda v: -2 * v, state.balance)
  state = state.replace(balance=other)
  state = jax.tree.map(jax.device_put, jax.device_get(state), again.shardings)
  found, cause_, _ = program(again)(state.params, state.balance)
  np.testing.assert_array_equal(cause_, cause)
  np.testing.assert_allclose(found, want, atol=1e-5 * np.abs(want).max())


@pytest.mark.slow
def test_a_step_of_training_with_the_choices_of_a_record(made):
  """The gradients of the live router, at the record's choices.

  Those of the run itself where the choices are its own; the router learns, too,
  where they are another's.
  """
  opened, state, _ = made
  live = dataclasses.replace(opened, programs={})
  batch = {
    k: v for k, v in live.data.batch(seed=0, batch_size=8, step=0).items()
  }
  record = jax.jit(recording.of_batch(opened.model))
  # In evaluation, with the capacity factor of training, and no noise in either.
  out = record(state.params, state.balance, live.put(batch))
  forced = np.asarray(out['decoder']['expert'], np.int32)

  def step(model, batch):
    run = step_lib.make_train_step(
      model, opened.tx, problem=opened.problem, seed=0
    )
    return jax.jit(run)(state, opened.put(batch))

  want, _ = step(opened.model, batch)
  model = replaying.forcing(opened.model)
  found, metrics = step(model, batch | {'forced': forced})
  for a, b in zip(*map(jax.tree.leaves, (want.params, found.params))):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)
  given, agreed = (metrics['health'][k] for k in ('given', 'agreed'))
  np.testing.assert_array_equal(given, agreed)
  # As an engine gives them, the first of the sequence alone.
  of_engine = [
    np.where(forced[i] >= 0, (forced[i] + 1) % E, -1)[:9]
    for i in range(len(forced))
  ]
  rows = replaying.routed_experts(of_engine, forced.shape[1], [0, 1])
  found, metrics = step(model, batch | {'forced': rows})
  assert (metrics['health']['given'] == given).all()
  assert (metrics['health']['agreed'] < given).all()
  moved = lambda s: np.asarray(
    s.params['decoder']['period']['block_0']['moe']['router']['kernel']
  )
  assert np.isfinite(moved(found)).all()
  assert (moved(found) != moved(state)).any()
  assert (moved(found) != moved(want)).any()


def test_choices_of_an_engine():
  """Of two sequences: what is not set is the live router's."""
  first = np.arange(2 * 4 * 2).reshape(2, 4, 2) % 4
  second = np.full((4, 4, 2), 3)
  second[1] = -1
  second[2, 3, 1] = -1  # one choice alone is nobody
  found = replaying.routed_experts([first, second], 3, [1, 3])
  assert found.shape == (2, 3, 2, 2) and found.dtype == np.int32
  np.testing.assert_array_equal(found[0, :2], first[:, [1, 3]])
  assert (found[0, 2] == types.OWN).all() and (found[1, 1] == types.OWN).all()
  assert found[1, 2].tolist() == [[3, 3], [3, -1]]
  same = replaying.routed_experts([first], 2, [1, 3, 5, 7])
  np.testing.assert_array_equal(same[0], first)
  with pytest.raises(UserError, match='of 4 layers; the model has MoE layers'):
    replaying.routed_experts([first], 3, [3, 7])
  with pytest.raises(UserError, match=r'shapes \(2, 4, 2\), \(2, 4, 1\); \['):
    replaying.routed_experts([first, first[..., :1]], 3, [1])


class Fake:
  """Data of two documents of domain a and one of b, in three rows."""

  documents = (
    python_types.SimpleNamespace(name='a/0', domain='a'),
    python_types.SimpleNamespace(name='a/1', domain='a'),
    python_types.SimpleNamespace(name='b/0', domain='b'),
  )

  def __init__(self, ids_BL):
    self.ids_BL = np.asarray(ids_BL)

  def validation(self, *, batch_size):
    document_BL = np.array([[0, 0, 1], [2, 2, -1], [1, -1, -1], [-1] * 3])
    for i in range(0, 4, batch_size):
      rows = slice(i, i + batch_size)
      yield {
        'inputs': self.ids_BL[rows],
        'segments': (document_BL[rows] >= 0).astype(np.int32),
        'document': document_BL[rows],
      }


IDS = [[5, 6, 7], [8, 9, 0], [4, 0, 0], [0, 0, 0]]


@pytest.fixture
def record(tmp_path, monkeypatch):
  """Domain a's 5, 6, 7, 4, then b's 8, 9, in parts of two tokens."""
  monkeypatch.setattr(records, 'PART', 2)
  schema = records.Schema(
    layers=(1,), experts=(9,), choices=1, vocab=10, domains=('a', 'b')
  )
  token = np.array([5, 6, 7, 4, 8, 9])
  part = records.part(
    token[:, None, None] - 1, token=token, domain=[0, 0, 0, 0, 1, 1]
  )
  return records.write(tmp_path, schema, [part])


@pytest.mark.parametrize('batch_size', [2, 4])
def test_batches_with_choices(record, batch_size):
  """The choice of a token is here its id less 1."""
  data = replaying.Replayed(Fake(IDS), {'decoder': record})
  rows = list(data.validation(batch_size=batch_size))
  found = np.concatenate([r['forced'] for r in rows])[..., 0, 0]
  ids = np.asarray(IDS)
  np.testing.assert_array_equal(found, np.where(ids > 0, ids - 1, -1))
  last = list(data.validation(batch_size=2, process_index=1, process_count=2))
  assert [r['forced'].shape for r in last] == [(1, 3, 1, 1)] * 2
  assert data.documents[2].domain == 'b'


@pytest.mark.parametrize(
  ('change', 'domain'), [((0, 1, 3), 'a'), ((1, 0, 9), 'b')]
)
def test_other_tokens_are_refused(record, change, domain):
  ids = np.asarray(IDS)
  ids[change[:2]] = change[2]
  data = replaying.Replayed(Fake(ids), {'decoder': record})
  with pytest.raises(
    UserError, match=f'is of other tokens .* domain {domain!r}'
  ):
    list(data.validation(batch_size=2))


@pytest.mark.parametrize(('length', 'domain'), [(5, 'b'), (7, 'b')])
def test_more_or_less_text_is_refused(record, length, domain):
  token = np.array([5, 6, 7, 4, 8, 9, 9])[:length]
  part = records.part(
    token[:, None, None], token=token, domain=[0, 0, 0, 0, 1, 1, 1][:length]
  )
  again = records.write(record.path, record.schema, [part])
  data = replaying.Replayed(Fake(IDS), {'decoder': again})
  with pytest.raises(
    UserError, match=f'is of other tokens .* domain {domain!r}'
  ):
    list(data.validation(batch_size=2))


def test_a_record_of_another_model(made):
  opened, _, root = made
  config = opened.config.copy_and_resolve_references()
  with config.unlocked():
    config.moe.num_experts = 8
  with pytest.raises(UserError, match=r'\(4, 4\) experts; the decoder has'):
    replaying.opened(config, root / 'run', root / 'routing')
