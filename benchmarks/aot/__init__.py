"""Layers, ``linear_scan`` and matrix memories, compiled for TPUs and an H200: a step's costs.

Nothing runs. Of a TPU's program the schedule is read (``aot.schedule``), of a GPU's the
kernels are counted (``aot.launches``), of ``linear_scan`` and memories also all bytes
(``aot.traffic``). It fails where something does not compile, which is also how too little
VMEM shows, where a batch over several devices is gathered, and where a figure is more than a tenth
over that of the last result kept. A run goes on where another was stopped.
"""

import argparse
import datetime
import hashlib
import itertools
import json
from pathlib import Path

import jax

import jaxrnn
from benchmarks.aot import gpu as aot_gpu
from benchmarks.aot import linear as aot_linear
from benchmarks.aot import memories as aot_memories
from benchmarks.aot import tpu as aot_tpu
from benchmarks.shared import display, machine, record
from benchmarks.shared.contenders import DIRECTIONS
from benchmarks.shared.options import several
from benchmarks.shared.shapes import SHAPES

PACKAGES = (*machine.PACKAGES, "libtpu", "jax-cuda13-plugin", "nvidia-cuda-nvcc")
CHIPS = ("h200", *aot_tpu.CHIPS)
KINDS = ("tpu", "sharded", "gpu", "linear", "memories")  # of rows
WORSE = 1.1
NOTES = {
    "cycles": "bundles that a TPU goes through in a step, without what it waits for memory and"
    " results: the least. The forward of `tpu` has the input's product in it; that of `xla` has"
    " it before the loop, which is not counted",
    "bytes": "of a step, from HBM or there; an array that XLA keeps in VMEM does not count",
    "cycles_of_bytes": "as many cycles as these bytes take; null where the clock is not known",
    "microseconds": "of the larger one of both",
    "vmem": "bytes that the kernel may take, for compiling to fail if they are too few",
    "a_step": "launches of a GPU inside of loops, for each time step; value_and_grad: of inputs"
    " and weights, both loops together",
    "outside": "launches before, between and after the loops",
    "loops": "[iterations, launches in each] of every loop",
    "registers": "most of any kernel; null where ptxas was not asked",
    "spilled_bytes": "stores and loads of all kernels together",
    "linear": "linear_scan, forward and backward each a program of its own; bytes and cycles of a"
    " step. bytes: as in benchmarks/aot/traffic.py, what XLA runs beside the kernel included;"
    " times_least: over those of every input and result once; cycles and vmem: of the kernel"
    " alone, vmem as it takes; kernels: of the whole sequence, on the GPU",
    "memories": "rules of matrix memories, float32, in chunks or as a scan of the step;"
    " cycles: of all instructions that have a listing; the rest as of linear",
    "apart": "kinds of rows that were made in a run of their own",
}


def tpu_cases(chips):
    """``(case, contenders)``: every cell on a v6e, the common ones on the others."""
    everyone, ours = tuple(aot_tpu.CONTENDERS), ("tpu",)
    beside = {"lstm": ((128, 512, 1024), (16, 64, 256)), "gru": ((512, 1024), (16, 256))}
    alone = {
        "lstm": ((100, 1), (2048, 16)),
        "gru": ((100, 1), (2048, 16)),
        "elman": ((512, 16),),
        "mgu": ((512, 16),),
    }
    for chip in chips:
        if chip != "v6e":
            for cell, hidden in itertools.product(("lstm", "gru"), (128, 512, 1024)):
                yield aot_tpu.Case(chip, cell, hidden, 16), ours
            continue
        for cell, (sizes, batches) in beside.items():
            for hidden, batch in itertools.product(sizes, batches):
                yield aot_tpu.Case(chip, cell, hidden, batch), everyone
        for batch in (16, 64):
            yield aot_tpu.Case(chip, "lstm", 1024, batch, heads=8), everyone
        for cell, sizes in alone.items():
            for hidden, batch in sizes:
                yield aot_tpu.Case(chip, cell, hidden, batch), ours


def gpu_cases():
    for cell, dtype, shape in itertools.product(
        ("lstm", "gru"), ("float32", "bfloat16"), ("small", "large")
    ):
        for direction in DIRECTIONS:
            yield aot_gpu.Case(cell, dtype, SHAPES[shape], direction), tuple(aot_gpu.CONTENDERS)


def parse(argv):
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks aot",
        description="Compiles for TPUs and an H200 and reads what a step will take.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    several(parser, "chips", CHIPS)
    several(parser, "kinds", KINDS, more="; the other rows of the file stay")
    parser.add_argument("--most", type=int, help="cases of each chip; None for all")
    record.add_folder(parser)
    return parser.parse_args(argv)


def main(argv=None):
    """Runs the job; its exit status."""
    chosen = parse(argv)
    console = display.console()
    needed = missing(chosen.chips, chosen.kinds)
    if needed:
        console.print(
            "The compilers are not installed; jaxrnn[aot] has them, or\n"
            f"  pip install {' '.join(needed)}",
            markup=False,
        )
        return 1
    aot_gpu.prepare()
    folder = aot_tpu.prepare()
    jax.config.update("jax_platforms", "cpu")  # a device there may be is left alone
    path = chosen.out / "aot.json"
    kept = record.load(path)
    content = _begun(chosen, kept)
    partial = path.with_name("aot-partial.json")  # until all is done
    _measured(console, chosen, content, _work(chosen, folder), partial)
    content["failed"] += worse(content, kept)
    content["words"] = sentences(content["tpu"])
    for kind, table in TABLES.items():
        if content[kind]:
            console.print(table(content[kind]))
    for text in (*content["words"], *(f"FAILED {text}" for text in content["failed"])):
        console.print(text, markup=False)
    if content["failed"]:
        path = path.with_name("aot-failed.json")
    elif set(chosen.chips) != set(CHIPS) or chosen.most:
        path = path.with_name("aot-some.json")
    record.save(path, content)
    partial.unlink(missing_ok=True)
    console.print(f"\nwritten: {path}")
    return 1 if content["failed"] else 0


def _measured(console, chosen, content, work, partial):
    """Adds the rows, but makes none that a stopped run of the same options and sources made.

    Its rows are in ``partial``, as this run's are until its end.
    """
    options = {name: getattr(chosen, name) for name in ("chips", "kinds", "most")}
    options |= {"versions": machine.describe(PACKAGES)["versions"], "sources": _sources()}
    before = record.before(partial, options)
    made = before.get("made", [])
    content |= {kind: before[kind] for kind in chosen.kinds if before}
    work = [each for each in work if each[0] in chosen.kinds]
    left = [each for each in work if each[1] not in made]
    if before:
        console.print(f"{len(work) - len(left)} of {len(work)} are there already", markup=False)
    with display.progress(console, len(left)) as step:
        for kind, label, measure in left:
            with step(label) as done:
                try:
                    found = measure()
                except Exception as error:
                    content["failed"].append(f"{label}: {_first_line(error)}")
                    done(f"failed: {_first_line(error)}")
                    continue
                content[kind] += found
                made.append(label)
                record.save(partial, content | {"options": options, "made": made})
                done(", ".join(map(_figures, found)))


def _sources():
    """A digest of the library's files: rows of two states of them are no table."""
    files = sorted(Path(jaxrnn.__file__).parent.rglob("*.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16]


def _begun(chosen, kept):
    """What the file begins with: of kinds that are not chosen, the rows that were ``kept``."""
    now = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": machine.describe(PACKAGES),
    }
    begun = {
        "benchmark": "aot",
        **now,
        "notes": NOTES,
        **{kind: [] for kind in KINDS},
        "failed": [],
    }
    others = {kind: kept[kind] for kind in set(KINDS) - {*chosen.kinds} if kind in kept}
    if not others:
        return begun
    apart = kept.get("apart", {}) | dict.fromkeys(chosen.kinds, now)
    return begun | {"date": kept["date"], "machine": kept["machine"], "apart": apart} | others


def missing(chips, kinds):
    """The packages that are needed and not installed."""
    tpus = [chip for chip in chips if chip != "h200"]
    needed = ["libtpu"] if tpus and machine.version("libtpu") is None else []
    on_gpu = "h200" in chips and {"gpu", "linear"} & {*kinds}
    return needed + (aot_gpu.missing() if on_gpu else [])


def _work(chosen, folder):
    """``(kind, label, function that gives rows)`` of all that is to be done."""
    tpus = [chip for chip in chosen.chips if chip != "h200"]
    for chip in tpus:
        for case, contenders in itertools.islice(tpu_cases([chip]), chosen.most):
            for name in contenders:
                run = lambda c=case, n=name: [aot_tpu.measure(c, n, folder)]  # noqa: E731
                yield "tpu", f"{case} {name:<6}", run
    if "v5e" in tpus:
        yield "sharded", "v5e, a batch over 8 devices", aot_tpu.sharded
    if "h200" in chosen.chips:
        for case, contenders in itertools.islice(gpu_cases(), chosen.most):
            for name in contenders:
                yield "gpu", f"{case} {name:<6}", lambda c=case, n=name: [aot_gpu.measure(c, n)]
    for chip in chosen.chips:
        for case, contenders in itertools.islice(aot_linear.cases([chip]), chosen.most):
            for name in contenders:
                run = lambda c=case, n=name: [aot_linear.measure(c, n, folder)]  # noqa: E731
                yield "linear", f"{case} {name:<6}", run
    for chip in reversed(tpus):  # of a run that is stopped, the newest chips' rows are there
        for case, contenders in itertools.islice(aot_memories.cases([chip]), chosen.most):
            for name in contenders:
                run = lambda c=case, n=name: [aot_memories.measure(c, n, folder)]  # noqa: E731
                yield "memories", f"{case} {name:<6}", run


def _figures(row):
    if "gathers" in row:
        kernel = "the kernel" if row["kernel"] else "XLA's loop"
        return f"{row['how']}: {kernel}, {row['gathers']} gathers"
    if "rule" in row:
        return aot_memories.brief(row)
    if "operation" in row:
        return aot_linear.brief(row)
    seconds = f"{row['compile_seconds']:.1f} s to compile"
    if "a_step" in row:
        spills = f", {row['spilled_bytes']} bytes spilled" if row["spilled_bytes"] else ""
        return f"{row['a_step']:5.2f} kernels a step, {row['outside']} outside{spills}, {seconds}"
    cycles = [f"{row[way]['cycles']:,.0f}" for way in ("forward", "backward")]
    return f"{' + '.join(cycles)} cycles a step, {seconds}"


def worse(content, kept):
    """What is worse than it may be, or than the rows that were ``kept``."""
    found = [
        f"{row['chip']} {row['how']}: {row['gathers']} gathers of the batch"
        for row in content["sharded"]
        if row["gathers"]
    ]
    before = {_key(row): row for kind in TABLES for row in kept.get(kind, [])}
    for row in itertools.chain(*(content[kind] for kind in TABLES)):
        old = before.get(_key(row))
        if old is None or row["contender"] not in ("tpu", "jaxrnn"):
            continue
        for name, figure in _compared(row).items():
            was = _compared(old)[name]
            if figure > WORSE * was:
                found.append(f"{' '.join(map(str, _key(row)))}: {name} {was:.5g} -> {figure:.5g}")
    return found


def _key(row):
    names = (
        "chip",
        "operation",
        "rule",
        "cell",
        "H",
        "B",
        "D",
        "heads",
        "dtype",
        "constant",
        "shape",
        "direction",
        "contender",
    )
    return tuple(row[name] for name in names if name in row)


def _compared(row):
    if "a_step" in row:
        return {"kernels a step": row["a_step"], "bytes spilled": row.get("spilled_bytes", 0)}
    return {
        f"{name}, {way}": row[way][name]
        for way in ("forward", "backward")
        for name in ("cycles", "bytes", "kernels")
        if name in row[way]
    }


def _first_line(error):
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _tpu_table(rows):
    shown = display.table(
        "least cycles a step, and microseconds with what comes from HBM: forward / backward"
    )
    for name in ("chip", "cell", "H", "B", "heads"):
        shown.add_column(name)
    for name in aot_tpu.CONTENDERS:
        shown.add_column(name, justify="right", no_wrap=True)
    shown.add_column("s to compile", justify="right")
    for case, found in _cases(rows).items():
        cells = [_two(found[name]) if name in found else "" for name in aot_tpu.CONTENDERS]
        seconds = f"{found['tpu']['compile_seconds']:.1f}" if "tpu" in found else ""
        shown.add_row(*map(str, case), *cells, seconds)
    return shown


def _two(row):
    ways = row["forward"], row["backward"]
    cycles = " / ".join(f"{way['cycles']:,.0f}" for way in ways)
    if ways[0]["microseconds"] is None:
        return cycles
    return f"{cycles}  " + " / ".join(f"{way['microseconds']:.2f}" for way in ways)


def _gpu_table(rows):
    shown = display.table("kernels a step inside of the loops + kernels outside")
    for name in ("cell", "type", "shape", "direction"):
        shown.add_column(name)
    for name in aot_gpu.CONTENDERS:
        shown.add_column(name, justify="right", no_wrap=True)
    cases = {}
    for row in rows:
        case = row["cell"], row["dtype"], row["shape"], row["direction"].replace("_", " ")
        cases.setdefault(case, []).append(f"{row['a_step']:.2f} + {row['outside']:>2}")
    for case, counts in cases.items():
        shown.add_row(*case, *counts)
    return shown


TABLES = {
    "tpu": _tpu_table,
    "gpu": _gpu_table,
    "linear": aot_linear.table,
    "memories": aot_memories.table,
}


def _cases(rows):
    """``{case: {contender: row}}``."""
    found = {}
    for row in rows:
        case = row["chip"], row["cell"], row["H"], row["B"], row["heads"]
        found.setdefault(case, {})[row["contender"]] = row
    return found


def sentences(rows):
    """What the table says of the kernel beside XLA's two loops."""
    out = []
    for way in ("forward", "backward"):
        for name in ("scan", "xla"):
            ratios = {
                f"{cell} H={hidden} B={batch}{f' heads={heads}' if heads > 1 else ''}": found[
                    name
                ][way]["microseconds"]
                / found["tpu"][way]["microseconds"]
                for (_, cell, hidden, batch, heads), found in _cases(rows).items()
                if name in found and "tpu" in found
            }
            if ratios:
                least, most = (choose(ratios, key=ratios.get) for choose in (min, max))
                out.append(
                    f"{way}: {name} takes {ratios[least]:.2f} times the kernel's least time on a"
                    f" v6e at {least}, {ratios[most]:.2f} times at {most}."
                )
    return out
