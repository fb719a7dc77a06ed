"""A built-in task: which domain of the corpus is this passage from?

Passages are windows of the corpus that `data.name` and `data.dir` name, cut
from its documents one after the other: those of training from its training
documents, which a model that was pre-trained on the corpus has read, without
their names; those of validation from its validation documents.

Classes are, of the domains with enough of both, those that a naive Bayes
classifier of byte trigrams (Laplace, in hashed bins) confuses most, by training
passages alone. In training they are as frequent as each other. In validation
one that has too few passages may have three quarters of its share: the others
then have more.

The accuracy of that classifier, which learns from the same labels as a model,
stands beside the model's as 'eval/naive_bayes'. Of 23 domains of public text,
26 MB (the Brown corpus's genres, reviews, speeches, radio, an encyclopaedia), 8
by 96 bytes: 5,000 examples of validation, 506 to 642 a class, 12.8 % for always
the same answer; naive Bayes is right for 76.8 % of them after 20,000 examples,
for 75.2 % with a tenth of the labels wrong, for 41.3 % after 250 such. To open
it takes 4 s of a core.
"""

from collections.abc import Callable

import numpy as np

from moe_jax.data.task_sources import LETTERS, Example, Task, with_noise
from moe_jax.errors import UserError

# Examples, or fewer than a class more; fewer where there is not enough text.
VALIDATION = 5000
_SHARE = 0.75  # of VALIDATION / classes, which a class should have
_LEAST = 50
_FITTED, _JUDGED = 2000, 500  # training passages that choose the classes
_BINS = 1 << 18
_SMOOTHING = 0.1


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
  if classes > len(LETTERS):
    raise UserError(f'domain: classes={classes}: {len(LETTERS)} at most')
  if not 0 <= label_noise < 1:
    raise UserError(f'domain: label_noise={label_noise!r}: expected 0 to 1')
  data = corpus()
  each = -(-examples // classes)
  train, validation = (
    {d: _windows(texts, length, i) for d, texts in part.items()}
    for i, part in enumerate((_training(data), _held_out(data)))
  )
  enough = [
    d
    for d in data.domains
    if len(train[d]) >= each and len(validation[d]) >= _LEAST
  ]
  if len(enough) < classes:
    raise UserError(
      f'domain: {len(enough)} of the {len(data.domains)} domains have {each} '
      f'passages of training and {_LEAST} of validation; classes={classes} '
      'needs more text, or fewer examples'
    )
  chosen = _choose(enough, train, validation, classes)
  turns = [chosen[i % classes] for i in range(examples)]
  learnt = [
    Example((train[d][i // classes],), i % classes) for i, d in enumerate(turns)
  ]
  learnt = with_noise(learnt, classes, label_noise)
  rest = _shared_out([validation[d] for d in chosen])
  return Task(
    'domain',
    ('text',),
    tuple(LETTERS[:classes]),
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


def _choose(enough, train, validation, classes: int) -> list[str]:
  """The classes, those with the most training text first."""
  wanted = _SHARE * VALIDATION / classes
  by_size = sorted(enough, key=lambda d: -len(validation[d]))
  many = [d for d in by_size if len(validation[d]) >= wanted]
  if len(many) <= classes:
    chosen = by_size[:classes]
  else:
    chosen = _confused({d: train[d] for d in many}, classes)
  return sorted(chosen, key=lambda d: (-len(train[d]), d))


def _confused(passages: dict[str, list[bytes]], classes: int) -> list[str]:
  """The domains that are hardest to tell apart, found one by one.

  That one goes without which naive Bayes is right least often, until `classes`
  are left. Its counts are of some of the passages, its answers for others.
  """
  fitted = [p[: min(_FITTED, len(p) * 4 // 5)] for p in passages.values()]
  log_CB = _log_counts(fitted)
  score_CNC = [
    _scores(log_CB, p[len(f) :][:_JUDGED])
    for f, p in zip(fitted, passages.values())
  ]
  left = list(range(len(passages)))

  def accuracy(some):
    right = [
      (score_CNC[c][:, some].argmax(1) == i).mean() for i, c in enumerate(some)
    ]
    return np.mean(right)

  while len(left) > classes:
    fewer = [[c for c in left if c != gone] for gone in left]
    left = min(fewer, key=accuracy)
  names = list(passages)
  return [names[c] for c in left]


def _shared_out(passages: list[list[bytes]]) -> list[Example]:
  """VALIDATION examples, as even as can be, in a drawn order.

  Some of them are often asked for by stride, which turns would be in step with.
  """
  each = -(-VALIDATION // len(passages))
  most = max(map(len, passages))
  while each < most and sum(min(len(p), each) for p in passages) < VALIDATION:
    each += 1
  found = [Example((t,), c) for c, p in enumerate(passages) for t in p[:each]]
  order = np.random.default_rng(29).permutation(len(found))
  return [found[i] for i in order]


def naive_bayes(train, validation, classes: int) -> float:
  """Accuracy on `validation` of multinomial naive Bayes on byte trigrams."""
  texts = [[] for _ in range(classes)]
  for e in train:
    texts[e.label].append(e.texts[0])
  score_NC = _scores(_log_counts(texts), [e.texts[0] for e in validation])
  right_N = score_NC.argmax(1) == [e.label for e in validation]
  return float(right_N.mean())


def _log_counts(texts) -> np.ndarray:
  """Of the trigrams of each class's texts, with Laplace's rule. [C, bins]."""
  count_CB = np.full((len(texts), _BINS), _SMOOTHING)
  for count_B, of_class in zip(count_CB, texts):
    for t in of_class:
      np.add.at(count_B, _trigrams(t), 1)
  return np.log(count_CB / count_CB.sum(1, keepdims=True))


def _scores(log_CB, texts) -> np.ndarray:
  """The log likelihood of texts under each class. [N, C]."""
  return np.stack([log_CB[:, _trigrams(t)].sum(1) for t in texts])


def _trigrams(text: bytes) -> np.ndarray:
  x = np.frombuffer(text, np.uint8).astype(np.uint32)
  ids = x[:-2] << 16 | x[1:-1] << 8 | x[2:]
  return (ids * np.uint32(2654435761)) >> np.uint32(14)
