"""The benchmarks' arithmetic, by known times, and what users see."""

import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe_jax.benchmarks import (
  cases,
  costs,
  layers,
  machine,
  peers,
  report,
  scopes,
  suites,
  timing,
)
from moe_jax.plots import scaling, tables

TOY = layers.Options(tokens=64, D=16)


class Clock:
  """Seconds that pass only while a candidate runs."""

  def __init__(self):
    self.now = 0.0
    self.ran = []

  def __call__(self):
    return self.now

  def candidate(self, name, times):
    times = iter(times)

    def run():
      self.ran.append(name)
      took = next(times)
      if took is None:
        raise RuntimeError('out of\n memory')
      self.now += took

    return run


def test_candidates_alternate_and_only_counted_rounds_count():
  clock = Clock()
  seconds, failed = timing.alternate(
    {
      'a': clock.candidate('a', [9, 1, 2, 3]),
      'b': clock.candidate('b', [9, 2, 2, 12]),
    },
    repeats=3,
    warmup=1,
    clock=clock,
  )
  assert clock.ran == list('abababab')
  assert seconds == {'a': [1, 2, 3], 'b': [2, 2, 12]} and not failed


def test_ratio_is_of_the_same_round():
  # The machine is slower in the later rounds; the ratio of the medians is 1.
  of, to = [2.0, 20.0, 10.0], [1.0, 10.0, 20.0]
  assert timing.ratio(of, to) == timing.Spread(2.0, 1.25, 2.0)
  with pytest.raises(ValueError, match='shorter'):
    timing.ratio(of, to[:2])


@pytest.mark.parametrize('times', [[None], [1, None], [1, 1, None]])
def test_one_that_fails_is_recorded_and_the_rest_goes_on(times):
  clock = Clock()
  named = {
    'bad': clock.candidate('bad', times),
    'good': clock.candidate('good', [1] * 4),
  }
  seconds, failed = timing.alternate(named, 3, 1, clock=clock)
  assert seconds == {'good': [1, 1, 1]}
  assert cases.message(failed['bad']) == 'RuntimeError: out of memory'
  assert clock.ran.count('bad') == len(times)


def known(clock, name, times, **fields):
  run = clock.candidate(name, times)
  return cases.Candidate(name, lambda: (run, {'kept': 0.5}), **fields)


def test_row_from_known_times():
  clock = Clock()

  def cannot():
    raise ImportError('no such package')

  case = cases.Case(
    'layer',
    'E=2',
    {'E': 2},
    [
      # The machine is half as fast in the last round.
      known(clock, cases.MATMUL, [0.5, 0.5, 1], flops=50.0, reference=True),
      known(clock, cases.COPY, [0.125] * 3, bytes=1.25, reference=True),
      known(clock, 'dense', [1, 2, 4], flops=100.0),
      known(clock, 'sparse', [3, 4, 4], flops=100.0, bytes=20.0),
      cases.Candidate('absent', cannot),
      cases.Candidate('counted', lambda: (None, {'temporaries': 3})),
    ],
    ('dense',),
  )
  row = json.loads(json.dumps(cases.run(case, 3, 0, clock)))
  assert row['rates'] == {'flops_per_second': 100.0, 'bytes_per_second': 10.0}
  sparse = row['candidates']['sparse']
  assert sparse['seconds']['median'] == 4
  assert sparse['seconds']['rounds'] == [3, 4, 4]
  assert sparse['ratios'] == {'dense': {'median': 2, 'low': 1.5, 'high': 2.5}}
  # 100 FLOPs take 1, 1 and 2 seconds at those rates; 20 bytes take 2.
  assert sparse['floor_seconds'] == 2 and sparse['over_floor'] == 2
  dense = row['candidates']['dense']
  assert dense['floor_seconds'] == 1 and dense['over_floor'] == 2
  assert row['candidates']['matmul']['ratios'] == {}
  assert row['candidates']['counted'] == {'facts': {'temporaries': 3}}
  assert row['failed'] == {'absent': 'ImportError: no such package'}

  record = report.record([row], 3, 0.25)
  assert record['failed'] == 1 and record['machine']['threads'] >= 1
  assert record['machine']['versions']['jax'] == jax.__version__
  header, lines = report.table(row)
  line = dict(zip(header, next(x for x in lines if x[0] == 'sparse')))
  assert line['x dense'] == '2.00 (1.50-2.50)' and line['x floor'] == '2.00'
  assert line['kept %'] == '50.0' and line['ms'] == '4000.0'
  assert 'load' not in header
  assert report.failures([row]) == [
    'FAILED layer E=2, absent: ImportError: no such package'
  ]
  assert report.parts(row) == []
  sparse['facts']['parts_percent'] = {'experts': 60.2, 'idle': 0.1}
  assert report.parts(row) == [
    'sparse: 50 % of the matmul rate; % of the time: experts 60'
  ]
  sparse['facts'] = {'no_parts': 'ValueError: no profiler'}
  assert 'rate; % of the time: ValueError' in report.parts(row)[0]
  line = report.machine_line(record)
  assert '3 rounds' in line and 'before 0.25' in line and 'NOT' not in line
  record = report.record([row], 3, 2.0)
  assert 'NOT QUIET' in report.machine_line(record)
  assert tables.text(header, lines)


def test_a_wrong_result_is_a_failure():
  def candidate(name, value):
    result = np.array([1.0, value])
    return cases.Candidate(name, lambda: (lambda: result, {}), result=np.array)

  named = [candidate('a', 2.0), candidate('b', 2.0), candidate('c', 2.1)]
  row = cases.run(cases.Case('layer', 'x', {}, named), 1)
  assert row['candidates']['b']['facts']['difference'] == 0
  assert list(row['failed']) == ['c'] and '5.0e-02' in row['failed']['c']


# Each layer compiles for two seconds.


def test_arrays_of_a_program():
  text = 'a = f32[64,16]{1,0} b = pred[4,32,64]{2,1,0} c = bf16[2,3] d = s32[]'
  assert costs.arrays(text) == {(64, 16), (4, 32, 64), (2, 3)}
  assert costs.largest_array(text) == (4, 32, 64)
  for needed in (0, 10**9):
    with pytest.raises(ValueError, match=r'\[4, 32, 64\] is as large'):
      costs.check_arrays(text, T=64, E=4, C=32, needed=needed)
  with pytest.raises(ValueError, match='as large as'):
    costs.check_arrays(text, T=64, E=2, C=16)
  costs.check_arrays(text, T=64, E=2, C=16, needed=10**4)


def test_shares_of_overlapping_operations():
  scope = {'a': 'experts', 'b': 'routing', 'c': 'experts'}
  intervals = [(0, 10, 'a'), (4, 10, 'b'), (12, 14, 'c'), (14, 15, 'x')]
  assert scopes.shares(intervals, scope) == {
    'experts': 4 + 3 + 2,
    'routing': 3,
    'idle': 2,
    'other': 1,
  }
  assert scopes.text({'experts': 60.4, 'idle': 0.4}) == 'experts 60'


def test_without_a_trace_the_times_stand():
  assert scopes.facts('', lambda: None) == {
    'no_parts': 'the profiler recorded no operation of the program'
  }


def test_scopes_of_a_program():
  """By the text of a real one, fusions too."""

  def f(x, w):
    with jax.named_scope('experts'):
      y = jnp.tanh(x @ w)
    with jax.named_scope('router'):
      return jnp.cumsum(jnp.sin(y), 0).sum()

  args = jnp.ones((8, 8)), jnp.ones((8, 8))
  text = jax.jit(jax.grad(f)).lower(*args).compile().as_text()
  found, _ = scopes.scopes(text)
  dots = [k for k in found if k.startswith('dot')]
  assert dots and all(found[k] == 'experts' for k in dots)
  assert 'routing' in found.values()
  assert scopes.part('jit(f)/transpose(jvp(dispatch))/experts/mul') == 'experts'
  assert scopes.part('jit(f)/ffn_norm/mul') == 'other'
  text = (
    'ENTRY %main (a: f32[2]) -> f32[2] {\n'
    '  %a = f32[2] parameter(0)\n'
    '  ROOT %w = f32[2] while(%a), condition=%c, body=%b\n'
    '}\n'
  )
  assert scopes.scopes(text)[1] == {'w'}


def test_peers_say_what_to_install(monkeypatch):
  for name in ('torch', 'transformers', 'st_moe_pytorch'):
    monkeypatch.setitem(sys.modules, name, None)
  for name, make in peers.BASELINES.items():
    (case,) = make(TOY, [(4, 2, 8)])[:1]
    c = next(c for c in case.candidates if c.name == name)
    with pytest.raises(ImportError) as e:
      c.build()
    assert 'pip install -e' in cases.message(e.value)
    assert '[oracle]' in str(e.value) and '\n' not in str(e.value)
    # Ours do without.
    names = [c.name for c in case.candidates]
    assert {'hf': 'dropless', 'st_moe_pytorch': 'scatter'}[name] in names


@pytest.mark.parametrize(
  ('kwargs', 'message'),
  [
    ({'name': 'layers'}, "unknown suite 'layers'; valid: compile, kernel"),
    ({'baselines': ['torch']}, "unknown baseline 'torch'; valid: dense, hf"),
    ({'only': ['E=7']}, 'cases=E=7 is in the name of none: E=8 K=1'),
  ],
)
def test_suites_name_what_is_valid(kwargs, message):
  with pytest.raises(ValueError, match=message):
    suites.build(**{'name': 'layer', 'options': TOY} | kwargs)


def test_benchmarks_need_neither_data_nor_configs_nor_torch():
  code = (
    'import sys\n'
    "for m in ('grain', 'tensorflow_datasets', 'ml_collections', 'orbax',\n"
    "          'torch', 'transformers', 'st_moe_pytorch'):\n"
    '  sys.modules[m] = None\n'
    'from moe_jax.benchmarks import report, suites\n'
  )
  subprocess.run([sys.executable, '-c', code], check=True)


def test_options_are_checked():
  with pytest.raises(ValueError, match='tokens=30 must be a multiple of 4'):
    layers.Options(tokens=30)
  with pytest.raises(ValueError, match="dtype='f32'; valid: float32, bfloat16"):
    layers.Options(dtype='f32')
  with pytest.raises(ValueError, match='repeats=0 must be at least 1'):
    timing.alternate({}, 0)


def test_scaling_varies_one_size_at_a_time():
  found = costs.scaling(TOY)
  for case in found:
    at = case.sizes
    fixed = {k: v for k, v in costs.FIXED.items() if k != at['axis']}
    assert {k: at[k] for k in fixed} == fixed
    assert at[at['axis']] == at['value']
    assert at['tokens'] == at['T']
  assert [c.name for c in found][:2] == ['E=4', 'E=8']


def test_scaling_figure():
  row = lambda axis, value, ms: {
    'suite': 'scaling',
    'sizes': {'axis': axis, 'value': value},
    'candidates': {
      'dense': {'seconds': {'median': ms, 'low': ms / 2, 'high': 2 * ms}}
    },
  }
  rows = [row('E', 4, 1.0), row('E', 8, 2.0), row('K', 1, 1.0)]
  fig = scaling.scaling({'rows': rows})
  axes = [ax for ax in fig.axes if ax.get_visible()]
  assert [ax.get_xlabel() for ax in axes] == [
    'experts E',
    'experts per token K',
  ]
  (line,) = axes[0].lines
  assert line.get_ydata().tolist() == [1e3, 2e3]
  with pytest.raises(ValueError, match='no rows of suite scaling'):
    scaling.scaling({'rows': []})


@pytest.mark.slow
def test_main(tmp_path):
  run = lambda *flags: subprocess.run(
    [sys.executable, '-m', 'experiments.bench', *flags],
    capture_output=True,
    text=True,
  )
  small = ('--tokens=64', '--width=16', '--repeats=2')
  out = run(*small, '--cases=E=8 K=2', f'--workdir={tmp_path}', '--profile')
  assert out.returncode == 0, out.stderr
  assert 'dropless' in out.stdout and 'x dense' in out.stdout
  record = json.loads((tmp_path / 'bench.json').read_text())
  assert [r['case'] for r in record['rows']] == ['E=8 K=2 F=2048']
  assert list(tmp_path.rglob('perfetto_trace.json.gz'))
  out = run(*small, '--cases=E=9')
  assert out.returncode == 1
  assert out.stderr.startswith('error: cases=E=9') and '\n' not in (
    out.stderr.strip()
  )


def test_rates():
  for c in (machine.matmul('float32', 64), machine.copy(1000)):
    run, _ = c.build()
    run()
    run()
    assert c.reference
  assert machine.matmul('float32', 64).flops == 4 * 2 * 64**3
