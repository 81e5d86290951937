"""The mLSTM's memory on GPUs that are not there: what XLA's chunks and our kernels take.

Nothing runs. XLA compiles for the GPU described in ``aot/h200.txtpb``. The kernels of its program
are counted, and the bytes that they move, beside the least: every input and result once. Ours are
compiled for five architectures: their registers, what they spill, and what they move.
"""

import argparse
from typing import NamedTuple

import jax
from jax.sharding import NamedSharding, PartitionSpec

from benchmarks import registers
from benchmarks.aot import gpu as aot_gpu
from benchmarks.aot import launches, traffic
from benchmarks.shared import display, machine, record
from benchmarks.shared.timing import compiled
from jaxrnn._src.ops.gpu import compiler
from jaxrnn._src.ops.matrix_memory import matrix_memory

WAYS = ("forward", "forward and backward")
LAUNCH = 2e-3  # milliseconds of a kernel at least, supposed
BANDWIDTH = 3.35e9  # bytes a millisecond, of an H100
NOTES = {
    "bytes": "that the program moves, as benchmarks/aot/traffic.py counts them",
    "least": "bytes of every input and result once",
    "kernels": "that it launches, those of a loop in each of its turns",
    "a_tile": "instructions of the loop over tiles of time, of which inner loops count once",
    "spilled_in_loop": "those of them that store a register in memory, or load it again",
    "milliseconds": "predicted: 2 microseconds for each kernel, or all bytes at 3.35 TB/s",
}


class Case(NamedTuple):
    """A memory whose values are as wide as its keys; those of an ``exp`` gate have one more."""

    gate: str
    dtype: str
    T: int
    B: int
    N: int
    D: int

    def __str__(self):
        return f"{self.gate:<7} {self.dtype:<8} T={self.T} B={self.B} N={self.N} D={self.D}"


CASES = (
    Case("sigmoid", "bfloat16", 4096, 8, 4, 128),
    Case("exp", "bfloat16", 4096, 8, 4, 128),
    Case("exp", "float32", 4096, 8, 4, 128),
    Case("exp", "bfloat16", 4096, 64, 4, 128),
    Case("exp", "bfloat16", 4096, 8, 4, 256),
)


def measure(case, way):
    """A row: the counts of one program."""
    place = NamedSharding(aot_gpu.devices(1), PartitionSpec())
    function, arguments = program(case, way, place)
    with aot_gpu.heard():
        made, seconds = compiled(function, *arguments)
    text = made.as_text()
    found, moved = launches.count(text), traffic.count(text)
    kernels = found.outside + sum(times * inside for times, inside in found.loops)
    once = least(function, arguments)
    return {
        **case._asdict(),
        "way": way,
        "bytes": moved,
        "least": once,
        "kernels": kernels,
        "milliseconds": {
            "kernels": kernels * LAUNCH,
            "bytes": moved / BANDWIDTH,
            "least": once / BANDWIDTH,
        },
        "compile_seconds": seconds,
    }


def program(case, way, place=None, implementation="xla"):
    """What is compiled, and what its arguments look like, at a place."""
    _, dtype, steps, *heads, width = case
    stabilised = case.gate == "exp"

    def array(*sizes, dtype="float32"):
        return jax.ShapeDtypeStruct(sizes, dtype, sharding=place)

    def forward(*operands):
        return matrix_memory(*operands, stabilised=stabilised, implementation=implementation)

    def both(operands, cotangents):
        return jax.vjp(forward, *operands)[1](cotangents)

    keys = array(steps, *heads, width, dtype=dtype)
    values = array(steps, *heads, width + stabilised, dtype=dtype)
    gates = array(steps, *heads)
    state = array(*heads, width, width + stabilised), array(*heads)
    operands = keys, keys, values, gates, gates, state
    if way == "forward":
        return forward, operands
    out = jax.eval_shape(forward, *operands)
    return both, (operands, jax.tree.map(lambda a: array(*a.shape, dtype=a.dtype), out))


def least(function, arguments):
    """The bytes of every input and result once."""
    arrays = arguments, jax.eval_shape(function, *arguments)
    return sum(a.size * a.dtype.itemsize for a in jax.tree.leaves(arrays))


def kernels(case, architecture):
    """A row for each of our kernels, on an architecture."""
    chip = registers.CHIPS[architecture]
    function, arguments = program(case, WAYS[1], implementation="gpu")
    with registers.recorder(chip) as found:
        jax.jit(function).lower(*arguments)
    for text in dict.fromkeys(found.texts):
        said = registers.compiled(text, chip.architecture)
        loop = said.pop("loop")
        said |= (
            {"a_tile": loop["a_step"], "spilled_in_loop": loop["spilled_in_loop"]} if loop else {}
        )
        yield {"architecture": architecture, **case._asdict(), "kernel": _named(text), **said}


def _named(text):
    """Which of the five kernels a source is."""
    if "constexpr int D_M =" in text:
        return "gates"
    back, transposed = ("constexpr int BACK = 1;" in text, "constexpr int ROW_STEP = 1;" in text)
    return {(0, 0): "forward", (0, 1): "d_q", (1, 1): "d_k", (1, 0): "d_v"}[back, transposed]


def parse(argv):
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks mlstm",
        description="Compiles the mLSTM's memory for an H200, and counts bytes and kernels.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--most", type=int, help="memories to compile; None for all")
    record.add_folder(parser)
    return parser.parse_args(argv)


def main(argv=None):
    """Runs the job; its exit status."""
    chosen = parse(argv)
    console = display.console()
    needed = aot_gpu.missing() + (["nvidia-cuda-nvrtc"] if compiler.library() is None else [])
    if needed:
        console.print(f"pip install {' '.join(needed)}", markup=False)
        return 1
    aot_gpu.prepare()
    jax.config.update("jax_platforms", "cpu")  # a device there may be is left alone
    cases = CASES[: chosen.most]
    about = machine.describe((*machine.PACKAGES, "jax-cuda13-plugin"))
    content = record.begun("mlstm", about, NOTES, chosen)
    content |= {"nvrtc": ".".join(map(str, compiler.version())), "rows": [], "kernels": []}
    work = [("rows", case, way) for case in cases for way in WAYS]
    work += [("kernels", case, chip) for case in cases if _other(case) for chip in _chips()]
    path = chosen.out / "mlstm.json"
    with display.progress(console, len(work)) as step:
        for what, case, which in work:
            with step(f"{case} {which}") as done:
                found = [measure(case, which)] if what == "rows" else [*kernels(case, which)]
                content[what] += found
                record.save(path, content)
                done(brief(found))
    console.print(f"written: {path}", markup=False)
    return 0


def _other(case):
    """Whether its kernels are others than those of the cases before it: rows make none."""
    return case.gate == "exp" and case.B == CASES[0].B


def _chips():
    return [name for name, chip in registers.CHIPS.items() if not chip.clusters]


def brief(rows):
    """What was found in one step, in a few words."""
    if "kernel" in rows[0]:
        return ", ".join(f"{row['kernel']} {row['registers']}" for row in rows) + " registers"
    (row,) = rows
    moved, once = (f"{row[name] / 1e6:,.0f} MB" for name in ("bytes", "least"))
    return f"{moved} in {row['kernels']:,} kernels, at least {once}"
