"""Sampling: what is drawn, where it ends, and by an encoder-decoder."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe_jax.data import tokenizers
from moe_jax.models import factory
from moe_jax.parallel import mesh as mesh_lib
from moe_jax.problems import base as problems
from moe_jax.training import generation
from tests import saved, tiny

A, B, C = (3 + ord(c) for c in 'abc')
EOS, V, N = 1, 384, 6000


class Chain:
  """A model whose next token depends on the last one, and on its position."""

  def __init__(self, rows):
    """rows: {token: {next token: logit}}; in odd positions they are halved."""
    self.table = np.full((V, V), -1e9, np.float32)
    for token, logits in rows.items():
      self.table[token, list(logits)] = list(logits.values())

  def apply(self, variables, batch, *, train, rngs, mutable):
    assert not train and mutable == ['cache'] and rngs
    seen = variables.get('cache', jnp.int32(0)) + batch['inputs'].shape[1]
    half = jnp.where(batch['positions'] % 2 == 1, 0.5, 1.0)
    logits = half[..., None] * jnp.asarray(self.table)[batch['inputs']]
    # The cache says how many tokens came: positions go on without a gap.
    last = batch['positions'][:, -1:, None] == seen - 1
    return (jnp.where(last, logits, jnp.nan), ()), {'cache': seen}


def unrestored(config, mesh, variables):
  """A generator of variables that no checkpoint holds."""
  made = object.__new__(generation.Generator)
  made.tokenizer, made._variables = tokenizers.build('bytes()'), variables
  made._session = types.SimpleNamespace(
    config=config, problem=problems.of(config), mesh=mesh
  )
  return made


def generator(rows, monkeypatch, mesh='auto()'):
  made = unrestored(tiny.config(), mesh_lib.make(mesh), {})
  monkeypatch.setattr(made, '_model', lambda length: Chain(rows), raising=False)
  return made


def softmax(logits):
  p = np.exp(np.array(logits, np.float64))
  return p / p.sum()


def check(counts, p):
  """Within 4.5 standard deviations of a multinomial draw."""
  n = sum(counts)
  assert n > 500
  spread = np.sqrt(n * p * (1 - p))
  assert (np.abs(np.array(counts) - n * p) < 4.5 * spread).all(), (counts, p)


@pytest.mark.parametrize('temperature', [0.5, 2.0])
def test_frequencies_are_those_of_the_softmax(monkeypatch, temperature):
  """Of the first token, and of the second given the first."""
  logits = {A: (0.3, 1.2, -0.4), B: (1.0, -1.0, 0.5), C: (0.0, 0.2, -0.8)}
  rows = {k: dict(zip((A, B, C), v)) for k, v in logits.items()}
  texts = generator(rows, monkeypatch)(
    b'ba', length=2, samples=N, temperature=temperature, seed=3
  )
  assert {len(t) for t in texts} == {2}
  # 'a' stands at position 2, after the beginning and 'b'; the first drawn
  # token at 3, where the logits are halved.
  first = [sum(t[:1] == c for t in texts) for c in (b'a', b'b', b'c')]
  check(first, softmax(np.array(logits[A]) / temperature))
  for start, row in ((b'a', A), (b'b', B)):
    pairs = [sum(t == start + c for t in texts) for c in (b'a', b'b', b'c')]
    check(pairs, softmax(0.5 * np.array(logits[row]) / temperature))


def test_top_k_and_top_p_draw_from_the_likeliest(monkeypatch):
  """Renormalised over what is kept."""
  p = np.array([0.5, 0.3, 0.2])
  draw = generator({A: dict(zip((A, B, C), np.log(p)))}, monkeypatch)
  # At position 1, after the beginning: logits are halved.
  common = {'length': 1, 'samples': N, 'temperature': 0.5}
  for options in ({'top_k': 2}, {'top_p': 0.6}):
    texts = draw(b'a', **common, **options)
    found = [texts.count(c) for c in (b'a', b'b', b'c')]
    assert found[2] == 0
    check(found[:2], p[:2] / 0.8)
  for options in ({'top_k': -1}, {'top_p': 0.0}, {'stop': b'ab'}):
    with pytest.raises(ValueError, match=next(iter(options))):
      draw(b'a', **common, **options)


@pytest.mark.parametrize(
  ('top_k', 'top_p', 'kept'),
  [
    *((0, 1.0, 'abcc'), (1, 1.0, 'a'), (3, 1.0, 'abcc'), (9, 1.0, 'abcc')),
    # Equal ones all stay; so does the one that crosses top_p.
    *((0, 0.45, 'a'), (0, 0.55, 'ab'), (0, 0.85, 'abcc'), (2, 0.9, 'ab')),
  ],
)
def test_what_is_drawn_from(top_k, top_p, kept):
  names = 'cabc'
  logits = jnp.log(jnp.array([[0.1, 0.5, 0.3, 0.1]]))
  found = np.isfinite(generation.likeliest(logits, top_k, top_p))[0]
  assert ''.join(sorted(n for n, f in zip(names, found) if f)) == kept


def test_prompts_do_not_know_of_each_other():
  """Of different lengths, on eight devices: as the model without a cache."""
  config = tiny.config(
    **{
      'model.num_layers': 1,
      'moe.layers': 'all',
      'moe.router': 'top_k()',
      'moe.num_experts': 4,
      'moe.capacity_factor': 0.0,
      'moe.eval_capacity_factor': 0.0,
      'moe.group_size': 1,
      'model.attention': ('window(size=5)',),
    }
  )
  mesh = mesh_lib.make('exact(data=2, expert=4)')
  params = saved.state(config, scale=6.0).params
  # Sub-layers outweigh the embeddings: what is before a token matters.
  params['embedding']['table'] /= 100
  made = unrestored(config, mesh, {'params': params})
  made._text = lambda ids, ends: ids.tolist()  # all of them
  prompts, length = [b'the router', b'an', b'expert', b'', b'of'], 6
  texts = made(prompts, length=length, temperature=0)
  assert len(set(map(str, texts))) > 3 and made.speed.tokens_per_second > 0

  plain = factory.make(config, V)
  params = jax.device_get(params)
  apply = jax.jit(lambda b: plain.apply({'params': params}, b, train=False)[0])
  ids = np.zeros((5, 16), np.int32)
  at = np.array([len(p) for p in prompts])
  for row, p in zip(ids, prompts):
    row[1 : len(p) + 1] = np.frombuffer(p, np.uint8) + 3
  place = np.tile(np.arange(16, dtype=np.int32), (5, 1))
  rows, want = np.arange(5), []
  for _ in range(length):
    segments = (place <= at[:, None]).astype(np.int32)
    batch = {'inputs': ids, 'positions': place, 'segments': segments}
    logits = np.asarray(apply(batch))[rows, at]
    want.append(logits.argmax(-1))
    at += 1
    at_most = np.minimum(at, 15)
    ids[rows, at_most] = np.where(at < 16, want[-1], ids[rows, at_most])
  assert texts == np.stack(want, 1).tolist()


def test_draws_are_each_samples_own(monkeypatch):
  """Whatever the mesh and the others; other with another seed."""
  rows = {k: {A: 0.0, B: 0.1, C: 0.2} for k in (A, B, C)}
  draw = lambda mesh, samples, seed: generator(rows, monkeypatch, mesh)(
    b'a', length=12, samples=samples, temperature=1.0, seed=seed
  )
  eight = draw('auto()', 8, 0)
  assert len(set(eight)) == 8 and {len(t) for t in eight} == {12}
  assert draw('exact(model=8)', 1, 0) == eight[:1]
  other = draw('auto()', 11, 1)
  assert len(set(other)) == 11 and not set(other) & set(eight)


@pytest.mark.parametrize(
  ('prompt', 'length', 'text'),
  [
    (b'a', 3, b'bc'),  # the end itself is no text
    (b'a', 9, b'bc'),  # and nothing comes after it
    (b'ac', 4, b''),
    (b'', 6, b'abc'),
  ],
)
def test_a_sample_ends_with_its_text(monkeypatch, prompt, length, text):
  """a -> b -> c -> the end -> a -> ...; the beginning is followed by a."""
  rows = {0: {A: 9.0}, A: {B: 9.0}, B: {C: 9.0}, C: {EOS: 9.0}, EOS: {A: 9.0}}
  made = generator(rows, monkeypatch)
  assert made(prompt, length=length, samples=2, temperature=0) == [text, text]


def test_an_encoder_decoder_answers_its_prompt():
  """One greedy sample on eight devices, against the model without a cache."""
  config = tiny.config(
    **{
      'mesh': 'auto(expert=2)',
      'model.kind': 'encoder_decoder',
      'model.positions': 'relative',
      'model.num_layers': 1,
      'moe.layers': 'all',
      'moe.router': 'top_k()',
      'moe.allow_noncausal': True,
      'moe.num_experts': 2,
      'moe.balance': (),
      'moe.group_size': 1,
      'data.objective': 'span_corruption()',
    }
  )
  mesh = mesh_lib.make('exact(data=4, expert=2)')
  params = saved.state(config, scale=2.0).params
  made = unrestored(config, mesh, {'params': params})
  params = jax.device_get(params)
  made._text = lambda ids, ends: list(ids)  # all of them
  length, prompt = 12, b'the router'
  (found,) = made(prompt, length=length, temperature=0)
  assert len(set(found)) > 4, found

  with config.unlocked():
    config.moe.eval_capacity_factor = 0.0  # dropless
  plain = factory.make(config, V)
  apply = jax.jit(lambda b: plain.apply({'params': params}, b, train=False))

  def greedy(prompt):
    # Bytes start at 3; 1 ends the encoder's text; 0 begins the decoder's.
    source = np.array([*(3 + b for b in prompt), 1])
    ids = [0]
    for _ in range(length):
      pad = np.zeros(length - len(ids), np.int32)
      batch = {
        'encoder_inputs': source,
        'encoder_positions': np.arange(source.size),
        'encoder_segments': np.ones(source.size),
        'inputs': np.append(ids, pad),
        'positions': np.arange(length),
        'segments': np.append(np.ones(len(ids)), pad),
      }
      batch = {k: np.asarray(v, np.int32)[None] for k, v in batch.items()}
      logits = np.asarray(apply(batch)[0])
      ids.append(int(logits[0, len(ids) - 1].argmax()))
    return ids[1:]

  assert found == greedy(prompt) != greedy(b'an expert!')
