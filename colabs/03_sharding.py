# %% [markdown]
# [![Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/OWNER/moe_jax/blob/main/colabs/03_sharding.ipynb)
#
# # One layer on eight devices
#
# Experts live on different devices, and tokens must get to them. Here one layer
# runs on 8 devices; what they send one another is drawn, counted in the compiled
# program, and compared for five dispatches that compute the same.

# %%
# !test -d /content && git clone -q https://github.com/OWNER/moe_jax repo && pip install -q -e repo

# %%
import os
import sys
import time

sys.path += ['repo', '..']  # where the line above has put it, or you have it

import jax

# Before the first use of JAX: a CPU stands for eight.
jax.config.update('jax_num_cpu_devices', 8)

import numpy as np
from jax.sharding import NamedSharding
from matplotlib import pyplot as plt

from moe_jax import types
from moe_jax.layers import moe
from moe_jax.parallel import hlo, mesh as mesh_lib, rules
from moe_jax.plots import style

SMALL = bool(os.environ.get('MOE_JAX_SMALL'))  # the size that tests run
devices = jax.devices() if jax.device_count() >= 8 else jax.devices('cpu')
print(len(devices), devices[0].platform)

# %% [markdown]
# ## The mesh, and where arrays live
#
# Four axes, always; here `data=2, expert=4`. Tokens are split over both, experts
# over the second, so each row of the mesh holds a copy of all 16 experts. The
# group, which shares an expert's capacity, is what one device holds: it is set by
# the config and would be the same on one device.

# %%
ROWS, S = 2, 4  # the mesh: data, expert
E, K, B, L, D, F = 16, 2, 16, 64, 32 if SMALL else 128, 128
FACTOR = 2.0  # of the mean load that an expert has seats for
N_DEV = ROWS * S
T = B * L // N_DEV

mesh = mesh_lib.make(f'exact(data={ROWS}, expert={S})', devices)


def layer(dispatch):
  return moe.MoE(
    num_experts=E,
    router=f'top_k(k={K})',
    experts=f"mlp(activation='relu', d_ff={F})",
    dispatch=dispatch,
    balance='switch_loss(weight=0.01)',
    group_size=T,
    capacity_factor=FACTOR,
    record=True,
    mesh=mesh,
  )


def place(value, *axes):
  return jax.device_put(
    value, NamedSharding(mesh, rules.spec(axes, mesh.shape))
  )


one = layer('scatter()')
params = jax.jit(one.init, static_argnums=1)(jax.random.key(0), D)
params = jax.tree.map(
  lambda v, axes: place(np.asarray(v), *axes), params, one.axes(D)
)
# A router that prefers some experts, as most do until they are balanced.
lean_E = np.linspace(0.25, -0.25, E)
x_BLD = jax.random.normal(jax.random.key(1), (B, L, D)).at[..., 0].set(1.0)
x_BLD = place(np.asarray(x_BLD), 'batch')
kernel_DE = np.array(params['router']['kernel'])
kernel_DE[0] = lean_E
params['router']['kernel'] = place(kernel_DE)

arrays = {'tokens': x_BLD, 'router': params['router']['kernel']}
arrays |= {f'experts/{k}': v for k, v in params['experts'].items()}
print(f'{"array":12} {"whole":16} {"on a device":16} copies')
for name, v in arrays.items():
  shard = v.addressable_shards[0].data.shape
  copies = N_DEV * np.prod(shard) // v.size
  print(f'{name:12} {v.shape!s:16} {shard!s:16} {copies}')

# %% [markdown]
# ## A token's way
#
# The record has every edge: token, expert, weight, and whether it was seated. A
# band below is as wide as the tokens that take it. They cross in the first
# all-to-all, meet the experts, and return in the second; none goes from one row of
# the mesh to the other.

# %%
run = lambda layer: jax.jit(lambda p, x: layer(p, {}, x, train=True)[::2])
y_BLD, aux = jax.device_get(run(one)(params, x_BLD))
# Group g lies on device g: [N_DEV, N] edges.
kept_GN = aux.record['cause'] == types.KEPT
owner_GN = aux.record['expert'] // (E // S)
sent_SS = np.zeros((N_DEV, N_DEV), int)  # edges from device to device
for i in range(N_DEV):
  for s in range(S):
    there = kept_GN[i] & (owner_GN[i] == s)
    sent_SS[i, i // S * S + s] = there.sum()
assert sent_SS.sum() == aux.cause[types.KEPT]
print('assignments:', dict(zip(types.CAUSES, aux.cause.tolist())))


def box(ax, x, y, text, colour):
  ax.text(
    *(x, y, text),
    ha='center',
    va='center',
    color='white',
    fontsize=9,
    bbox=dict(boxstyle='round,pad=0.45', facecolor=colour, linewidth=0),
  )


def band(ax, x, y, width, colour):
  """From x[0] to x[1]; `y` is where its lower edge begins and ends."""
  u = np.linspace(0, 1, 40)
  low = y[0] + (y[1] - y[0]) * (3 * u**2 - 2 * u**3)
  at = x[0] + (x[1] - x[0]) * u
  ax.fill_between(at, low, low + width, color=colour, alpha=0.65, lw=0)


with style.house():
  fig, ax = plt.subplots(figsize=(11, 6.4))
  colours = [*style.COLOURS[:4]] * ROWS
  at = np.array([-(i + 0.4 * (i // S)) for i in range(N_DEV)])
  width_SS = 0.9 * sent_SS / max(sent_SS.sum(0).max(), sent_SS.sum(1).max())
  leaves = at - width_SS.sum(1) / 2  # the lowest band of each sender
  comes = at - width_SS.sum(0) / 2  # and of each receiver
  for i in range(N_DEV)[::-1]:
    for j in range(N_DEV)[::-1]:
      ends = np.array([leaves[i], comes[j]])
      band(ax, (0.62, 3.3), ends, width_SS[i, j], colours[j])
      band(ax, (4.7, 7.38), ends[::-1], width_SS[i, j], colours[j])
      leaves[i] += width_SS[i, j]
      comes[j] += width_SS[i, j]
  for i in range(N_DEV):
    first = i % S * (E // S)
    box(ax, 0, at[i], f'{T} tokens', style.QUIET)
    box(ax, 4, at[i], f'experts {first} to {first + E // S - 1}', colours[i])
    box(ax, 8, at[i], f'{T} sums', style.QUIET)
    ax.text(-0.8, at[i], f'device {i}', ha='right', va='center')
  for row in range(ROWS):
    middle = at[row * S : (row + 1) * S].mean()
    ax.text(-2.0, middle, f'data {row}', rotation=90, va='center')
  for x, text in (
    (0, 'router, seating'),
    (2, 'all-to-all'),
    (4, 'experts'),
    (6, 'all-to-all'),
    (8, 'weighted sum'),
  ):
    ax.text(x, 0.8, text, ha='center', weight='bold')
  ax.set(xlim=(-2.2, 8.8), ylim=(at[-1] - 0.6, 1.2))
  ax.axis('off')
  plt.show()

# %% [markdown]
# Some boxes get several times the tokens of others: their devices work while the
# rest wait. Balancing losses are for *this* as much as for the model.
#
# ## Five ways to send
#
# - `scatter` (GShard, arXiv:2006.16668, with gathers by index): a padded buffer
#   of C rows for each expert and group; two all-to-alls of fixed size.
# - `einsum` (GShard, Switch): the same buffers by one-hot products.
# - `gather_reduce` (MegaBlocks' sorted rows, arXiv:2211.15841, in a ring): every
#   device gets all tokens of its row, computes what its experts are asked, and
#   partial sums go back.
# - `ragged_all_to_all`: the rows there are, without padding. XLA has it on GPU and
#   TPU; on a CPU all rows are gathered in its place.
# - `dense`: tokens stay, all experts' weights come. The oracle of the tests.
#
# They must give the same numbers; what differs is what they send.

# %%
DISPATCHES = 'scatter', 'einsum', 'gather_reduce', 'ragged_all_to_all', 'dense'


def step(layer):
  """Gradients by parameters and tokens: forward and backward."""
  score = lambda p, x: (layer(p, {}, x, train=True)[0] ** 2).sum()
  return jax.jit(jax.grad(score, (0, 1)))


forward, found = {}, {}
for name in DISPATCHES:
  made = layer(f'{name}()')
  forward[name] = run(made).lower(params, x_BLD).compile()
  y = jax.device_get(forward[name](params, x_BLD)[0])
  start = time.perf_counter()
  jax.block_until_ready(forward[name](params, x_BLD))
  took = time.perf_counter() - start
  counts = hlo.count_collectives(forward[name].as_text())
  whole = {}
  if not SMALL:
    text = step(made).lower(params, x_BLD).compile().as_text()
    whole = hlo.count_collectives(text)
  found[name] = y, counts, whole, took

worst = max(np.abs(y - found['dense'][0]).max() for y, *_ in found.values())
print(f'largest difference from dense: {worst:.1e}\n')
assert worst < 1e-4
for name, (_, counts, whole, took) in found.items():
  print(f'{name:18} {1e3 * took:5.0f} ms  forward  {counts}')
  if whole:
    print(f'{"":18} {"":8}  and back {whole}')

# %% [markdown]
# The all-reduce is of the losses and loads, a few numbers. The times are those of
# one machine that plays eight, and say little; the bytes below are what a network
# would carry.
#
# ## Who sends how much to whom
#
# Row: sender; column: receiver; forward pass, there and back. The two blocks are
# the rows of the mesh. What the pictures say in bytes is checked against the
# shapes in the compiled programs.

# %%
BYTES = 4
C = one.rows(T, FACTOR)  # of an expert, in a group
block_SS = np.kron(np.eye(ROWS), np.ones((S, S)))
expert_bytes = sum(v.size for v in params['experts'].values()) // E * BYTES
token_bytes = T * D * BYTES
# Weight, expert, seat and token of each edge, and how many each expert has.
edge_bytes = (4 * T * K + E) * BYTES
moved = {
  'scatter': 2 * block_SS * (E // S) * C * D * BYTES,
  'einsum': 2 * block_SS * (E // S) * C * D * BYTES,
  # Tokens, weights and edges there, partial sums back.
  'gather_reduce': block_SS * (2 * token_bytes + edge_bytes),
  'ragged_all_to_all': (sent_SS + sent_SS.T) * D * BYTES,
  'dense': block_SS * E // S * expert_bytes,
}

# What a device receives, itself included, is the shapes of the results.
compiled = {n: hlo.collective_bytes(p.as_text()) for n, p in forward.items()}
assert compiled['scatter']['all-to-all'] == moved['scatter'][0].sum()
assert compiled['dense']['all-gather'] == moved['dense'][0].sum()
gathered = moved['gather_reduce'][0].sum() - S * token_bytes
assert compiled['gather_reduce']['all-gather'] == gathered
assert compiled['gather_reduce']['reduce-scatter'] == token_bytes

with style.house():
  fig, axes = plt.subplots(1, 5, figsize=(14, 3.6))
  top = max(m.max() for m in moved.values()) / 1024
  for ax, name in zip(axes, DISPATCHES):
    kib_SS = moved[name] / 1024
    image = ax.imshow(kib_SS, cmap='Blues', vmin=0, vmax=top)
    for i, j in zip(*np.nonzero(kib_SS)):
      dark = kib_SS[i, j] > top / 2
      own = i == j  # stays on the device
      ax.text(
        *(j, i, '·' if own else f'{kib_SS[i, j]:.0f}'),
        ha='center',
        va='center',
        fontsize=7,
        color='white' if dark else style.INK,
      )
    leaving = kib_SS.sum(1).mean() - np.diag(kib_SS).mean()
    ax.set_title(f'{name}\n{leaving:.0f} KiB leave a device', fontsize=9)
    ax.grid(False)
    ax.set_xticks(range(N_DEV))
    ax.set_yticks(range(N_DEV))
  axes[0].set_ylabel('from device')
  axes[2].set_xlabel('to device; KiB')
  plt.show()

# %% [markdown]
# - `scatter` sends padding: every cell is equal, whatever the router wants.
# - `ragged_all_to_all` sends what is asked, so its columns differ: the crowded
#   experts' devices receive more.
# - `dense` sends weights; with more tokens than here that would be the least.
#
# ## Which one, for how many devices?
#
# Rows that a token sends in the forward pass, by the width S of the expert axis:
# an all-to-all 2 K (S - 1) / S, times the capacity factor where it pads; gather
# and reduce 2 (S - 1), whatever K. They meet at S = K: that is why fine-grained
# mixtures (DeepSeek-V3, K = 8) may gather on a host of eight devices, and Switch
# (K = 1) may not.

# %%
with style.house():
  fig, axes = plt.subplots(1, 3, figsize=(11, 3), sharey=True)
  S_N = 2.0 ** np.arange(0, 7)
  for ax, k in zip(axes, (1, 2, 8)):
    rows = {
      'scatter, factor 1.25': 1.25 * 2 * k * (S_N - 1) / S_N,
      'ragged_all_to_all': 2 * k * (S_N - 1) / S_N,
      'gather_reduce': 2 * (S_N - 1),
    }
    for i, (name, y) in enumerate(rows.items()):
      ax.plot(S_N, y, label=name, **style.look(i), markersize=4)
    ax.axvline(k, color=style.QUIET, lw=1, ls=':')
    ax.set_xscale('log', base=2)
    ax.set_yscale('symlog', base=2, linthresh=1)
    ax.set_title(f'K = {k}')
    ax.set_xlabel('devices of the expert axis, S')
    ax.set_xticks(S_N, [f'{s:.0f}' for s in S_N])
  axes[0].set_yticks([0, 1, 4, 16, 64], [0, 1, 4, 16, 64])
  axes[0].set_ylabel('rows sent by a token')
  axes[0].legend(loc='upper left')
  plt.show()

# %% [markdown]
# `python -m experiments.plan` says which fits a config, a mesh and its links,
# memory included, before anything runs.
