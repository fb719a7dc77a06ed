"""Open models against transformers' own numbers; see `golden/open_models.py`.

One program a case runs five rows: two of text, one of them padded; two prompts
with what transformers' greedy decoding made of them; two documents in one row.
"""

import functools
import math
import re

import flax.linen as nn
import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from configs import base
from moe_jax.conversion import hub, reading, workdirs, writing
from moe_jax.layers import boxes
from moe_jax.models import factory, stack
from moe_jax.parallel import mesh as mesh_lib, rules
from moe_jax.runs import checkpoint
from moe_jax.training import generation
from tests.golden import open_configs, open_models

V = open_configs.VOCABULARY
slow = pytest.mark.slow
# By default one case of most families, and one through the cache.
MORE = (
  *('mixtral', 'deepseek_v2_lite', 'llama4_maverick'),
  *('qwen3_moe', 'glm4_moe', 'dots1', 'ernie4_5_moe'),
  *('qwen2_moe', 'mixtral_window', 'flex_olmo'),
)
LESS = [c for c in open_models.CASES if c != 'deepseek_v2']


def marked(seldom):
  return [
    pytest.param(c, marks=slow if c in seldom else ())
    for c in open_models.CASES
  ]


LENGTH = max(open_models.PROMPTS) + open_models.NEW_TOKENS
MESHES = {
  'exact(expert=2)': ('mixtral', 'gpt_oss'),  # of six experts
  'exact(expert=4)': ('qwen3_moe', 'deepseek_v3'),
  'exact(data=2, expert=2, model=2)': (
    *('olmoe', 'qwen2_moe', 'deepseek_v2', 'gpt_oss', 'llama4_maverick'),
  ),
}


@pytest.fixture(scope='module')
def made(tmp_path_factory):
  """(config, variables, what fills them, table) of a case, on a mesh."""

  @functools.cache
  def make(case, mesh=None):
    folder = open_models.write(tmp_path_factory.mktemp(case), case, shards=2)
    found = hub.opened(folder)
    config = workdirs.described(found.said, base.get_config(), 'bytes()')
    model = factory.make(config, V, mesh)
    batch = factory.dummy_batch(config, 8, 8)
    init = lambda: model.init(jax.random.key(0), batch, train=False)
    boxed = jax.eval_shape(init)
    shapes = nn.unbox(boxed)
    if mesh is None:
      place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
      shardings = jax.tree.map(lambda _: place, shapes)
    else:
      # The bias that balances has no axes of a model's, and is everywhere.
      shardings = rules.shardings(mesh, jax.tree.map(lambda _: P(), shapes))
      axes = boxes.logical_axes(boxed['params'])
      specs = rules.specs(axes, shapes['params'], dict(mesh.shape))
      shardings['params'] = rules.shardings(mesh, specs)
    wanted = checkpoint.named(
      jax.tree.map(
        lambda v, s: jax.ShapeDtypeStruct(v.shape, v.dtype, sharding=s),
        shapes,
        shardings,
      )
    )
    places = {k: s.places for k, s in model.stacks.items()}
    own = {k: v.shape for k, v in wanted.items()}
    own = reading.fills(found.table, own, places)
    leaves = reading.load(found.tensors, own, wanted)
    variables = jax.tree.structure(shapes).unflatten(leaves[k] for k in wanted)
    return config, variables, own, found.table

  return make


def rows(frozen):
  """int32 batch [5, LENGTH]; what is behind a row's end is padding."""
  ids = np.zeros((5, LENGTH), np.int32)
  segments = np.zeros_like(ids)
  ids[:2, :24] = frozen['tokens']
  segments[:2, :24] = frozen['tokens'] > 0
  for i, n in enumerate(open_models.PROMPTS):
    text = [*frozen['tokens'][0, :n], *frozen['greedy'][i]]
    ids[2 + i, : len(text)], segments[2 + i, : len(text)] = text, 1
  first, second = open_models.DOCUMENTS
  ids[4, :24] = frozen['tokens'][0]
  segments[4, :24] = np.repeat([1, 2], (first, second))
  positions = np.tile(np.arange(LENGTH, dtype=np.int32), (5, 1))
  positions[4, first:] -= first
  return {'inputs': ids, 'positions': positions, 'segments': segments}


def close(got, want, frozen, times=1):
  atol = times * 1e-5 * np.abs(frozen['logits']).max()
  np.testing.assert_allclose(got, want, rtol=0, atol=atol)


# Without XLA's library of products, whose kernels round by machine: on one CPU
# it alone puts 1 logit of 2,050 of DeepSeek-V2 off by 1.05e-5 of the largest.
# Older versions do not have it.
PLAIN = (
  {'xla_cpu_experimental_ynn_fusion_type': ''}
  if jax.__version_info__ >= (0, 10)
  else {}
)


def watched(model, blocks):
  """Program of the logits, which puts each block's output into `blocks`."""

  def watch(call, args, kwargs, context):
    out = call(*args, **kwargs)
    if isinstance(context.module, stack.Block):
      put = lambda x: blocks.append(np.asarray(x))
      jax.debug.callback(put, out[0][0], ordered=True)
    return out

  def run(variables, batch):
    with nn.intercept_methods(watch):
      return model.apply(variables, batch, train=False)[0]

  return jax.jit(run, compiler_options=PLAIN)


@pytest.mark.parametrize('case', marked(MORE))
def test_logits_and_greedy_tokens_are_theirs(case, made):
  """And what each block gives."""
  frozen, blocks = open_models.frozen(case), []
  config, variables, _, _ = made(case)
  run = watched(factory.make(config, V), blocks)
  logits = np.asarray(run(variables, rows(frozen)))
  jax.effects_barrier()
  hidden = [
    x[:2, :24][frozen['tokens'] > 0][:: open_models.EVERY] for x in blocks
  ]
  np.testing.assert_allclose(
    hidden, frozen['hidden'], 0, 1e-5 * np.abs(frozen['hidden']).max()
  )
  close(logits[:2, :24][frozen['tokens'] > 0], frozen['logits'], frozen)
  close(logits[4, :24], frozen['document_logits'], frozen)
  for i, n in enumerate(open_models.PROMPTS):
    said = logits[2 + i, n - 1 : n + open_models.NEW_TOKENS - 1]
    np.testing.assert_array_equal(said.argmax(-1), frozen['greedy'][i])
    close(said[-1], frozen['greedy_logits'][i], frozen)


@pytest.mark.parametrize('case', marked(LESS))
def test_greedy_tokens_come_through_the_cache(case, made):
  """Both prompts at once, each at its own pace."""
  frozen = open_models.frozen(case)
  config, variables, _, _ = made(case)
  model = factory.make(config, V, cache_length=LENGTH)
  steps = generation.Steps(model, open_models.NEW_TOKENS, 0.0, 0, 1.0, (V,))
  batch = generation.batch(
    [frozen['tokens'][0, :n] for n in open_models.PROMPTS]
  )
  key, sample = jax.random.key(0), np.arange(2)

  @jax.jit
  def run(variables):
    state = steps.start(variables, batch, None, sample, key)
    return steps.go_on(variables, state, None, sample, key)[0]

  np.testing.assert_array_equal(run(variables), frozen['greedy'])


@pytest.mark.slow
@pytest.mark.parametrize('case', open_models.CASES)
def test_gradients_are_theirs(case, made):
  """Of the logits at real tokens times fixed weights; by tensor of theirs."""
  frozen = open_models.frozen(case)
  config, variables, own, table = made(case)
  model = factory.make(config, V)
  batch = {k: v[:2, :24] for k, v in rows(frozen).items()}
  real = frozen['tokens'] > 0
  probe = open_models.probe(real.sum())

  @jax.jit
  @jax.grad
  def gradient(params):
    logits = model.apply(variables | {'params': params}, batch, train=False)[0]
    return (logits[real] * probe).sum()

  leaves = checkpoint.named({'params': gradient(variables['params'])})
  part = writing.parts(leaves, own)
  found = {
    t.name: writing.whole(t, part, 'float32')
    for t in table
    if 'e_score' not in t.name  # balances, without a gradient
  }
  norms = [np.linalg.norm(found[n].astype(np.float64)) for n in sorted(found)]
  np.testing.assert_allclose(norms, frozen['gradient_norms'], rtol=5e-5)
  shapes = open_models.shapes(case)
  places = open_models.sampled({n: s for n, s in shapes.items() if n in found})
  sample = [found[n].flat[i] for n, i in places]
  atol = 5e-5 * np.abs(frozen['gradient_sample']).max()
  np.testing.assert_allclose(sample, frozen['gradient_sample'], 0, atol)


@pytest.mark.slow
@pytest.mark.parametrize(
  ('mesh', 'case'), [(m, c) for m, cases in MESHES.items() for c in cases]
)
def test_a_mesh_changes_no_logits(mesh, case, made):
  """Each device reads its slices; eight rows, some of them twice.

  Ours on one device and ours on a mesh are as far from theirs as each other.
  """
  frozen = open_models.frozen(case)
  devices = math.prod(map(int, re.findall(r'\d+', mesh)))
  shape = mesh_lib.make(mesh, jax.devices()[:devices])
  config, variables, _, _ = made(case, shape)
  model = factory.make(config, V, shape)
  batch = {k: np.resize(v, (8, LENGTH)) for k, v in rows(frozen).items()}
  run = jax.jit(lambda v, b: model.apply(v, b, train=False)[0])
  logits = np.asarray(run(variables, batch))
  close(logits[:2, :24][frozen['tokens'] > 0], frozen['logits'], frozen, 2)
  close(logits[4, :24], frozen['document_logits'], frozen, 2)
