"""Records of a model over text, against loops over the ids that it read."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe_jax import types
from moe_jax.analysis import recording, records, waiting
from moe_jax.errors import UserError
from moe_jax.layers import statistics
from moe_jax.training import evaluation
from tests import saved, tiny
from tests.routers import test_hash

E, T, K = 4, 16, 2
FIELDS = {
  'moe.router': 'hash(k=2, seed=3)',
  'moe.balance': (),
  'moe.group_size': T,
  'moe.eval_capacity_factor': 1.0,
  'moe.allow_noncausal': True,
}


@functools.cache
def session(root, **fields):
  config = tiny.config(**FIELDS | saved.corpus(root) | fields)
  made = recording.opened(config, root / 'run')
  return made, saved.state(config)


@pytest.fixture(scope='module')
def made(tmp_path_factory):
  root = tmp_path_factory.mktemp('recorded')
  opened, state = session(root, **{'eval.max_bytes': 0})
  found = recording.record(opened, state, root / 'routing', step=7)
  return opened, state, found['decoder'], root


def test_a_record_holds_what_the_model_did(made):
  """All but the weights of the model follows from the text."""
  opened, state, record, _ = made
  part = records.concatenate(record.parts())
  schema, data = record.schema, opened.data
  assert (schema.layers, schema.experts, schema.choices) == ((1,), (E,), K)
  assert (schema.step, schema.group_size, schema.domains) == (7, T, ('a', 'b'))
  assert schema.capacity_factor == 1.0 and not schema.top_score
  assert [n for _, n in schema.documents] == [d.name for d in data.documents]
  texts, losses = list(data.validation_texts()), []
  for i, text in enumerate(texts):
    mine = part.document == i
    ids = [*data.tokenizer.encode(text), data.tokenizer.eos_id]
    assert part.next[mine].tolist() == ids
    assert part.position[mine].tolist() == list(range(len(ids)))
    domain = schema.documents[i][0]
    assert (part.domain[mine] == domain).all()
    assert schema.domains[domain] == data.documents[i].domain
    assert np.diff(np.flatnonzero(mine)).max() == 1
    losses.append(part.loss[mine].sum())
  seen = {'ids_T': part.token}
  x = np.zeros((len(part), 1))
  want = test_hash.hash_(x, {}, np.zeros(E), seen, k=K, seed=3)
  np.testing.assert_array_equal(part.expert[:, 0], want.expert)
  assert (part.weight == 0.5).all() and np.isnan(part.entropy).all()
  # Drops, in the batches' order, by a loop.
  causes = {}
  for number, batch in enumerate(opened.validation()):
    groups = zip(*(batch[k].reshape(-1, T) for k in ('inputs', 'segments')))
    for g, (ids_T, segment_T) in enumerate(groups):
      held = np.zeros(E, int)
      x = np.zeros((T, 1))
      of = {'ids_T': ids_T}
      expert = test_hash.hash_(x, {}, np.zeros(E), of, k=K, seed=3).expert
      for k in range(K):
        for t in np.flatnonzero(segment_T):
          e = expert[t, k]
          full = held[e] >= T * K // E
          causes[number, g, t, k] = types.CAPACITY if full else types.KEPT
          held[e] += not full
  dropped = sum(c == types.CAPACITY for c in causes.values())
  assert 0 < dropped == (part.cause == types.CAPACITY).sum()
  assert len(causes) == part.cause.size
  # And losses as evaluation has them.
  found = evaluation.Evaluator(opened)(state.params, state.balance)
  assert found['eval/loss'] == pytest.approx(sum(losses) / len(part), rel=1e-5)
  assert found['moe/eval_dropped'] == pytest.approx(dropped / part.cause.size)


def test_cuts_make_no_difference(made, monkeypatch):
  opened, state, record, root = made
  monkeypatch.setattr(waiting, 'IN_MEMORY', 5)
  monkeypatch.setattr(records, 'PART', 50)
  again = recording.record(opened, state, root / 'cut')['decoder']
  assert len(again.schema.parts) > 5 and max(again.schema.parts) == 50
  assert again.schema.fingerprint == record.schema.fingerprint
  a, b = (records.concatenate(r.parts()) for r in (record, again))
  for field in records.FIELDS:
    np.testing.assert_array_equal(getattr(a, field), getattr(b, field), field)
  assert not list(root.glob('.waiting_*'))


def test_less_text_and_other_text(made):
  """A cap is shared by the domains; a folder is read whole."""
  opened, _, _, root = made
  size = lambda s: sum(d.num_bytes for d in s.data.documents)
  less = recording.opened(opened.config, root / 'run', max_bytes=300)
  assert size(less) <= 300 < size(opened)
  assert {d.domain for d in less.data.documents} == {'a', 'b'}
  whole = recording.opened(opened.config, root / 'run', text=str(root))
  texts = [p.read_bytes().split(b'\n\n') for p in sorted(root.glob('*.txt'))]
  assert size(whole) == sum(len(t) for of_file in texts for t in of_file)
  assert len(whole.data.documents) == sum(map(len, texts))
  (root / 'none').mkdir(exist_ok=True)
  with pytest.raises(UserError, match=r'no \.txt file in'):
    recording.opened(opened.config, root / 'run', text=str(root / 'none'))


def test_a_model_without_experts(tmp_path):
  config = tiny.config(**{'moe.layers': 'none', 'eval.probes': ()})
  with pytest.raises(UserError, match='the model has no MoE layers to look'):
    recording.opened(config, tmp_path)


def edges(r, seated=None):
  """`statistics.edges` of a routing of one group."""
  one = jax.tree.map(lambda v: v[None], r)
  seated = types.Seated(one, *[None] * 5, capacity=())
  cause = jnp.zeros_like(one.expert_N)
  T = len(r.probs_TE)
  return jax.device_get(statistics.edges(one, seated, cause, T)), T


def test_entropy_and_margin_by_hand():
  probs = np.array([[0.5, 0.3, 0.2], [0.6, 0.3, 0.1]])
  r = types.Routing(
    token_N=jnp.array([0, 1, 0, 1]),
    expert_N=jnp.array([0, 0, 1, 3]),  # the last goes to nobody
    weight_N=jnp.array([0.5, 0.6, 0.3, 0.0]),
    probs_TE=jnp.asarray(probs),
    num_experts=3,
    choices=2,
  )
  found, _ = edges(r)
  want = -(probs * np.log(probs)).sum(-1)
  np.testing.assert_allclose(found['entropy'][0], want, rtol=1e-6)
  np.testing.assert_allclose(found['margin'][0], [0.1, np.nan], rtol=1e-6)
  assert 'rank' not in found


def test_edges_that_experts_chose_stand_by_weight():
  """Of token 1 experts 2, 0 and 1, of token 2 none."""
  r = types.Routing(
    token_N=jnp.array([0, 1, 1, 2, 1, 0]),
    expert_N=jnp.array([0, 0, 1, 3, 2, 2]),
    weight_N=jnp.array([0.5, 0.3, 0.1, 0.0, 0.6, 0.2]),
    probs_TE=jnp.full((3, 3), 1 / 3),
    num_experts=3,
  )
  found, T = edges(r)
  assert found['rank'].tolist() == [[0, 1, 2, 6, 0, 1]]
  assert 'margin' not in found
  routed = recording._routed(found, 3, T)
  assert routed['expert'].tolist() == [[0, 2, -1], [2, 0, 1], [-1] * 3]
  weights = [[0.5, 0.2, 0], [0.6, 0.3, 0.1], [0] * 3]
  np.testing.assert_allclose(routed['weight'], weights)
  cause = types.UNSENT
  assert routed['cause'].tolist() == [[0, 0, cause], [0] * 3, [cause] * 3]


@pytest.mark.slow
def test_both_stacks_of_an_encoder_decoder(tmp_path):
  """Hash routers again; the encoder's tokens know their documents."""
  opened, state = session(
    tmp_path,
    **{
      'model.kind': 'encoder_decoder',
      'data.objective': 'span_corruption()',
      'data.seq_len': 32,
      'moe.group_size': 8,
      'moe.eval_capacity_factor': 0.0,
      'eval.max_bytes': 0,
    },
  )
  found = recording.record(opened, state, tmp_path / 'routing')
  assert [r.path.name for r in found.values()] == [
    'routing',
    'routing_encoder',
  ]
  assert recording.of_stacks(tmp_path / 'routing', opened.model) == dict(
    sorted(found.items(), reverse=True)
  )
  rows = list(opened.validation())
  for name, record in found.items():
    part, prefix = records.concatenate(record.parts()), recording.PREFIX[name]
    read = {
      k: np.concatenate([b[prefix + k].reshape(-1) for b in rows])
      for k in ('inputs', 'segments', 'document')
    }
    real = read['segments'] > 0
    assert len(part) == real.sum() > 100
    assert np.isfinite(part.loss).all() == (name == 'decoder')
    # The same tokens of each document in the same order.
    for i in range(len(opened.data.documents)):
      mine = read['inputs'][real & (read['document'] == i)]
      np.testing.assert_array_equal(part.token[part.document == i], mine)
    x, seen = np.zeros((len(part), 1)), {'ids_T': part.token}
    want = test_hash.hash_(x, {}, np.zeros(E), seen, k=K, seed=3)
    np.testing.assert_array_equal(part.expert[:, 0], want.expert)
