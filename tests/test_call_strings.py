"""The layer and the mesh take call strings where objects go."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from moe_jax import registry
from moe_jax.errors import UserError
from moe_jax.layers import moe
from moe_jax.parallel import mesh as mesh_lib
from moe_jax.seating import capacity, orders

STRINGS = {
  'router': 'top_k(k=2)',
  'experts': "mlp(d_ff=6, activation='gelu')",
  'dispatch': 'einsum()',
  'dense': "mlp(d_ff=5, activation='relu')",
  'balance': ('switch_loss(weight=0.5)', 'z_loss()'),
  'local_experts': ('zero(count=2)', 'copy()'),
  'seating': 'token_major()',
  'capacity_rule': 'fixed(rows=3)',
  'mesh': 'exact(data=2, expert=4)',
}
build = registry.build
is_shape = lambda v: isinstance(v, tuple)


@pytest.fixture
def only_ours(monkeypatch):
  monkeypatch.setattr(registry, '_allowed', {'moe_jax'})


@pytest.mark.parametrize(
  'spec',
  ['json.dumps()', 'json.JSONDecoder()', 'moe_jax.routers.base.Router()'],
)
def test_a_dotted_name_is_of_the_family(spec, only_ours):
  registry.allow('json')
  with pytest.raises(ValueError, match='is no dataclass with all that moe_jax'):
    build('routers', spec)


@pytest.mark.parametrize('name', ['os.system', 'json.tool.main', 'jsonx.X'])
def test_no_module_is_imported_unasked(name, only_ours, monkeypatch):
  """What was allowed is a module and what is in it, not what begins alike."""
  registry.allow('json.decoder', 'o')
  imported = []
  monkeypatch.setattr(registry.importlib, 'import_module', imported.append)
  with pytest.raises(ValueError, match='pass --allow_modules=') as e:
    build('routers', f'{name}(k=2)')
  assert not imported and '\n' not in str(e.value)
  with pytest.raises(ValueError, match="'a b'; the name of a module"):
    registry.allow('a b')


@pytest.mark.parametrize(
  ('spec', 'message'),
  [
    ('switch(jitter=0.01, jitter=0.02)', "'jitter' is given twice"),
    ('switch(**{})', r'no \*\* in it'),
    ('switch(a={[]:1})', "the value of 'a' is no literal"),
    ('switch(jitter=((1e999,),))', 'jitter is inf'),
    ('switch(jitter={1: [1e999]})', 'jitter is inf'),
    ('switch(jitter=None)', 'jitter=None; the type float is wanted'),
    ("top_p(p=0.5, normalize='no')", 'argument'),
    ('switch()()', 'cannot read'),
    ('switch().x', 'cannot read'),
    ('\x00', 'cannot read'),
    ('switch(a=' + '[' * 3000 + ')', 'cannot read'),
    ('switch(a=' + '-' * 9000 + '1)', 'cannot read|no literal'),
    ('x.' * 3000 + 'x', 'cannot read'),
    ('-' * 50_000 + '1', 'has 50001 characters; at most 10000 are read'),
    (None, 'cannot read None'),
    ({'a': [1]}, 'cannot read'),
  ],
)
def test_whatever_a_call_string_holds_is_one_line(spec, message):
  with pytest.raises(UserError, match=message) as e:
    build('routers', spec)
  assert '\n' not in str(e.value) and len(str(e.value)) < 1500


def test_values_have_the_types_of_their_fields():
  """Whole numbers go for others, 0 and 1 for a bool; `mixed | None` is both."""
  assert build('routers', 'switch(jitter=0)').jitter == 0
  assert build('routers', 'switch(selective_precision=1)').selective_precision
  for spec in ('switch(jitter=True)', 'switch(selective_precision=0.5)'):
    with pytest.raises(UserError, match=r'the type (float|bool) is wanted'):
      build('routers', spec)
  assert build('routers', 'switch(init_std=None)').init_std is None
  with pytest.raises(UserError, match=r'the type float . None is wanted'):
    build('routers', 'switch(init_std=[])')


def layer(**fields):
  return moe.MoE(num_experts=4, group_size=8, dense_branch='shared', **fields)


def test_strings_make_the_layer_that_objects_make():
  made = layer(**STRINGS)
  objects = {
    'router': build('routers', 'top_k(k=2)'),
    'experts': build('experts', "mlp(d_ff=6, activation='gelu')"),
    'dispatch': build('dispatch', 'einsum()'),
    'dense': build('experts', "mlp(d_ff=5, activation='relu')"),
    'balance': tuple(build('balancing', s) for s in STRINGS['balance']),
    'local_experts': tuple(
      build('local_experts', s) for s in STRINGS['local_experts']
    ),
    'seating': orders.build('token_major()'),
    'mesh': mesh_lib.make(mesh_lib.exact(data=2, expert=4)),
  }
  for name, value in objects.items():
    assert getattr(made, name) == value, name
  assert made.rows(100, 1.0) == 3 != moe.MoE.rows(layer(**objects), 100, 1.0)
  # Built once: copies, and layers of objects, keep them.
  again = dataclasses.replace(made, group_size=16)
  rule = capacity.build('fixed(rows=3)')
  assert layer(**objects, capacity_rule=rule).capacity_rule is rule
  assert again.router is made.router and again.mesh is made.mesh


def test_it_runs():
  """With the shapes that the strings say; seven experts are routed to."""
  x = jnp.ones((2, 8, 4))
  made = layer(**STRINGS | {'balance': 'z_loss()', 'mesh': 'exact()'})
  params = jax.eval_shape(lambda: made.init(jax.random.key(0), 4))
  run = lambda p, x: made(p, {}, x, key=jax.random.key(1), train=True)
  y, _, aux = jax.eval_shape(run, params, x)
  assert y.shape == (2, 8, 4) and list(aux.losses) == ['z_loss']
  shapes = jax.tree.map(lambda v: v.shape, params)
  assert (4, 5) in jax.tree.leaves(shapes['dense'], is_leaf=is_shape)
  assert (4, 4, 6) in jax.tree.leaves(shapes['experts'], is_leaf=is_shape)
  assert shapes['router'] == {'kernel': (4, 4 + 3)}


@pytest.mark.parametrize(
  ('field', 'message'),
  [
    ({'router': 'topk(k=2)'}, "unknown method of routers 'topk'; .*'top_k'"),
    ({'experts': 'mlp()'}, 'd_ff'),
    ({'balance': ('switch_loss(wieght=1.0)',)}, "did you mean 'weight'"),
    ({'seating': 'first()'}, "unknown seating 'first'; valid: "),
    ({'capacity_rule': 'paper(k=1)'}, "unknown argument of capacity rule 'pa"),
    (
      {'mesh': 'exact(data=3, expert=4)'},
      'needs 12 devices, found 8',
    ),
    ({'mesh': 'exact(date=2)'}, "did you mean 'data'"),
  ],
)
def test_wrong_strings_name_what_is_right(field, message):
  with pytest.raises(ValueError, match=message):
    layer(**STRINGS | field)


def test_meshes():
  sizes = lambda *args: dict(mesh_lib.make(*args).shape)
  exact = mesh_lib.exact
  assert sizes('exact(data=2, expert=4)') == exact(data=2, expert=4)
  assert sizes('exact(fsdp=2)') == sizes(exact(fsdp=2)) == exact(fsdp=2)
  assert sizes('exact(model=2)', jax.devices()[2:4]) == exact(model=2)
  assert sizes('auto(expert=4)') == exact(data=2, expert=4)
  assert sizes('auto()', jax.devices()[:2]) == exact(data=2)
  with pytest.raises(ValueError, match='data=4 needs 4 devices, found 2'):
    mesh_lib.make('exact(data=4)', jax.devices()[:2])
