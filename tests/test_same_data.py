"""Runs on different data are not compared, but for bits a byte of one text."""

import pytest

from moe_jax.studies import verdicts
from tests.claims import claim as _claim, row as _row


def test_arms_on_different_data_are_not_compared():
  rows = [_row('a', s, loss=1.0 + s) | {'data': 'x'} for s in range(3)]
  rows += [_row('b', s, loss=2.0 - s) | {'data': 'x'} for s in range(3)]
  rows += [_row('other', 0, loss=2.0) | {'data': 'z'}]
  assert verdicts.judge(_claim(), rows).pairs == 3
  rows[4]['data'] = 'y'
  with pytest.raises(ValueError, match=r"'c' .* data \('a' x, 'b' y\)"):
    verdicts.judge(_claim(), rows)
  # Arms that stand in a metric count, what others begin with does not.
  rows[4]['data'] = 'x'
  grid = _claim(metric="mean_over(metric='loss', arms=('a', 'b', 'other'))")
  with pytest.raises(ValueError, match=r"data \('a' x, 'other' z\)"):
    verdicts.judge(grid, rows)
  rows[6]['stage'] = 'pretrain'
  assert verdicts.judge(grid, rows).outcome == 'not run'  # one seed of all


def test_arms_that_are_scored_on_other_text_are_not_compared():
  """A fingerprint is of the text, not of the part that a config scores."""
  for name, told in (
    ('eval/documents', r"\('a' 7 documents, 'b' 8 documents\)"),
    ('eval/bytes', r"\('a' 7 bytes, 'b' 8 bytes\)"),
    ('eval/examples', r"\('a' 7 examples, 'b' 8 examples\)"),
  ):
    rows = [
      _row(arm, s, **{'loss': s / 9, name: 7.0}) | {'data': 'x'}
      for arm in 'ab'
      for s in range(3)
    ]
    assert verdicts.judge(_claim(), rows).pairs == 3
    rows[-1]['metrics'][name] = 8.0
    with pytest.raises(ValueError, match=f'scored on different data {told}'):
      verdicts.judge(_claim(), rows)
    rows[-1]['metrics'] = {'loss': 0.5, 'eval/other': 3.0}  # of earlier code
    for other in ('eval/documents', 'eval/bytes', 'eval/examples'):
      if other != name:
        rows[0]['metrics'][other] = 5.0
    assert verdicts.judge(_claim(), rows).pairs == 3


def test_bits_a_byte_compare_over_tokenizers():
  """Where the text is the same; losses of other tokens never do."""

  floor = 'eval/bigram_bits_per_byte'

  def made(metric, **bytes_of_b):
    held, rows = {'eval/documents': 7, 'eval/bytes': 900, floor: 3.5}, []
    for seed in range(3):
      of_a, of_b = held | {metric: seed / 9}, held | {metric: 1.0 + seed / 9}
      rows.append(_row('a', seed, **of_a) | {'data': 'x', 'overrides': {}})
      rows.append(_row('b', seed, **(of_b | bytes_of_b)))
      rows[-1] |= {'data': 'y', 'overrides': {'data.tokenizer': 'bpe()'}}
    return rows

  bits, loss = 'eval/bits_per_byte', 'eval/loss'
  rows = made(bits)
  v = verdicts.judge(_claim(metric=bits), rows)
  assert (v.pairs, v.difference) == (3, pytest.approx(-1))
  gap = f"mean_over(metric='{bits}', arms=('a',))"
  mixed = _claim(metric=(gap, loss))
  of_losses = (
    f"gap(metric='{bits}', less='{loss}')",
    f"ratio(metric='{bits}', to='{loss}')",
    f"at_equal(metric='{bits}', at='{loss}', over=('a',))",
  )
  by_loss = f"mean_over(metric='{loss}', arms=('a',))"
  for claim, found, told in (
    (_claim(metric=loss), made(loss), "'a' x, 'b' y"),
    (_claim(metric=by_loss), made(loss), "'a' x, 'b' y"),
    (mixed, rows, "'a' x, 'b' y"),
    *((_claim(metric=m), rows, "'a' x, 'b' y") for m in of_losses),
    (_claim(metric="steps_to_loss(of='a')"), rows, "'a' x, 'b' y"),
    (_claim(metric=bits), made(bits, **{floor: 3.501}), '3.5010 bits a'),
    (_claim(metric=bits), made(bits, **{'eval/bytes': 901}), '901 bytes of '),
  ):
    with pytest.raises(ValueError, match=told):
      verdicts.judge(claim, found)
  rows[-1]['domains'] = ['wiki']
  with pytest.raises(ValueError, match='900 bytes of wiki'):
    verdicts.judge(_claim(metric=bits), rows)
  rows = made(bits)
  rows[1]['overrides']['data.max_bytes'] = 5
  with pytest.raises(ValueError, match=r'data\.max_bytes=5'):
    verdicts.judge(_claim(metric=bits), rows)
  rows = made(bits)
  rows[2]['data'] = 'z'  # of the tokenizer of another row with 'x'
  with pytest.raises(ValueError, match="'a' z"):
    verdicts.judge(_claim(metric=bits), rows)
  # With one tokenizer the fingerprints have to be equal.
  for row in (rows := made(bits)):
    row['overrides'] = {}
  with pytest.raises(ValueError, match="'a' x, 'b' y"):
    verdicts.judge(_claim(metric=bits), rows)
  # As have those of rows that do not say how much was held out.
  for row in (rows := made(bits)):
    del row['metrics']['eval/bytes']
  with pytest.raises(ValueError, match="'a' x, 'b' y"):
    verdicts.judge(_claim(metric=bits), rows)
