"""Which documents of a domain are read: halves, and as many as fit."""

import numpy as np

# Where each choice of validation documents begins, and by how much it goes on.
HALVES = {'all': (0, 1), 'even': (0, 2), 'odd': (1, 2)}


def half(members, which, number):
  """The documents that are chosen of domain `number`, in their order.

  Domains of one document take turns, so that each half has some of these.
  """
  start, by = HALVES[which]
  if len(members) == 1:
    start = (start + number) % by
  return members[start::by]


def capped(members, bytes_N, max_bytes):
  """Documents spread over the list that hold `max_bytes` at most, or one."""
  if not max_bytes:
    return members
  # Multiples of the golden ratio fill [0, 1) evenly, however many are taken.
  order = np.argsort(np.arange(len(members)) * 0.6180339887498949 % 1)
  count = np.searchsorted(
    np.cumsum(bytes_N[members[order]]), max_bytes, 'right'
  )
  return np.sort(members[order[: max(int(count), 1)]])
