"""What each cell can learn: the longest sequence at which it still answers right.

One layer of a cell learns a task on short sequences and is asked on longer ones. A run goes on
where another stopped: rows that the file has are not run again.
"""

import argparse
import statistics

from benchmarks.abilities import chart, training
from benchmarks.abilities.tasks import TASKS
from benchmarks.shared import display, machine, record
from benchmarks.shared.options import several
from benchmarks.shared.words import listed

NOTES = {
    "right": f"the share of right answers by length, of {training.ASKED} sequences; training is"
    f" at {training.SHORT} steps, and for adding and copying at {training.PARTS} lengths up to it,"
    " in turn",
    "longest": f"the greatest of the lengths with {training.ENOUGH:.0%} right there and at all"
    " shorter ones; 0 if there is none",
    "steps": "of training, which ends early where the loss is small",
    "parameters, state, flops": "of the cell alone: numbers in its parameters and in a row's"
    " state, and floating-point operations of one step, as XLA counts them",
}
CELLS = (
    "lstm",
    "gru",
    "slstm",
    "mlstm",
    "min_gru",
    "lru",
    "mamba",
    "mamba2",
    "linear_attention",
    "delta_net",
    "delta_net_negative",
    "gated_delta_net",
)
USUAL = ("parity", "modular", "a5", "mqar", "copying", "adding")


def parse(argv):
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks abilities",
        description="Trains one layer of each cell on tasks that tell them apart.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    several(parser, "cells", training.cells(), CELLS)
    several(parser, "tasks", TASKS, USUAL)
    parser.add_argument("--seeds", type=int, default=3, help="how many")
    parser.add_argument("--hidden", type=int, default=64, help="H")
    parser.add_argument("--steps", type=int, default=2000, help="of training, at most")
    parser.add_argument("--rate", type=float, default=5e-3, help="of learning, at most")
    record.add_folder(parser)
    return parser.parse_args(argv)


def main(argv=None):
    """Runs the job; its exit status."""
    chosen, console = parse(argv), display.console()
    about = machine.describe()
    path = chosen.out / f"abilities-{about['platform']}.json"
    given = {name: getattr(chosen, name) for name in ("hidden", "steps", "rate")}
    begun = record.begun("abilities", about, NOTES, chosen) | {"options": given}
    rows = record.before(path, given).get("rows", [])
    known = {_case(row) for row in rows}
    wanted = [
        (task, cell, seed)
        for seed in range(chosen.seeds)
        for task in chosen.tasks
        for cell in chosen.cells
    ]
    cases = [case for case in wanted if case not in known]
    console.print(f"[bold]What one layer of a cell can learn[/]\n{machine.line(about)}")
    console.print(f"{len(wanted) - len(cases)} of {len(wanted)} rows are there already\n")
    with display.progress(console, len(cases)) as step:
        for task, cell, seed in cases:
            with step(f"{task:<10} {cell:<24} seed {seed}") as done:
                row = training.run(cell, task, seed, **given)
                rows.append(row)
                done(f"{row['longest']:>4} after {row['steps']} steps, loss {row['loss']:.3f}")
            record.save(path, begun | {"words": sentences(rows), "rows": rows})
    if rows:
        # Also where all rows were kept: what is said of them may be new.
        record.save(path, begun | {"words": sentences(rows), "rows": rows})
        chart.draw(path.with_suffix(".png"), lengths(rows), machine.line(about))
    for sentence in sentences(rows):
        console.print(sentence)
    console.print(f"\nwritten: {path}")
    return 0


def _case(row):
    return row["task"], row["cell"], row["seed"]


def lengths(rows):
    """``{(task, cell): the longest length of each seed}``."""
    found = {}
    for row in rows:
        found.setdefault((row["task"], row["cell"]), []).append(row["longest"])
    return found


def sentences(rows):
    """For each task, how far each cell came: the median over the seeds."""
    found = lengths(rows)
    said = []
    for task in TASKS:
        each = {c: statistics.median_low(n) for (t, c), n in found.items() if t == task}
        reached = sorted(((n, c) for c, n in each.items() if n), key=lambda pair: (-pair[0], pair))
        failed = sorted(c for c, n in each.items() if not n)
        parts = [f"to {n} steps {listed(_of(reached, n))}" for n in dict.fromkeys(dict(reached))]
        parts += [f"not at all {listed(failed)}"] if failed else []
        if parts:
            said.append(f"{task}: {'; '.join(parts)}.")
    return said


def _of(reached, length):
    return [cell for n, cell in reached if n == length]
