# %% [markdown]
# [![Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/OWNER/moe_jax/blob/main/colabs/02_routers.ipynb)
#
# # Every router on the same tokens
#
# A router says who goes where, with what weight. Here all of the library's route
# one sentence, those of one matrix by the same matrix: what differs between the
# pictures is the method.

# %%
# !test -d /content && git clone -q https://github.com/OWNER/moe_jax repo && pip install -q -e repo

# %%
import functools
import inspect
import os
import sys

sys.path += ['repo', '..']  # where the line above has put it, or you have it

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib import pyplot as plt

from moe_jax import registry, types
from moe_jax.plots import style

SMALL = bool(os.environ.get('MOE_JAX_SMALL'))  # the size that tests run

# %% [markdown]
# ## The tokens
#
# A sentence of 32 words. A token's vector is its word's, and a third of noise for
# what its context adds: the three *cat*s are alike, not equal.

# %%
WORDS = """the cat saw the dog and the dog saw the cat then two birds came and
sat on the old red wall and the cat ran at the birds but they flew""".split()
T, D, E = len(WORDS), 32, 16
assert T == 32

ids_T = np.unique(WORDS, return_inverse=True)[1]
rng = np.random.default_rng(0)
word_VD = rng.normal(size=(ids_T.max() + 1, D))
x_TD = (word_VD[ids_T] + rng.normal(size=(T, D)) / 3).astype(np.float32)
# Logits of deviation 2: a trained router is about as sure.
kernel_DE = (2 * rng.normal(size=(D, E)) / np.sqrt(D)).astype(np.float32)

# %% [markdown]
# ## What a router may know
#
# A router is written for one group of tokens: `(params, x_TD, ctx) -> Routing`.
# The context has all that some method asks for: noise, ids (`hash`), positions,
# the previous layer's logits (`moe_plus_plus`), a recorded choice (`replay`), and
# what experts show of their weights (`autonomy`, `moe_x`).

# %%
# Sizes where the papers' do not fit 16 experts; all others as they come.
OPTIONS = {
  'adamoe': dict(k=4),
  'cosine': dict(k=2),
  'hash': dict(k=2),
  'noisy_top_k': dict(k=2),
  'gpt_oss': dict(k=2),
  'product_keys': dict(heads=1, k=2, d_key=16),
  'relu': dict(max_choices=4),
  'scheduled_top_k': dict(first=(3, 2), until=100),
  'rexmoe': dict(start=0, end=10),
  'segment': dict(size=4, k=2),
  'sigmoid_top_k': dict(k=2, groups=4, kept_groups=2),
}
# Of their 16 experts these compute nothing: a token sent there costs nothing.
LOCAL = {'adamoe': 8, 'moe_plus_plus': 4}


def call_string(name):
  options = ', '.join(f'{k}={v!r}' for k, v in OPTIONS.get(name, {}).items())
  return f'{name}({options})'


def features():
  """What experts of two kinds show of their weights."""
  found = {}
  for spec in ('autonomy(d_low=8, d_ff=16)', 'mlp(d_ff=16)'):
    experts = registry.build('experts', spec)
    params = experts.init(jax.random.key(3), E, D)
    found |= experts.routing_features(params, lambda part: part)
  return found


known = types.Context(
  key=jax.random.key(1),
  layer_key=jax.random.key(2),
  mask_T=jnp.ones(T, bool),
  selection_bias_E=jnp.zeros(E),
  carry=jnp.asarray(x_TD @ rng.normal(size=(D, E)) / 6, jnp.float32),
  ids_T=jnp.asarray(ids_T, jnp.int32),
  positions_T=jnp.arange(T),
  segments_T=jnp.ones(T, jnp.int32),
  # As recorded from a run: the best two by the matrix.
  forced_TK=jnp.asarray(np.argsort(-x_TD @ kernel_DE, -1)[:, :2], jnp.int32),
  step=jnp.int32(5),
  layer=jnp.int32(1),
  features=features(),
  train=True,
)


@functools.partial(jax.jit, static_argnums=0)
def weights(router, params, x_TD, ctx):
  """f32 [T, E], a token's weight at each expert; and bool, who was sent."""
  r = router(params, x_TD, ctx)
  if isinstance(r, types.SlotRouting):  # a token's part of each expert's slot
    weight_TE = r.dispatch_TN.reshape(T, E, -1).sum(-1)
    return weight_TE, weight_TE > 0
  at = r.token_N, r.expert_N
  empty_TE = jnp.zeros((T, E))
  return (
    empty_TE.at[at].add(r.weight_N, mode='drop'),
    empty_TE.at[at].add(1.0, mode='drop') > 0,
  )


def prepared(name):
  """The router, parameters and context."""
  router = registry.build('routers', call_string(name))
  router.check(E)
  params = router.init(jax.random.key(4), E, D)
  kernel = params.get('kernel') if isinstance(params, dict) else None
  if kernel is not None and kernel.shape == kernel_DE.shape:
    # Soft MoE's vectors have length 1: its matrix is as it comes.
    params |= {'kernel': kernel_DE}
  else:
    # Their splits and bits are soft until they have been trained.
    sharp = 8.0 if name in ('comet', 'dselect_k', 'segment') else 1.0
    params = jax.tree.map(lambda v: sharp * v, params)
  return router, params, known.replace(num_local=LOCAL.get(name, 0))


routed = {}
for name in registry.names('routers'):
  router, params, ctx = prepared(name)
  routed[name] = jax.device_get(weights(router, params, x_TD, ctx))
print(len(routed), 'routers')

# %% [markdown]
# ## Who goes where
#
# Each panel is a group: a row is a token of the sentence, from top to bottom, a
# column an expert, and the darker the larger the weight. What to look for:
#
# - **One matrix, one or two experts**: dark cells in the same places. `switch`
#   (Fedus et al. 2021) takes the best, `top_k` (Shazeer et al. 2017) two.
#   Repeated words make columns: the token decides, not yet the context.
# - **As many as it takes**: `top_p` and `relu` (ReMoE) give sure tokens one expert
#   and unsure ones several; in `adamoe` and `moe_plus_plus` the shaded columns
#   compute nothing.
# - **Balanced by construction**: in `expert_choice` (Zhou et al. 2022) every
#   *column* has as many cells, and some rows none. `base_layer` gives all experts
#   two tokens each; `sinkhorn` leans towards it.
# - **Nothing learned**: `hash` sends equal words to equal experts, `round_robin`
#   is even and deaf, `random` just noise.
# - **No choice at all**: `soft` (Puigcerver et al. 2023) mixes all tokens into
#   each expert's slot. `dselect_k` and `comet` are as soft until they are trained.

# %%
KINDS = {
  'one expert, or k': """switch top_k sigmoid_top_k gpt_oss llama4 noisy_top_k
    vmoe cosine prototype sparse_mixer no_token_left_behind product_keys""",
  'experts take part': 'autonomy moe_x',
  'as many as it takes': """top_p relu adamoe moe_plus_plus scheduled_top_k
    dselect_k comet rexmoe""",
  'balanced together': """expert_choice capped_expert_choice base_layer sinkhorn
    segment soft""",
  'given': 'hash random round_robin replay',
}
kind_of = {n: kind for kind, names in KINDS.items() for n in names.split()}
shown = [n for n in kind_of if n in routed]
rest = [n for n in routed if n not in kind_of]  # newer than this page
kind_of |= dict.fromkeys(rest, 'given')
shown += rest
colour_of = dict(zip(KINDS, style.COLOURS))

with style.house():
  columns = 8
  rows = -(-len(shown) // columns)
  fig, axes = plt.subplots(rows, columns, figsize=(15, 3.4 * rows))
  for ax in axes.flat[len(shown) :]:
    ax.set_visible(False)
  for i, (ax, name) in enumerate(zip(axes.flat, shown)):
    weight_TE, _ = routed[name]
    # The root, so that small weights are seen, too.
    ax.imshow(np.sqrt(weight_TE), cmap='Blues', aspect='auto', vmin=0)
    if name in LOCAL:
      ax.axvspan(E - LOCAL[name] - 0.5, E - 0.5, color='0.5', alpha=0.2, lw=0)
    ax.set_title(
      name.replace('_', ' '), color=colour_of[kind_of[name]], fontsize=9
    )
    ax.grid(False)
    ax.set_xticks([])
    ax.set_yticks(range(T), WORDS if i % columns == 0 else [], fontsize=7)
    ax.tick_params(length=0)
    for side in ax.spines.values():
      side.set_visible(True)
      side.set_color(style.GRID)
  handles = [
    plt.Line2D([], [], lw=6, color=c, label=k) for k, c in colour_of.items()
  ]
  fig.legend(handles=handles, loc='outside upper center', ncols=len(handles))
  fig.supxlabel('experts 0 to 15 of each router')
  plt.show()

# %% [markdown]
# Some of what the list says, checked:

# %%
sent = {name: who_TE for name, (_, who_TE) in routed.items()}
best_T = (x_TD @ kernel_DE).argmax(-1)
assert (routed['switch'][0].argmax(-1) == best_T).all()
assert sent['top_k'][np.arange(T), best_T].all()
assert (sent['expert_choice'].sum(0) == 2 * T / E).all()
assert (sent['base_layer'].sum(0) == T / E).all()
for word in set(ids_T):
  assert len(np.unique(sent['hash'][ids_T == word], axis=0)) == 1
assert sent['soft'].all()

# %% [markdown]
# ## The same in numbers
#
# - **Load**: tokens of the fullest expert over the mean. With a capacity factor
#   below it tokens are dropped; without one, the fullest device is waited for.
# - **Experts of a token**: least, mean, most. What a token costs.
# - **The future**: the last token is replaced. A bar is the share of *earlier*
#   tokens whose experts or weights change by it. Where it is not 0 a decoder would
#   be told of what it is to predict: such routers are for encoders, or need care
#   when a model generates.

# %%
other_TD = x_TD.copy()
other_TD[-1] = -3 * x_TD[-1]

facts = {}
for name in shown:
  router, params, ctx = prepared(name)
  weight_TE, who_TE = routed[name]
  changed_TE = jax.device_get(weights(router, params, other_TD, ctx))[0]
  moved_T = np.abs(changed_TE - weight_TE).max(-1) > 1e-5
  facts[name] = {
    'load': who_TE.sum(0).max() / who_TE.sum(0).mean(),
    'experts': who_TE[:, : E - LOCAL.get(name, 0)].sum(-1),
    'future': moved_T[:-1].mean(),
  }
  # What each class declares, seen.
  assert not (router.causal and facts[name]['future'] > 0), name

with style.house():
  fig, axes = plt.subplots(
    1, 3, figsize=(11, 0.22 * len(shown) + 1), sharey=True
  )
  y = np.arange(len(shown))[::-1]
  colours = [colour_of[kind_of[n]] for n in shown]
  axes[0].barh(y, [facts[n]['load'] for n in shown], color=colours)
  axes[0].axvline(1, color=style.INK, lw=1)
  axes[0].set_title('fullest expert / mean')
  for name, at, colour in zip(shown, y, colours):
    k_T = facts[name]['experts']
    axes[1].plot([k_T.min(), k_T.max()], [at, at], color=colour, lw=2)
    axes[1].plot(k_T.mean(), at, 'o', color=colour)
  axes[1].set_title('experts of a token')
  axes[1].set_xticks(range(0, E + 1, 4))
  axes[2].barh(y, [100 * facts[n]['future'] for n in shown], color=colours)
  axes[2].set_title('changed by a later token, %')
  axes[0].set_yticks(y, shown)
  for ax in axes:
    ax.set_ylim(-0.7, len(shown) - 0.3)
    ax.tick_params(axis='y', length=0)
  plt.show()

# %% [markdown]
# ## Three numbers that are easily taken for one
#
# Of each token and expert there is an *affinity*, which has the gradient; a
# *selection score*, which top-k looks at; and a *combine weight*. In DeepSeek-V3
# (arXiv:2412.19437) a bias that balances the loads enters the score alone: it
# moves who is chosen, and never what a chosen expert counts.

# %%
router = registry.build('routers', 'sigmoid_top_k(k=2, scaling=1.0)')
bias_E = np.zeros(E, np.float32)
crowded = sent['top_k'].sum(0).argmax()
bias_E[crowded] = -0.6  # as loss-free balancing would come to


def look(bias_E):
  ctx = known.replace(selection_bias_E=jnp.asarray(bias_E))
  r = jax.jit(router)({'kernel': kernel_DE}, x_TD, ctx)
  affinity_TE = jax.nn.sigmoid(r.logits_TE)
  return (
    affinity_TE,
    affinity_TE + bias_E,
    weights(router, {'kernel': kernel_DE}, x_TD, ctx)[0],
  )


plain, biased = jax.device_get((look(0 * bias_E), look(bias_E)))
moved_T = (plain[2][:, crowded] > 0) & (biased[2][:, crowded] == 0)
t = int(np.argmax(moved_T))
assert moved_T.any() and np.allclose(plain[0], biased[0])

with style.house():
  fig, axes = plt.subplots(1, 3, figsize=(11, 2.6), sharex=True)
  titles = 'affinity', 'selection score', 'combine weight'
  for ax, title, before_TE, after_TE in zip(axes, titles, plain, biased):
    ax.bar(
      np.arange(E) - 0.2,
      before_TE[t],
      0.4,
      label='no bias',
      color=style.COLOURS[0],
    )
    ax.bar(
      np.arange(E) + 0.2,
      after_TE[t],
      0.4,
      label='with it',
      color=style.COLOURS[1],
    )
    ax.set_title(title)
    ax.set_xlabel('expert')
    ax.axvspan(crowded - 0.5, crowded + 0.5, color=style.GRID, zorder=0)
  axes[0].set_ylabel(f'token {t}, "{WORDS[t]}"')
  axes[2].legend(loc='upper center')
  axes[0].set_xticks(range(0, E, 3))
  plt.show()

# %% [markdown]
# ## Read one
#
# A method is a file; this is the whole of expert choice.

# %%
method = registry.method_class('routers', 'expert_choice')
print(inspect.getsource(method))
