# %% [markdown]
# [![Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/OWNER/moe_jax/blob/main/colabs/05_inside_a_mixture.ipynb)
#
# # Inside a mixture: what experts learn
#
# Are there domain experts? Do tokens decide, or contexts? When does routing settle?
# A small mixture is trained on text that comes with Python, every choice on
# held-out text is recorded, and each question is asked beside a *null*: what a
# router with the same loads would show that knows nothing of what is asked. Nulls
# are large, and most of what a picture seems to show may be one.

# %%
# !test -d /content && git clone -q https://github.com/OWNER/moe_jax repo && pip install -q -e repo

# %%
import contextlib
import io
import os
import pathlib
import sys
import tempfile

sys.path += ['repo', '..']  # where the line above has put it, or you have it

import numpy as np
from matplotlib import colors, pyplot as plt

from configs import reference
from moe_jax.analysis import metrics, recording, token_text
from moe_jax.plots import style
from moe_jax.training import fresh_rules, loop, state as state_lib

SMALL = bool(os.environ.get('MOE_JAX_SMALL'))  # the size that tests run
STEPS = 48 if SMALL else 512
# Of the training text, 0 being all; of each domain's held-out text.
TRAIN_BYTES, TEXT_BYTES = (400_000, 20_000) if SMALL else (0, 130_000)

# %% [markdown]
# ## A run
#
# `configs/reference.py:fine`: two blocks, 32 experts half as wide as the dense FFN,
# each byte to two of them, with raw softmax weights (as OLMoE, arXiv:2409.02060).
# Code, prose and C. Checkpoints on the way are kept.

# %%
SHARES = (0.25,) if SMALL else (0.125, 0.25, 0.5)
run = pathlib.Path(tempfile.mkdtemp()) / 'run'
config = reference.get_config('fine').unlock()
config.data.max_bytes = TRAIN_BYTES
config.eval.max_bytes = TEXT_BYTES
config.train.update(
  steps=STEPS,
  schedule=reference.schedule(STEPS, reference.PEAKS['fine']),
  checkpoint_every=STEPS,
  keep_at=SHARES,
)
told = io.StringIO()
with contextlib.redirect_stdout(told), contextlib.redirect_stderr(told):
  summary = loop.train(config.lock(), str(run))
print(f'held out: {summary["eval/bits_per_byte"]:.3f} bits a byte')

# %% [markdown]
# ## The record
#
# For every held-out token: its id, the next one, the layers' experts, weights, what
# became of each choice. On disk, in parts; metrics stream over it, and their memory
# does not grow with the text. Beside the run's checkpoints its *untrained twin*:
# the same model before its first step.

# %%
session = recording.opened(config, run)
saved = {round(s * STEPS): None for s in (*SHARES, 1.0)}
for step in saved:
  state, _ = fresh_rules.of_run(session, run, step)
  path = run / 'analysis' / f'routing_{step}'
  saved[step] = recording.record(session, state, path, step=step)['decoder']
state = state_lib.init(
  session.model, session.tx, session.dummy, config.seed, session.shardings
)
path = run / 'analysis' / 'untrained'
twin = recording.record(session, state, path)['decoder']
final = saved[STEPS]
schema = final.schema
print(len(final), 'tokens of', ', '.join(schema.domains))

# %% [markdown]
# ## Look first
#
# A held-out passage, each byte in the colour of its first expert: the seven most
# frequent ones have a colour, the rest are grey; ▸ begins a row of the batch,
# before which the model sees nothing. Look for a colour that keeps to a kind of
# character, and for one that keeps to a stretch of text.

# %%
WIDE, HIGH = 72, 9
INSIDE = [*style.COLOURS, '#b4a7d6']


def passage(record, m):
  """Bytes of a document from its start, and the first expert of each."""
  for part in record.parts():
    for d in np.unique(part.document):
      own = part.document == d
      if own.sum() >= WIDE * HIGH:
        some = np.flatnonzero(own)[: WIDE * HIGH]
        return part.token[some], part.expert[some, m, 0]
  raise ValueError('no document is as long')


texts = token_text.texts(schema.tokenizer, schema.vocab)
with style.house():
  fig, axes = plt.subplots(2, 1, figsize=(11, 5.4))
  for ax, m in zip(axes, (0, len(schema.layers) - 1)):
    token_n, expert_n = passage(final, m)
    load_E = np.bincount(expert_n, minlength=schema.experts[m])
    top = np.argsort(-load_E)[: len(INSIDE)]
    number_E = np.zeros(len(load_E), int)
    number_E[top] = np.arange(len(top)) + 1
    palette = colors.ListedColormap(['#e8eaed', *INSIDE])
    ax.imshow(
      number_E[expert_n].reshape(HIGH, WIDE),
      cmap=palette,
      vmin=-0.5,
      vmax=len(INSIDE) + 0.5,
      aspect='auto',
      alpha=0.55,
    )
    for i, t in enumerate(token_n):
      shown = texts[t].decode('latin-1')
      shown = {'\n': '¶', ' ': '', '': '▸'}.get(shown, style.plain(shown))
      ax.text(
        *(i % WIDE, i // WIDE, shown),
        ha='center',
        va='center',
        family='DejaVu Sans Mono',
        fontsize=9,
      )
    ax.set_title(f'layer {schema.layers[m]}')
    ax.axis('off')
  plt.show()

# %% [markdown]
# ## Token, context or domain?
#
# - **The id**: mutual information of expert and input byte, as a share of
#   H(expert). OpenMoE (arXiv:2402.01739) found that the id decides, whatever stands
#   around it.
# - **Context**: what the byte before adds, in held-out cross-entropy.
# - **Domain**: how far the loads of code, prose and C are from their mean (OLMoE,
#   Mixtral), at most 1 - 1/domains.
#
# Filled: the trained model. Hollow: the untrained twin, whose random router sends
# equal vectors to equal experts and so looks specialised on ids, too. Grey: the
# null, with equal loads and nothing known.

# %%
SPECS = (
  "mutual_information(ids=('token',))",
  'context_independence()',
  'domain_specialisation()',
  'vocabulary_specialisation()',
  'top_tokens(count=6)',
)
found, before = (metrics.measure(r, SPECS) for r in (final, twin))


def rows(f):
  """[question][value, null] of [layers], as shares."""
  own_M = np.array(f['context_independence/entropy'])
  of = lambda name: np.array(f[name], float)
  ids = 'mutual_information/token_'
  context, domain = 'context_independence/context_', 'domain_specialisation/'
  return {
    'id': (of(f'{ids}value') / own_M, of(f'{ids}null') / own_M),
    'context': (of(f'{context}value'), of(f'{context}null')),
    'domain': (of(f'{domain}value'), of(f'{domain}null')),
  }


with style.house():
  fig, axes = plt.subplots(1, 3, figsize=(11, 3.2))
  layers = np.arange(len(schema.layers))
  for ax, question, colour in zip(axes, rows(found), style.COLOURS):
    value_M, null_M = rows(found)[question]
    untrained_M, _ = rows(before)[question]
    ax.bar(layers, 100 * null_M, 0.7, color=style.GRID, label='null')
    ax.plot(layers, 100 * value_M, 'o', ms=9, color=colour, label='trained')
    ax.plot(
      *(layers, 100 * untrained_M, 'o'),
      ms=9,
      mfc='white',
      color=colour,
      label='untrained twin',
    )
    ax.set_title(question)
    ax.set_xticks(layers, [f'layer {i}' for i in schema.layers])
    ax.set(
      xlim=(-0.6, len(layers) - 0.4), ylim=(min(0, ax.get_ylim()[0]), None)
    )
  axes[0].set_ylabel('%')
  axes[0].legend()
  plt.show()

domains = found['domain_specialisation/shares']
p = found['domain_specialisation/p']
for i, layer in enumerate(schema.layers):
  value, null = (
    found[f'vocabulary_specialisation/token_{k}'][i] for k in ('value', 'null')
  )
  naive = schema.choices / schema.experts[i]
  print(
    f'layer {layer}: the favourite expert of an id sees {100 * value:.0f} % of it; '
    f'a router that reads no ids {100 * null:.0f} %, not K/E = {100 * naive:.0f} %'
  )
assert np.all(
  np.array(found['mutual_information/token_null'])
  < np.array(found['mutual_information/token_value'])
)

# %% [markdown]
# ## Whose expert is it?
#
# Share of each expert in a domain's choices over its mean share; experts sorted by
# their favourite domain. An expert of one domain is brown there and purple
# elsewhere; those that hardly anyone chooses are left out. The title says how often
# a shuffle of *documents* over domains gives as much: one of tokens hardly ever
# would, as those of a document go together.

# %%
with style.house():
  M = len(schema.layers)
  fig, axes = plt.subplots(M, 1, figsize=(11, 1.5 * M + 0.8), squeeze=False)
  for m, ax in enumerate(axes[:, 0]):
    share_DE = np.array(domains[m], float)
    mean_E = share_DE.mean(0)
    used_E = np.flatnonzero(mean_E > 0.05 * mean_E.mean())
    lift_DE = share_DE / np.maximum(mean_E, 1e-9)
    lift_De = lift_DE[:, used_E]
    order_e = np.lexsort((-lift_De.max(0), lift_De.argmax(0)))
    image = ax.imshow(
      lift_De[:, order_e], cmap='PuOr_r', vmin=0, vmax=2, aspect='auto'
    )
    ax.set_yticks(range(len(share_DE)), schema.domains)
    ax.set_xticks(range(len(order_e)), used_E[order_e], fontsize=7)
    left_out = len(mean_E) - len(used_E)
    ax.set_title(
      f'layer {schema.layers[m]}: p = {p[m]:.2g}; {left_out} left out'
    )
    ax.grid(False)
  fig.colorbar(image, ax=axes, label='over its mean share', shrink=0.8)
  plt.show()

# %% [markdown]
# ## Top tokens
#
# OLMoE's table 9 in small: the bytes whose share at an expert is largest over its
# share of all. The largest of many noisy numbers is large: shown are experts beyond
# what chance gives at most.

# %%
last = len(schema.layers) - 1
lift, chance = (
  np.array(found[f'top_tokens/{k}'][last], float)
  for k in ('value', 'null_high')
)
beyond = [e for e in np.argsort(-lift) if lift[e] > chance[e]]
print(f'layer {schema.layers[last]}: {len(beyond)} of {len(lift)} experts')
for e in beyond[:10]:
  own = found['top_tokens/by_lift'][last][e]
  listed = '  '.join(f'{row["text"]} {row["lift"]:.0f}x' for row in own)
  print(f'expert {e:2}: {listed}')

# %% [markdown]
# ## When does routing settle?
#
# Saturation (OLMoE, section 5.1): the share of a checkpoint's choices that the final
# one makes, too. At step 0 the untrained twin; the dashed line is what two routers
# of these loads share by chance.

# %%
at = {0: twin} | {s: r for s, r in saved.items() if s != STEPS}
same = {s: metrics.measure(r, ['saturation()'], final) for s, r in at.items()}
with style.house():
  fig, ax = plt.subplots(figsize=(8, 3.4))
  for i, layer in enumerate(schema.layers):
    steps = [*same, STEPS]
    y = [f['saturation/top_k_value'][i] for f in same.values()]
    null = [f['saturation/top_k_null'][i] for f in same.values()]
    ax.plot(
      steps, 100 * np.array([*y, 1]), label=f'layer {layer}', **style.look(i)
    )
    ax.plot(
      steps[:-1],
      100 * np.array(null),
      color=style.look(i)['color'],
      ls='--',
      lw=1,
    )
  ax.set(xlabel='step', ylabel='choices of the final model, %', ylim=(0, 102))
  ax.legend(loc='lower right')
  plt.show()
for f in same.values():
  assert np.all(np.array(f['saturation/top_k_value']) <= 1)

# %% [markdown]
# ## All of it, for any run
#
# ```sh
# python -m experiments.analyze --workdir=RUN --checkpoints=all
# ```
#
# measures these and a dozen more (co-activation, repetition, paths, drops, causal
# importance) and writes a page with the text to read in colours.
