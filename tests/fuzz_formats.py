"""Every format of a file that is read: a good one, and all that reads it."""

import dataclasses
import functools
import json
import pathlib
import shutil
import types
from collections.abc import Callable
from typing import Any

from configs import base
from moe_jax import manifest
from moe_jax.conversion import hub
from moe_jax.data import bad, documents, task_sources, tokenizers
from moe_jax.errors import UserError
from moe_jax.planning import loads
from moe_jax.plots import records, tables
from moe_jax.runs import (
  checkpoint,
  configs,
  leaves,
  lock,
  meta,
  resume,
  workdir,
  writers,
)
from moe_jax.studies import (
  estimates,
  index,
  pages,
  report,
  results,
  study as study_lib,
  verdicts,
)
from tests import hub_folders
from tests.golden import checkpoints as golden
from tests.test_checkpoint import abstract, small, value_of

KEPT = pathlib.Path(__file__).parents[1] / 'experiments/results/stability'
ROWS = 12
CONFIG = configs.to_dict(base.get_config())


@dataclasses.dataclass(frozen=True)
class Format:
  """A format, or several of one place.

  Attributes:
    make: fills an empty folder with what is whole.
    files: pattern of those that are mutated.
    read: (folder) -> what was read, to be compared.
    digest: what is read is one of `allowed`, whatever was done to a file.
    signed: folder whose manifest is made anew, as whoever means harm would.
  """

  make: Callable[[pathlib.Path], None]
  files: str
  read: Callable[[pathlib.Path], Any]
  digest: bool = False
  signed: str = ''


def _run(root):
  workdir.prepare(root, CONFIG, restart=False, allow=())
  workdir.release(root)
  lines = [
    {
      'step': n,
      'loss': 2.5 / n,
      'grad_norm': None,
      'mesh': 'data=1',
      'moe/layers': [1, 3],
      'moe/load': [[0.5, 0.25, 0.25], [0.1, 0.2, 0.7]],
      'moe/dropped': 0.1,
      'health/dead': [0.0, 1.0],
    }
    for n in (1, 2, 3)
  ]
  lines[-1] |= {'eval/loss': 2.0, 'eval/a/bits_per_byte': 3.0}
  text = '\n'.join(map(json.dumps, lines))
  (root / writers.METRICS).write_text(f'{text}\n')
  scores = ('', '_low', '_high')
  shown = {'key': 'eval/bits_per_byte', 'label': 'bits/byte', 'unit': ''}
  shown |= {'better': 'lower', 'floor': 'eval/floor', 'floor_label': 'bigram'}
  summary = {
    'steps': CONFIG['train']['steps'],
    'name': 'run',
    'loss': 2.5,
    'seconds': 3.0,
    'mfu': 0.5,
    'moe/load_max': 1.5,
    'moe/layer_1/load_max': 1.5,
    'problem': {
      'name': 'p',
      'loss_unit': 'nats',
      'shown': [shown | {'best': ''}],
    },
    'curve': {'step': [1, 2], 'loss': [2.5, 1.25]},
  }
  for name in ('', 'a/', 'b/'):
    for end in scores:
      summary[f'eval/{name}bits_per_byte{end}'] = 3.0
    summary |= {f'eval/{name}documents': 7, f'eval/{name}bytes': 100}
  writers.write_json(root / 'summary.json', summary)


def _read_config(root):
  try:
    configs.validate(workdir.load_config(root))
  finally:
    _any(lambda: workdir.changes(root, CONFIG))
    _any(lambda: resume.finished(str(root), CONFIG))
    run = records.read(str(root))
    tables.config_differences([run, run])


def _any(read):
  """One of several readers: it may refuse, and the next one has its turn."""
  try:
    return read()
  except UserError:
    return None


def _read_summary(root):
  resume.finished(str(root), CONFIG)
  _any(lambda: resume.check(str(root), CONFIG))
  _read_records(root)


def _read_records(root):
  run = records.read(str(root))
  for key in run.keys('.*'):
    run.series(key)
  run.loads()
  tables.end_of_run(run.summary, {})
  tables.side_by_side([run, run])


def _read_metrics(root):
  writers.last_step(root)
  for name in ('loss', 'eval/loss', 'moe/dropped'):
    _any(lambda name=name: writers.last(root, name))
    _any(lambda name=name: writers.values(root, name))
  _any(lambda: loads.read(str(root)))
  _any(lambda: _read_records(root))
  with writers.Writer(root, start_step=2) as writer:
    writer.write(3, {'loss': 1.0})


def _results(root):
  lines = (KEPT / results.FILE).read_text().splitlines()[:ROWS]
  (root / results.FILE).write_text('\n'.join(lines) + '\n')


@functools.cache
def _study():
  return study_lib.load('configs/ablations/stability.py:quick')


def _read_results(root):
  rows = results.read(root / results.FILE)
  study = _study()
  _any(lambda: results.check(root / results.FILE, study))
  _any(lambda: report.source(rows, root))
  estimates.a_run(study, rows)
  found = [_any(lambda c=c: verdicts.judge(c, rows)) for c in study.claims]
  found = [v for v in found if v]
  pages.summary(found)
  pages.page(study, rows, found)
  for row in rows:
    json.dumps(results.for_keeping(row), allow_nan=False)


def _claims(root):
  (root / 'a').mkdir()
  shutil.copy(KEPT / report.CLAIMS, root / 'a')
  power = {'study': 's', 'size': 'quick', 'date': '2026-01-01', 'seeds': 3}
  claim = {'claim': 'c', 'pairs': 2, 'mean': 0.1, 'why_not': 'few'}
  writers.write_json(root / 'power.json', power | {'claims': [claim]})


def _read_claims(root):
  report.decided(root, [{'date': '2026-02-01', 'stage': 'arm'}])
  index.page(index.read(root))


def _saved(root):
  with checkpoint.Checkpointer(root, keep=3) as c:
    for step in (1, 2):
      c.save(step, small(step), {'rows': 8 * step})


def _read_checkpoint(root):
  with checkpoint.Checkpointer(root, keep=3) as c:
    return value_of(c.restore(abstract(small()))[0])


def _read_meta(root):
  path = root / '2'
  meta.fate(path)
  meta.misnamed(path)
  checkpoint.shapes(root)
  found = meta.read(path)
  wanted = checkpoint.named(abstract(small()))
  leaves.check(found['leaves'], wanted, path, True)
  resume.row(found['data'])


def _manifest(root):
  (root / 'one').mkdir()
  for name in ('a', 'one/b'):
    (root / name).write_bytes(name.encode() * 9)
  manifest.write(root)


def _read_manifest(root):
  found = manifest.fault(root)
  return found or [(root / n).read_bytes() for n in ('a', 'one/b')]


class _Source(list):
  """Records, as TFDS gives them."""

  def __init__(self):
    texts = [b'the router', b'sends', b'', b'tokens to experts']
    super().__init__({'text': t, 'domain': n % 2} for n, t in enumerate(texts))
    label = types.SimpleNamespace(names=['a', 'b'])
    # A folder that stays where and as it is.
    self.dataset_info = types.SimpleNamespace(
      name='x', data_dir=str(KEPT), features={'domain': label}
    )

  def __getitems__(self, at):
    return [self[i] for i in at]


def _read_index(root):
  source = _Source()
  found = documents.open_documents(
    source,
    key='k',
    cache_dir=str(root),
    tokenizer=tokenizers.Bytes(),
    text_field='text',
  )
  tokens = [found.tokens(n, 0, 99).tolist() for n in range(len(source))]
  arrays = (found.domain_N, found.bytes_N, found.tokens_N)
  return found.digest, tokens, *(x.tolist() for x in arrays)


def _safetensors(root):
  golden.write(root, 'tight')


def _shards(root):
  golden.write(root, 'tight')
  (root / 'model.safetensors').rename(root / 'a.safetensors')
  names = dict.fromkeys(golden.tensors('tight'), 'a.safetensors')
  index_file = root / 'model.safetensors.index.json'
  index_file.write_text(json.dumps({'metadata': {}, 'weight_map': names}))


def _read_hub(root):
  hub_folders.load(hub.opened(root))


def _task(root):
  for n, name in enumerate(('x_train.jsonl', 'x_validation.jsonl')):
    lines = [
      {'text': f'{i} {n}', 'more': 'b', 'label': i, 'label_text': 'ab'[i]}
      for i in (0, 1, 1, 0)
    ]
    (root / name).write_text('\n'.join(map(json.dumps, lines)) + '\n')


def _tokenizer(root):
  made = tokenizers.Bpe(size=380)
  text = b'the router sends each token to one expert and the expert answers'
  fitted = made.fitted([text] * 3, str(root / 'cache'))
  (root / 'tokenizer.json').write_bytes(fitted.content)
  shutil.rmtree(root / 'cache')


def _read_tokenizer(root):
  path = str(root / 'tokenizer.json')
  for make in (
    lambda: tokenizers.Bpe(size=380, path=path),
    lambda: tokenizers.HuggingFace(path, pad='a', eos='b'),
  ):
    if made := _any(make):
      made.decode(made.encode(b'the router of experts\xff'))


def _lock(root):
  (root / 'lock').write_text(json.dumps({'host': 'there', 'pid': 12}))


def _read_lock(root):
  try:
    lock.hold(root)
  finally:
    lock.release(root)


FORMATS = {
  'config.json': Format(_run, 'config.json', _read_config),
  'summary.json': Format(_run, 'summary.json', _read_summary),
  'metrics.jsonl': Format(_run, 'metrics.jsonl', _read_metrics),
  'results.jsonl': Format(_results, 'results.jsonl', _read_results),
  'claims.json': Format(_claims, '**/*.json', _read_claims),
  'manifest': Format(_manifest, 'MANIFEST.json', _read_manifest, digest=True),
  'manifest.files': Format(_manifest, '**/[ab]', _read_manifest, digest=True),
  'checkpoint': Format(_saved, '2/**/*', _read_checkpoint, digest=True),
  'meta.json': Format(_saved, '2/meta.json', _read_meta),
  'index': Format(_read_index, 'index/**/*', _read_index, digest=True),
  'index.signed': Format(
    _read_index, 'index/**/*', _read_index, signed='index/*'
  ),
  'safetensors': Format(_safetensors, 'model.safetensors', _read_hub),
  'safetensors.index': Format(_shards, '*.index.json', _read_hub),
  'hub.config': Format(_safetensors, 'config.json', _read_hub),
  'task': Format(
    _task,
    '*.jsonl',
    lambda r: task_sources.from_file(f'{r}/x_train.jsonl', bad.Bad(0)),
  ),
  'tokenizer.json': Format(_tokenizer, 'tokenizer.json', _read_tokenizer),
  'lock': Format(_lock, 'lock', _read_lock),
}
