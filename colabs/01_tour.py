# %% [markdown]
# [![Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/OWNER/moe_jax/blob/main/colabs/01_tour.ipynb)
#
# # One token's path through a mixture of experts
#
# On a TPU or GPU the cells below use the devices found; on a CPU they simulate
# eight.

# %%
# !test -d /content && git clone -q https://github.com/OWNER/moe_jax repo && pip install -q -e repo

# %%
import sys

import jax

sys.path.append('repo')  # where the line above has put it

# Before the first use of JAX; without effect on TPU and GPU.
jax.config.update('jax_num_cpu_devices', 8)

# %%
import jax.numpy as jnp
import numpy as np

from moe_jax import types
from moe_jax.layers import moe
from moe_jax.parallel import mesh as mesh_lib

print(jax.__version__, jax.device_count(), jax.devices()[0].platform)

# %% [markdown]
# ## A layer is a router, experts, a dispatch and balancing rules
#
# Each is a call string. The mesh always has four axes: `auto()` fits the devices
# found.

# %%
E, B, L, D = 8, 8, 64, 32


def layer(mesh, router='top_k(k=2)', capacity_factor=1.0):
  return moe.MoE(
    num_experts=E,
    router=router,
    experts='glu(d_ff=64)',
    dispatch='scatter()',
    balance='switch_loss(weight=0.01)',
    group_size=64,
    capacity_factor=capacity_factor,
    mesh=mesh,
  )


wide = mesh_lib.make(mesh_lib.shape('auto()', jax.device_count(), E))
x = jax.random.normal(jax.random.key(0), (B, L, D))
one = layer(mesh_lib.single())
params = jax.device_get(one.init(jax.random.key(1), D))
print('mesh:', mesh_lib.describe(dict(wide.shape)))
jax.tree.map(np.shape, params)


# %% [markdown]
# ## The same numbers on any mesh
#
# Groups, capacity and drops are set by the config, never by the mesh: one device
# and eight agree, with tokens dropped.


# %%
def run(layer):
  y, _, aux = jax.jit(lambda p, x: layer(p, {}, x, train=True))(params, x)
  return jax.device_get((y, aux))


(y_one, aux_one), (y_wide, aux_wide) = run(one), run(layer(wide))
print('largest difference of outputs:', np.abs(y_one - y_wide).max())
print('assignments by cause:', dict(zip(types.CAUSES, aux_wide.cause.tolist())))
print('load of the experts:', aux_wide.load_E.tolist())
assert np.allclose(y_one, y_wide, atol=1e-5)
assert (aux_one.cause == aux_wide.cause).all()

# %% [markdown]
# ## What a capacity factor drops
#
# An untrained router is nearly balanced, and yet a capacity factor of 1 drops a
# good part: experts fill up unevenly in every group.

# %%
from matplotlib import pyplot as plt

factors = [0.5, 0.75, 1.0, 1.25, 1.5, 2.0]
for router in ('switch()', 'top_k(k=2)'):
  dropped = []
  for factor in factors:
    _, aux = run(layer(wide, router, factor))
    dropped.append(aux.cause[types.CAPACITY] / aux.cause.sum())
  plt.plot(factors, dropped, marker='o', label=router)
plt.xlabel('capacity factor')
plt.ylabel('dropped share of assignments')
plt.legend()
plt.show()

# %% [markdown]
# ## A router of your own
#
# Written for one group of tokens; the layer maps it over groups and devices.

# %%
import dataclasses

from moe_jax.routers import base


@dataclasses.dataclass(frozen=True)
class RoundRobin(base.Router):
  """Token t goes to expert t mod E: balanced, and learns nothing."""

  def init(self, key, E, D):
    return {}

  def __call__(self, params, x_TD, ctx):
    expert_T1 = (jnp.arange(x_TD.shape[0]) % E)[:, None]
    weight_T1 = jnp.ones_like(expert_T1, jnp.float32)
    return base.Chosen(expert_T1, ctx).routing(weight_T1)

  def experts_per_token(self, E):
    return 1.0


mine = dataclasses.replace(layer(wide), router=RoundRobin(), balance=())
_, _, aux = jax.jit(lambda p, x: mine(p, {}, x, train=True))(
  params | {'router': {}}, x
)
print('load of the experts:', aux.load_E.tolist())
