# %% [markdown]
# [![Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/OWNER/moe_jax/blob/main/colabs/06_your_own_router.ipynb)
#
# # A router of your own, from an empty cell to a verdict
#
# An idea: a token should go where its *context* goes. Switch (Fedus et al. 2021,
# arXiv:2101.03961) asks each token by itself. Here all tokens of a row so far vote:
# the logits of a token are the mean over those up to it. We write it, test it, train
# it beside `switch()` and say what the runs say.

# %%
# !test -d /content && git clone -q https://github.com/OWNER/moe_jax repo && pip install -q -e repo

# %%
import contextlib
import dataclasses
import io
import os
import sys
import tempfile

sys.path += ['repo', '..']  # where the line above has put it, or you have it

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib import pyplot as plt

from configs import markov
from moe_jax import registry, types
from moe_jax.plots import records, style
from moe_jax.routers import base
from moe_jax.runs import workdir as workdir_lib
from moe_jax.studies import power, verdicts
from moe_jax.training import (
  fresh_rules,
  loop,
  session as session_lib,
  step as step_lib,
)

SMALL = bool(os.environ.get('MOE_JAX_SMALL'))  # the size that tests run

# %% [markdown]
# ## The empty cell
#
# A router is a frozen dataclass that routes ONE group of tokens: it never sees a
# mesh, a capacity or a batch. `base.Matrix` has the matrix and its initial values;
# `base.choose` adds a balancing rule's bias, if there is one; `routing` makes the
# edges. The context knows each token's position in its row: a row starts where the
# position is 0.
#
# `share` mixes in the vote, so that 0 *is* Switch. A variant that becomes a known
# method at one setting has a free test.


# %%
@dataclasses.dataclass(frozen=True)
class Vote(base.Choosing, base.Matrix):
  """share: of the row's mean in a token's logits; 0 is Switch."""

  share: float = 0.5
  k = 1

  def __call__(self, params, x_TD, ctx):
    own_TE = base.linear_logits(params, x_TD)
    place_T = base.known(ctx, 'positions_T', 'Vote')
    first_T = jnp.arange(len(place_T)) - place_T
    sum_TE = jnp.cumsum(own_TE, axis=0)
    before_TE = jnp.where(first_T[:, None] > 0, sum_TE[first_T - 1], 0)
    mean_TE = (sum_TE - before_TE) / (place_T[:, None] + 1)
    found = base.affinities(own_TE + self.share * (mean_TE - own_TE))
    chosen = base.choose(found['probs_TE'], ctx, 1)
    return chosen.routing(chosen.of(found['probs_TE']), **found)


# Call strings may name what stands in this notebook.
registry.allow('__main__')
MINE = '__main__.Vote(share=0.5)'
print(registry.build('routers', MINE))

# %% [markdown]
# ## Is it what it says?
#
# Three tests before any training: loops in NumPy, the limit that is known, and the
# future, which must not change the past. A method of the library has its oracle in
# `tests/routers/`, and the contracts (padding, permutation, gradients, meshes) come
# for free.

# %%
T, D, E, L = 24, 8, 4, 8  # three rows of eight tokens
rng = np.random.default_rng(0)
x_TD = rng.normal(size=(T, D)).astype(np.float32)
params = {'kernel': rng.normal(size=(D, E)).astype(np.float32)}
ctx = types.Context(
  key=None,
  mask_T=jnp.ones(T, bool),
  selection_bias_E=jnp.zeros(E),
  positions_T=jnp.arange(T) % L,
)


def route(spec, x_TD):
  r = jax.jit(registry.build('routers', spec))(params, x_TD, ctx)
  return np.asarray(r.expert_N), np.asarray(r.weight_N)


def oracle(x_TD, share):
  expert, weight = [], []
  for t in range(T):
    row = [x_TD[s] @ params['kernel'] for s in range(t - t % L, t + 1)]
    logits = (1 - share) * row[-1] + share * sum(row) / len(row)
    p = np.exp(logits - logits.max())
    p /= p.sum()
    expert.append(p.argmax())
    weight.append(p.max())
  return expert, weight


for share in (0.0, 0.5, 1.0):
  found, wanted = (
    route(f'__main__.Vote(share={share})', x_TD),
    oracle(x_TD, share),
  )
  np.testing.assert_array_equal(found[0], wanted[0])
  np.testing.assert_allclose(found[1], wanted[1], rtol=1e-5)
np.testing.assert_array_equal(
  route('__main__.Vote(share=0.0)', x_TD)[0], route('switch()', x_TD)[0]
)
later_TD = x_TD.copy()
later_TD[13:16] += 1  # the end of the second row
before, after = route(MINE, x_TD)[1], route(MINE, later_TD)[1]
np.testing.assert_allclose(before[:13], after[:13], rtol=1e-6)
np.testing.assert_allclose(before[16:], after[16:], rtol=1e-5)
assert not np.allclose(before[13:16], after[13:16])
print('equals its loops, Switch at share 0, and is causal')

# %% [markdown]
# ## The claim, before the runs
#
# The Markov chains of `configs/markov.py`: each row is drawn from one of 32 chains,
# which its first token names. A mixture may give each expert some of the chains,
# and what a row's tokens have in common is just that. So:
#
# > *Voting has a lower held-out loss than Switch, by at least 0.01 nats a token.*
#
# Seeds are paired: a seed's two runs see the same rows in the same order, so their
# difference is free of what the seed did to both. The interval is a 95 % t interval
# of the differences, and *the smallest effect that counts* is part of the claim: an
# interval that reaches across it is inconclusive, whatever its sign.

# %%
SMALLEST = 0.01
SEEDS = range(2 if SMALL else 5)
STEPS = 24 if SMALL else 320
ARMS = {'Switch': 'switch()', 'Vote': MINE}
folder = tempfile.mkdtemp()


def config_of(router):
  config = markov.get_config('moe_16').unlock()
  config.moe.router = router
  config.model.num_layers = 1 if SMALL else 2
  config.data.problem = 'markov_chains(chains=32, states=16, rows=256)'
  config.train.update(steps=STEPS, checkpoint_every=STEPS, log_every=8)
  config.train.schedule = f'cosine(peak=2e-2, warmup={STEPS // 10}, final=0.0)'
  return config.lock()


runs = {}
for arm, router in ARMS.items():
  # Compiled once; the seeds share it.
  session = session_lib.make(config_of(router), folder)
  for seed in SEEDS:
    config, workdir = config_of(router), f'{folder}/{arm}_{seed}'
    with config.unlocked():
      config.seed = seed
    told = io.StringIO()
    with contextlib.redirect_stdout(told), contextlib.redirect_stderr(told):
      loop.train(config, workdir, session=session.with_config(config))
    runs[arm, seed] = run = records.read(workdir)
    s = run.summary
    print(f'{arm:7} seed {seed}: {s["eval/nats_per_token"]:.4f} nats a token')
entropy = s['eval/entropy']
print(f'entropy, which nothing beats: {entropy:.4f}')

# %% [markdown]
# ## The verdict

# %%
loss = {k: run.summary['eval/nats_per_token'] for k, run in runs.items()}
differences = [loss['Vote', s] - loss['Switch', s] for s in SEEDS]
mean, low, high = verdicts.interval(differences)
verdict = verdicts.decide('lower', SMALLEST, low, high)
print(
  f'Vote less Switch: {mean:+.4f} nats a token (95 %: {low:+.4f} to {high:+.4f}, '
  f'{len(differences)} seeds)\n"lower by at least {SMALLEST}": {verdict}'
)

with style.house():
  fig, axes = plt.subplots(1, 2, figsize=(11, 3.8), width_ratios=(1.3, 1))
  for i, arm in enumerate(ARMS):
    for seed in SEEDS:
      steps, y = runs[arm, seed].series('loss')
      look = style.look(i) | {'marker': ''}
      axes[0].plot(steps, y, label=arm if not seed else None, alpha=0.7, **look)
  axes[0].axhline(entropy, color=style.QUIET, ls='--', lw=1, label='entropy')
  axes[0].set(xlabel='step', ylabel='training loss, nats a token')
  axes[0].legend()
  ax = axes[1]
  ax.axvspan(-SMALLEST, SMALLEST, color=style.GRID, label='too small to count')
  ax.axvline(0, color=style.INK, lw=1)
  ax.plot(differences, SEEDS, 'o', color=style.COLOURS[1], label='a seed')
  ax.plot([low, high], [-1, -1], color=style.COLOURS[0], lw=4, label='95 %')
  ax.plot(mean, -1, 'D', color=style.COLOURS[0])
  ax.set_yticks([*SEEDS, -1], [*(f'seed {s}' for s in SEEDS), 'mean'])
  ax.set_xlabel('Vote less Switch, nats a token')
  ax.set_title(verdict)
  ax.set_ylim(-1.6, len(SEEDS) + 0.4)
  ax.legend(fontsize=8, loc='upper center', ncols=3)
  plt.show()

# %% [markdown]
# Inconclusive is not "no difference". From how much the pairs of this pilot differ
# follows how many a verdict would take, if these are their mean and deviation. They
# would be *new* seeds: to add some until the interval is to one's liking is another
# claim, with another error.

# %%
deviation = np.std(differences, ddof=1)
needed = power.seeds('lower', SMALLEST, mean, deviation)
told = f'{needed}' if needed <= power.MOST else f'more than {power.MOST}'
print(
  f'pairs differ by {mean:+.3f} ± {deviation:.3f}: a verdict takes {told} seeds '
  f'({100 * power.POWER:.0f} % power)'
)

# %% [markdown]
# ## What did it learn?
#
# Of each chain, the share of its tokens by expert, in the last layer (rows of the
# picture sorted by their favourite). A router of chains has one dark cell a row; a
# router of symbols, which every chain has, has rows that look alike. The mutual
# information of chain and expert says it in one number; its most is the entropy of
# the chains, ln 32 = 3.47 nats. Experts that know more of the chains need not make
# the better model: compare with the verdict.


# %%
def by_chain(workdir):
  """Tokens of the held-out rows, [chain, expert], in the last MoE layer."""
  config = workdir_lib.load_config(workdir)
  session = session_lib.make(config, workdir, splits=('eval',))
  state, _ = fresh_rules.of_run(session, workdir)
  stack = session.model.stack_config.with_moe(
    lambda layer: dataclasses.replace(layer, record=True)
  )
  model = session.model.clone(stack_config=stack)
  look = jax.jit(
    lambda v, b: (
      step_lib.moe_aux(model, step_lib.evaluated(model, v, b)[1])[-1][1].record
    )
  )
  count_CE = np.zeros((session.problem.chains, config.moe.num_experts))
  for batch in session.validation():
    record = jax.device_get(look({'params': state.params}, session.put(batch)))
    chain_B = batch['inputs'][:, 0] - session.problem.states
    # One group is the batch: token t is of row t // L.
    row_N = record['token'].ravel() // session.problem.seq_len
    np.add.at(count_CE, (chain_B[row_N], record['expert'].ravel()), 1)
  return count_CE


def information(count_CE):
  p_CE = count_CE / count_CE.sum()
  chance_CE = p_CE.sum(1, keepdims=True) * p_CE.sum(0)
  inside = p_CE > 0
  return (p_CE[inside] * np.log(p_CE[inside] / chance_CE[inside])).sum()


with style.house():
  fig, axes = plt.subplots(1, 2, figsize=(9, 5))
  for ax, arm in zip(axes, ARMS):
    count_CE = by_chain(f'{folder}/{arm}_0')
    share_CE = count_CE / np.maximum(count_CE.sum(1, keepdims=True), 1)
    order_C = np.lexsort((-share_CE.max(1), share_CE.argmax(1)))
    ax.imshow(share_CE[order_C], cmap='Blues', vmin=0, vmax=1, aspect='auto')
    ax.set_title(f'{arm}: {information(count_CE):.2f} nats of the chain')
    ax.set(xlabel='expert', yticks=[])
    ax.grid(False)
  axes[0].set_ylabel('chains')
  plt.show()

# %% [markdown]
# ## From here
#
# A file `moe_jax/routers/vote.py` and a test file of one row make it a method with
# all contracts (README, "Add a method in three steps"); a claim in a file of
# `configs/ablations/` makes it a study, with its power computed before the runs.
# What to put in the docstring under *when not to use it*: generation with a cache,
# which would have to keep the sum of the votes.
