"""Prints what the published conventions compute on the same logits.

  python -m experiments.conventions
  python -m experiments.conventions --tokens=100 --experts=8 --markdown

Draws router logits of one group of tokens, the last eighth of them padding, and
puts them through routers, seating and losses as papers and codebases set them,
in evaluation mode (no noise) at the training capacity. Every row is a preset of
configs/presets.py. Then the balance losses of other codebases alone.
"""

from absl import flags

from experiments import cli
from moe_jax.errors import UserError

_TOKENS = flags.DEFINE_integer('tokens', 100, 'T, tokens of the group.')
_EXPERTS = flags.DEFINE_integer('experts', 8, 'E.')
_SPREAD = flags.DEFINE_float('spread', 1.0, 'Standard deviation of the logits.')
_SEED = flags.DEFINE_integer('seed', 0, 'Of the logits.')
_MARKDOWN = flags.DEFINE_bool('markdown', False, 'Print a Markdown table.')

HEAD = ('convention', 'k', 'rows', 'kept', 'dropped', 'weights of token 0')
HEAD += ('balance loss', 'z-loss', 'x weights, 12 layers')
LOSS_HEAD = ('balance loss', 'rule', 'times', 'value')
LOSSES = ('switch_loss', 'importance_loss', 'z_loss')


def compare(T: int, E: int, *, spread: float = 1.0, seed: int = 0):
  """Rows under HEAD, and rows under LOSS_HEAD, of T tokens and E experts."""
  import numpy as np

  from configs import base, presets
  from moe_jax.analysis import conventions
  from moe_jax.models import factory

  if T < 8 or E < 2:
    raise UserError(
      f'--tokens={T} must be at least 8, --experts={E} at least 2'
    )
  rng = np.random.default_rng(seed)
  # Experts differ in how much they are liked, so that some overflow.
  liked_E = np.linspace(-0.5, 0.5, E)
  logits_TE = liked_E + spread * rng.standard_normal((T, E))
  mask_T = np.arange(T) < T - T // 8
  rows, top_2 = [], None
  top2 = {'moe.router': 'top_k()'}
  cases = [('moe_jax, top-1', {}), ('moe_jax, top-2', top2)]
  cases += [(f'Switch, {c}', presets.switch(c)) for c in presets.CONVENTIONS]
  cases += [(f'ST-MoE, {c}', presets.st_moe(c)) for c in ('paper', 't5x')]
  cases += [('V-MoE', presets.vmoe())]
  cases += [('V-MoE, batch-prioritised', presets.vmoe(batch_prioritized=True))]
  for name, fields in cases:
    config = base.get_config()
    sizes = {'moe.group_size': T, 'moe.num_experts': E}
    presets.apply(config, fields | sizes)
    stack = factory.moe_fields(config)['decoder']
    layer = factory.moe_layer(config, stack)
    top_2 = layer if name == 'moe_jax, top-2' else top_2
    m = conventions.measure(layer, logits_TE, mask_T)
    layers = 12 if config.train.balance_over_layers == 'sum' else 1
    weights = m['weight_TK'][0]
    losses = [m['losses'].get(k) for k in LOSSES]
    rows.append(
      (
        name,
        str(len(weights)),
        str(m['capacity']),
        str(m['kept']),
        str(m['dropped']),
        ' '.join(f'{w:.4f}' for w in weights),
        next((f'{v:.4f}' for v in losses[:2] if v is not None), '-'),
        f'{losses[2]:.4f}' if losses[2] is not None else '-',
        f'{layers * m["loss"]:.5f}',
      )
    )
  found = conventions.published_losses(top_2, logits_TE, mask_T)
  return rows, [(*v[:2], f'{v[2]:.4g}', f'{v[3]:.4f}') for v in found]


def main(_: list[str]) -> None:
  """Prints one row a convention."""
  from moe_jax.plots import tables

  T, E = _TOKENS.value, _EXPERTS.value
  rows, losses = compare(T, E, spread=_SPREAD.value, seed=_SEED.value)
  show = tables.markdown if _MARKDOWN.value else tables.text
  print(
    f'{T} tokens, {T - T // 8} of them real, {E} experts; balance loss before '
    'its weight: f P, for V-MoE the importance loss; last column: all the '
    "layer's losses as a 12-layer model adds them up\n"
  )
  print(show(HEAD, rows))
  print('\nBalance losses elsewhere of the top-2 choices, and rules here:\n')
  print(show(LOSS_HEAD, losses))


if __name__ == '__main__':
  cli.run(main)
