"""What do the programs of the kernel for CPUs cost? The same LSTM, its update written by hand.

``make programs`` builds the kernel a second time, with ``native/cpu/lstm_by_hand.h`` in place of
the interpreter. Two processes, one with each, are timed in turn. A ratio is the time with programs
over the time by hand: above 1, programs are slower.
"""

import argparse
import concurrent.futures
import multiprocessing
import os
import statistics
from pathlib import Path

from benchmarks.shared import display, machine, record, timing
from benchmarks.shared.contenders import CONTENDERS, DIRECTIONS, OURS, TITLES
from benchmarks.shared.options import several
from benchmarks.shared.shapes import SHAPES
from benchmarks.shared.words import listed
from jaxrnn._src.ops import native

CELL = "lstm"
NOTES = {
    "samples": "seconds of the second of two calls in a row; sample i of both is from round i",
    "ratio": "with programs over by hand, round by round: [median, lower quartile, upper]",
}


def parse(argv):
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks programs",
        description="Times the kernel's programs against an LSTM written by hand.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("library", type=Path, help="the kernel by hand: see `make programs`")
    several(parser, "shapes", SHAPES)
    parser.add_argument("--rounds", type=int, default=12, help="of each shape")
    record.add_folder(parser)
    return parser.parse_args(argv)


def main(argv=None):
    """Runs the job; its exit status."""
    chosen, console = parse(argv), display.console()
    if not chosen.library.exists():
        raise SystemExit(f"library: there is none at {chosen.library}; `make programs` builds it")
    about, path = machine.describe(), chosen.out / "programs-cpu.json"
    begun = record.begun("programs", about, NOTES, chosen)
    console.print(f"[bold]Programs against code by hand[/]\n{machine.line(about)}\n")
    rows = []
    cases = [(direction, shape) for direction in DIRECTIONS for shape in chosen.shapes]
    with _process("") as programs, _process(chosen.library.absolute()) as by_hand:
        sides = {"programs": programs, "by hand": by_hand}
        with display.progress(console, len(cases)) as step:
            for case in cases:
                with step(f"{case[0]:<14} {case[1]:<11}") as done:
                    rows.append(_row(sides, *case, chosen.rounds))
                    done(f"programs / by hand {rows[-1]['ratio'][0]:.3f}")
                record.save(path, begun | {"words": sentences(rows), "rows": rows})
    for direction in DIRECTIONS:
        console.print(table(rows, direction))
        console.print()
    console.print(f"written: {path}\n")
    for sentence in sentences(rows):
        console.print(sentence)
    return 0


def _process(library):
    """One process that stays, with a library of its own; "" is the installed one."""
    return concurrent.futures.ProcessPoolExecutor(
        1, multiprocessing.get_context("spawn"), _begin, (str(library),)
    )


def _begin(library):
    os.environ[native.FILE] = library


_calls = {}


def _seconds(direction, shape):
    """Of one call after one to warm up, in the process that has the library."""
    case = direction, shape
    if case not in _calls:
        place, *_ = CONTENDERS[OURS](CELL, SHAPES[shape], direction, "float32")
        _calls.clear()
        _calls[case] = place()
    timing.once(_calls[case])
    return timing.once(_calls[case])


def _row(sides, direction, shape, rounds):
    samples = {name: [] for name in sides}
    for i in range(rounds + 1):  # the first compiles
        for name in sorted(sides, reverse=i % 2):
            seconds = sides[name].submit(_seconds, direction, shape).result()
            samples[name] += [seconds] * (i > 0)
    return {
        "direction": direction,
        "shape": SHAPES[shape]._asdict(),
        "samples": samples,
        "ratio": list(timing.ratio(samples["programs"], samples["by hand"])),
        "load": machine.load(),
    }


def table(rows, direction):
    found = display.table(TITLES[direction])
    for name in ("shape", "programs / by hand", "quartiles"):
        found.add_column(name, justify="left" if name == "shape" else "right")
    for row in rows:
        if row["direction"] == direction:
            median, low, high = row["ratio"]
            found.add_row(row["shape"]["name"], f"{median:.3f}", f"{low:.3f} to {high:.3f}")
    return found


def sentences(rows):
    """What the table says, in words."""
    out = []
    for direction in dict.fromkeys(row["direction"] for row in rows):
        ratios = {r["shape"]["name"]: r["ratio"][0] for r in rows if r["direction"] == direction}
        each = listed([f"{ratio:.2f} at {shape}" for shape, ratio in ratios.items()])
        out.append(
            f"{CELL} {direction.replace('_', ' ')}: with programs"
            f" {statistics.geometric_mean(ratios.values()):.2f} times the time of the same by hand"
            f" (geometric mean; {each})."
        )
    return out
