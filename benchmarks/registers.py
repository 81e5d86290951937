"""The kernels for NVIDIA GPUs, compiled for each architecture: registers, spills, instructions.

Nothing runs, and no GPU is needed: NVRTC compiles, and nvdisasm, where it is installed, shows how
many instructions lie between a step's barrier and what the block publishes: what all other blocks
wait for. What a run has found is not compiled again by the next one, as long as the source and the
compiler are the same.
"""

import argparse
import contextlib
import datetime
import glob
import hashlib
import importlib.util
import itertools
import os
import re
import shutil
import subprocess
import tempfile
from typing import NamedTuple

import jax
import jax.numpy as jnp

import jaxrnn
from benchmarks.shared import display, machine, record
from benchmarks.shared.options import several
from jaxrnn._src.ops.gpu import chips, compiler, launch
from jaxrnn._src.ops.recurrence.gpu import tiling

GPUS = (  # one of each architecture
    "NVIDIA H100 80GB HBM3",
    "NVIDIA A100-SXM4-80GB",
    "NVIDIA GeForce RTX 4090",
    "NVIDIA B200",
    "NVIDIA GeForce RTX 5090",
)
CHIPS = {chips.CHIPS[name].architecture: chips.CHIPS[name] for name in GPUS}
# Clusters take some multiprocessors that lie together: it is supposed that four of a GPU are left.
CHIPS |= {
    f"{name} clusters": chip._replace(clusters=chip.blocks // chips.CLUSTER - 1)
    for name, chip in CHIPS.items()
    if chip.capability >= chips.WITH_CLUSTERS
}
CELLS = {"lstm": jaxrnn.lstm, "gru": jaxrnn.gru}
PRODUCTS = {  # the type of a layer, and JAX's precision of its products
    "bfloat16": ("bfloat16", "default"),
    "float16": ("float16", "default"),
    "tf32": ("float32", "default"),
    "float32": ("float32", "highest"),
}
WIDTHS, BATCHES = (128, 256, 512, 768, 1024, 2048), (1, 16, 64)
GATES = {"lstm": 4, "gru": 3}
DIRECTIONS = ("forward", "backward")
MOST_SPILLED = 16  # bytes; what spills more is shown
NOTES = {
    "plan": "how tiling.py divides the work on this chip; null: it does not fit, and is declined",
    "spilled": "bytes that a thread stores outside of its registers, and loads again",
    "spilled_in_loop": "instructions of a step that do so; the others are before the loop",
    "a_step": "instructions of the loop over steps, polls that are in vain not counted twice",
    "to_publish": "instructions from the barrier after which a block's sums are there to its first"
    " published word, in a cluster with what blocks send each other; where a block is alone, from"
    " the step's only barrier to its last word",
    "microseconds": "of a step, by the formula of tiling.py, which was fitted on an H100; what it"
    " says of clusters is predicted",
}


class Case(NamedTuple):
    """A layer for a chip.

    Attributes:
      architecture: of the chip, and whether its blocks may be in clusters: a key of ``CHIPS``.
      product, cell, H, B: of the layer.
    """

    architecture: str
    product: str
    cell: str
    H: int
    B: int

    def __str__(self):
        return f"{self.architecture:<15} {self.product:<8} {self.cell:<4} H={self.H} B={self.B}"

    @property
    def layer(self) -> tiling.Layer:
        size = jnp.dtype(PRODUCTS[self.product][0]).itemsize
        return tiling.Layer(size, GATES[self.cell], self.H, 1, self.B)

    def plans(self) -> list[tiling.Plan | None]:
        """Of both directions."""
        chip = CHIPS[self.architecture]
        return [tiling.plan(self.layer, chip, backward=way == "backward") for way in DIRECTIONS]


def cases(architectures):
    """All layers; of a chip with clusters, those with a plan that has some."""
    for case in itertools.starmap(
        Case, itertools.product(architectures, PRODUCTS, CELLS, WIDTHS, BATCHES)
    ):
        if not CHIPS[case.architecture].clusters or any(map(_clustered, case.plans())):
            yield case


def _clustered(plan):
    return plan is not None and plan.cluster > 1


class _Recorder:
    """In place of a GPU: keeps the kernels that a program would launch."""

    def __init__(self, chip):
        self.chip, self.texts = chip, []

    def __call__(self, text, shapes, args, **attributes):
        del args, attributes
        self.texts.append(text)
        return [jnp.zeros(s.shape, s.dtype) for s in shapes]


@contextlib.contextmanager
def recorder(chip):
    """Inside, kernels are made for a chip, and their texts kept."""
    before, launch.EMULATED = launch.EMULATED, _Recorder(chip)
    try:
        yield launch.EMULATED
    finally:
        launch.EMULATED = before


def sources(case) -> list[str]:
    """The kernel of each direction."""
    dtype, precision = PRODUCTS[case.product]
    cell = CELLS[case.cell](case.H)
    params = jax.eval_shape(lambda: cell.init(jax.random.key(0), 8))
    params = jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape, dtype), params)
    xs = jax.ShapeDtypeStruct((9, case.B, 8), dtype)

    def loss(params, xs):
        ys = jaxrnn.unroll(cell, params, xs, implementation="gpu")[1]
        return ys.astype(jnp.float32).sum()

    with recorder(CHIPS[case.architecture]) as kept, jax.default_matmul_precision(precision):
        jax.jit(jax.grad(loss)).lower(params, xs)
    found = list(dict.fromkeys(kept.texts))
    return sorted(found, key=lambda text: "#define FORWARD" not in text)


_SAID = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_REGISTERS = re.compile(r"Used (\d+) registers")


def compiled(text, architecture) -> dict:
    """What the assembler and the disassembler say of a kernel."""
    code, log = compiler.compiled(text, architecture)
    stack, *spilled = map(int, _SAID.search(log).groups())
    return {
        "registers": int(_REGISTERS.search(log)[1]),
        "stack": stack,
        "spilled": spilled,
        "loop": loop(lines(_disassembled(code)))._asdict() if disassembler() else None,
    }


def disassembler() -> str | None:
    """nvdisasm, of a wheel or of an installed CUDA."""
    found = importlib.util.find_spec("nvidia")
    for root in (found.submodule_search_locations or ()) if found else ():
        for path in glob.glob(os.path.join(root, "cu1?", "bin", "nvdisasm")):
            return path
    return shutil.which("nvdisasm")


class Loop(NamedTuple):
    """The loop over steps, in instructions."""

    a_step: int
    to_publish: int | None
    spilled_in_loop: int


def _disassembled(code) -> str:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(code.tobytes())
        file.flush()
        command = [disassembler(), "-c", file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def lines(text) -> list[str]:
    """Instructions and labels of what nvdisasm prints."""
    found = re.findall(r"^(\.L_x_\d+:|\s+/\*[0-9a-f]{4,}\*/\s+.*;)", text, re.MULTILINE)
    return [re.sub(r"\s*/\*.*?\*/\s*|;", "", line).strip() for line in found]


def loop(lines) -> Loop:
    """What lies in the longest loop that has a barrier in it."""
    labels = {line[:-1]: place for place, line in enumerate(lines) if line.endswith(":")}
    best = []
    for place, line in enumerate(lines):
        target = re.search(r"BRA.*`\((\.L_x_\d+)\)", line)
        begin = labels.get(target[1], place) if target else place
        part = lines[begin:place]
        if any("BAR.SYNC" in one for one in part) and len(part) > len(best):
            best = part
    best = [line for line in best if not line.endswith(":")]
    return Loop(len(best), _to_publish(best), sum(bool(re.search(_SPILL, line)) for line in best))


_SPILL = r"\b(STL|LDL)\b"
_PUBLISH = r"\bSTG?\.E\.STRONG\.GPU\b.*\bR\d+$"  # not of 0, which is the flag of who gives up


def _to_publish(lines):
    barriers = [place for place, line in enumerate(lines) if "BAR.SYNC" in line]
    words = [place for place, line in enumerate(lines) if re.search(_PUBLISH, line)]
    if len(barriers) == 1:  # a block that is alone
        words = [place for place, line in enumerate(lines) if re.search(r"\bSTS\b", line)]
        last = max(words, default=None)
        # The loop may begin anywhere: the barrier comes before the words, perhaps around its end.
        return None if last is None else (last - barriers[0]) % len(lines) - 1
    after = [word - barrier - 1 for word in words for barrier in barriers[1:2] if word > barrier]
    return min(after, default=None)


def _digest(text):
    """Of a source without its comments."""
    return hashlib.sha256(re.sub(r"//[^\n]*", "", text).encode()).hexdigest()[:16]


def measure(case, known) -> list[dict]:
    """A row for each direction; of a kernel that is ``known``, what was found before."""
    plans = case.plans()
    if None in plans:
        return [{**case._asdict(), "direction": way, "plan": None} for way in DIRECTIONS]
    rows = []
    for way, plan, text in zip(DIRECTIONS, plans, sources(case), strict=True):
        if CHIPS[case.architecture].clusters and not _clustered(plan):
            continue  # as without clusters
        digest = _digest(text)
        found = known.get((case.architecture, digest))
        if found is None or (found["loop"] is None and disassembler()):
            found = compiled(text, CHIPS[case.architecture].architecture)
        kept = plan._asdict()
        cost = round(kept.pop("cost"), 2)
        rows.append(
            {**case._asdict(), "direction": way, "plan": kept, "microseconds": cost}
            | {name: found[name] for name in ("registers", "stack", "spilled", "loop")}
            | {"source": digest}
        )
    return rows


def parse(argv):
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks registers",
        description="Compiles the kernels for GPUs: registers, spills, instructions.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    several(parser, "architectures", CHIPS)
    parser.add_argument("--most", type=int, help="cases to compile in this run; None for all")
    record.add_folder(parser)
    return parser.parse_args(argv)


def main(argv=None):
    """Runs the job; its exit status is 0 if all that was asked for is there."""
    chosen = parse(argv)
    console = display.console()
    if compiler.library() is None:
        console.print("NVRTC is not installed: pip install nvidia-cuda-nvrtc", markup=False)
        return 1
    jax.config.update("jax_platforms", "cpu")  # a device there may be is left alone
    path, version = chosen.out / "registers.json", ".".join(map(str, compiler.version()))
    before = record.load(path)
    old = before.get("rows", ()) if before.get("nvrtc") == version else ()
    known = {(row["architecture"], row.get("source")): row for row in old}
    rows = {_key(row): row for row in old}
    work = list(itertools.islice(cases(chosen.architectures), chosen.most))
    with display.progress(console, len(work)) as step:
        for case in work:
            with step(str(case)) as done:
                found = measure(case, known)
                rows |= {_key(row): row for row in found}
                known |= {(row["architecture"], row.get("source")): row for row in found}
                record.save(path, _content(version, rows.values()))
                done(" | ".join(map(_figures, found)))
    console.print(table(rows.values()))
    console.print(f"\nwritten: {path}", markup=False)
    return 0


def _content(version, rows):
    return {
        "benchmark": "registers",
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "nvrtc": version,
        "chips": {name: chip._asdict() for name, chip in CHIPS.items()},
        "versions": {name: machine.version(name) for name in ("jaxrnn", "jax")},
        "notes": NOTES,
        "rows": list(rows),
    }


def _key(row):
    return tuple(row[name] for name in (*Case._fields, "direction"))


def _figures(row):
    if row["plan"] is None:
        return "declined"
    spilled = f", spills {row['spilled']}" if any(row["spilled"]) else ""
    found = row["loop"]
    if found is None:
        return f"{row['registers']} registers{spilled}"
    inside = f" ({found['spilled_in_loop']} in the loop)" if spilled else ""
    steps = f", {found['a_step']} a step, {found['to_publish']} to publish"
    return f"{row['registers']} registers{spilled}{inside}{steps}"


def table(rows):
    """Of every architecture and type: how many kernels, and those that spill."""
    shown = display.table(f"kernels, declined, and those that spill over {MOST_SPILLED} bytes")
    for name in ("architecture", "product", "kernels", "declined", "spilling"):
        shown.add_column(name)
    groups = {}
    for row in rows:
        groups.setdefault((row["architecture"], row["product"]), []).append(row)
    for key, some in groups.items():
        there = [row for row in some if row["plan"]]
        spilling = [
            f"{row['cell']} H{row['H']} B{row['B']} {row['direction']} {max(row['spilled'])}"
            for row in there
            if max(row["spilled"]) > MOST_SPILLED
        ]
        counts = len(there), len(some) - len(there)
        shown.add_row(*key, *map(str, counts), "; ".join(spilling) or "none")
    return shown
