"""Which problem a config names, and what it says that it cannot do."""

import pathlib
import re
import types

import numpy as np
import pytest

from moe_jax.data import batches, held_out
from moe_jax.models import factory
from moe_jax.problems import base, causal_lm, classification, span_corruption
from moe_jax.runs import config_history
from moe_jax.training import evaluation, loop, session as session_lib
from tests import tiny

ROOT = pathlib.Path(__file__).parents[2]
SERIES = 'tests.problems.test_series.Series'


@pytest.mark.parametrize(
  ('fields', 'kind', 'lengths'),
  [
    ({}, causal_lm.CausalLM, {'decoder': 16}),
    (
      {'data.objective': 'span_corruption()', 'model.kind': 'encoder_decoder'},
      span_corruption.SpanCorruption,
      {'encoder': 16, 'decoder': 5},
    ),
    (
      {'data.task': 'docstring()', 'model.kind': 'encoder_decoder'},
      classification.Classification,
      {'encoder': 16, 'decoder': 16},
    ),
    ({'data.task_file': 'x_train.jsonl'}, classification.Classification, None),
    ({'data.problem': 'causal_lm()'}, causal_lm.CausalLM, None),
  ],
)
def test_the_problem_of_a_config(fields, kind, lengths):
  problem = session_lib.choose_problem(tiny.config(**fields))
  assert type(problem) is kind
  assert problem.lengths == (lengths or {'decoder': 16})


def test_a_dotted_name_and_what_it_takes_from_the_config():
  problem = base.of(tiny.config(**{'data.problem': f'{SERIES}(noise=0.5)'}))
  assert (problem.seq_len, problem.noise) == (16, 0.5)
  assert problem.lengths == {'decoder': 16}
  dummy = problem.dummy(3)
  assert dummy['inputs'].shape == (3, 16, 1) and dummy['unit'].shape == (3,)
  assert dummy['inputs'].dtype == np.float32


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    (
      {'data.problem': 'causal()'},
      "unknown method of problems 'causal'; valid",
    ),
    ({'data.problem': 'moe_jax.no.Such'}, "cannot import 'moe_jax.no.Such'"),
    ({'data.problem': f'{SERIES}(nose=1)'}, "'nose'; valid: noise, seq_len"),
    (
      {'data.problem': f'{SERIES}()', 'data.task': 'docstring()'},
      "a task: data.task='docstring()', data.task_file='' must be ''",
    ),
    (
      {'data.problem': f'{SERIES}()', 'model.kind': 'encoder_decoder'},
      "Series does not go with model.kind='encoder_decoder'; valid: decoder",
    ),
    (
      {'model.kind': 'encoder_decoder'},
      "data.objective='causal_lm()' does not go with model.kind="
      "'encoder_decoder', which wants 'span_corruption'",
    ),
    ({'data.objective': 'mlm()'}, "unknown objective 'mlm'; valid: causal_lm"),
    ({'model.kind': 'lstm'}, "unknown model.kind 'lstm'; valid: decoder, enc"),
  ],
)
def test_wrong_choices(fields, message):
  with pytest.raises(ValueError, match=re.escape(message)):
    session_lib.choose_problem(tiny.config(**fields))


def test_what_a_problem_does_not_offer_is_named():
  problem = base.of(tiny.config(**{'data.problem': f'{SERIES}()'}))
  none = 'the problem Series has none'
  with pytest.raises(ValueError, match=f'^generation needs text; {none}'):
    problem.tokenizer()
  for call in (problem.check_teacher, lambda *a: problem.distillation(*a, {})):
    with pytest.raises(
      ValueError, match=f'^train.teacher needs prob.*; {none}'
    ):
      call(None, None)
  text = base.of(tiny.config())
  assert text.differs(problem) == 'its problem is Series, here CausalLM'


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'data.dir': 'nowhere'}, "data.dir='nowhere' is not a directory"),
    ({'data.dir': str(ROOT / 'experiments')}, 'no .txt file in data.dir='),
    ({'data.tokenizer': "hf(path='no')"}, "no tokenizer file at 'no'"),
    ({'data.name': 'c4', 'data.dir': 'nowhere'}, "'c4' is not prepared under"),
    (
      {'data.task_file': 'x_train.jsonl'},
      "no training file at 'x_train.jsonl'",
    ),
    ({'data.task': 'x', 'data.dir': 'no'}, "data.task='x': built in is chain"),
  ],
)
def test_missing_data_is_named_before_there_is_a_workdir(
  fields, message, tmp_path
):
  config = tiny.config(**fields)
  planned = types.SimpleNamespace(problem=base.of(config), data=None)
  with pytest.raises(ValueError, match=re.escape(message)):
    loop.train(config, str(tmp_path / 'run'), session=planned)
  assert not (tmp_path / 'run').exists()


def test_an_older_config_says_nothing_of_problems():
  assert config_history.upgrade({})['data']['problem'] == ''


def test_a_config_chooses_the_half_that_is_judged(tmp_path):
  text, held = tiny.corpus(tmp_path), {}
  for which in ('all', 'even', 'odd'):
    own = {'eval.documents': which, 'eval.max_bytes': 0}
    data = base.of(tiny.config(**text, **own)).open(
      cache_dir=text['data.cache']
    )
    held[which] = {d.name for d in data.documents}
  assert held['even'] | held['odd'] == held['all']
  assert held['even'] and held['odd'] and not held['even'] & held['odd']


def test_two_models_are_compared_by_document():
  """What makes documents hard for both is in no interval."""
  rng = np.random.default_rng(0)
  documents = [
    held_out.Document('ab'[i % 2], str(i), int(n))
    for i, n in enumerate(rng.integers(100, 5000, 30))
  ]
  data = types.SimpleNamespace(documents=documents, domains=('a', 'b'))
  bytes_N = np.array([d.num_bytes for d in documents])
  nats_N = bytes_N * rng.uniform(0.5, 3.0, 30)
  less_N = np.log(2) * bytes_N * np.where(np.arange(30) % 2, 0.1, 0.4)
  problem = base.of(tiny.config())
  found = problem.difference({'nats': nats_N - less_N}, {'nats': nats_N}, data)
  for domain, want in (('a/', -0.4), ('b/', -0.1)):
    for end in ('', '_low', '_high'):
      got = found.pop(f'difference/{domain}bits_per_byte{end}')
      assert got == pytest.approx(want, abs=1e-9)
  value, low, high = found.values()
  want = -(less_N.sum() / np.log(2)) / bytes_N.sum()
  assert value == pytest.approx(want) and low < value < high
  series = base.of(tiny.config(**{'data.problem': f'{SERIES}()'}))
  with pytest.raises(ValueError, match='a comparison needs scores by document'):
    series.difference({}, {}, data)
  ours, theirs = (object.__new__(evaluation.Evaluator) for _ in range(2))
  ours._session = types.SimpleNamespace(data=data)
  other = types.SimpleNamespace(documents=documents[::2])
  theirs._session = types.SimpleNamespace(data=other)
  with pytest.raises(ValueError, match='evaluated on different documents'):
    ours.against(None, theirs, None)


def test_a_problem_may_see_the_future():
  """Of a router that no causal stack is built with."""
  fields = {'moe.router': 'expert_choice()', 'moe.balance': ()}
  config = tiny.config(**fields)
  with pytest.raises(ValueError, match='is not causal'):
    factory.stacks(config)
  (made,) = factory.stacks(config, causal=False).values()
  assert not made.causal and made.moe.num_experts == 4


def test_sums_by_unit_leave_padding_out():
  values, unit = (
    np.arange(6.0).reshape(2, 3),
    np.array([[1, -1, 0], [1, 1, -1]]),
  )
  assert base.by_unit(values, unit, 3).tolist() == [2.0, 0.0 + 3 + 4, 0.0]


class Numbers(batches.Batches):
  """Rows that are their number, and -1 on padding."""

  fingerprint, validation_rows = 'n', 5

  def train_row(self, seed, row):
    return {'x': np.array([seed, row])}

  def validation_row(self, row):
    return {'x': np.array(row if row < 5 else -1)}


def test_rows_are_a_pure_function_of_seed_and_number():
  """Whatever the batch, the first row, and the process."""
  data = Numbers()
  whole = data.train(seed=7, batch_size=6, first_row=4)
  first, second = (next(whole)['x'].tolist() for _ in range(2))
  assert first + second == [[7, n] for n in range(4, 16)]
  part = data.train(
    seed=7, batch_size=6, first_row=4, process_index=1, process_count=2
  )
  assert next(part)['x'].tolist() == first[3:]
  assert data.batch(seed=7, batch_size=5, step=2)['x'][:, 1].tolist() == [
    *range(10, 15)
  ]
  held = [b['x'].tolist() for b in data.validation(batch_size=4)]
  assert held == [[0, 1, 2, 3], [4, -1, -1, -1]]
