"""Pictures of what ``jaxrnn.trace`` and ``jaxrnn.inside`` found. It needs matplotlib.

Figures are made without ``pyplot``: nothing is shown, and nothing of yours is changed.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxrnn._src.core.extras import extra

with extra("plot", "jaxrnn.plot"):
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

from jaxrnn._src.core.typing import InputArray

_LEGIBLE = 48  # units of a panel that are not told how many to draw


def gates(
    found: Mapping[str, InputArray],
    labels: Sequence[Any] | None = None,
    *,
    units: int = _LEGIBLE,
    names: Iterable[str] | None = None,
) -> Figure:
    """Gates and states as heat maps over a sequence, one panel each, units upon each other.

    What lies between 0 and 1 is drawn from dark to light, anything else from blue, below zero, to
    red, above it; the largest 3% are beyond the scale.

    Args:
      found: a dict of arrays [T, H], of one row of a batch, as ``jaxrnn.trace`` gives them.
      labels: T of them, what the steps are, as a sentence is its characters; None for numbers.
      units: how many units to draw, the first ones.
      names: which of ``found`` to draw, from top to bottom; None for all of them.

    Returns:
      A ``matplotlib.figure.Figure``: ``figure.savefig("gates.png")`` writes it, and a notebook
      shows it.

    Raises:
      ValueError: no arrays, one that is not [T, H], or another number of labels.

    >>> import jaxrnn.plot
    >>> cell = jaxrnn.lstm(hidden=4)
    >>> xs = jax.nn.one_hot(jnp.array([0, 1, 2, 0]), 3)
    >>> found = jaxrnn.trace(cell, cell.init(jax.random.key(0), 3), xs)
    >>> figure = jaxrnn.plot.gates(found, "abca", names=("i", "f", "c"))
    >>> [axes.get_ylabel() for axes in figure.axes[:3]]
    ['i', 'f', 'c']
    """
    names = list(found) if names is None else list(names)
    panels = [np.asarray(found[name], float) for name in names]
    if not panels or any(a.ndim != 2 or len(a) != len(panels[0]) for a in panels):
        shapes = {name: a.shape for name, a in zip(names, panels)}
        raise ValueError(f"found: got {shapes}, want arrays [T, H] of one row")
    steps = len(panels[0])
    if labels is not None and len(labels) != steps:
        raise ValueError(f"labels: got {len(labels)}, want one for each of T = {steps} steps")
    heights = [min(units, a.shape[1]) for a in panels]
    size = min(max(4.0, 0.16 * steps + 1.5), 20.0), 0.6 + sum(0.5 + 0.035 * h for h in heights)
    figure = Figure(size, layout="constrained")
    rows = figure.subplots(
        len(panels), squeeze=False, sharex=True, height_ratios=[h + 14 for h in heights]
    )[:, 0]
    for axes, name, values in zip(rows, names, panels):
        values = values[:, :units].T
        colours, extend = _colours(values)
        image = axes.imshow(values, aspect="auto", interpolation="nearest", **colours)
        axes.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=12)
        axes.set_yticks([])
        axes.tick_params(length=0)
        figure.colorbar(image, ax=axes, pad=0.01, aspect=8, extend=extend)
    if labels is not None:
        rows[-1].set_xticks(range(steps), [_visible(label) for label in labels])
        rows[-1].tick_params(axis="x", labelsize=9)
    else:
        rows[-1].set_xlabel("step")
    return figure


def gradient_flow(norms: Mapping[str, InputArray], *, axes: Axes | None = None) -> Axes:
    """How gradients fade on their way back through time, of several cells on one axis.

    Each is divided by that of the last step. Of many rows the line is the median, and the band
    from the first quartile to the third.

    Args:
      norms: a dict from a name to [T] or [T, ...batch], as ``jaxrnn.inside.gradient_norms`` gives
        them.
      axes: where to draw; None for a figure of its own.

    Returns:
      The ``matplotlib.axes.Axes``; ``axes.figure`` is the figure.

    Raises:
      ValueError: there are none, or one has no steps.

    >>> import jaxrnn.plot
    >>> norms = {}
    >>> for cell in (jaxrnn.elman(8), jaxrnn.lstm(8)):
    ...     params = cell.init(jax.random.key(0), 3)
    ...     norms[str(cell)] = jaxrnn.inside.gradient_norms(cell, params, jnp.ones((20, 3)))
    >>> axes = jaxrnn.plot.gradient_flow(norms)
    >>> axes.get_yscale(), axes.get_xlabel()
    ('log', 'steps back in time')
    """
    norms = {name: np.asarray(a, float) for name, a in norms.items()}
    if not norms or not all(a.ndim and len(a) for a in norms.values()):
        shapes = {name: a.shape for name, a in norms.items()}
        raise ValueError(f"norms: got {shapes}, want arrays [T, ...batch] of one step or more")
    if axes is None:
        axes = Figure((7, 4), layout="constrained").subplots()
    for name, a in norms.items():
        rows = a.reshape(len(a), -1)
        rows = np.where(rows > 0, rows / rows[-1:], np.nan)  # zero has no place on the axis
        low, middle, high = np.quantile(rows, (0.25, 0.5, 0.75), axis=1)
        back = np.arange(len(a))[::-1]
        (line,) = axes.plot(back, middle, label=name, linewidth=1.8)
        if rows.shape[1] > 1:
            axes.fill_between(back, low, high, color=line.get_color(), alpha=0.2, linewidth=0)
    axes.set_yscale("log")
    axes.set_xlim(0, max(map(len, norms.values())) - 1)
    axes.set_xlabel("steps back in time")
    axes.set_ylabel("gradient norm, that of the last step = 1")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    return axes


def _colours(values):
    """Of what lies between 0 and 1, as gates do, and of what has a sign; and what lies beyond."""
    values = values[np.isfinite(values)]
    if values.size and values.min() >= 0 and values.max() <= 1:
        return {"cmap": "viridis", "vmin": 0, "vmax": 1}, "neither"
    # A few large ones, as cells that count have, would leave the others white.
    limit = np.quantile(np.abs(values), 0.97) if values.size else 0
    limit = limit or 1.0
    return {"cmap": "RdBu_r", "vmin": -limit, "vmax": limit}, "both"


def _visible(label):
    """A label with its white space to be seen."""
    return str(label).replace(" ", "␣").replace("\n", "⏎").replace("\t", "⇥").replace("$", r"\$")
