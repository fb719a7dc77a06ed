"""Text-to-text classification: a prompt goes in, the label's text comes out.

    data = tasks.load(config.data, kind='decoder', cache_dir='/tmp/data')

As in T5 (Raffel et al. 2020, arXiv:1910.10683, section 2.4) a prompt is
'<task> <field>: <text> <field>: <text>'; an answer is a label's text and EOS.

`encoder_decoder`: the prompt and EOS are the encoder's row, [seq_len], the
answer is the decoder's, [TARGETS]. `decoder`: the prompt, ' label: ' and the
answer are one row, [seq_len], and 'loss' is 1 where a target counts: at the
answer.

A prompt that is too long loses the START of its longest field, since what is
asked is mostly about the end (fields that are as long take turns), and so much
of it that each of the labels would fit.

Accuracy is by rank: in validation each label of each example is a document of
its own, and the likeliest one given the prompt is the model's answer. So scores
are sums by document, the same on any mesh. Each is a row, too, but where all
labels are of one token: one row then asks for all of them.
"""

import collections
import contextlib
import functools
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from absl import logging

from moe_jax import registry
from moe_jax.data import (
  bad as bad_lib,
  batches,
  chains,
  docstrings,
  held_out,
  intervals,
  inventory,
  objectives,
  passages,
  pipeline,
  sources,
  task_sources,
  tokenizers,
)
from moe_jax.errors import UserError

# Of a decoder's row beside an encoder: 'not_entailment' is 15 bytes with EOS.
# Fixed, so that group sizes fit whatever the task is.
TARGETS = 16
BUILT_IN = {
  'chain': chains.chain,
  'docstring': docstrings.docstring,
  'domain': passages.domain,
}
# What a task that is made of the corpus takes of `data`.
_OF_CORPUS = (
  *('name', 'dir', 'domains', 'text_field', 'max_bad'),
  *('train_split', 'validation_split'),
)


def chosen(config: Mapping[str, Any]) -> str:
  """What the `data` part of a config names as its task; '' is pre-training.

  Raises:
    ValueError: both a task and a file.
  """
  task, path = config.task, config.task_file
  if task and path:
    raise UserError(
      f"data.task={task!r} and data.task_file={path!r}: one of them must be ''"
    )
  return task or path


def find(
  config: Mapping[str, Any], *, cache_dir: str, allow_download: bool = False
) -> task_sources.Task:
  """The task that the `data` part of a config names.

  Raises:
    ValueError: an unknown task, or data that is not there or does not fit; one
      line says which.
  """
  spec, bad = chosen(config), bad_lib.Bad(config.max_bad)
  where = {'cache_dir': cache_dir, 'allow_download': allow_download}
  if config.task_file:
    task = task_sources.from_file(spec, bad)
  elif '(' in spec or spec in BUILT_IN:
    return _built_in(spec, config, where)
  else:
    splits = config.train_split, config.validation_split
    with _as_tfds(spec):
      task = task_sources.from_tfds(
        spec, directory=config.dir, splits=splits, bad=bad, **where
      )
  bad.warn()
  return task._replace(left_out=bad.count)


def _built_in(spec, config, where):
  corpus = None

  def opened():
    nonlocal corpus
    # Whole documents are read, whatever a row's length.
    fields = {k: v for k, v in config.items() if k in _OF_CORPUS}
    corpus = pipeline.load(fields | {'seq_len': 1}, **where)
    return corpus

  domain = functools.partial(passages.domain, corpus=opened)
  task = registry.call(spec, BUILT_IN | {'domain': domain}, 'task')
  return task._replace(corpus=corpus, left_out=corpus.left_out if corpus else 0)


def look(config: Mapping[str, Any], allow_download: bool) -> None:
  """Raises ValueError where `find` would, as far as a glance tells."""
  spec = chosen(config)
  if config.task_file:
    task_sources.look(spec)
  elif registry.parse(spec)[0] == 'domain':
    where = {'directory': config.dir, 'allow_download': allow_download}
    sources.look(config.name, **where)
  elif '(' not in spec and spec not in BUILT_IN:
    with _as_tfds(spec):
      where = {'directory': config.dir, 'allow_download': allow_download}
      sources.look(spec, **where)


@contextlib.contextmanager
def _as_tfds(spec: str):
  """What is raised inside says that the name may have been meant otherwise."""
  try:
    yield
  except ValueError as e:
    built_in = ', '.join(f'{name}()' for name in BUILT_IN)
    raise UserError(
      f'data.task={spec!r}: built in is {built_in}; as a TFDS name: {e}'
    ) from None


def load(
  config: Mapping[str, Any],
  *,
  kind: str,
  cache_dir: str,
  allow_download: bool = False,
  max_examples: int = 0,
) -> 'TaskData':
  """Opens the task of a config.

  Args:
    config: the `data` part of it, a ConfigDict.
    kind: of the model, 'decoder' or 'encoder_decoder'.
    cache_dir: as in `pipeline.load`.
    allow_download: lets TFDS download what is not prepared.
    max_examples: of validation, spread evenly over them; 0 is all.

  Raises:
    ValueError: see `find`; labels or a row that do not fit.
  """
  task = find(config, cache_dir=cache_dir, allow_download=allow_download)
  texts = (text for e in task.train for text in e.texts)
  return TaskData(
    task,
    kind=kind,
    seq_len=config.seq_len,
    tokenizer=tokenizers.build(config.tokenizer).fitted(texts, cache_dir),
    max_examples=max_examples,
  )


class TaskData(batches.Batches):
  """A task as batches, with what a run uses of `pipeline.Data`.

  Examples are in memory, tokenized.

  Attributes:
    tokenizer: see `tokenizers`.
    labels: the text of each label.
    domains: the task's name.
    documents: each label of each validation example, label by label.
    label_tokens: the token of each label, where all are of one; else ().
    known: accuracies of other ways to answer, by name.
    fingerprint: hash of the texts and labels and the tokenizer.
  """

  def __init__(
    self,
    task: task_sources.Task,
    *,
    kind: str,
    seq_len: int,
    tokenizer,
    max_examples: int = 0,
  ):
    self._kind, self._seq_len, self.tokenizer = kind, seq_len, tokenizer
    self._name, self.labels = task.name, task.labels
    self.domains = (task.name,)
    self._answers = [self._answer(label) for label in task.labels]
    longest = max(map(len, self._answers))
    self._check(longest)
    self._middle = np.zeros(0, np.int32)
    if kind == 'decoder':
      self._middle = tokenizer.encode(b' label: ')
    # An encoder's row ends with EOS.
    rest = 1 if kind == 'encoder_decoder' else longest + len(self._middle)
    self._room, self._cut = seq_len - rest, 0
    held = task.validation
    if max_examples:
      count = min(max_examples, len(held))
      held = [held[i * len(held) // count] for i in range(count)]
    self._train, self._validation = (
      [(self._prompt(task.fields, e.texts), e.label) for e in part]
      for part in (task.train, held)
    )
    self._right_N = np.array([label for _, label in self._validation])
    self.documents = [
      held_out.Document(task.name, f'{i} {label}', len(label.encode()))
      for i in range(len(held))
      for label in task.labels
    ]
    self.known, self.left_out = dict(task.known), task.left_out
    first = [a[0] for a in self._answers]
    single = longest == 2 and len(set(first)) == len(first)
    # The token of each label, where one row asks for all; else ().
    self.label_tokens = tuple(map(int, first)) if single else ()
    self._rows_each = 1 if single else len(self.labels)
    self.validation_rows = len(held) * self._rows_each
    self.fingerprint = task_sources.fingerprint(task, tokenizer.key)
    self._corpus = task.corpus
    self._splits = {
      'training': inventory.of_examples(task.labels, task.train),
      'validation': inventory.of_examples(task.labels, task.validation),
    }
    self._epoch = functools.lru_cache(maxsize=2)(self._draw)
    logging.info('%s', self.describe())

  def train_row(self, seed: int, row: int) -> batches.Row:
    """The example that an epoch's order has there, with its own label."""
    epoch, i = divmod(row, len(self._train))
    example = self._row(*self._train[self._epoch(seed, epoch)[i]], 0)
    del example['document']  # of use in validation only
    return example

  def validation_row(self, row: int) -> batches.Row:
    """That of one of `documents`.

    `document` says at each target of an answer whose it is, else -1; where a
    row asks for all labels, at the first target the number of the example.
    """
    if row >= self.validation_rows:
      return self._layout(*np.zeros((3, 0), np.int32), -1)
    example, label = divmod(row, self._rows_each)
    prompt_N, right = self._validation[example]
    if not self.label_tokens:
      return self._row(prompt_N, label, row)
    found = self._row(prompt_N, right, example)
    first = np.argmax(found['document'] >= 0)
    found['document'][first + 1 :] = -1  # EOS is the same for all labels
    return found

  def scores(self, nats_N: np.ndarray) -> dict[str, float]:
    """Metrics of a model that gives `documents` these nats, f64 [N].

    Returns:
      'eval/accuracy' with its 95 % interval, '_low' and '_high'; 'eval/loss',
      nats a target token of the right labels; 'eval/majority', the accuracy of
      the most frequent training label; 'eval/examples'; what is known of the
      task. Of equally likely labels the first counts.
    """
    nats_NC = np.reshape(nats_N, (-1, len(self.labels)))
    right_N = self._right_N
    found = intervals.wilson(
      int((nats_NC.argmin(-1) == right_N).sum()), len(right_N)
    )
    one = self.label_tokens  # then EOS is not asked for
    tokens_C = np.array([1 if one else len(a) for a in self._answers])
    nats = nats_NC[np.arange(len(right_N)), right_N].sum()
    counts = collections.Counter(label for _, label in self._train)
    most = counts.most_common(1)[0][0]
    return {
      **found.named('eval/accuracy'),
      'eval/loss': float(nats / tokens_C[right_N].sum()),
      'eval/majority': float((right_N == most).mean()),
      'eval/examples': len(right_N),
      **{f'eval/{name}': float(v) for name, v in self.known.items()},
    }

  def describe(self) -> str:
    """A few lines: sizes, labels, and how many prompts were cut."""
    counts = collections.Counter(label for _, label in self._train)
    shares = ', '.join(f'{s!r} {counts[i]}' for i, s in enumerate(self.labels))
    return (
      f'{self._name}: data {self.fingerprint[:12]}'
      f'{bad_lib.note(self.left_out)}\n'
      f'  train {len(self._train)} examples ({shares}); validation '
      f'{len(self._validation)} examples; {self._cut} prompts cut at the start '
      f'of their longest field, to {self._room} tokens'
    )

  def kept(self) -> dict[str, Any]:
    """By label; of a task that is made of a corpus, that of the corpus."""
    of_corpus = self._corpus.kept() if self._corpus else {}
    splits = of_corpus.get('splits', self._splits)
    return of_corpus | {'tokenizer': self.tokenizer.key, 'splits': splits}

  def changes(self, kept: Any) -> str:
    root = self._corpus.index_root if self._corpus else ''
    return inventory.changes(kept, self.kept(), root)

  def _draw(self, seed, epoch):
    rng = np.random.default_rng([seed, 3, epoch])
    return rng.permutation(len(self._train))

  def _row(self, prompt_N, label, document) -> dict[str, np.ndarray]:
    source_N = np.append(prompt_N, self.tokenizer.eos_id)
    before_N = np.concatenate([prompt_N, self._middle])
    return self._layout(source_N, before_N, self._answers[label], document)

  def _layout(self, source_N, before_N, answer_N, document):
    """A row of an encoder's tokens, or of a decoder's before the answer."""
    pad, row, length = self.tokenizer.pad_id, {}, self._seq_len
    if self._kind == 'encoder_decoder':
      row = objectives.encoder_row(source_N, length, pad)
      before_N, length = before_N[:0], TARGETS
    targets_N = np.concatenate([before_N, answer_N]).astype(np.int32)
    at_N = np.arange(len(targets_N))
    document_N = np.where(at_N < len(before_N), -1, document)
    row |= objectives.decoder_row(targets_N, document_N, at_N == 0, length, pad)
    if self._kind == 'decoder':
      row['loss'] = (row['document'] >= 0).astype(np.int32)
    return row

  def _answer(self, label):
    ids_N = self.tokenizer.encode(label.encode())
    return np.append(ids_N, np.int32(self.tokenizer.eos_id))

  def _check(self, longest):
    if len(self.labels) < 2 or not all(self.labels):
      raise UserError(
        f'task {self._name!r} has the labels {self.labels}; expected two or '
        'more, none of them empty'
      )
    of_tokens = {}
    for label, answer_N in zip(self.labels, self._answers):
      same = of_tokens.setdefault(answer_N.tobytes(), label)
      if same != label:
        raise UserError(
          f'labels {same!r} and {label!r} of task {self._name!r} are the same '
          'tokens for this data.tokenizer'
        )
    if self._kind == 'encoder_decoder' and longest > TARGETS:
      label = max(self.labels, key=lambda s: len(self._answer(s)))
      raise UserError(
        f'label {label!r} of task {self._name!r} is {longest} tokens with its '
        f'EOS; a decoder beside an encoder has {TARGETS}'
      )

  def _prompt(self, fields, texts):
    """Tokens of a prompt, `_room` at most, in the smallest fitting type."""
    ids_N, whole = self._encoded(fields, texts), tuple(texts)
    while len(ids_N) > self._room:
      over = len(ids_N) - self._room
      longest = max(range(len(texts)), key=lambda i: len(texts[i]))
      if not texts[longest]:
        raise UserError(
          f'data.seq_len={self._seq_len} is too short for the prompts of task '
          f'{self._name!r}: without their texts they need '
          f'{self._seq_len + over}'
        )
      # A token has a byte at least. Only down to the next field's length; as
      # long ones take turns. No part of a character stays.
      second = sorted([0, *map(len, texts)])[-2]
      size = max(len(texts[longest]) - second, math.ceil(over / len(texts)))
      rest = texts[longest][min(size, over) :]
      rest = rest.decode(errors='ignore').encode()
      texts = (*texts[:longest], rest, *texts[longest + 1 :])
      ids_N = self._encoded(fields, texts)
    self._cut += texts != whole
    small = np.uint16 if self.tokenizer.vocab_size <= 1 << 16 else np.int32
    return ids_N.astype(small)

  def _encoded(self, fields, texts):
    parts = [b'%s: %s' % (f.encode(), t) for f, t in zip(fields, texts)]
    return self.tokenizer.encode(b' '.join([self._name.encode(), *parts]))
