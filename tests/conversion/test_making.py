"""`experiments.convert --method`: workdirs in, a workdir that programs take."""

import dataclasses
import importlib
import json
import pathlib
import re

import jax
import numpy as np
import pytest

from experiments import cli
from moe_jax import citations, registry
from moe_jax.conversion import lineage, making, trees
from moe_jax.errors import UserError
from moe_jax.runs import checkpoint, workdir as workdir_lib
from tests import mains, saved
from tests.conversion import loops

TOKENS = 4 * 8 * 16  # of four steps


def convert(method, sources, workdir, *flags):
  given = ','.join(map(str, sources))
  call = f'--method={method}', f'--from={given}', f'--workdir={workdir}'
  return mains.call('convert', '--cpu_devices=8', *call, *flags)[1]


def run(path, seed=0, **fields):
  loops.write_run(path, 4, seed, **(loops.DENSE | fields))
  return path


@pytest.fixture(scope='module')
def seed_run(tmp_path_factory):
  return run(tmp_path_factory.mktemp('making') / 'seed')


@pytest.fixture(scope='module')
def branches(seed_run):
  """Two that say that they began as the seed, and a stranger."""
  began = {'train.init_from': str(seed_run)}
  root, made = seed_run.parent, []
  for i, domain in enumerate(('a', 'b'), 1):
    fields = began | {'data.domains': (domain,)}
    made.append(run(root / domain, i, **fields))
  return *made, run(root / 'stranger', 3)


def logits(workdir):
  model = trees.read(workdir)
  session = trees.session(model)
  abstract = {
    k: v
    for k, v in checkpoint.named(session.abstract_state).items()
    if k.startswith(('params/', 'balance/'))
  }
  with checkpoint.Checkpointer(workdir / 'checkpoints', 1) as kept:
    read = kept.restore(abstract, partial=True)[0]
  variables = {}
  for name, leaf in read.items():
    *names, last = name.split('/')
    d = variables
    for n in names:
      d = d.setdefault(n, {})
    d[last] = leaf
  rng = np.random.default_rng(0)
  batch = {
    'inputs': rng.integers(0, 256, (8, 16), np.int32),
    'positions': np.tile(np.arange(16, dtype=np.int32), (8, 1)),
    'segments': np.ones((8, 16), np.int32),
  }
  apply = jax.jit(lambda v, b: session.model.apply(v, b, train=False)[0])
  return np.asarray(apply(variables, session.put(batch)))


def test_an_upcycled_run_is_a_run(seed_run, tmp_path):
  made = tmp_path / 'moe'
  said = convert('upcycle(num_experts=4)', [seed_run], made)
  assert 'upcycle: 38 tensors' in said and said.strip().endswith(str(made))
  config = workdir_lib.load_config(made)
  assert (config.moe.layers, config.moe.num_experts) == ('all', 4)
  assert checkpoint.steps(made / 'checkpoints') == [0]
  old, new = logits(seed_run), logits(made)
  bound = 1e-6 * np.abs(old).max()
  np.testing.assert_allclose(new, old, rtol=0, atol=bound)
  told = json.loads((made / 'lineage.json').read_text())
  assert told['method'] == 'upcycle(num_experts=4)'
  digest = trees.digest(trees.read(seed_run))
  assert told['sources'] == [{'workdir': 'seed', 'step': 4, 'digest': digest}]
  (stage,) = told['stages']
  assert (stage['name'], stage['tokens']) == ('seed', TOKENS)
  assert stage['digest'] == digest and stage['flops'] > 6 * TOKENS * 1000


@pytest.mark.slow
def test_lineages(seed_run, branches, tmp_path):
  a, b, stranger = branches
  made = tmp_path / 'btx'
  said = convert('mix()', [a, b], made, '--seed=5')
  assert 'mix: ' in said
  found = lineage.of(made)
  assert [s['name'] for s in found.stages] == ['seed', 'a', 'b']
  assert {s['tokens'] for s in found.stages} == {TOKENS}
  for path in (seed_run, a, b, made):
    assert trees.digest(trees.read(path)) in found.ancestors
  config = workdir_lib.load_config(made)
  assert config.data.domains == ('a', 'b')
  assert (config.train.init_from, config.moe.num_experts) == ('', 2)
  # What came of it, and the seed itself, are still of one family.
  convert('soup()', [seed_run, a], tmp_path / 'soup')
  for sources in ([a, stranger], [stranger, b]):
    with pytest.raises(UserError, match='do not descend from one seed'):
      convert('mix()', sources, tmp_path / 'new')
  assert not (tmp_path / 'new').exists()


def test_nothing_is_written(seed_run, branches, tmp_path):
  new, (a, *_) = tmp_path / 'new', branches
  other = run(tmp_path / 'other', **{'data.tokenizer': 'bpe(size=384)'})
  for method, sources, message in (
    ('upcycle()', [seed_run, a], 'is of 1 runs, not of 2'),
    ('mix()', [], 'is of 1 or more runs, not of 0'),
    ('fog()', [a], "unknown method of conversion.methods 'fog'"),
    ('upcycle(experts=8)', [a], "unknown argument of .* 'experts'"),
    ('permute()', [a], "moe.layers='none': there are no experts"),
    ('soup()', [a, other], 'it keeps no tokenizer.json of its data.tokenizer'),
    ('upcycle()', [tmp_path / 'none'], 'holds no run'),
    ('upcycle(slices=3)', [seed_run], 'd_ff=32: 3 slices do not divide'),
    ("upcycle(router='expert_choice()')", [seed_run], 'is not causal'),
  ):
    with pytest.raises(UserError, match=message):
      convert(method, sources, new)
  with pytest.raises(UserError, match='give one of --from_hf'):
    mains.call('convert', f'--workdir={new}', '--method=mix()', '--to_hf=x')
  assert {p.name for p in tmp_path.iterdir()} == {'other'}


RAW = 'top_k(k=2, renormalize=False)'
SIGMOID = 'sigmoid_top_k(k=2, renormalize=False)'


@pytest.mark.slow
@pytest.mark.parametrize(
  ('router', 'methods'),
  [
    ('top_k(k=2)', ('permute()', 'duplicate(times=2)')),
    (RAW, ('split(parts=4)',)),
    (SIGMOID, ('permute()', 'split(parts=2)')),
  ],
)
def test_surgery_through_the_model(router, methods, tmp_path):
  """With a bias of the selection, by the layer itself."""
  model = loops.sparse(router)
  small = lambda name, v: 0.1 * v if name.startswith('moe/state') else v
  model = trees.mapped(model, lambda i, name, v: small(name, v))
  trees.write(tmp_path / 'old', model, {})
  old = logits(tmp_path / 'old')
  for n, spec in enumerate(methods):
    made = registry.build(making.FAMILY, spec)(jax.random.key(0), model)
    trees.write(tmp_path / f'{n}', made, {})
    bound = 2e-6 * np.abs(old).max()
    np.testing.assert_allclose(
      logits(tmp_path / f'{n}'), old, rtol=0, atol=bound
    )


@pytest.mark.slow
def test_it_trains_on(seed_run, tmp_path):
  """From a fresh optimizer, and with the carried one in its own workdir."""
  made, carried = tmp_path / 'moe', tmp_path / 'carried'
  convert('upcycle(num_experts=4)', [seed_run], made)
  convert('upcycle(num_experts=4, optimizer=True)', [seed_run], carried)
  text = f'--config.data.dir={tmp_path}', '--config.data.name=text_files'
  saved.corpus(tmp_path)

  def call(config, workdir, *more):
    flags = f'--workdir={workdir}', '--config.train.steps=2', *text, *more
    file = cli.of_json(['train', f'--config={config}/config.json'])[1]
    mains.call('train', file, *flags)

  call(made, tmp_path / 'new', f'--config.train.init_from={made}')
  call(carried, carried, '--allow=train,data')
  for path, count in ((tmp_path / 'new', 2), (carried, 7 + 2)):
    assert max(checkpoint.steps(path / 'checkpoints')) == 2
    counts = trees.read(path, optimizer=True).counts
    assert counts and set(map(int, counts.values())) == {count}
  found = lineage.of(tmp_path / 'new')
  assert [s['name'] for s in found.stages] == ['seed', 'new']


def test_the_table_of_methods():
  page = pathlib.Path(making.__file__).parent / 'README.md'
  assert making.markdown() in page.read_text(), making.markdown()


@pytest.mark.parametrize('name', registry.names(making.FAMILY))
def test_method_files_are_in_shape(name):
  """A frozen dataclass of its own, short; its first paper cited in full."""
  cls = registry.method_class(making.FAMILY, name)
  assert dataclasses.is_dataclass(cls) and cls.__dataclass_params__.frozen
  path = pathlib.Path(making.__file__).parent / f'methods/{name}.py'
  assert len(path.read_text().splitlines()) < 100
  text = importlib.import_module(f'moe_jax.{making.FAMILY}.{name}').__doc__
  numbers = re.findall(r'arXiv:([\d.]+\d)', text)
  assert [p.number for p in citations.cited(text)][:1] in ([], numbers[:1])
  assert citations.cited(text) or 'No paper' in ' '.join(text.split())
