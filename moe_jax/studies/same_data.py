"""Whether the runs that a claim compares have seen the same data."""

from collections.abc import Iterator, Mapping

from moe_jax import registry
from moe_jax.errors import UserError
from moe_jax.studies import results, study as study_lib

Done = Mapping[tuple[str, int], results.Row]  # by arm and seed

_BITS, _TOKENIZER = 'bits_per_byte', 'data.tokenizer'
# How many were held out, and what a bigram of training bytes makes of them.
_HELD_OUT = ('eval/documents', 'eval/bytes', f'eval/bigram_{_BITS}')
_SCORED = ('eval/documents', 'eval/bytes', 'eval/examples')
# What derived metrics call those of a run.
_NAMED = ('metric', 'less', 'to', 'at')


def check(claim: study_lib.Claim, done: Done) -> None:
  """That arms, and those that metrics name, agree on their data.

  A fingerprint is of the text and the tokenizer. Bits a byte compare whatever
  the tokens are: where arms set another `data.tokenizer`, and all that a claim
  is about is bits a byte, it is enough that the fingerprints of each tokenizer
  are equal, that nothing else of the data was set otherwise, that as many
  documents and bytes of the same domains were held out, and that a bigram of
  the training text has the same bits a byte of them. Whatever the claim is
  about, as much has to be held out: a fingerprint does not say how much of the
  text a config scores.

  Args:
    claim: as declared.
    done: the rows of finished runs.

  Raises:
    ValueError: they have seen, or are scored on, different data; says which.
  """
  found = list(_of(claim, done))
  tokenizers = {_overrides(r).get(_TOKENIZER) for _, r in found}
  of_bits = all(_is_of_bits(metric) for metric in claim.metrics)
  firsts: dict[object, str] = {}
  seen: dict[str, str] = {}
  for arm, row in found:
    first = firsts.setdefault(_overrides(row).get(_TOKENIZER), row['data'])
    over = of_bits and len(tokenizers) > 1 and first == row['data']
    seen.setdefault((over and _text(row)) or row['data'], arm)
  if len(seen) > 1:
    told = ', '.join(f'{arm!r} {data}' for data, arm in seen.items())
    raise UserError(
      f'claim {claim.name!r} compares runs on different data ({told}): run its '
      'arms again on the same'
    )
  for name in _SCORED:
    scored: dict[float, str] = {}
    for arm, row in found:
      if name in row['metrics']:
        scored.setdefault(row['metrics'][name], arm)
    if len(scored) > 1:
      of = name.partition('/')[2]
      told = ', '.join(f'{arm!r} {n:.0f} {of}' for n, arm in scored.items())
      raise UserError(
        f'claim {claim.name!r} compares runs that were scored on different '
        f'data ({told}): run its arms again on the same'
      )


def _is_of_bits(metric: str) -> bool:
  """Whether bits a byte are all that a metric looks at."""
  names = [metric]
  if '(' in metric:
    _, keywords = registry.parse(metric)
    names = [keywords[k] for k in _NAMED if k in keywords]
  return bool(names) and all(name.endswith(_BITS) for name in names)


def _overrides(row: results.Row) -> Mapping[str, object]:
  return row.get('overrides', {})


def _of(
  claim: study_lib.Claim, done: Done
) -> Iterator[tuple[str, results.Row]]:
  for (arm, _), row in done.items():
    # A teacher or a beginning, which a metric may name, has data of its own.
    named = row.get('stage') != 'pretrain' and any(
      f"'{arm}'" in metric for metric in claim.metrics
    )
    if (arm in claim.arms or named) and 'data' in row:
      yield arm, row


def _text(row: results.Row) -> str:
  """What stands for the text without its tokens; '' where a row lacks it."""
  held = [row['metrics'].get(name) for name in _HELD_OUT]
  if None in held:
    return ''
  fields = sorted(
    f'{name}={value}'
    for name, value in _overrides(row).items()
    if name.startswith('data.') and name != _TOKENIZER
  )
  documents, size, floor = held
  domains = ', '.join(row.get('domains', ()))
  return ' '.join(
    [
      f'{documents:.0f} documents, {size:.0f} bytes of {domains}',
      f'by a bigram {floor:.4f} bits a byte',
      *fields,
    ]
  )
