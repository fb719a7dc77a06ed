"""Probes of what a model makes of domains: experts, and texts of two of them.

Questions that critics of mixing branches ask (Branch-Train-MiX, Sukhbaatar et
al. 2024, arXiv:2403.07816): are experts that a mixture found domains, has a
hard domain more of them, and what is a text that needs two domains worth. A row
of validation is of one domain; a text is told by its documents'.
"""

import collections
import functools
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from scipy import special

from moe_jax.data import batches
from moe_jax.errors import UserError
from moe_jax.training import step as step_lib


def experts_by_domain():
  """Which experts the domains use: adjusted mutual information, and how many.

  'information' is that of domain and expert of an assignment, adjusted for
  chance: 1 where an expert is a domain and a domain an expert, about 0 where
  the domain says nothing; the mean over MoE layers. '<domain>/effective' is the
  exponential of the entropy of its experts, from 1 to their number, and
  '<domain>/loss' how hard it is; 'slope' says how many experts more a domain
  has that is harder by a nat, by least squares over the domains.
  """

  def probe(session, params, balance):
    judge = functools.partial(session.problem.judge, data=session.data)
    run = session.program(
      'experts by domain',
      lambda: jax.jit(step_lib.make_eval_step(session.model, judge)),
    )
    load_DNE, sums_D = collections.defaultdict(int), {}
    for domain, batch in _by_domain(session):
      out = run(params, balance, session.put(batch))
      load_DNE[domain] += np.asarray(out['load'], np.int64)
      before, sums = sums_D.get(domain), out['sums']
      both = lambda a, b: jax.tree.map(jnp.add, a, b)
      sums_D[domain] = both(before, sums) if before else sums
    found = {}
    for domain, load_NE in load_DNE.items():
      sums = jax.device_get(sums_D[domain])
      scores = session.problem.scores(sums, session.data)
      found[f'{domain}/loss'] = scores['eval/loss']
      p_NE = load_NE / np.maximum(load_NE.sum(-1, keepdims=True), 1)
      entropy_N = special.entr(p_NE).sum(-1)
      found[f'{domain}/effective'] = float(np.exp(entropy_N).mean())
    of = lambda what: np.array([found[f'{d}/{what}'] for d in load_DNE])
    hard_D, used_D = (of(k) - of(k).mean() for k in ('loss', 'effective'))
    square = (hard_D**2).sum()
    found['slope'] = float((hard_D * used_D).sum() / square) if square else 0.0
    table_NDE = np.stack([*load_DNE.values()], 1)
    found['information'] = float(np.mean([*map(adjusted, table_NDE)]))
    return found

  return probe


def switching(pieces=2):
  """Loss on texts whose domain changes, in mixed rows less that in pure ones.

  '<pieces>/mixed', '<pieces>/pure', and their difference, '<pieces>/penalty'.
  A row is `pieces` equal parts, in turn of a row of one domain and of the next
  domain's, each where it was; of both only documents that fill a row. What is
  scored are the second domain's parts, in nats a token: in such rows, and in
  its own. With two parts the text changes once, with four it needs both
  domains again and again.
  """
  if not (isinstance(pieces, int) and pieces >= 2):
    raise UserError(f'switching: pieces={pieces}; valid: from 2')

  def probe(session, params, balance):
    judge = functools.partial(session.problem.judge, data=session.data)
    run = session.program(
      f'switching {pieces}',
      lambda: jax.jit(step_lib.make_eval_step(session.model, judge)),
    )
    pairs, found = list(_switched(session, pieces)), {}
    if not pairs:
      raise UserError('switching: no two domains have a document of a row')
    size = session.config.eval.batch_size
    for kind, rows in zip(('mixed', 'pure'), zip(*pairs)):
      sums = None
      for i in range(0, len(rows), size):
        batch = batches.stack(_filled(rows[i : i + size], size))
        out = run(params, balance, session.put(batch))['sums']
        sums = out if sums is None else jax.tree.map(jnp.add, sums, out)
      scores = session.problem.scores(jax.device_get(sums), session.data)
      found[kind] = scores['eval/loss']
    found['penalty'] = found['mixed'] - found['pure']
    return {f'{pieces}/{k}': v for k, v in found.items()}

  return probe


def adjusted(table_DE: np.ndarray) -> float:
  """Adjusted mutual information of a table of counts, by the mean entropy.

  Vinh, Epps and Bailey 2010 (JMLR 11, equations 24a and the arithmetic mean of
  table 2): (I - E[I]) / ((H(D) + H(E)) / 2 - E[I]).
  """
  table_DE = table_DE[:, table_DE.sum(0) > 0]
  table_DE = table_DE[table_DE.sum(1) > 0].astype(np.float64)
  n = table_DE.sum()
  if not n or 1 in table_DE.shape:
    return 0.0
  a_D, b_E = table_DE.sum(1), table_DE.sum(0)
  entropy = lambda v: special.entr(v / n).sum()
  joint = entropy(table_DE)
  information = entropy(a_D) + entropy(b_E) - joint
  expected = sum(_expected(a, b, n) for a in a_D for b in b_E)
  largest = (entropy(a_D) + entropy(b_E)) / 2
  if largest - expected < 1e-12:
    return 0.0
  return float((information - expected) / (largest - expected))


def _expected(a: float, b: float, n: float) -> float:
  """What a cell of these margins gives E[I]: hypergeometric counts."""
  k = np.arange(max(1, a + b - n), min(a, b) + 1)
  log = lambda v: special.gammaln(v + 1)
  log_p = log(a) + log(b) + log(n - a) + log(n - b) - log(n) - log(k)
  log_p -= log(a - k) + log(b - k) + log(n - a - b + k)
  return float((k / n * np.log(n * k / (a * b)) * np.exp(log_p)).sum())


def _rows(session) -> Iterator[tuple[str, batches.Row]]:
  """(domain, row) of the validation set."""
  if jax.process_count() > 1:
    raise UserError('probes of domains want one process')
  documents = getattr(session.data, 'documents', None)
  if not documents:
    raise session.problem.lacks('a probe of domains', 'documents')
  for i in range(session.data.validation_rows):
    row = session.data.validation_row(i)
    yield documents[int(row['document'].max())].domain, row


def _by_domain(session) -> Iterator[tuple[str, batches.Row]]:
  """Batches of one domain each; the last of each is padded."""
  size, held = session.config.eval.batch_size, collections.defaultdict(list)
  for domain, row in _rows(session):
    held[domain].append(row)
    if len(held[domain]) == size:
      yield domain, batches.stack(held.pop(domain))
  for domain, rows in held.items():
    yield domain, batches.stack(_filled(rows, size))


def _filled(rows: Sequence[batches.Row], size: int) -> list[batches.Row]:
  """With rows of padding."""
  empty = {k: np.zeros_like(v) for k, v in rows[0].items()}
  empty['document'] = np.full_like(rows[0]['document'], -1)
  return [*rows, *[empty] * (size - len(rows))]


def _switched(session, pieces) -> Iterator[tuple[batches.Row, batches.Row]]:
  """(mixed, pure) rows, of which 'loss' says what is scored."""
  whole = collections.defaultdict(list)
  for domain, row in _rows(session):
    if (row['segments'] == 1).all():
      whole[domain].append(row)
  names = list(whole)
  for first, second in zip(names, names[1:] + names[:1]):
    if first == second:
      continue
    for a, b in zip(whole[first], whole[second]):
      length = len(a['inputs'])
      own = np.arange(length) * pieces // length % 2 == 1
      scored = {'loss': own.astype(np.int32)}
      mixed = {k: np.where(own, b[k], a[k]) for k in a}
      yield mixed | scored, b | scored


PROBES = {'experts_by_domain': experts_by_domain, 'switching': switching}
