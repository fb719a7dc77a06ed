"""Continues prompts from a run's checkpoint, with a key-value cache."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from moe_jax.errors import UserError
from moe_jax.parallel import axes as axes_lib
from moe_jax.runs import configs, workdir as workdir_lib
from moe_jax.training import fresh_rules, session as session_lib


class Generator:
  """A model restored for decoding; needs no data.

  Decoding is dropless and each call's groups are its own, so a token's
  continuation depends on nothing else in the batch.
  """

  def __init__(
    self, workdir: str, *, mesh_spec: str = 'auto()', step: int | None = None
  ):
    """Restores.

    Args:
      workdir: of the training run.
      mesh_spec: mesh to decode on.
      step: checkpoint; None is the newest.

    Raises:
      ValueError: no run or no usable checkpoint there, or a run on what is no
        text.
    """
    config = configs.from_dict(workdir_lib.read_config(workdir))
    problem = session_lib.choose_problem(config).with_kept(str(workdir))
    self.tokenizer = problem.tokenizer()
    self._session = session_lib.plan(config, mesh_spec, splits=())
    state, _ = fresh_rules.of_run(self._session, workdir, step)
    self._variables = {'params': state.params}
    if state.balance:
      self._variables['balance'] = state.balance

  def __call__(
    self,
    prompt: bytes,
    *,
    length: int,
    samples: int = 1,
    temperature: float = 0.8,
    seed: int = 0,
  ) -> list[bytes]:
    """Samples continuations.

    Args:
      prompt: what to continue; for an encoder-decoder, the encoder's input.
      length: tokens to add, at most; a sample ends at the end of a document.
      samples: continuations of the one prompt; each has draws of its own,
        whatever their number and the mesh.
      temperature: 0 takes the likeliest token.
      seed: of the draws.

    Returns:
      The continuations without the prompt.
    """
    if length < 1 or samples < 1 or temperature < 0:
      raise UserError(
        f'length={length} and samples={samples} must be at least 1, '
        f'temperature={temperature} at least 0'
      )
    # Every device of the batch axes takes as many rows; what is too many is
    # thrown away.
    s = self._session
    devices = axes_lib.make(s.mesh.shape)
    devices = devices.size(devices.batch)
    rows = math.ceil(samples / devices) * devices
    ids = self.tokenizer.encode(prompt)
    encoded, first = None, np.append(self.tokenizer.pad_id, ids)
    if s.config.model.kind == 'encoder_decoder':
      first = first[:1]
      source = np.append(ids, self.tokenizer.eos_id)
      encoded = _batch(source, rows, 'encoder_')
    model = self._model(len(first) + length)

    run = jax.jit(functools.partial(_decode, model, length, temperature))
    out_BL = run(
      self._variables, _batch(first, rows), encoded, jax.random.key(seed)
    )
    return [self._text(row) for row in np.asarray(out_BL)[:samples]]

  def _model(self, cache_length: int):
    s = self._session
    return s.problem.model(s.config, s.mesh, cache_length=cache_length)

  def _text(self, ids) -> bytes:
    ends = np.flatnonzero(ids == self.tokenizer.eos_id)
    return self.tokenizer.decode(ids[: ends[0]] if ends.size else ids)


def _batch(ids, rows: int, prefix: str = ''):
  """int32 [rows, length] arrays of one segment."""
  tile = lambda v: jnp.tile(jnp.asarray(v, jnp.int32), (rows, 1))
  return {
    f'{prefix}inputs': tile(ids),
    f'{prefix}positions': tile(np.arange(len(ids))),
    f'{prefix}segments': tile(np.ones(len(ids))),
  }


def _decode(model, length, temperature, variables, batch, encoded, key):
  """Prompt in one call, then a token at a time: int32 [B, length]."""
  B, P = batch['inputs'].shape
  # For the few routers that are random in evaluation too.
  apply = functools.partial(
    model.apply, train=False, rngs={'router': jax.random.fold_in(key, length)}
  )
  decode = apply
  if encoded is not None:
    out, _ = apply(variables, encoded, method='encode')
    decode = lambda v, b, **rest: apply(
      v, out, b | encoded, method='decode', **rest
    )

  def draw(logits_BV, i):
    if temperature == 0:
      return jnp.argmax(logits_BV, -1).astype(jnp.int32)
    keys_B = jax.vmap(jax.random.fold_in, (None, 0))(
      jax.random.fold_in(key, i), jnp.arange(B)
    )
    drawn_B = jax.vmap(jax.random.categorical)(keys_B, logits_BV / temperature)
    return drawn_B.astype(jnp.int32)

  (logits, _), made = decode(variables, batch, mutable=['cache'])
  token_B = draw(logits[:, -1], 0)

  def step(carry, i):
    cache, token_B = carry
    one = {
      'inputs': token_B[:, None],
      'positions': jnp.full((B, 1), P, jnp.int32) + i - 1,
      'segments': jnp.ones((B, 1), jnp.int32),
    }
    (logits, _), made = decode(variables | cache, one, mutable=['cache'])
    return (made, draw(logits[:, -1], i)), token_B

  (_, last_B), tokens_LB = jax.lax.scan(
    step, (made, token_B), jnp.arange(1, length)
  )
  return jnp.concatenate([tokens_LB, last_B[None]]).T
