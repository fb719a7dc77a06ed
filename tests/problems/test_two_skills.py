"""Facts and sums: what is asked, what is held out, and how it is scored."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe_jax.data import intervals, skills
from moe_jax.problems import base, two_skills
from moe_jax.studies import results
from moe_jax.training import loop
from tests import tiny

SMALL = dict(facts=20, symbols=6, values=5, modulus=7, held_out=0.25)
SPEC = f'two_skills({", ".join(f"{k}={v}" for k, v in SMALL.items())}, rows=60)'


def made(seed=0, **fields):
  return skills.Skills(**SMALL | fields, seed=seed)


def opened(spec=SPEC, length=17):
  fields = {'data.problem': spec, 'data.seq_len': length}
  problem = base.of(tiny.config(**fields))
  return problem, problem.open(cache_dir='')


def items(row, whole=True):
  """[(question, answer)] of a row, token by token; the last may be cut."""
  ids = [int(row['inputs'][0]), *(int(v) for v in row['targets'])]
  cut = len(ids) // 3 * 3
  assert whole == (cut == len(ids))
  return [((ids[i], ids[i + 1]), ids[i + 2]) for i in range(0, cut, 3)]


def test_questions_and_answers():
  of = made()
  (keys, *pairs), (values, *sums) = of.questions, of.answers
  assert of.size == 7 + 5 + 6
  keys = [tuple(k) for k in keys.tolist()]
  assert len(keys) == len(set(keys)) == 20
  assert all(12 <= k < 18 for key in keys for k in key)
  assert set(values.tolist()) <= set(range(7, 12)) and len(set(values)) > 1
  seen, held = ({tuple(p) for p in kind.tolist()} for kind in pairs)
  assert not seen & held and len(seen | held) == 49
  for x, y in held:
    assert (y, x) in held
  # Of the 28 pairs without their order a quarter.
  assert len({tuple(sorted(p)) for p in held}) == 7
  for kind, answers in zip(pairs, sums):
    for (x, y), answer in zip(kind.tolist(), answers.tolist()):
      assert answer == (x + y) % 7


def test_the_seed_fixes_facts_and_pairs():
  same, other = made(), made(seed=1)
  for kind in skills.KINDS:
    np.testing.assert_array_equal(made().answers[kind], same.answers[kind])
  assert (other.answers[0] != same.answers[0]).any()
  pairs = lambda of: {tuple(p) for p in of.questions[skills.HELD_OUT].tolist()}
  assert pairs(other) != pairs(same)


def test_rows_of_training_have_no_pair_that_is_held_out():
  """Nor has any an answer that is not the question's."""
  _, data = opened()
  of, asked = data.skills, {k: {} for k in skills.KINDS}
  right = [
    {tuple(q): int(a) for q, a in zip(of.questions[k].tolist(), of.answers[k])}
    for k in skills.KINDS
  ]
  for part, make in (
    ('train', lambda i: data.train_row(i % 2, i)),
    ('validation', data.validation_row),
  ):
    counts = [0, 0, 0]
    for i in range(60):
      for question, answer in items(make(i)):
        (kind,) = [k for k in skills.KINDS if question in right[k]]
        assert answer == right[kind][question]
        counts[kind] += 1
        asked[kind].setdefault(question, set()).add(part)
    total = sum(counts)
    assert total == 360 and abs(counts[0] / total - 0.5) < 0.1
    if part == 'train':
      assert counts[skills.HELD_OUT] == 0
    else:
      assert abs(counts[skills.HELD_OUT] / total - 0.25) < 0.08
      # Its own draws, of the facts that training has, too.
      assert all('train' in where for where in asked[skills.FACT].values())


def test_a_row_is_a_function_of_its_number_and_the_seed():
  _, data = opened()
  row = data.train_row(3, 5)
  for other, same in (
    (data.train_row(3, 5), True),
    (data.train_row(3, 6), False),
    (data.train_row(4, 5), False),
    (data.validation_row(5), False),
  ):
    assert same == all(
      np.array_equal(row[k], other[k]) for k in ('inputs', 'targets')
    )
  np.testing.assert_array_equal(row['inputs'][1:], row['targets'][:-1])
  # The answer is the target at the second symbol of its question.
  assert row['loss'].tolist() == [0, 1, 0] * 5 + [0, 1]
  assert 'document' not in row
  _, cut = opened(length=15)
  assert len(items(cut.train_row(0, 0), whole=False)) == 5
  assert cut.train_row(0, 0)['loss'].sum() == 5
  # Seeds of NumPy are filled up with zeros: those of a row of validation are
  # none of training's, not even of the seed's first row.
  facts = lambda row: (row['inputs'][::3] >= 12).tolist()
  assert any(
    facts(data.validation_row(i)) != facts(data.train_row(i, 0))
    for i in range(3)
  )
  past = data.validation_row(60)
  assert past['segments'].sum() == 0 and (past['document'] == -1).all()
  assert past.keys() == data.validation_row(0).keys()


def judged(problem, data, say):
  """Scores of a model that gives `say(row)` as logits, by batches of 7."""
  sums = None
  for batch in data.validation(batch_size=7):
    logits = [
      say({k: v[i] for k, v in batch.items()})
      for i in range(len(batch['loss']))
    ]
    found = problem.judge(jnp.array(logits), batch, data)
    sums = found if sums is None else jax.tree.map(jnp.add, sums, found)
  sums = jax.tree.map(np.asarray, sums)
  return problem.scores(sums, data) | problem.floor(data)


def test_scores_are_those_of_a_loop():
  problem, data = opened(length=15)
  rng = np.random.default_rng(0)
  table = rng.normal(size=(18, 18, 18)).astype(np.float32)
  say = lambda row: table[row['inputs'], np.roll(row['inputs'], 1)]
  found = judged(problem, data, say)
  of, by = data.skills, {k: [] for k in skills.KINDS}
  for i in range(60):
    nats, right, answers = [0.0] * 3, [0] * 3, [0] * 3
    for (a, b), answer in items(data.validation_row(i), whole=False):
      p = [math.exp(v) for v in table[b, a]]
      kind = 0 if a >= 12 else 1
      if [a, b] in of.questions[skills.HELD_OUT].tolist():
        kind = 2
      nats[kind] -= math.log(p[answer] / sum(p))
      right[kind] += max(range(18), key=p.__getitem__) == answer
      answers[kind] += 1
    for kind in skills.KINDS:
      by[kind].append((nats[kind], right[kind], answers[kind]))
  every = [v for rows in by.values() for v in rows]
  loss = sum(v[0] for v in every) / sum(v[2] for v in every)
  assert found['eval/loss'] == pytest.approx(loss, rel=1e-5)
  for kind, name in enumerate(('facts', 'seen_sums', 'reasoning')):
    nats, right, answers = zip(*by[kind])
    for score, of_rows in (('nats', nats), ('accuracy', right)):
      want = intervals.ratio(of_rows, answers).named(f'eval/{name}_{score}')
      for k, v in want.items():
        assert found[k] == pytest.approx(v, rel=1e-4, abs=1e-6), k
  assert found['eval/facts_chance'] == 1 / 5
  assert found['eval/sums_chance_nats'] == math.log(7)


def test_what_knows_by_heart_is_told_from_what_reasons():
  """A table of training's answers; one that adds but knows no fact."""
  problem, data = opened()
  heart = {}
  for i in range(400):
    heart |= dict(items(data.train_row(0, i)))

  def say(answer):
    def logits(row):
      out = np.zeros((17, 18), np.float32)
      for i in range(1, 17):
        said = answer(int(row['inputs'][i - 1]), int(row['inputs'][i]))
        if said is not None:
          out[i, said] = 30
      return out

    return logits

  by_heart = judged(problem, data, say(lambda a, b: heart.get((a, b))))
  adds = lambda a, b: (a + b) % 7 if max(a, b) < 7 else None
  reasons = judged(problem, data, say(adds))
  for found, known in ((by_heart, 'facts'), (reasons, 'reasoning')):
    assert found[f'eval/{known}_accuracy'] == 1
    assert found['eval/seen_sums_accuracy'] == 1
    assert found[f'eval/{known}_nats'] < 1e-6
  # Nothing is said of what is not known: all ids are as likely, and the first
  # of them is the answer of some sums, of no fact.
  held = {tuple(q) for q in data.skills.questions[skills.HELD_OUT].tolist()}
  every = [v for i in range(60) for v in items(data.validation_row(i))]
  share = np.mean(
    [answer == 0 for question, answer in every if question in held]
  )
  for found, unknown, right in (
    (by_heart, 'reasoning', share),
    (reasons, 'facts', 0),
  ):
    assert found[f'eval/{unknown}_nats'] == pytest.approx(math.log(18))
    assert found[f'eval/{unknown}_accuracy'] == pytest.approx(right)
  assert 0 < by_heart['eval/loss'] < math.log(18)


def test_a_run_is_trained_on_answers_and_keeps_its_scores(tmp_path):
  fields = {'train.steps': 2, 'train.checkpoint_every': 0, 'moe.layers': 'none'}
  fields |= {'model.num_layers': 1, 'eval.batch_size': 16, 'data.seq_len': 17}
  config = tiny.config(**fields | {'data.problem': SPEC})
  summary = loop.train(config, str(tmp_path))
  row = {'metrics': results.metrics(summary)}
  kept = results.for_keeping(row)['metrics']
  for name in two_skills.NAMES:
    for score in ('nats', 'accuracy'):
      key = f'eval/{name}_{score}'
      assert kept[f'{key}_low'] <= kept[key] <= kept[f'{key}_high']
  assert kept['tokens'] == 2 * 8 * 17  # all that are read
  problem, data = opened()
  batch = data.batch(seed=0, batch_size=8, step=0)
  assert problem.count(batch) == 8 * 6  # those that are learned
  assert problem.vocabulary(None) == 18
  shown = [s.text(summary[s.key]) for s in problem.shown]
  assert shown[0].startswith('facts ') and shown[0].endswith(' %')


def test_rows_that_differ_and_facts_that_differ():
  problem, data = opened()
  assert problem.differs(opened()[0]) == ''
  other, of = opened(SPEC.replace('facts=20', 'facts=21'))
  assert problem.differs(other) == (
    'its problem is TwoSkills, here TwoSkills, of other facts'
  )
  longer = opened(length=20)[1]
  prints = {d.fingerprint for d in (data, of, longer)}
  assert len(prints) == 3


@pytest.mark.parametrize(
  ('fields', 'says'),
  [
    ({'symbols': 0}, 'symbols=0: expected a whole number, 1 or more'),
    ({'facts': 37}, 'facts=37: expected a whole number, 1 to 36, the keys'),
    ({'facts': 0}, 'facts=0: expected a whole number, 1 to 36, the keys'),
    ({'facts': 2.5}, 'facts=2.5: expected a whole number'),
    ({'values': 1}, 'values=1: expected a whole number, 2 or more'),
    ({'modulus': 2}, 'modulus=2: expected a whole number, 3 or more'),
    (
      {'held_out': 0.0},
      'held_out=0.0: expected more than 0.0 and less than 1.0',
    ),
    (
      {'held_out': 1.0},
      'held_out=1.0: expected more than 0.0 and less than 1.0',
    ),
    ({'symbols': 'a'}, "symbols='a': expected a whole number, 1 or more"),
    ({'held_out': float('nan')}, 'held_out=nan: expected more than 0.0'),
    ({'held_out': 'x'}, "held_out='x': expected more than 0"),
  ],
)
def test_what_does_not_fit_is_one_line(fields, says):
  with pytest.raises(ValueError, match=says) as found:
    made(**fields)
  assert '\n' not in str(found.value)
