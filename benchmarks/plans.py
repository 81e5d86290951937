"""Every plan of the kernel for NVIDIA GPUs, timed: how ``tiling.py`` does against the best.

A plan divides a layer among thread blocks, and the kernel takes the one whose step its formula
calls cheapest. Here all that fit are run, each in a process of its own with a deadline. Those of
the backward pass are timed with the forward pass before it, which has the kernel's own plan, and
with the matrix products of the gradients; the formula is of the one kernel.
"""

import argparse
import concurrent.futures
import datetime
import os
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from benchmarks.accelerator.cases import packed, unpacked
from benchmarks.accelerator.processes import Died, end_all, in_turn, start
from benchmarks.shared import machine, record
from benchmarks.shared.options import several
from benchmarks.shared.shapes import SHAPES, WIDE, Shape

CELLS, DTYPES = ("lstm", "gru"), ("bfloat16", "float16", "float32")
NAMES = ("h1024-b16", "h512-b16", "small", "h1024-b64", "h2048-b16", "h768-b16")
NAMED = SHAPES | WIDE
TINY = Shape("tiny", 2, 3, 4, 16)
SECONDS = 0.5  # of timing, about


class Case(NamedTuple):
    """A plan of a layer, by its place among those that fit, of which the first is the kernel's."""

    cell: str
    dtype: str
    shape: Shape
    direction: str
    place: int

    def __str__(self) -> str:
        layer = f"{self.cell} {self.shape.name} {self.dtype} {self.direction}"
        return f"{layer} plan {self.place}"


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks plans",
        description="Times every plan of the kernel for NVIDIA GPUs.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    for option, known, usual in (
        ("cells", CELLS, CELLS[:1]),
        ("dtypes", DTYPES, DTYPES[:1]),
        ("shapes", NAMED, NAMES),
    ):
        several(parser, option, known, usual)
    parser.add_argument("--seconds", type=float, default=480.0, help="for everything")
    parser.add_argument("--tiny", action="store_true", help="tiny sizes: to try this command")
    record.add_folder(parser, os.environ.get("OUT"))
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Runs the job; its exit status."""
    end, chosen = time.monotonic(), parse(argv)
    end += chosen.seconds
    options = {k: v for k, v in vars(chosen).items() if k != "out"}
    process = start(kind="plans_of", options=options)
    try:
        found = process.receive(90)
    except Died as died:
        raise SystemExit(f"the device cannot be asked: {died}") from died
    finally:
        process.end()
    if found["missing"]:
        raise SystemExit(f"the kernel cannot run here: {found['missing']}")
    path = chosen.out / f"plans-{record.slug(found['machine']['device'])}.json"
    lines, rows, cases = path.with_suffix(".jsonl"), [], found["cases"]
    lines.parent.mkdir(parents=True, exist_ok=True)
    lines.write_text("")
    date = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")

    def save() -> None:
        not_run = [str(unpacked(Case, case)) for case in cases[len(rows) :]]
        record.save(
            path,
            {
                "benchmark": "plans",
                "date": date,
                "machine": found["machine"],
                "options": options,
                "rows": rows,
                "not_run": not_run,
            },
        )

    save()
    size = max(1, machine.cores() // 2)
    pool = concurrent.futures.ThreadPoolExecutor(size)
    try:
        for first in range(0, len(cases), size):
            group = cases[first : first + size]
            processes = [start(kind="plan", case=case) for case in group]
            for row in in_turn(pool, group, processes, end, failed):
                rows.append(row)
                record.append(lines, row)
                save()
                print(brief(row), flush=True)
    finally:
        end_all()  # before the threads, which wait for them
        pool.shutdown()
    for sentence in sentences(rows):
        print(sentence)
    print(f"written: {path} and {lines.name}; {len(cases) - len(rows)} not run")
    return int(any(row["problem"] for row in rows))


def survey(chosen: argparse.Namespace) -> dict[str, Any]:
    """The device, and the plans of all layers that are asked for; those called cheapest first."""
    import jax

    from jaxrnn._src.core.lowering_target import of_device
    from jaxrnn._src.ops.gpu import launch

    device = jax.devices()[0]
    target = of_device(device)
    missing = launch.why_not(target)
    cases = []
    if missing is None:
        shapes = [TINY] if chosen.tiny else [NAMED[name] for name in chosen.shapes]
        cases = [
            packed(Case(cell, dtype, shape, direction, place))
            for shape in shapes
            for cell in chosen.cells
            for dtype in chosen.dtypes
            for direction in ("forward", "backward")
            for place in range(len(ordered(cell, dtype, shape, direction, launch.chip(target))))
        ]
    return {"machine": machine.describe(device=device), "missing": missing, "cases": cases}


def ordered(cell: str, dtype: str, shape: Shape, direction: str, chip: Any) -> list[Any]:
    """The plans of a layer, those that the formula calls cheapest first."""
    import jax.numpy as jnp

    from jaxrnn._src.ops.recurrence.gpu import tiling

    gates = {"lstm": 4, "gru": 3}[cell]
    layer = tiling.Layer(jnp.dtype(dtype).itemsize, gates, shape.H, 1, shape.B)
    return sorted(tiling.plans(layer, chip, direction == "backward"), key=lambda p: p.cost)


def plan_of(case: Case) -> Any:
    import jax

    from jaxrnn._src.core.lowering_target import of_device
    from jaxrnn._src.ops.gpu import launch

    chip = launch.chip(of_device(jax.devices()[0]))
    return ordered(case.cell, case.dtype, case.shape, case.direction, chip)[case.place]


def prepared(case: Case) -> Callable[[], Any]:
    """The call to time: a layer whose kernel of one direction has the case's plan."""
    from benchmarks.shared import contenders
    from jaxrnn._src.ops.recurrence import gpu

    chosen, usual = plan_of(case), gpu.plan

    def plan(layer: Any, chip: Any, *, backward: bool) -> Any:
        wanted = backward == (case.direction == "backward")
        return chosen if wanted else usual(layer, chip, backward=backward)

    gpu.plan = plan  # this process is for nothing else
    direction = "forward" if case.direction == "forward" else "value_and_grad"
    place, *_ = contenders.with_jax(
        lambda *layer: contenders.ours(*layer, implementation="gpu"),
        case.cell,
        case.shape,
        direction,
        case.dtype,
    )
    return place()


def measure(case: Case, call: Callable[[], Any]) -> dict[str, Any]:
    """A row: microseconds of a step, forward or in both directions; those of the formula too."""
    import jax

    from benchmarks.shared import timing

    timing.once(call)
    several, count = timing.batched(call, 0.02 if jax.default_backend() == "gpu" else 0)
    samples = [s / count for s in timing.measure(several, seconds=SECONDS)]
    a_step = timing.summary(samples).median / case.shape.T * 1e6
    return packed(case) | {
        "name": str(case),
        "plan": plan_of(case)._asdict(),
        "samples": samples,
        "a_step": a_step,
        "problem": None,
    }


def failed(case: dict[str, Any], problem: str) -> dict[str, Any]:
    """The row of a plan whose process died."""
    name = str(unpacked(Case, case))
    return case | {"name": name, "plan": None, "samples": [], "a_step": None, "problem": problem}


def brief(row: dict[str, Any]) -> str:
    """A row in a line."""
    if row["problem"]:
        return f"{row['name']:<60} failed: {row['problem']}"
    timed = "a step" if row["direction"] == "forward" else "a step and its forward pass"
    return f"{row['name']:<60} {row['a_step']:8.2f} µs {timed}, called {row['plan']['cost']:.2f}"


def sentences(rows: list[dict[str, Any]]) -> list[str]:
    """For each layer, the time of the plan that is called cheapest over the best one's."""
    found: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        if row["a_step"] is not None:
            found.setdefault(row["name"].partition(" plan ")[0], []).append(row)
    return [
        f"{name}: the plan that is called cheapest takes"
        f" {called['a_step'] / best['a_step']:.2f} times the best one's time"
        f"{', each with its forward pass' if called['direction'] == 'backward' else ''}"
        for name, part in found.items()
        for called in [min(part, key=lambda row: row["plan"]["cost"])]
        for best in [min(part, key=lambda row: row["a_step"])]
    ]
