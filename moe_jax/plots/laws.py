"""A scaling law and its runs: loss by tokens, a line for each E."""

from collections.abc import Callable, Sequence

import numpy as np
from matplotlib import figure as mpl_figure, ticker

from moe_jax.plots import style

_SMOOTH = 60  # points of a line


def draw(
  title: str,
  labels: Sequence[str],
  parameters: np.ndarray,
  experts: np.ndarray,
  tokens: np.ndarray,
  loss: np.ndarray,
  unseen: np.ndarray,
  predict: Callable[..., np.ndarray],
) -> mpl_figure.Figure:
  """Panels by label, side by side, on one axis of losses.

  Args:
    title: of the figure.
    labels: [P], the panel of each run.
    parameters, experts, tokens, loss: [P] of the runs, as the law has them.
    unseen: bool [P], the runs that the fit did not see; drawn hollow.
    predict: (parameters, experts, tokens) -> losses.
  """
  panels = list(dict.fromkeys(labels))
  counts = sorted(set(experts.tolist()))
  of_P = np.array([panels.index(v) for v in labels])
  with style.house():
    fig = style.figure(10, 4.2)
    axes = fig.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for at, (ax, panel) in enumerate(zip(axes, panels)):
      mine = of_P == at
      n = parameters[mine & (experts == counts[0])]
      size = f', {style.si(n[0])} active' if len(n) else ''
      ax.set_title(f'{panel}{size}')
      for i, count in enumerate(counts):
        here = mine & (experts == count)
        if not here.any():
          continue
        look = style.look(i)
        along = np.geomspace(tokens[mine].min(), tokens[mine].max(), _SMOOTH)
        told = predict(np.full(_SMOOTH, parameters[here][0]), count, along)
        ax.plot(along, told, color=look['color'], linewidth=1.4)
        for hollow in (False, True):
          some = here & (unseen == hollow)
          ax.plot(
            tokens[some],
            loss[some],
            look['marker'],
            color=look['color'],
            markerfacecolor='none' if hollow else look['color'],
            markersize=5,
            alpha=0.85,
          )
        name = 'dense' if count == 1 else f'{count:.0f} experts'
        ax.plot([], [], color=look['color'], marker=look['marker'], label=name)
      ax.set_xscale('log')
      ax.set_xlabel('bytes of training')
      ax.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
      ax.xaxis.set_major_formatter(lambda v, _: style.si(v))
      ax.xaxis.set_minor_formatter(ticker.NullFormatter())
    axes[0].set_ylabel('held-out loss, nats a byte')
    fig.suptitle(title, x=0.01, ha='left', weight='bold')
    handles, names = axes[0].get_legend_handles_labels()
    fig.legend(
      handles,
      names,
      loc='outside lower left',
      ncols=len(names),
      title='points: runs (hollow: not seen by the fit); lines: the law; '
      'active parameters: without embeddings',
      title_fontsize=9,
      alignment='left',
    )
  return fig
