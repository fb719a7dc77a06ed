"""Text through a tokenizer.json of the hub: what comes first, what counts."""

import json
import math

import jax
import numpy as np
import pytest
import tokenizers as library

from configs import saved
from moe_jax.analysis import records
from moe_jax.conversion import hub, tokens
from moe_jax.data import tokenizers
from moe_jax.errors import UserError
from moe_jax.runs import workdir as workdir_lib
from moe_jax.training import generation, loop, session as session_lib
from tests import hub_folders, mains

TEXT = ['the router sends each token to an expert', 'a naïve “gate” → ∅']
END = '<|endoftext|>'


def bpe(special):
  """Byte-level pairs, with special tokens and a template that adds one."""
  made = library.Tokenizer(library.models.BPE())
  level = library.pre_tokenizers.ByteLevel
  made.pre_tokenizer = level(add_prefix_space=False)
  made.decoder = library.decoders.ByteLevel()
  trainer = library.trainers.BpeTrainer(
    vocab_size=290,
    special_tokens=special,
    initial_alphabet=level.alphabet(),
    show_progress=False,
  )
  made.train_from_iterator(TEXT * 3, trainer)
  made.post_processor = library.processors.TemplateProcessing(
    single=f'{special[0]} $A', special_tokens=[(special[0], 0)]
  )
  return made


def folder(path, special, size=296, **fields):
  """With more rows than tokens, as published ones have."""
  said = hub_folders.config('olmoe', vocab_size=size, **fields)
  values = hub_folders.tensors(said, 'float32')
  hub_folders.write(path, said, values)
  bpe(special).save(str(path / 'tokenizer.json'))
  return path


@pytest.mark.parametrize(
  ('fields', 'first', 'last'),
  [
    # A start symbol, and one of several that end.
    ({'bos_token_id': 1, 'eos_token_id': [0, 2]}, '<s>', END),
    # None, or one that no token has: the end of the document before it.
    ({'bos_token_id': None, 'eos_token_id': 0}, END, END),
    ({'bos_token_id': 295, 'eos_token_id': 0}, END, END),
    ({'bos_token_id': 1, 'eos_token_id': 295}, '<s>', '<s>'),
  ],
)
def test_what_stands_before_a_document(tmp_path, fields, first, last):
  path = folder(tmp_path / 'a', [END, '<s>', '<pad>'], **fields)
  # A field of null is a field that is left out: the class has none either.
  found = hub.opened(path)
  spec = tokens.spec(path, found)
  made = tokenizers.build(tokenizers.at(spec, str(path / tokens.FILE)))
  raw = json.loads((path / tokens.FILE).read_text())
  ids = {t['content']: t['id'] for t in raw['added_tokens']}
  assert (made.pad_id, made.eos_id) == (ids[first], ids[last])
  assert made.vocab_size == 290 and made.sentinel_ids == ()
  # Nothing is added, and what is no ASCII comes back.
  for text in TEXT:
    own = made.encode(text.encode())
    assert not set(own.tolist()) & set(ids.values())
    assert made.decode([*own, made.eos_id]) == text.encode()


def test_a_file_without_such_a_token(tmp_path):
  path = folder(tmp_path / 'a', [END], bos_token_id=None, eos_token_id=295)
  with pytest.raises(UserError, match='no token with the id of an end or a st'):
    tokens.spec(path, hub.opened(path))


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """A workdir that came of a folder, which is beside it, as its `text`."""
  root = tmp_path_factory.mktemp('root')
  path = folder(root / 'old', [END, '<s>'], eos_token_id=0)
  (path / 'generation_config.json').write_text('{}')
  call(root / 'run', 'convert', f'--from_hf={path}')
  (root / 'text').mkdir()
  for name, own in (('a', DOCUMENTS[::2]), ('b', DOCUMENTS[1::2])):
    text = '\n\n'.join(own).encode()
    (root / 'text' / f'{name}.txt').write_bytes(text)
  return root / 'run'


def call(workdir, name, *args):
  return mains.call(name, f'--workdir={workdir}', '--cpu_devices=8', *args)


# Each of a length of its own, by which validation's are told.
WORDS = [w for t in TEXT for w in t.split()]
DOCUMENTS = [
  ' '.join(np.random.default_rng(n).choice(WORDS, 9)) + '→' * n
  for n in range(64)
]


@pytest.mark.slow
def test_text_is_continued_and_measured(run):
  """Greedy tokens and bits per byte, by the logits of whole rows."""
  text = run.parent / 'text'
  args = f'--config.data.dir={text}', '--config.data.seq_len=512'
  call(run, 'evaluate', *args)
  found = json.loads((run / 'evaluation/summary.json').read_text())
  config = workdir_lib.load_config(run)
  config.data.update(dir=str(text), seq_len=512)
  session = session_lib.make(config, run, splits=('eval',))
  by_size = {len(d.encode()): d for d in DOCUMENTS}
  judged = [by_size[d.num_bytes] for d in session.data.documents]

  generator = generation.Generator(str(run))
  made, model = generator.tokenizer, generator._model(0)
  N = 96
  position = np.tile(np.arange(N, dtype=np.int32), (8, 1))

  @jax.jit
  def logits(ids):
    row = {'inputs': ids, 'positions': position, 'segments': 0 * position + 1}
    return model.apply(generator._variables, row, train=False)[0][0]

  def after(ids):
    """Of each token: before the first one stands the end of a document."""
    whole = np.zeros((8, N), np.int32)
    whole[:, 1 : 1 + len(ids)] = ids
    return np.asarray(logits(whole), np.float64)[: 1 + len(ids)]

  bits = 0.0
  for document in judged:
    ids = made.encode(document.encode())
    x = after(ids)
    targets = [*ids, made.eos_id]
    nats = np.log(np.exp(x).sum(-1)) - x[np.arange(len(x)), targets]
    bits += nats.sum() / math.log(2)
  size = sum(len(d.encode()) for d in judged)
  assert found['eval/bytes'] == size > sum(map(len, judged))
  assert abs(found['eval/bits_per_byte'] * size / bits - 1) < 1e-5

  prompts = [f'--prompt={document}' for document in TEXT]
  out = call(run, 'generate', *prompts, '--temperature=0', '--length=12', MESH)[
    1
  ]
  for document in TEXT:
    start = made.encode(document.encode()).tolist()
    ids = list(start)
    while len(ids) < len(start) + 12:
      ids.append(int(after(ids)[-1].argmax()))
      if ids[-1] == made.eos_id:
        break
    assert made.decode(ids[len(start) :]).decode(errors='replace') in out


@pytest.mark.slow
def test_what_was_trained_on_goes_back(run, tmp_path):
  """Its folder's files, dtypes and config, though another run's parameters."""
  old, tuned, new = run.parent / 'old', tmp_path / 'tuned', tmp_path / 'new'
  config = saved.get_config(str(run / 'config.json'))
  with config.unlocked():
    config.data.update(dir=str(run.parent / 'text'), seq_len=32)
    config.train.update(init_from=str(run), optimizer='adamw()', steps=2)
    config.train.update(eval_every=0, log_every=1, schedule=RATE)
    config.moe.group_size = 32
  loop.train(config, tuned)
  call(tuned, 'convert', f'--to_hf={new}')
  before, after = map(hub_folders.stored, (old, new))
  assert before.keys() == after.keys()
  for name, value in before.items():
    assert value.dtype == after[name].dtype == np.float32
    moved = np.abs(value - after[name]).max()
    assert 0 < moved < 0.05, (name, moved)
  said = json.loads((old / 'config.json').read_text())
  types = dict.fromkeys(('dtype', 'torch_dtype'), 'float32')
  assert json.loads((new / 'config.json').read_text()) == said | types
  for name in ('tokenizer.json', 'generation_config.json'):
    assert (new / name).read_bytes() == (old / name).read_bytes()


@pytest.mark.slow
def test_its_experts_are_looked_at(run):
  """By text of one's own; the record holds it, and the page shows it."""
  text = run.parent / 'text'
  given = f'--text={text}', '--max_bytes=0', '--checkpoints=all', MESH
  out = call(run, 'analyze', *given)[1]
  assert 'step 0 is the only checkpoint, and saturation needs two' in out
  assert f'report: {run}/analysis/report.html' in out
  record = records.Record.open(run / 'analysis/routing')
  (part,) = record.parts()
  made = generation.Generator(str(run)).tokenizer
  found = [
    made.decode(part.next[part.document == d].tolist()).decode()
    for d in range(len(record.schema.documents))
  ]
  # Of documents that share 64 bytes with others some are left out.
  assert set(found) < set(DOCUMENTS) and len(found) > 50
  assert record.schema.domains == ('a', 'b')
  assert part.expert.shape[1:] == (3, 2) and (part.expert >= 0).all()
  metrics = json.loads((run / 'analysis/metrics.json').read_text())
  assert len(metrics['domain_specialisation/value']) == 3
  page = (run / 'analysis/report.html').read_text()
  assert ' expert' in page and 'Ġ' not in page


MESH = '--mesh=auto(expert=4)'
RATE = 'constant(value=1e-2)'
