"""The map: cells down, tasks across."""

import statistics

import numpy as np
from matplotlib.figure import Figure

from benchmarks.abilities import training
from benchmarks.abilities.tasks import TASKS


def draw(path, lengths, subtitle):
    """Draws ``{(task, cell): lengths}``, each the median over the seeds; gaps stay white."""
    tasks = [task for task in TASKS if any(task == t for t, _ in lengths)]
    cells = list(dict.fromkeys(cell for _, cell in lengths))
    steps = (0, *training.LENGTHS)
    level = np.full((len(cells), len(tasks)), np.nan)
    figure = Figure(figsize=(2.6 + 0.8 * len(tasks), 1.4 + 0.3 * len(cells)), dpi=120)
    axes = figure.add_subplot()
    for (task, cell), found in lengths.items():
        length = statistics.median_low(found)
        at = cells.index(cell), tasks.index(task)
        level[at] = steps.index(length)
        colour = "white" if level[at] < len(steps) / 2 else "black"
        axes.text(at[1], at[0], length or "-", ha="center", va="center", color=colour, fontsize=8)
    axes.imshow(level, cmap="viridis", vmin=0, vmax=len(steps) - 1, aspect="auto")
    axes.set_xticks(range(len(tasks)), tasks, rotation=30, ha="right", fontsize=8)
    axes.set_yticks(range(len(cells)), cells, fontsize=8)
    axes.set_title(f"Longest sequence with {training.ENOUGH:.0%} right\n{subtitle}", fontsize=8)
    figure.savefig(path, bbox_inches="tight")
