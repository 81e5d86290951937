"""The main job's chart: time a token over the length of the sequence, both logarithmic."""

import math

from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

from benchmarks.sequences.rows import of
from benchmarks.shared import record

TITLES = {
    "forward": ("Forward pass", "sequence length T"),
    "train": ("Training step", "sequence length T"),
    "decode": ("Decoding one stream", "tokens of context T"),
}
# told apart in print and by colour-blind eyes: Okabe & Ito's colours, and a marker each
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P")


def draw(path, rows, title, subtitle):
    """Writes the chart as PNG: a panel for each mode, a line for each cell.

    Args:
      path: of the file.
      rows: as they were measured; one that could not be is told in its panel.
      title, subtitle: lines above.
    """
    cells = list(dict.fromkeys(row.cell for row in rows))
    modes = [mode for mode in TITLES if of(rows, mode)]
    figure = Figure(figsize=(max(1 + 3.8 * len(modes), 8), 4.8), dpi=150, layout="constrained")
    figure.suptitle(f"{title}\n{subtitle}", fontsize=10)
    panels = figure.subplots(1, len(modes), squeeze=False)[0]
    lines = {}
    for panel, mode in zip(panels, modes, strict=True):
        for cell, by_length in of(rows, mode).items():
            lines[cell] = _line(panel, cells.index(cell), by_length)
        _dress(panel, mode, [row for row in rows if row.mode == mode])
    panels[0].set_ylabel("time per token (µs), median and quartiles")
    figure.legend(
        lines.values(), lines, loc="outside lower center", ncols=len(lines), frameon=False
    )
    record.replace(path, lambda temporary: figure.savefig(temporary, format="png"))


def _line(panel, number, by_length):
    """The median of a cell, with its quartiles."""
    colour, marker = (choices[number % len(choices)] for choices in (COLOURS, MARKERS))
    times = [row.per_token for row in by_length.values()]
    below = [1e6 * (t.median - t.low) for t in times]
    above = [1e6 * (t.high - t.median) for t in times]
    return panel.errorbar(
        list(by_length),
        [1e6 * t.median for t in times],
        yerr=(below, above),
        color=colour,
        marker=marker,
        markersize=6,
        linewidth=1.8,
        elinewidth=1,
        capsize=3,
    )


def _dress(panel, mode, rows):
    """Axes, grid, and the rows that have no point."""
    name, label = TITLES[mode]
    missing = [f"no {row.cell} at T = {row.length:,}" for row in rows if row.problem is not None]
    panel.set_title("\n".join([name, *missing]), fontsize=10)
    panel.set(xscale="log", yscale="log", xlabel=label)
    plain = FuncFormatter(lambda value, _: f"{value:,g}")
    panel.xaxis.set(
        major_locator=FixedLocator(sorted({row.length for row in rows})),
        minor_locator=NullLocator(),
        major_formatter=plain,
    )
    panel.set_ylim(*_marks_around(*panel.get_ylim()))
    panel.yaxis.set(
        major_locator=LogLocator(subs=(1, 2, 5)),
        minor_locator=NullLocator(),
        major_formatter=plain,
    )
    panel.grid(color="0.88", linewidth=0.8)
    panel.set_axisbelow(True)
    panel.spines[["top", "right"]].set_visible(False)


def _marks_around(low, high):
    """The nearest of ..., 1, 2, 5, 10, 20, ... that hold a range between them."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    marks = [mark * 10.0**power for power in powers for mark in (1, 2, 5)]
    return max(m for m in marks if m <= low), min(m for m in marks if m >= high)
