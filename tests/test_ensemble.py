"""Branch-Train-Merge: several models as one, by the posterior of the domain."""

import functools
import json

import jax.numpy as jnp
import numpy as np
import pytest

from moe_jax.parity.loops import softmax
from moe_jax.training import ensemble, kept_data, members
from tests import mains, saved, tiny
from tests.main_run import EIGHT, read

J, B, L, V = 3, 2, 12, 5
# Of two rows: segments that begin at these tokens.
STARTS = ((0, 5), (0, 1, 9))


@functools.cache
def case():
  rng = np.random.default_rng(0)
  starts = np.zeros((B, L), bool)
  for b, at in enumerate(STARTS):
    starts[b, list(at)] = True
  logits = rng.normal(size=(J, B, L, V)).astype(np.float32)
  targets = rng.integers(0, V, (B, L))
  log_p = np.log(softmax(logits.astype(np.float64)))
  of = np.take_along_axis(log_p, targets[None, ..., None], -1)[..., 0]
  return starts, logits, log_p, of


def posterior(of, starts, prior, top_k):
  """Bayes' rule, token by token: products of probabilities."""
  out = np.zeros((J, B, L))
  for b in range(B):
    for t in range(L):
      first = max(i for i in range(t + 1) if starts[b, i])
      p = np.array(prior, np.float64)
      for j in range(J):
        for i in range(first, t):
          p[j] *= np.exp(of[j, b, i])
      if top_k:
        p[np.argsort(-p, kind='stable')[top_k:]] = 0
      out[:, b, t] = p / p.sum()
  return out


@pytest.mark.parametrize('top_k', [0, 1, 2])
def test_the_posterior_is_bayes(top_k):
  starts, logits, log_p, of = case()
  prior = [0.5, 0.3, 0.2]
  way = ensemble.Bayes(top_k=top_k)
  log_w = way.log_weights(
    jnp.float32(of), jnp.asarray(starts), jnp.log(jnp.float32(prior))
  )
  want = posterior(of, starts, prior, top_k)
  np.testing.assert_allclose(np.exp(log_w), want, atol=1e-6)
  # Probabilities are averaged, not their logarithms.
  mixed = way.mixed(jnp.asarray(logits), log_w)
  p = (want[..., None] * np.exp(log_p)).sum(0)
  np.testing.assert_allclose(np.exp(mixed), p, atol=1e-6)


def test_logits_by_the_mean_loss_before():
  starts, logits, _, of = case()
  way = ensemble.Logits(tau=0.3)
  prior = jnp.zeros(J)  # is not asked
  log_w = way.log_weights(jnp.float32(of), jnp.asarray(starts), prior)
  want = np.full((J, B, L), 1 / J)
  for b in range(B):
    for t in range(L):
      first = max(i for i in range(t + 1) if starts[b, i])
      if t > first:
        want[:, b, t] = softmax(of[:, b, first:t].mean(-1) / 0.3)
  np.testing.assert_allclose(np.exp(log_w), want, atol=1e-6)
  mixed = way.mixed(jnp.asarray(logits), log_w)
  np.testing.assert_allclose(
    mixed, (want[..., None] * logits).sum(0), atol=1e-6
  )


@pytest.mark.parametrize('way', [ensemble.Bayes(top_k=2), ensemble.Logits()])
def test_weights_know_nothing_of_what_follows(way):
  starts, _, _, of = case()
  weights = lambda of: way.log_weights(
    jnp.float32(of), jnp.asarray(starts), jnp.zeros(J)
  )
  other = of.copy()
  other[0, :, 7:] -= 3  # from the 7th on, and so of the 8th in its segment
  before, after = weights(of), weights(other)
  np.testing.assert_array_equal(before[..., :8], after[..., :8])
  assert (before[:, 0, 8] != after[:, 0, 8]).any()


def test_wrong_ways():
  for spec, message in {
    'mean()': "unknown ensemble 'mean'; valid: bayes, logits",
    'bayes(top_k=4)': 'top_k=4; valid: 1 to 3 models',
    "bayes(prior='flat')": "'flat'; valid: average, uniform",
    'logits(tau=0)': 'tau=0; valid: above 0',
  }.items():
    with pytest.raises(ValueError, match=message):
      ensemble.build(spec, 3)


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
  """Two dense models of one shape, on domain 'a' and on 'b'."""
  root = tmp_path_factory.mktemp('ensemble')
  fields = saved.corpus(root) | {
    'cpu_devices': 1,
    'mesh': 'auto()',
    'moe.layers': 'none',
    'model.num_layers': 1,
    'eval.max_bytes': 400,
  }
  for seed, domain in enumerate('ab'):
    own = {'seed': seed, 'data.domains': (domain,)}
    saved.run(tiny.config(**fields, **own), root / domain)
  return root


def test_one_model_is_itself_and_two_are_better_than_the_worse(runs):
  """On both domains, beside each alone; through the program."""
  both = f'--from={runs}/a,{runs}/b'
  call = functools.partial(
    mains.call, 'ensemble', EIGHT, '--mesh=exact(data=8)'
  )
  _, out = call(both, f'--workdir={runs}/o', "--by=bayes(prior='average')")
  found = read(runs / 'o/summary.json')
  assert {'a', 'b'} == found['models'].keys() == found['weights'].keys()
  assert sum(found['weights'].values()) == pytest.approx(1)
  assert sum(found['prior'].values()) == pytest.approx(1, rel=1e-5)
  bits = 'eval/bits_per_byte'
  alone = {k: v[bits] for k, v in found['models'].items()}
  assert found[bits] < max(alone.values())
  for name in 'ab':
    apart = found['difference'][name]['difference/bits_per_byte']
    assert apart == pytest.approx(found[bits] - alone[name], abs=1e-9)
    assert found['models'][name][f'eval/{name}/bits_per_byte'] > 0
  assert 'ensemble less' in out and 'summary.json' in out
  call(f'--from={runs}/b', f'--workdir={runs}/p', '--config.data.domains=()')
  one = read(runs / 'p/summary.json')
  assert one[bits] == pytest.approx(one['models']['b'][bits], abs=1e-6)
  assert one[bits] == pytest.approx(alone['b'], abs=1e-6)


def test_runs_that_do_not_fit(runs):
  with pytest.raises(ValueError, match='different runs wanted'):
    members.open_all([str(runs / 'a')] * 2)
  found = members.open_all(
    [str(runs / 'a'), str(runs / 'b')], mesh='exact(data=8)'
  )
  assert [m.name for m in found] == ['a', 'b']
  data = found[0].session.data
  assert data is found[1].session.data
  kept_data.keep(data, runs / 'b')  # of other domains than those of the run
  path = runs / 'b/data.json'
  there = read(path) | {'fingerprint': 'other'}
  there['kept']['data.domains'] = ['b']
  path.write_text(json.dumps(there))
  members.open_all([str(runs / 'a'), str(runs / 'b')], mesh='exact(data=8)')
  there['kept']['splits']['training']['domains']['a'][2] = 'f' * 16
  path.write_text(json.dumps(there))
  with pytest.raises(ValueError, match=r"b was trained on other data: .*'a'"):
    members.open_all([str(runs / 'a'), str(runs / 'b')], mesh='exact(data=8)')
  path.unlink()
  other = tiny.config(
    **saved.corpus(runs),
    **{'model.vocab_size': 512, 'moe.layers': 'none', 'model.num_layers': 1},
    **{'cpu_devices': 1, 'mesh': 'auto()'},
  )
  saved.run(other, runs / 'c')
  found = members.open_all(
    [str(runs / 'a'), str(runs / 'c')], mesh='exact(data=8)'
  )
  with pytest.raises(ValueError, match='c: its vocabulary has 512 rows, here'):
    ensemble.check(found)
