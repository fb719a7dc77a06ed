"""What a run logs, computed again from raw batches and saved parameters.

NumPy, in float64, from three things of the model: what goes into its MoE
layers, its output logits, and the arrays in its checkpoints. A field of a row
or of the summary that has no number here fails, unless it is a timing.
"""

import dataclasses
import itertools
import json
import math
from typing import Any

import jax
import numpy as np
import pytest

from moe_jax.models import factory
from moe_jax.parallel import mesh as mesh_lib
from moe_jax.training import (
  clock as clock_lib,
  evaluation,
  facts,
  loop,
  session as session_lib,
  trail,
)
from tests import reference_run as ref, test_starts, test_tuning, tiny
from tests.test_same_records import TIMINGS

corpus = test_tuning.corpus  # the fixture

E, K, T, S = 4, 2, 16, 11
RATE, W = 1e9, 0.25  # of the machine in matrix products; of the teacher
PEAK, FINAL, WARMUP = 0.5, 0.1, 4
SIZES = dict(layers=3, width=16, heads=2, head=8, hidden=32, vocab=384)
SPARSE = (0, 2)  # so that no layers are scanned
FIELDS = {
  'mesh': 'exact()',
  'model.num_layers': 3,
  'moe.layers': '0,2',
  'moe.router': 'top_k(k=2)',
  'moe.allow_noncausal': True,
  'moe.eval_capacity_factor': 1.0,  # so that one forward pass serves both
  'moe.balance': (
    'switch_loss(weight=0.1)',
    'z_loss(weight=0.01)',
    'loss_free_bias(rate=0.05)',
  ),
  'eval.max_bytes': 200,
  'train.steps': S,
  'train.log_every': 3,
  'train.eval_every': 6,
  'train.checkpoint_every': 1,
  'train.keep': 20,
  'train.clip': 0.0,
  'train.z_loss': 0.001,
  'train.schedule': f'cosine(peak={PEAK}, warmup={WARMUP}, final={FINAL})',
  'train.distill': W,
}


@dataclasses.dataclass
class Run:
  """A run, its teacher, and what they left.

  Attributes:
    dense: the teacher's model.
    states: by step, arrays by name.
    teacher: arrays by name.
  """

  session: session_lib.Session
  dense: Any
  states: dict
  teacher: dict
  rows: list
  summary: dict

  def forward(self, state, batch, teacher=False):
    """f64: logits [B, L, V], and what goes into each MoE layer [B, L, D]."""
    apply = self._taught if teacher else self._apply
    variables = {'params': {}, 'balance': {}}
    for name, value in state.items():
      kind, *path = name.split('/')
      if kind in variables:
        at = variables[kind]
        for key in path[:-1]:
          at = at.setdefault(key, {})
        at[path[-1]] = value
    names = ('inputs', 'positions', 'segments')
    logits, found = apply(variables, {k: batch[k] for k in names})
    f64 = lambda v: np.asarray(v, np.float64)
    return f64(logits), [f64(v) for v in found]

  def __post_init__(self):
    def apply(variables, batch):
      (logits, _), found = self.session.model.apply(
        variables,
        batch,
        train=True,
        capture_intermediates=lambda m, _: m.name == 'moe_norm',
        mutable=['intermediates'],
      )
      found = found['intermediates']['decoder']
      norms = [found[f'prefix_{i}']['moe_norm']['__call__'][0] for i in SPARSE]
      return logits, norms

    def taught(variables, batch):
      params = {'params': variables['params']}
      return self.dense.apply(params, batch, train=False)[0], []

    program = self.session.program
    self._apply = program('whole', lambda: jax.jit(apply))
    self._taught = program('taught', lambda: jax.jit(taught))


@pytest.fixture(scope='module')
def made(corpus, tmp_path_factory):
  """A run before its first step, on one of the devices; all is noise."""
  root = tmp_path_factory.mktemp('recomputed')
  rng = np.random.default_rng(0)
  for domain, letters in (('a', b'abcde '), ('b', b'rstuvwxyz ')):
    text = [
      bytes(rng.choice(list(letters), rng.integers(10, 60)).tolist())
      for _ in range(120)
    ]
    (root / f'{domain}.txt').write_bytes(b'\n\n'.join(text))
  own = {'data.dir': str(root), 'data.cache': str(root / 'cache')}
  config = tiny.config(**corpus | own, **FIELDS)
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(mesh_lib, 'shape', lambda *args: mesh_lib.exact())
    patch.setattr(trail, 'WINDOWS', 4)
    dense = {'model.num_layers': 1, 'moe.layers': 'none', 'moe.balance': ()}
    theirs = tiny.config(**corpus | own, **FIELDS | dense)
    teacher = test_starts.write_run(theirs, root / 'teacher')
    with config.unlocked():
      config.train.teacher = str(teacher)
    session = session_lib.make(config, root)
    session.programs['rate'] = RATE
    init = jax.device_get(test_tuning.noise(session.abstract_state, 6))
    where = jax.tree.map(lambda v: v.sharding, session.abstract_state)
    session.programs['init'] = lambda key: jax.device_put(init, where)
    model = factory.make(theirs, SIZES['vocab'])
    start = {0: test_tuning.named(init)}
    yield Run(session, model, start, test_starts.saved(teacher), [], {})


@pytest.fixture(scope='module')
def run(made, tmp_path_factory):
  """It is over."""
  path, session = tmp_path_factory.mktemp('run'), made.session
  summary = loop.train(session.config, str(path), session=session)
  states = {s: test_starts.saved(path, s) for s in range(1, S + 1)}
  lines = (path / 'metrics.jsonl').read_text().splitlines()
  assert summary == json.loads((path / 'summary.json').read_text())
  return dataclasses.replace(
    made,
    states=made.states | states,
    rows=[json.loads(line) for line in lines],
    summary=summary,
  )


def layers(state, inputs, mask_GT):
  return [
    ref.routed(
      x.reshape(-1, T, SIZES['width']),
      mask_GT.reshape(-1, T),
      np.asarray(state[f'params/decoder/prefix_{i}/moe/router/kernel'], float),
      np.asarray(
        state[f'balance/decoder/prefix_{i}/moe/state/loss_free_bias'], float
      ),
      K,
    )
    for i, x in zip(SPARSE, inputs)
  ]


def rate_of(step):
  """Of a step from 1: up to the peak in 4, and half a cosine down."""
  done = max(step - 1 - WARMUP, 0) / (S - WARMUP)
  fall = FINAL + (PEAK - FINAL) * (1 + math.cos(math.pi * done)) / 2
  return fall * min(1, step / WARMUP)


def numbers(run, step):
  """A training step's losses, gradient and layers."""
  before, after = run.states[step - 1], run.states[step]
  batch = run.session.data.batch(seed=0, batch_size=8, step=step - 1)
  logits, inputs = run.forward(before, batch)
  theirs, _ = run.forward(run.teacher, batch, teacher=True)
  real = batch['segments'] > 0
  found = layers(before, inputs, real)
  log_z = ref.logsumexp(logits)
  right = np.take_along_axis(logits, batch['targets'][..., None], -1)[..., 0]
  loss = (log_z - right)[real].mean()
  log_p = logits - log_z[..., None]
  distill = -(ref.softmax(theirs) * log_p).sum(-1)[real].mean()
  total = (1 - W) * loss + W * distill + 0.001 * (log_z[real] ** 2).mean()
  total += sum(0.1 * f['switch'] + 0.01 * f['z'] for f in found)
  # Plain descent: what the parameters moved, over the rate.
  moved = [
    ((np.asarray(before[k], float) - after[k]) ** 2).sum()
    for k in before
    if k.startswith('params/')
  ]
  return {
    'loss': loss,
    'total_loss': total,
    'distill_loss': distill,
    'grad_norm': math.sqrt(sum(moved)) / rate_of(step),
    'layers': found,
  }


@pytest.fixture(scope='module')
def steps(run):
  return {s: numbers(run, s) for s in range(1, S + 1)}


def judged(run, step):
  """The validation set under the parameters of a step."""
  data, state = run.session.data, run.states[step]
  bits, tokens, seats = np.zeros(len(data.documents)), 0, 0
  causes = {'kept': 0, 'capacity': 0}
  for batch in data.validation(batch_size=8):
    logits, inputs = run.forward(state, batch)
    right = np.take_along_axis(logits, batch['targets'][..., None], -1)[..., 0]
    nats = ref.logsumexp(logits) - right
    for place in np.argwhere(batch['segments'] > 0):
      bits[batch['document'][*place]] += nats[*place] / math.log(2)
      tokens += 1
    for f in layers(state, inputs, batch['segments'] > 0):
      seats += f['seats']
      causes = {k: v + f[k] for k, v in causes.items()}
  out = {
    'eval/loss': bits.sum() * math.log(2) / tokens,
    'moe/eval_dropped': causes['capacity'] / sum(causes.values()),
    'moe/eval_wasted': 1 - causes['kept'] / seats,
  }
  return out | ref.by_domain(data, bits, 'bits_per_byte')


def expected_row(run, steps, step, last):
  """All that a row has, from a step's numbers and those of the row before."""
  n, found = steps[step], steps[step]['layers']
  mean = lambda k: np.mean([f[k] for f in found])
  each = lambda k: [f[k] for f in found]
  out = {k: n[k] for k in ('loss', 'total_loss', 'distill_loss', 'grad_norm')}
  out |= {
    'step': step,
    'bits_per_token': n['loss'] / math.log(2),
    'learning_rate': rate_of(step),
    'moe/dropped': sum(each('capacity')) / sum(each('kept') + each('capacity')),
    'moe/load': each('load'),
    'moe/load_max': mean('max'),
    'moe/layers': list(SPARSE),
    'router/entropy': mean('entropy'),
    'balance/switch_loss': mean('switch'),
    'balance/z_loss': mean('z'),
    'health/max_violation': [f['max'] - 1 for f in found],
    'health/load_cv': each('cv'),
    'health/load_entropy': each('load_entropy'),
    'health/dead': each('dead'),
    'health/dropped_capacity': each('lost'),
    'health/dropped_receiver': [0, 0],
    'health/local': [0, 0],
    'health/padding': each('padded'),
    'health/unsent': [0, 0],
    'health/experts_used': each('mean_used'),
    'health/used': each('used'),
    'health/router_entropy': each('entropy'),
    'health/bias_norm': each('bias'),
    'health/logit_norm': each('square'),
    'health/logsumexp': each('lse'),
  }
  if last:
    before = [f['load'] for f in steps[last]['layers']]
    both = zip(out['moe/load'], before)
    out['health/agreement'] = [np.minimum(a, b).sum() for a, b in both]
  if step in (6, S):
    scores = judged(run, step)
    out |= {
      k: v for k, v in scores.items() if not k.endswith(('_low', '_high'))
    }
  return out


def sizes():
  """By hand, of a decoder whose head is its table."""
  z = SIZES
  D, HJ, F, V = z['width'], z['heads'] * z['head'], z['hidden'], z['vocab']
  attention, expert = 4 * D * HJ, 2 * D * F
  # A norm before each of 6 sub-layers and the last; two of a head each layer.
  rest = 7 * D + 3 * 2 * z['head'] + V * D + 3 * attention + expert + 2 * D * E
  products = 3 * attention + expert + 2 * (D * E + K * expert) + V * D
  return {
    'parameters': rest + 2 * E * expert,
    'trained_parameters': rest + 2 * E * expert,
    'active_parameters': rest + 2 * K * expert,
    'flops_per_token': 3 * (2 * products + 4 * 3 * HJ * T),
  }


def test_speed_from_its_definition(made):
  """Of 20 tokens in 4 seconds."""
  session = made.session
  clock = clock_lib.Clock({'tokens': 20.0, 'elapsed': 4.0, 'step_seconds': 0.5})
  found = facts.of_run(session, RATE, clock)
  assert {k: found[k] for k in sizes()} == sizes()
  assert found['tokens_per_second'] == 5 and found['step_seconds'] == 0.5
  assert found['mfu'] == pytest.approx(5 * sizes()['flops_per_token'] / RATE)


def test_an_evaluation(made):
  """Of the first state; the program is the run's."""
  session = made.session
  make = lambda: evaluation.Evaluator(session)
  state = session.programs['init'](None)
  scores = session.program('evaluate', make)(state.params, state.balance)
  ref.compare(scores, judged(made, 0))


@pytest.mark.slow
def test_the_speed_of_a_run(run):
  found = run.summary
  assert all(found[k] > 0 for k in TIMINGS)
  mfu = found['tokens_per_second'] * sizes()['flops_per_token'] / RATE
  assert found['mfu'] == pytest.approx(mfu)
  assert found['matmul_flops_per_second'] == RATE


def test_every_row(run, steps):
  """Of steps 1, 3, 6, 9 and 11; the rows compare loads with the row before."""
  assert [r['step'] for r in run.rows] == [1, 3, 6, 9, S]
  last = None
  for row in run.rows:
    ref.compare(row, expected_row(run, steps, row['step'], last))
    last = row['step']
  # Something happened in each of these.
  drops = [r['moe/dropped'] for r in run.rows]
  assert min(drops) > 0 and run.rows[-1]['health/bias_norm'][0] > 0.01


def test_the_summary(run, steps):
  tail = [steps[s]['layers'] for s in (10, 11)]  # a tenth, rounded up
  mean = lambda k: np.mean([[f[k] for f in found] for found in tail])
  total = lambda k: sum(f[k] for found in tail for f in found)
  of = lambda name, *at: np.mean([steps[s][name] for s in at])
  early = [f['max'] - 1 for s in (1, 2) for f in steps[s]['layers']]
  end = steps[S]['layers']
  loads = [found['max'] for found in end]
  data = run.session.data
  floor = ref.by_domain(data, ref.bigram_bits(data), 'bigram_bits_per_byte')
  bits = {k: v for k, v in floor.items() if k.endswith('_bits_per_byte')}
  want = judged(run, S) | bits | sizes()
  want |= {
    'loss': steps[S]['loss'],
    'distill_loss': steps[S]['distill_loss'],
    'steps': S,
    'tokens': S * 8 * run.session.lengths['decoder'],
    'jax': jax.__version__,
    'platform': 'cpu',
    'devices': 8,
    'mesh': 'one device',
    'moe/dropped': sum(f['capacity'] for f in end) / (2 * 8 * T * K),
    'moe/load_max': np.mean(loads),
    'moe/layer_0/load_max': loads[0],
    'moe/layer_2/load_max': loads[1],
    'train/loss': of('loss', 10, 11),
    'train/distill_loss': of('distill_loss', 10, 11),
    'train/averaged_steps': 2,
    'train/balance/switch_loss': mean('switch'),
    'train/balance/z_loss': mean('z'),
    'train/entropy': mean('entropy'),
    'train/load_max': mean('max'),
    'train/max_violation': mean('max') - 1,
    'train/early_max_violation': np.mean(early),
    'train/load_cv': mean('cv'),
    'train/dead': mean('dead'),
    'train/experts_used': mean('mean_used'),
    'train/local': 0,
    'train/logsumexp': mean('lse'),
    'train/dropped': total('capacity') / (total('kept') + total('capacity')),
    'train/wasted': 1 - total('kept') / total('seats'),
  }
  nested = run.session.problem.described()
  assert run.summary['problem'] == nested['problem']
  curve = {k: v for k, v in run.summary.items() if k == 'curve'}
  nested |= curve
  ref.compare({k: v for k, v in run.summary.items() if k not in nested}, want)
  ends = [3, 6, 9, 11]
  assert curve['curve']['step'] == ends
  parts = [range(a + 1, b + 1) for a, b in itertools.pairwise((0, *ends))]
  losses = [of('loss', *p) for p in parts]
  np.testing.assert_allclose(curve['curve']['loss'], losses, rtol=1e-5)
