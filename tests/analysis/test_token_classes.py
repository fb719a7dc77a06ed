"""Experts of kinds of tokens: planted ones are found, and no others."""

import numpy as np
import pytest

from moe_jax.analysis import metrics, token_text
from moe_jax.data import tokenizers
from tests.analysis import synthetic

TEXT = b'The 3 cats, 2 dogs and 17 mice; (a_b) + c = 12.5 !? x9 \n\n QUIT now. '
ID = tokenizers.Bytes().encode
at = token_text.CLASSES.index


def record(tmp_path, rng, share, n=6_000, E=8, K=2):
  """By share [V, E] of each id, in two layers; the second knows nothing."""
  token = rng.choice(ID(TEXT * 2), n)
  loads = rng.dirichlet(np.full(E, 3.0))
  layers = share[token], np.broadcast_to(loads, (n, E))
  expert = np.stack([synthetic.choose(rng, p, K) for p in layers], 1)
  made = synthetic.write(
    tmp_path,
    expert,
    {'tokenizer': 'bytes()', 'vocab': 384},
    token=token,
    document=np.arange(n) // 100,
  )
  return made, token, expert


@pytest.fixture(scope='module')
def planted(tmp_path_factory):
  """Expert 5 takes numbers ten times as often as what is not a number."""
  rng = np.random.default_rng(0)
  share = np.ones((384, 8))
  share[np.array(token_text.classes('bytes()', 384)) == at('number'), 5] = 10
  path = tmp_path_factory.mktemp('planted')
  made, token, expert = record(path, rng, share)
  found = metrics.measure(made, ('token_classes()',))
  assert found.pop('token_classes/classes') == list(token_text.CLASSES)
  numbers = {k.partition('/')[2]: np.array(v, float) for k, v in found.items()}
  return token, expert, numbers


def test_numbers_are_those_of_a_loop(planted):
  token, expert, found = planted
  classes = token_text.classes('bytes()', 384)
  count = np.zeros((len(token_text.CLASSES), 2, 8))
  for t, by_layer in zip(token, expert, strict=True):
    for m in range(2):
      for e in by_layer[m]:
        count[classes[t], m, e] += 1
  for c in (at('number'), at('punctuation')):
    for m in range(2):
      share, whole = count[c, m] / count[c, m].sum(), count[:, m].sum(0)
      whole = whole / whole.sum()
      far = np.abs(share - whole).sum() / 2
      entropy = -sum(p * np.log(p) for p in share)
      np.testing.assert_allclose(found['value'][m, c], far, rtol=1e-6)
      np.testing.assert_allclose(found['entropy'][m, c], entropy, rtol=1e-6)
      np.testing.assert_allclose(found['lift'][m, c], share / whole, rtol=1e-6)
  np.testing.assert_array_equal(
    found['tokens'], np.bincount(classes[token], minlength=len(count))
  )


def test_what_was_planted_is_found_and_nothing_else(planted):
  *_, found = planted
  number = at('number')
  assert found['value'][0, number] > 2 * found['null_high'][0, number]
  assert found['low'][0, number] > found['null'][0, number]
  assert found['low'][0, number] < found['value'][0, number]
  assert found['value'][0, number] < found['high'][0, number]
  served = np.argwhere(found['served'])
  assert [0, number, 5] in served.tolist()
  assert not found['served'][1].any()
  assert found['lift'][0, number, 5] > 2


def test_classes_of_few_tokens_have_no_numbers(planted):
  *_, found = planted
  few = found['tokens'] < 100
  assert few[at('sentinel')]
  assert np.isnan(found['value'][:, few]).all()
  assert np.isfinite(found['null'][:, ~few]).all()


def test_ids_that_keep_to_experts_serve_no_class_beyond_chance(tmp_path):
  # Of 3 classes in 20 layers at 1 in 100, at most 3 by chance (0.997).
  hits = 0
  for seed in range(20):
    rng = np.random.default_rng(seed)
    share = rng.dirichlet(np.full(8, 0.3), 384)
    made, *_ = record(tmp_path / str(seed), rng, share, n=3_000)
    found = metrics.measure(made, ('token_classes()',))
    served = np.array(found['token_classes/served'])[0]
    hits += served.any(-1)[[at('number'), at('punctuation'), at('word')]].sum()
  assert hits <= 3


def test_without_a_tokenizer_it_says_so(tmp_path):
  made = synthetic.write(tmp_path, np.zeros((9, 1, 1), int))
  assert metrics.measure(made, ('token_classes()',)) == {
    'token_classes/undefined': 'the record names no tokenizer'
  }
