"""What a run is about: rows, loss and scores, as one object.

A problem is all that training and evaluation know of the data. It is built
from a config by `of`: `data.problem` is a call string, a file of this package
or a dotted name (`'my_lab.series.Series(noise=0.1)'`); where it is '', the
fields `data.objective`, `data.task` and `data.task_file` say which.

A batch is a dict of arrays whose first axis is rows. 'segments' [B, L], int32
and 0 on padding, is of the decoder, or of the one stack; an encoder has
'encoder_segments'. L never varies: groups and seats follow from it. While it
trains, a batch has 'step' and 'part', too, for `types.Tokens`. All else is
between a problem and its model.

The model is a Flax module with `(batch, train=) -> out, aux by stack` and
`stacks`, as `models.decoder.Decoder` is; `out` is what `loss` and `judge` are
given. `factory.stacks` builds the stacks of a config, by the names that
`factory.moe_fields` gives them; a problem puts its own input and head around
them. Series and images have vectors for ids, images and ranking stacks that are
not causal (`factory.stacks(..., causal=False)`), diffusion draws noise and its
level with the row; of images and rankings an example counts, not its tokens
(`count`), and is a unit that is scored (`by_unit`).
"""

import abc
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from moe_jax import registry
from moe_jax.data import batches, objectives
from moe_jax.errors import UserError

Arrays = Mapping[str, jax.Array]


class Loss(NamedTuple):
  """Sums over what counts in a batch, which add up; float32 scalars.

  Attributes:
    loss: what the run calls its loss, once divided by `Problem.count`.
    penalty: is minimised with it, and stands in the total loss alone.
  """

  loss: jax.Array
  penalty: jax.Array | float = 0.0


def by_unit(values: jax.Array, unit: jax.Array, count: int) -> jax.Array:
  """Sums [count] of values by the unit, an example or document, they are of.

  Args:
    values, unit: of one shape; what is of unit -1, padding, is left out.
    count: units there are.
  """
  # -1 is the last place, one past the units.
  sums = jnp.zeros(count + 1, jnp.float32)
  return sums.at[unit.reshape(-1)].add(values.reshape(-1))[:-1]


@dataclasses.dataclass(frozen=True)
class Score:
  """A score of an evaluation as tables and figures show it.

  Attributes:
    key: of the metric; `key`_low and `key`_high are its interval.
    label: in a table.
    unit: of an axis; where it begins with '%', shares are shown in percent.
    better: 'lower' or 'higher'.
    floor: key of what a model must beat, or ''.
    floor_label: its name.
    best: key, in the summary, of the best of all evaluations, or ''. Such a
      score is also shown while the run goes on.
  """

  key: str
  label: str
  unit: str = ''
  better: str = 'lower'
  floor: str = ''
  floor_label: str = ''
  best: str = ''

  def text(self, value: float) -> str:
    """'accuracy 71.2 %'."""
    percent = self.unit.startswith('%')
    shown = f'{100 * value:.1f} %' if percent else f'{value:.4f}'
    return f'{self.label} {shown}'

  def choose(self, values: Sequence[float]) -> float:
    """The best of them."""
    return max(values) if self.better == 'higher' else min(values)


class Problem(abc.ABC):
  """A kind of problem: a frozen dataclass, its fields the options.

  A field named as one of those in `sizes` has the config's value, unless the
  call string sets it.

  Attributes:
    kinds: of `model.kind` that it goes with.
    shown: scores that are shown, the foremost first.
    loss_unit: of the training loss.
  """

  kinds: tuple[str, ...] = ('decoder',)
  shown: tuple[Score, ...] = ()
  loss_unit: str = 'loss'

  # Before any data is read.

  @abc.abstractmethod
  def example(self) -> Mapping[str, np.ndarray]:
    """ONE row of what a model reads; only shapes and dtypes matter."""

  @abc.abstractmethod
  def model(
    self,
    config,
    mesh,
    *,
    cache_length: int = 0,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
  ) -> nn.Module:
    """The model of a config.

    Args:
      config: a ConfigDict; of another run where `shapes` are.
      mesh: None for one device.
      cache_length: positions of a decoding cache; 0 for none.
      shapes: of the parameters of the run whose model it is, by name
        ('params/embedding/table'), for what is in no config.

    Raises:
      ValueError: names the field, its value and the valid ones.
    """

  def check(self, config) -> None:
    """Raises ValueError where the config's model is not for this problem."""
    if config.model.kind not in self.kinds:
      raise UserError(
        f'the problem {self.name} does not go with model.kind='
        f'{config.model.kind!r}; valid: {", ".join(self.kinds)}'
      )

  def find(self, allow_download: bool = False) -> None:
    """Raises ValueError where data is missing, as far as a glance tells.

    Called before a workdir is made.
    """

  def differs(self, other: 'Problem') -> str:
    """Why the parameters of a run of the other mean another thing here; ''.

    Their shapes are compared elsewhere.
    """
    del other
    return ''

  # The data.

  @abc.abstractmethod
  def open(
    self, *, cache_dir: str, allow_download: bool = False
  ) -> batches.Batches:
    """Reads or builds the data; what is built is kept in `cache_dir`."""

  def read(
    self, directory: str, *, cache_dir: str, max_bytes: int = 0
  ) -> batches.HeldOut:
    """Other text, for validation alone: all of a folder, a domain a file.

    Args:
      directory: of .txt files.
      cache_dir: where what is built is kept.
      max_bytes: cap of the text, the same for each domain; 0 for none.

    Raises:
      ValueError: the problem is not of running text, or there is none.
    """
    del cache_dir, max_bytes
    raise self.lacks(f'text={directory!r}', 'running text')

  def keep(self, data: batches.Batches, workdir: str) -> None:
    """Writes what of the data a run's parameters cannot be read without.

    Once a run, by its first process; nothing where it is there.
    """
    del data, workdir

  def with_kept(self, *workdirs: str) -> 'Problem':
    """The problem with what the first of these runs that did so has kept.

    Args:
      workdirs: of runs that are there or not; '' is none.
    """
    del workdirs
    return self

  # Training. `batch` may be a part of one, and is traced.

  @abc.abstractmethod
  def loss(self, out: Any, batch: Arrays) -> Loss:
    """Sums over what counts."""

  def count(self, batch: Arrays) -> jax.Array:
    """How much counts, a scalar; known from the batch alone."""
    return (batch['segments'] > 0).sum()

  def logged(self, loss: float) -> dict[str, float]:
    """What else a log line has that follows from the loss."""
    del loss
    return {}

  def check_teacher(self, teacher: nn.Module, student: nn.Module) -> None:
    """Raises ValueError where outputs of one mean nothing to the other."""
    raise self.lacks('train.teacher', 'probabilities to learn')

  def distillation(self, out: Any, taught: Any, batch: Arrays) -> jax.Array:
    """The sum of a cross-entropy of a teacher's outputs."""
    raise self.lacks('train.teacher', 'probabilities to learn')

  # Evaluation.

  @abc.abstractmethod
  def judge(self, out: Any, batch: Arrays, data: batches.Batches) -> Any:
    """Sums over a batch of the validation set, a tree of arrays; traced."""

  @abc.abstractmethod
  def scores(self, sums: Any, data: batches.Batches) -> dict[str, float]:
    """Metrics of the whole validation set, from the sums of all batches.

    Returns:
      'eval/loss', and those of `shown` with '_low' and '_high', the ends of a
      95 % interval (see `data.intervals`).

    Raises:
      FloatingPointError: a sum is not finite; names what it is of.
    """

  def difference(
    self, sums: Any, others: Any, data: batches.Batches
  ) -> dict[str, float]:
    """Scores of a model less those of another, paired over the same data.

    Args:
      sums, others: as `scores` takes them, of either model.
      data: of both.

    Returns:
      'difference/...' with '_low' and '_high', the ends of a 95 % interval.

    Raises:
      ValueError: the problem has none.
    """
    raise self.lacks('a comparison', 'scores by document')

  def floor(self, data: batches.Batches) -> dict[str, float]:
    """Scores of what a model must beat, computed once a run."""
    del data
    return {}

  def tokenizer(self) -> Any:
    """What turns a prompt into rows, for generation."""
    raise self.lacks('generation', 'text')

  # What follows.

  @property
  def name(self) -> str:
    return type(self).__name__

  @property
  def lengths(self) -> dict[str, int]:
    """Tokens of a row by stack: 'encoder' and 'decoder', in order."""
    row = self.example()
    stacks = {'encoder': 'encoder_segments', 'decoder': 'segments'}
    return {k: row[v].shape[0] for k, v in stacks.items() if v in row}

  def dummy(self, rows: int) -> dict[str, jax.Array]:
    """Ones of the right shapes, for initialisers."""
    return {
      k: jnp.ones((rows, *v.shape), v.dtype) for k, v in self.example().items()
    }

  def described(self) -> dict[str, Any]:
    """What a summary has beside its scores: how they are to be shown."""
    shown = [dataclasses.asdict(s) for s in self.shown]
    own = {'name': self.name, 'loss_unit': self.loss_unit, 'shown': shown}
    return {'problem': own}

  def lacks(self, what: str, needed: str) -> UserError:
    """To raise: `what` needs something that this problem does not have."""
    return UserError(f'{what} needs {needed}; the problem {self.name} has none')


def of(config) -> Problem:
  """The problem that a config names.

  Raises:
    ValueError: unknown problem, objective or argument; lists the valid ones.
  """
  return registry.build('problems', spec(config), **sizes(config))


def spec(config) -> str:
  """Its call string."""
  data = config.data
  if data.problem:
    if data.task or data.task_file:
      raise UserError(
        f'data.problem={data.problem!r} and a task: data.task='
        f"{data.task!r}, data.task_file={data.task_file!r} must be ''"
      )
    return data.problem
  if data.task or data.task_file:
    return 'classification'
  objectives.build(data.objective)  # or raises
  return registry.parse(data.objective)[0]


def sizes(config) -> dict[str, Any]:
  """The config's values that a problem may have as fields.

  Returns:
    data: the `data` part of the config; seq_len: of it.
    kind: of the model.
    vocab_size: rows of the embedding table; 0 is the tokenizer's.
    z_loss: `train.z_loss`.
    documents: which of the validation set, 'all', 'even' or 'odd', of `eval`.
    max_bytes, max_examples: caps of the validation set, of `eval`; 0 for none.
  """
  return {
    'data': config.data,
    'seq_len': config.data.seq_len,
    'kind': config.model.kind,
    'vocab_size': config.model.vocab_size,
    'z_loss': config.train.z_loss,
    'documents': config.eval.documents,
    'max_bytes': config.eval.max_bytes,
    'max_examples': config.eval.max_examples,
  }
