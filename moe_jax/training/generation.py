"""Continues prompts from a run's checkpoint, with a key-value cache."""

import dataclasses
import functools
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from moe_jax.errors import UserError
from moe_jax.kernels import order_statistics
from moe_jax.parallel import axes as axes_lib
from moe_jax.runs import workdir as workdir_lib
from moe_jax.training import fresh_rules, session as session_lib


class Speed(NamedTuple):
  """How fast a call was, without compilation.

  Attributes:
    first_seconds: to the first token of all rows.
    tokens_per_second: of all rows together after that; 0 where none came.
  """

  first_seconds: float
  tokens_per_second: float


class Generator:
  """A model restored for decoding; needs no data.

  Decoding is dropless and each call's groups are its own, so a token's
  continuation depends on nothing else in the batch.

  Attributes:
    tokenizer: of the run.
    speed: of the last call, or None.
  """

  speed: Speed | None = None

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
    config = workdir_lib.load_config(workdir)
    problem = session_lib.choose_problem(config).with_kept(str(workdir))
    self.tokenizer = problem.tokenizer()
    self._session = session_lib.plan(config, mesh_spec, splits=())
    state, _ = fresh_rules.of_run(self._session, workdir, step)
    self._variables = {'params': state.params}
    if state.balance:
      self._variables['balance'] = state.balance

  def __call__(
    self,
    prompts: bytes | Sequence[bytes],
    *,
    length: int,
    samples: int = 1,
    temperature: float = 0.8,
    top_k: int = 0,
    top_p: float = 1.0,
    stop: bytes = b'',
    seed: int = 0,
  ) -> list[bytes]:
    """Samples continuations.

    What a prompt is continued by depends neither on the others nor on their
    number; prompts of different lengths are padded behind, and padding is not
    kept in the cache. A decoder's row begins with the padding token, as rows
    are trained.

    Args:
      prompts: what to continue, one or several; for an encoder-decoder, the
        encoder's input.
      length: tokens to add, at most; a sample ends at the end of a document.
      samples: continuations of each prompt; each has draws of its own, whatever
        their number and the mesh.
      temperature: 0 takes the likeliest token.
      top_k: draws from so many likeliest tokens (Fan et al. 2018,
        arXiv:1805.04833, section 5); 0 from all.
      top_p: draws from the fewest likeliest tokens that have this probability
        together (Holtzman et al. 2020, arXiv:1904.09751, section 3.1).
      stop: a token that ends a sample, too, and is no part of it.
      seed: of the draws.

    Returns:
      The continuations without the prompts, all of the first one's first.
      `speed` is of this call then.

    Raises:
      ValueError: a number out of its range, or `stop` is not one token.
    """
    if length < 1 or samples < 1 or temperature < 0:
      raise UserError(
        f'length={length} and samples={samples} must be at least 1, '
        f'temperature={temperature} at least 0'
      )
    if top_k < 0:
      raise UserError(f'top_k={top_k} must be at least 0, which is all')
    if not 0 < top_p <= 1:
      raise UserError(f'top_p={top_p}; valid: (0, 1]')
    prompts = [prompts] if isinstance(prompts, bytes) else list(prompts)
    if not prompts:
      raise UserError('no prompts')
    ends = [self.tokenizer.eos_id, *self._stop(stop)]
    asked = len(prompts) * samples
    ids = [self.tokenizer.encode(p) for p in prompts for _ in range(samples)]
    # Every device of the batch axes takes as many rows; what is too many is
    # thrown away.
    s = self._session
    devices = axes_lib.make(s.mesh.shape)
    ids += ids[-1:] * (-asked % devices.size(devices.batch))
    first = [np.append(self.tokenizer.pad_id, v) for v in ids]
    encoded = None
    if s.config.model.kind == 'encoder_decoder':
      eos = self.tokenizer.eos_id
      encoded = batch([np.append(v, eos) for v in ids], 'encoder_')
      first = [v[:1] for v in first]
    begun = batch(first)
    longest = begun['inputs'].shape[1]
    steps = Steps(
      self._model(longest + length),
      *(length, temperature, top_k, top_p),
      tuple(ends),
    )
    rows = jnp.arange(len(ids)) % samples
    ids_BL = self._run(steps, begun, encoded, rows, jax.random.key(seed))
    return [self._text(row, ends) for row in ids_BL[:asked]]

  def _run(self, steps, begun, encoded, sample_B, key) -> np.ndarray:
    """int32 [B, length]; times what is no compilation."""
    args = self._variables, begun, encoded, sample_B, key
    start = jax.jit(steps.start).lower(*args).compile()
    began = time.perf_counter()
    state = jax.block_until_ready(start(*args))
    first = time.perf_counter() - began
    args = self._variables, state, encoded, sample_B, key
    go_on = jax.jit(steps.go_on).lower(*args).compile()
    began = time.perf_counter()
    ids_BL, made = jax.device_get(go_on(*args))
    seconds = time.perf_counter() - began
    B, made = len(sample_B), int(made) - 1
    self.speed = Speed(first, B * made / seconds if made else 0.0)
    return ids_BL

  def _model(self, cache_length: int):
    s = self._session
    return s.problem.model(s.config, s.mesh, cache_length=cache_length)

  def _stop(self, stop: bytes) -> list[int]:
    ids = self.tokenizer.encode(stop)
    if len(ids) > 1:
      raise UserError(f'stop={stop!r} is {len(ids)} tokens; one is wanted')
    return [int(i) for i in ids]

  def _text(self, ids, ends) -> bytes:
    at = np.flatnonzero(np.isin(ids, ends))
    return self.tokenizer.decode(ids[: at[0]] if at.size else ids)


def batch(rows: Sequence[np.ndarray], prefix: str = ''):
  """int32 [rows, longest] arrays, a segment a row; padding is behind."""
  longest = max(map(len, rows))
  pad = lambda v: np.pad(v, (0, longest - len(v)))
  stack = lambda made: jnp.asarray(np.stack([pad(v) for v in made]), jnp.int32)
  return {
    f'{prefix}inputs': stack(rows),
    f'{prefix}positions': stack([np.arange(len(v)) for v in rows]),
    f'{prefix}segments': stack([np.ones(len(v)) for v in rows]),
  }


@dataclasses.dataclass(frozen=True)
class Steps:
  """The prompts in one call, then a token of each row at a time."""

  model: Any
  length: int
  temperature: float
  top_k: int
  top_p: float
  ends: tuple[int, ...]

  def start(self, variables, begun, encoded, sample_B, key):
    """(cache, its rows' lengths, first tokens) after the prompts."""
    length_B = begun['segments'].sum(1)
    logits_BLV, cache = self._call(variables, begun, encoded, key)
    last_B11 = length_B[:, None, None] - 1
    logits_BV = jnp.take_along_axis(logits_BLV, last_B11, 1)[:, 0]
    return cache, length_B, self._draw(logits_BV, 0, sample_B, key)

  def go_on(self, variables, state, encoded, sample_B, key):
    """int32 [B, length], and how many of them any row needed."""
    cache, length_B, token_B = state
    ids_BL = jnp.full((len(length_B), self.length), self.ends[0], jnp.int32)
    ids_BL = ids_BL.at[:, 0].set(token_B)
    over = lambda token_B: jnp.isin(token_B, jnp.array(self.ends))

    def more(carry):
      i, *_, over_B = carry
      return (i < self.length) & ~over_B.all()

    def step(carry):
      i, cache, ids_BL, over_B = carry
      one = {
        'inputs': jax.lax.dynamic_slice_in_dim(ids_BL, i - 1, 1, 1),
        'positions': length_B[:, None] + i - 1,
        'segments': jnp.ones_like(length_B)[:, None],
      }
      logits_BLV, cache = self._call(variables | cache, one, encoded, key)
      token_B = self._draw(logits_BLV[:, -1], i, sample_B, key)
      ids_BL = jax.lax.dynamic_update_slice(ids_BL, token_B[:, None], (0, i))
      return i + 1, cache, ids_BL, over_B | over(token_B)

    carry = jnp.int32(1), cache, ids_BL, over(token_B)
    made, _, ids_BL, _ = jax.lax.while_loop(more, step, carry)
    return ids_BL, made

  def _call(self, variables, rows, encoded, key):
    # For the few routers that are random in evaluation too.
    apply = functools.partial(
      self.model.apply,
      train=False,
      rngs={'router': jax.random.fold_in(key, self.length)},
    )
    if encoded is None:
      (logits, _), cache = apply(variables, rows, mutable=['cache'])
      return logits, cache
    out, _ = apply(variables, encoded, method='encode')
    (logits, _), cache = apply(
      variables, out, rows | encoded, mutable=['cache'], method='decode'
    )
    return logits, cache

  def _draw(self, logits_BV, i, sample_B, key):
    if self.temperature == 0:
      return jnp.argmax(logits_BV, -1).astype(jnp.int32)
    logits_BV = likeliest(logits_BV / self.temperature, self.top_k, self.top_p)
    keys_B = jax.vmap(jax.random.fold_in, (None, 0))(
      jax.random.fold_in(key, i), sample_B
    )
    drawn_B = jax.vmap(jax.random.categorical)(keys_B, logits_BV)
    return drawn_B.astype(jnp.int32)


def likeliest(logits_BV: jax.Array, top_k: int, top_p: float) -> jax.Array:
  """The logits, -inf of tokens that are not drawn from; equal ones all stay."""
  if top_k:
    k = min(top_k, logits_BV.shape[-1])
    best_BK, _ = order_statistics.top_k(logits_BV, k)
    logits_BV = jnp.where(logits_BV < best_BK[:, -1:], -jnp.inf, logits_BV)
  if top_p < 1:
    sorted_BV = jnp.sort(logits_BV, descending=True)
    probs_BV = jax.nn.softmax(sorted_BV)
    # Those before which there is less than top_p: the one that crosses stays.
    in_BV = jnp.cumsum(probs_BV, -1) - probs_BV < top_p
    least_B1 = jnp.where(in_BV, sorted_BV, jnp.inf).min(-1, keepdims=True)
    logits_BV = jnp.where(logits_BV < least_B1, -jnp.inf, logits_BV)
  return logits_BV
