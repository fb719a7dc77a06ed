"""A built-in control task: which Markov chain is this passage of?

The chains are those of the problem `markov_chains`, the transition matrices of
`markov.Chains`; a symbol is a letter, and so is a chain's label. Passages are
drawn, the chains as often as each other: nothing is read, and the best accuracy
that any model can have is known.

It is that of the exact posterior over chains given the passage, of the very
examples of validation: it stands beside a model's as 'eval/bayes'. Labels are
wrong in training alone, and so seldom that the right one stays the likeliest:
with noise the best answers are the same, and harder to learn. As the defaults
are, 92.0 % of 5,000 examples can be right; a dense model of 37 k parameters
that knows nothing before has 56.0 % (95 % interval 54.6 to 57.4) after 1,500
steps of 64, five times through the 20,000.
"""

import numpy as np

from moe_jax.data import markov
from moe_jax.data.task_sources import LETTERS, Example, Task, with_noise
from moe_jax.errors import UserError

VALIDATION = 5000  # examples, or fewer than a chain more


def chain(
  examples: int = 20_000,
  chains: int = 8,
  states: int = 16,
  length: int = 12,
  label_noise: float = 0.0,
  concentration: float = 1.0,
  matrices: int = 0,
) -> Task:
  """The task.

  Args:
    examples: of training: the first of an order that is always the same, so
      that fewer are part of more; chains take turns.
    chains, states: how many chains, over how many symbols.
    length: of a passage, in symbols.
    label_noise: share of the training labels that are another chain's, drawn
      once, less than 1 - 1 / chains. Labels of validation are right.
    concentration: of the Dirichlet that rows of the matrices are drawn from;
      the more, the more alike are the chains.
    matrices: seed of the matrices.

  Raises:
    ValueError: a number out of its range.
  """
  made = markov.Chains(chains, states, concentration, matrices)
  for name, value, least, most in (
    ('chains', chains, 2, len(LETTERS)),
    ('states', states, 2, len(LETTERS)),
    ('examples', examples, chains, None),
    ('length', length, 1, None),
  ):
    fits = isinstance(value, int) and value >= least
    if not fits or (most and value > most):
      upto = f' to {most}' if most else ' or more'
      raise UserError(
        f'chain: {name}={value!r}: expected a whole number, {least}{upto}'
      )
  if not 0 <= label_noise < 1 - 1 / chains:
    raise UserError(
      f'chain: label_noise={label_noise!r}: expected 0 to less than '
      f'{1 - 1 / chains:.3g}, where the right label is no longer the likeliest'
    )
  train = [_example(made, 0, i, length) for i in range(examples)]
  held = -(-VALIDATION // chains) * chains
  # In no turns: some of them are often asked for by stride.
  order = np.random.default_rng(29).permutation(held)
  validation = [_example(made, 1, int(i), length) for i in order]
  return Task(
    'chain',
    ('text',),
    tuple(LETTERS[:chains]),
    with_noise(train, chains, label_noise),
    validation,
    {'bayes': bayes(made, validation)},
  )


def _example(made: markov.Chains, part: int, i: int, length: int) -> Example:
  which = i % len(made.start_CS)
  symbols_L = made.draw(np.random.default_rng([31, part, i]), which, length)
  text = (symbols_L + ord(LETTERS[0])).astype(np.uint8).tobytes()
  return Example((text,), which)


def bayes(made: markov.Chains, examples) -> float:
  """The share for which the chain likeliest a posteriori is the right one."""
  right = 0
  for e in examples:
    symbols_L = np.frombuffer(e.texts[0], np.uint8) - ord(LETTERS[0])
    right += int(made.log_likelihood(symbols_L).argmax()) == e.label
  return right / len(examples)
