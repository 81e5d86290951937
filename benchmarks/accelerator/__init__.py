"""What runs right on this machine's GPU or TPU, and how fast: one command, under nine minutes.

First implementations are checked against float64 (``checks``), for a third of the time at most;
then layers are timed beside other libraries (``rows``), those that others have published first.
Both take something of everything first, so that a cut at any time leaves a picture of the whole.
Each check and each row is a process of its own with a deadline: one that hangs, dies or breaks the
device's context is a row of the result, and the rest goes on. This process never touches the
device.
"""

import argparse
import concurrent.futures
import datetime
import itertools
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.accelerator import checks as checking
from benchmarks.accelerator import processes
from benchmarks.accelerator import rows as timed
from benchmarks.accelerator.cases import unpacked
from benchmarks.accelerator.kinds import CELLS
from benchmarks.accelerator.processes import Died
from benchmarks.accelerator.words import sentences, tables
from benchmarks.shared import machine, record
from benchmarks.shared.contenders import OURS
from benchmarks.shared.options import several

try:
    from benchmarks.shared import display
except ModuleNotFoundError:  # there is no rich
    from benchmarks.accelerator import plain as display

CHECKS = 1 / 3  # of the time, at most
NOTES = {
    "checks": "errors: the largest one of an array over the largest value in it, against float64"
    " on the host; null where a value is not finite; of repeated runs, the part that differs from"
    " the first. passed is null where the implementation says that it cannot run this",
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
    " for full precision, and those called rounded for TF32",
    "not_run": "what the time was up for",
}


def parse(argv):
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks accelerator",
        description="Checks and times everything on this machine's GPU or TPU.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    for option, known in (
        ("cells", CELLS),
        ("dtypes", timed.DTYPES),
        ("shapes", timed.LAYERS),
        ("directions", timed.DIRECTIONS),
        ("peers", timed.PEERS),
    ):
        several(parser, option, known, more="; what comes first is run first")
    parser.add_argument("--seconds", type=float, default=480.0, help="for everything")
    parser.add_argument(
        "--tiny", action="store_true", help="tiny sizes, also on a CPU: to try this command"
    )
    record.add_folder(parser, os.environ.get("OUT"))
    return parser.parse_args(argv)


def main(argv=None):
    """Runs the job; its exit status."""
    begin = time.monotonic()
    return run(parse(argv), begin)


def run(chosen: argparse.Namespace, begin: float) -> int:
    given = {k: v for k, v in vars(chosen).items() if k != "out"}
    console, found = display.console(), surveyed(given)
    about, explained = found["machine"], found["explained"]
    path = chosen.out / f"accelerator-{record.slug(about['device'])}.json"
    date = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    to_check, to_time = found["checks"], found["rows"]
    checks, rows, interrupted = [], [], False

    def words():
        not_run = {"checks": to_check[len(checks) :], "rows": to_time[len(rows) :]}
        not_run = {name: list(map(title, cases)) for name, cases in not_run.items()}
        return list(sentences(checks, rows, not_run)), not_run

    def save():
        said, not_run = words()
        record.save(
            path,
            {
                "benchmark": "accelerator",
                "date": date,
                "interrupted": interrupted,
                "machine": about,
                "precision": found["precision"],
                "explained": explained,
                "options": given,
                "notes": NOTES,
                "words": said,
                "checks": checks,
                "rows": rows,
                "not_run": not_run,
            },
        )

    lines = path.with_suffix(".jsonl")
    lines.parent.mkdir(parents=True, exist_ok=True)
    lines.write_text("")

    def keep(found, part, total, brief):
        with display.progress(console, total) as step:
            for row in part:
                with step(f"{row['name']:<44}") as done:
                    done(brief(row))
                found.append(row)
                record.append(lines, row)
                save()

    console.print(f"[bold]Checks and times[/]\n{machine.line(about)}\n")
    console.print(f"{explained}\n", markup=False)
    # A TPU belongs to one process at a time.
    most = 1 if about["platform"] == "tpu" else machine.cores()
    pool = concurrent.futures.ThreadPoolExecutor(most)
    try:
        part = checked(pool, to_check, begin + CHECKS * chosen.seconds)
        keep(checks, part, len(to_check), checking.brief)
        size = max(1, most // 4)  # each compiles several programs
        part = measured(pool, to_time, begin + chosen.seconds, chosen.peers, size)
        keep(rows, part, len(to_time), timed.brief)
    except KeyboardInterrupt:
        interrupted = True
        console.print("interrupted: what was measured is kept")
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        processes.end_all()
        pool.shutdown()
    save()
    for table in tables(display, rows):
        console.print(table)
        console.print()
    console.print(f"written: {path} and {lines.name}\n", markup=False)
    for sentence in words()[0]:
        console.print(sentence, markup=False)
    failed = any(row["passed"] is False for row in checks)
    failed |= any(OURS in row["missing"] for row in rows)
    return 130 if interrupted else int(failed)


def surveyed(options: dict[str, Any]) -> dict[str, Any]:
    """The device and what there is to do, as a process says it.

    Raises:
      SystemExit: there is no accelerator, it does not answer, or the kernel for it is missing.
    """
    process = processes.start(kind="survey", options=options)
    try:
        found = process.receive(processes.DEADLINES["survey"])
    except Died as died:
        raise SystemExit(f"the device cannot be asked: {died}") from died
    finally:
        process.end()
    if found["machine"]["platform"] == "cpu" and not options["tiny"]:
        raise SystemExit("JAX sees no GPU or TPU here; on a CPU there is only --tiny")
    if found["missing"]:
        raise SystemExit(f"the kernel for this device is missing: {found['missing']}")
    return found


def checked(pool, cases, end) -> Iterator[dict[str, Any]]:
    """The checks, several at a time: starting and compiling is what takes long."""

    def one(case):
        left = end - time.monotonic()
        if left <= 0:
            return None
        process = processes.start(kind="check", case=case)
        try:
            return process.receive(min(left, processes.DEADLINES["check"]))
        except Died as died:
            # The time was up for it, or it is this check's result.
            return None if time.monotonic() >= end else checking.failed(case, str(died))
        finally:
            process.end()

    yield from itertools.takewhile(bool, pool.map(one, cases))


def measured(pool, cases, end, peers, size) -> Iterator[dict[str, Any]]:
    """The rows, one at a time; ``size`` of them are compiled before, all at once.

    Of many programs, as one waits for the device, on which XLA times its choices, others compile.
    """
    for first in range(0, len(cases), size):
        if time.monotonic() >= end:
            return
        group = cases[first : first + size]
        started = [processes.start(kind="row", case=case, peers=peers) for case in group]
        yield from processes.in_turn(pool, group, started, end, timed.failed)


def title(case: dict[str, Any]) -> str:
    """The name of a case of either kind."""
    kind = checking.Case if "implementation" in case else timed.Case
    return str(unpacked(kind, case))


def broadly(*axes):
    """All combinations; those of what stands first in the lists come first.

    >>> broadly("ab", "xyz")
    [('a', 'x'), ('a', 'y'), ('b', 'x'), ('a', 'z'), ('b', 'y'), ('b', 'z')]
    """
    placed = itertools.product(*(list(enumerate(axis)) for axis in axes))
    ordered = sorted(placed, key=lambda items: sum(place for place, _ in items))
    return [tuple(item for _, item in items) for items in ordered]
