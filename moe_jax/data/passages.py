"""A built-in task: which domain of the corpus is this passage from?

Passages are windows of the corpus that `data.name` and `data.dir` name, cut
from its documents one after the other: those of training from its training
documents, which a model that was pre-trained on the corpus has read, without
their names; those of validation from its validation documents. Classes are the
domains with the most training text among those that have enough of both; they
are as frequent as each other.

The accuracy of a naive Bayes classifier of the passages' byte trigrams
(Laplace, in hashed bins), which learns from the same labels, stands beside a
model's as 'eval/naive_bayes'.
"""

from collections.abc import Callable

import numpy as np

from moe_jax.data.task_sources import Example, Task
from moe_jax.errors import UserError

# Examples; fewer where one of the classes has less than its share of passages.
VALIDATION = 5000
_BINS = 1 << 18
_SMOOTHING = 0.1
_LETTERS = 'abcdefghijklmnopqrstuvwxyz'


def domain(
  examples: int = 20_000,
  classes: int = 8,
  length: int = 96,
  label_noise: float = 0.0,
  *,
  corpus: Callable,
) -> Task:
  """The task.

  Args:
    examples: of training: the first of an order that is always the same, so
      that fewer are part of more; classes take turns.
    classes: how many; a domain's label is a letter.
    length: of a passage, in bytes.
    label_noise: share of the training labels that are another class's, drawn
      once. Labels of validation are right.
    corpus: opens the corpus, a `pipeline.Data`.

  Raises:
    ValueError: a number out of its range, or too few domains with enough text.
  """
  for name, value, least in (
    ('examples', examples, classes),
    ('classes', classes, 2),
    ('length', length, 8),
  ):
    if not (isinstance(value, int) and value >= least):
      raise UserError(
        f'domain: {name}={value!r}: expected a whole number, {least} or more'
      )
  if classes > len(_LETTERS):
    raise UserError(f'domain: classes={classes}: {len(_LETTERS)} at most')
  if not 0 <= label_noise < 1:
    raise UserError(f'domain: label_noise={label_noise!r}: expected 0 to 1')
  data = corpus()
  each = -(-examples // classes)
  held = VALIDATION // classes
  train, validation = (
    {d: _windows(texts, length, i) for d, texts in part.items()}
    for i, part in enumerate((_training(data), _held_out(data)))
  )
  enough = [
    d
    for d in data.domains
    if len(train[d]) >= each and len(validation[d]) >= min(held, 50)
  ]
  if len(enough) < classes:
    raise UserError(
      f'domain: {len(enough)} of the {len(data.domains)} domains have {each} '
      f'passages of training and {min(held, 50)} of validation; classes='
      f'{classes} needs more text, or fewer examples'
    )
  chosen = sorted(enough, key=lambda d: -len(train[d]))[:classes]
  # As frequent as each other in validation, too.
  held = min(held, *(len(validation[d]) for d in chosen))
  turns = lambda of, n: [
    Example((of[chosen[i % classes]][i // classes],), i % classes)
    for i in range(n)
  ]
  learnt = _noisy(turns(train, examples), classes, label_noise)
  rest = turns(validation, held * classes)
  return Task(
    'domain',
    ('text',),
    tuple(_LETTERS[:classes]),
    learnt,
    rest,
    {'naive_bayes': naive_bayes(learnt, rest, classes)},
  )


def _training(data) -> dict[str, list[bytes]]:
  return {d: list(data.train_texts(d)) for d in data.domains}


def _held_out(data) -> dict[str, list[bytes]]:
  found: dict[str, list[bytes]] = {d: [] for d in data.domains}
  for document, text in zip(data.documents, data.validation_texts()):
    found[document.domain].append(text)
  return found


def _windows(texts, length: int, part: int) -> list[bytes]:
  """The passages of documents, none twice, in a drawn order."""
  found = [
    text[i : i + length]
    for text in texts
    for i in range(0, len(text) - length + 1, length)
  ]
  found = [w.decode(errors='ignore').encode() for w in dict.fromkeys(found)]
  order = np.random.default_rng([17, part]).permutation(len(found))
  return [found[i] for i in order]


def _noisy(examples, classes: int, share: float) -> list[Example]:
  """With a share of the labels another one's; an example's is always so."""
  rng = np.random.default_rng(23)
  drawn_N2 = rng.random((len(examples), 2))
  out = []
  for e, (wrong, which) in zip(examples, drawn_N2):
    label = e.label
    if wrong < share:
      label = (label + 1 + int(which * (classes - 1))) % classes
    out.append(e._replace(label=label))
  return out


def naive_bayes(train, validation, classes: int) -> float:
  """Accuracy on `validation` of multinomial naive Bayes on byte trigrams."""
  count_CB = np.full((classes, _BINS), _SMOOTHING)
  for e in train:
    np.add.at(count_CB[e.label], _trigrams(e.texts[0]), 1)
  log_CB = np.log(count_CB / count_CB.sum(1, keepdims=True))
  right = sum(
    int(log_CB[:, _trigrams(e.texts[0])].sum(1).argmax()) == e.label
    for e in validation
  )
  return right / len(validation)


def _trigrams(text: bytes) -> np.ndarray:
  x = np.frombuffer(text, np.uint8).astype(np.uint32)
  ids = x[:-2] << 16 | x[1:-1] << 8 | x[2:]
  return (ids * np.uint32(2654435761)) >> np.uint32(14)
