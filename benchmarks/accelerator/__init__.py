"""What runs right on this machine's GPU or TPU, and how fast: one command, a few minutes.

First every implementation is checked against float64 (``accelerator_checks``), for a third of the
time at most; then layers are timed beside other libraries (``accelerator_rows``). Both take
something of everything first, so that a cut at any time leaves a picture of the whole. Whatever
fails is a row of the result, and the rest goes on.
"""

import argparse
import concurrent.futures
import datetime
import itertools
import os
import re
import time

import jax

from benchmarks.accelerator import checks as checking
from benchmarks.accelerator import rows as timed
from benchmarks.accelerator.kinds import CELLS
from benchmarks.accelerator.words import sentences, tables
from benchmarks.shared import machine, record
from benchmarks.shared.contenders import OURS

try:
    from benchmarks.shared import display
except ModuleNotFoundError:  # there is no rich
    from benchmarks.accelerator import plain as display

PACKAGES = (
    *machine.PACKAGES, "jax-cuda12-plugin", "jax-cuda13-plugin", "libtpu", "torch", "triton",
)  # fmt: skip
CHECKS = 1 / 3  # of the time, at most
NOTES = {
    "checks": "errors: the largest one of an array over the largest value in it, against float64"
    " on the host; null where a value is not finite. passed is null where the implementation says"
    " that it cannot run this",
    "samples": "seconds of a call on the device: of so many calls handed over one after another"
    " as `calls` says, divided by it; sample i of all contenders is from round i",
    "host_seconds": "until a call returns, with nothing before it; where that is close to the"
    " call's own time, the host may be what is timed. It waits too for room in the device's queue,"
    " 1,024 kernels on a GPU",
    "ratio": "the contender's time over jaxrnn's, round by round: [median, lower quartile, upper]",
    "compile_seconds": "tracing and compiling, with other programs at the same time",
    "cudnn": "jax.experimental.rnn; it waits for the device inside of each call",
    "precision": "float32 runs as each library has it by default: in JAX products are of the"
    " precision jax_default_matmul_precision, where null means TF32 on NVIDIA GPUs since Ampere"
    " and bfloat16 on TPUs; PyTorch's cuDNN takes TF32 where cudnn_allow_tf32 is true. Checks ask"
    " for full precision",
    "not_run": "what the time was up for",
}


def parse(argv):
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks accelerator",
        description="Checks and times everything on this machine's GPU or TPU.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    for option, known in (
        ("cells", CELLS), ("dtypes", timed.DTYPES), ("shapes", timed.LAYERS),
        ("directions", timed.DIRECTIONS), ("peers", timed.PEERS),
    ):  # fmt: skip
        parser.add_argument(
            f"--{option}", nargs="+", choices=list(known), default=list(known), metavar="NAME",
            help=f"of {', '.join(known)}; what comes first is run first",
        )  # fmt: skip
    parser.add_argument("--seconds", type=float, default=420.0, help="for everything, about")
    parser.add_argument(
        "--tiny", action="store_true", help="tiny sizes, also on a CPU: to try this command"
    )
    record.add_folder(parser, os.environ.get("OUT"))
    return parser.parse_args(argv)


def main(argv=None):
    """Runs the job; its exit status."""
    begin = time.monotonic()
    chosen = parse(argv)
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # PyTorch needs memory too
    device = jax.devices()[0]
    if device.platform == "cpu" and not chosen.tiny:
        raise SystemExit("JAX sees no GPU or TPU here; on a CPU there is only --tiny")
    return run(chosen, device, begin)


def run(chosen, device, begin):
    console = display.console()
    about = machine.describe(PACKAGES, device)
    path = chosen.out / f"accelerator-{slug(device.device_kind)}.json"
    date = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    libraries, checks, rows, interrupted = precision(), [], [], False
    to_check, to_time = checking.cases(chosen, broadly), timed.cases(chosen, broadly)

    def words():
        not_run = {"checks": to_check[len(checks) :], "rows": to_time[len(rows) :]}
        not_run = {name: list(map(str, cases)) for name, cases in not_run.items()}
        return list(sentences(checks, rows, not_run)), not_run

    def save():
        said, not_run = words()
        given = {k: v for k, v in vars(chosen).items() if k != "out"}
        record.save(path, {
            "benchmark": "accelerator", "date": date, "interrupted": interrupted,
            "machine": about, "precision": libraries, "explained": explained, "options": given,
            "notes": NOTES, "words": said, "checks": checks, "rows": rows, "not_run": not_run,
        })  # fmt: skip

    def keep(found, part, total, brief):
        with display.progress(console, total) as step:
            for row in part:
                with step(f"{row['name']:<44}") as done:
                    done(brief(row))
                found.append(row)
                save()

    explained = checking.explained(to_check[0])
    console.print(f"[bold]Checks and times[/]\n{machine.line(about)}\n")
    console.print(f"{explained}\n", markup=False)
    pool = concurrent.futures.ThreadPoolExecutor(machine.cores())
    try:
        part = checked(pool, to_check, begin + CHECKS * chosen.seconds)
        keep(checks, part, len(to_check), checking.brief)
        part = measured(pool, to_time, begin + chosen.seconds, chosen.peers)
        keep(rows, part, len(to_time), timed.brief)
    except KeyboardInterrupt:
        interrupted = True
        console.print("interrupted: what was measured is kept")
    finally:
        pool.shutdown(cancel_futures=True)
    save()
    for table in tables(display, rows):
        console.print(table)
        console.print()
    console.print(f"written: {path}\n", markup=False)
    for sentence in words()[0]:
        console.print(sentence, markup=False)
    failed = any(row["passed"] is False for row in checks)
    failed |= any(OURS in row["missing"] for row in rows)
    return 130 if interrupted else int(failed)


def checked(pool, cases, end):
    """The checks, several at a time: compiling is what takes long."""
    in_time = lambda case: checking.measure(case) if time.monotonic() < end else None
    yield from itertools.takewhile(bool, pool.map(in_time, cases))


def measured(pool, cases, end, peers):
    """The rows, one at a time; the programs of some are compiled before them, all at once.

    Of many programs, as one waits for the device, on which XLA times its choices, others compile.
    """
    size = max(1, machine.cores() // 2)
    for first in range(0, len(cases), size):
        if time.monotonic() >= end:
            return
        group = cases[first : first + size]
        for case, programs in zip(group, timed.prepared(pool, group, peers), strict=True):
            if time.monotonic() >= end:
                return
            yield timed.measure(case, programs)


def broadly(*axes):
    """All combinations; those of what stands first in the lists come first.

    >>> broadly("ab", "xyz")
    [('a', 'x'), ('a', 'y'), ('b', 'x'), ('a', 'z'), ('b', 'y'), ('b', 'z')]
    """
    placed = itertools.product(*(list(enumerate(axis)) for axis in axes))
    ordered = sorted(placed, key=lambda items: sum(place for place, _ in items))
    return [tuple(item for _, item in items) for items in ordered]


def precision():
    """How the libraries multiply in float32, and what they call."""
    found = {"jax_default_matmul_precision": jax.config.jax_default_matmul_precision}
    try:
        import torch
    except ImportError:
        return found
    cudnn = torch.backends.cudnn
    return found | {"cudnn": cudnn.version(), "cudnn_allow_tf32": cudnn.allow_tf32}


def slug(name):
    """A name as a part of a file's: NVIDIA H200 -> nvidia-h200."""
    return re.sub("[^a-z0-9]+", "-", name.lower()).strip("-")
