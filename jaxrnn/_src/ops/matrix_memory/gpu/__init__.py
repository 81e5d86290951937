"""The matrix memory on an NVIDIA GPU: its chunks on the tensor cores, in one launch.

Forward is one launch, and the gradient four: three of the same kernel (``products.cu``), and one
for the gates (``gates.cu``). Blocks exchange nothing, so they need not be on the chip together.
"""

import functools
import math
from typing import NamedTuple

import jax.numpy as jnp

from jaxrnn._src.core.lowering_target import Target
from jaxrnn._src.ops.gpu import chips, launch
from jaxrnn._src.ops.gpu.chips import KIB
from jaxrnn._src.ops.gpu.source import TYPES, factors
from jaxrnn._src.ops.matrix_memory.chunked import CHUNK
from jaxrnn._src.ops.matrix_memory.gpu import source
from jaxrnn._src.ops.matrix_memory.problem import Operands, Problem
from jaxrnn._src.ops.row_partition import Batch, Result, call

EXPORTED = False  # an exported program should run where this library's kernels are not
CONFIRMED = ()  # compute capabilities of which a GPU has run it; on the others it runs on request

WARPS = 4  # of a block, that multiply; one more has the gates
MOST_TILES = 32  # of 8 rows, whose sums are in a thread's registers
# Steps at once, and columns of a block: the first that fit.
TILES = ((64, 32), (32, 32), (32, 16), (16, 32), (16, 16))


def unsupported(problem, operands, target):
    """Why the kernel can't run the problem, or None."""
    why = launch.why_not(target)
    if why is not None:
        return why
    if not all(isinstance(n, int) for n in (*operands.q.shape, *operands.v.shape)):
        return "a size is symbolic"
    if operands.q.dtype.name not in TYPES:
        return f"q has the type {operands.q.dtype}; the kernel knows {', '.join(TYPES)}"
    if operands.state[0].dtype != jnp.float32:
        return f"the state has the type {operands.state[0].dtype}; the kernel knows float32"
    if operands.state[0].size == 0:
        return "there is no row, or a head is empty"
    chip = launch.chip(target)
    keys, values, size = operands.q.shape[-1], operands.v.shape[-1], operands.q.dtype.itemsize
    if not all(tile(*pair, size, chip.shared) for pair in ((keys, values), (values, keys))):
        return (
            f"keys of {keys} and values of {values} in {operands.q.dtype} do not fit into"
            f" {chip.shared // KIB} KiB"
        )
    return chips.unconfirmed(chip, CONFIRMED) if problem.implementation is None else None


def forward(problem, operands, wanted, save, target):
    """Returns (C, m, ys, ms), then the C and m before each chunk."""
    del wanted
    plan, (memory, m) = _Plan(problem, operands, target), operands.state
    more = {"END": plan.state(), "END_M": plan.heads(), "MS": plan.steps()}
    if save:
        more |= {"SAVED": plan.chunks(plan.keys, plan.values), "SAVED_M": plan.chunks()}
    made = plan.run(operands.q, operands.k, operands.v, more, STATE=memory, M=m)
    saved = ("SAVED", "SAVED_M") if save else ()
    return [made[name] for name in ("END", "END_M", "OUT", "MS", *saved)]


def backward(problem, operands, outputs, residuals, cotangents, wanted, target):
    """Returns the gradients of the operands."""
    del outputs, wanted  # all of them are made at once
    plan, (q, k, v, *_), (memory, m) = _Plan(problem, operands, target), operands, operands.state
    saved, saved_m = residuals
    d_final, d_final_m, d_ys, d_ms = cotangents
    d_ys = jnp.zeros(v.shape, memory.dtype) if d_ys is None else d_ys
    later = {"SAVED_M": saved_m} | ({} if d_final is None else {"STATE": d_final})
    more = {"END": plan.state(), "ANCHORS": plan.chunks(plan.slices())}

    d_q = plan.run(d_ys, v, k, {}, transposed=True, STATE=memory, M=m)["OUT"]
    d_k = plan.run(v, d_ys, q, {}, transposed=True, **later)["OUT"]
    made = plan.run(k, q, d_ys, more, SAVED=saved, **later)

    read, wrote = ((a.astype(d.dtype) * d).sum(-1) for a, d in ((q, d_q), (k, d_k)))
    given = {"READ": read, "WROTE": wrote, "SAVED_M": saved_m, "ANCHORS": made["ANCHORS"]}
    optional = {"D_FINAL_M": d_final_m, "D_MS": d_ms}
    given |= {name: d for name, d in optional.items() if d is not None}
    d_log_f, d_log_i, d_m = plan.gates(given)
    d_q, d_k, d_v = (d.astype(q.dtype) for d in (d_q, d_k, made["OUT"]))
    return operands._replace(
        q=d_q, k=d_k, v=d_v, log_f=d_log_f, log_i=d_log_i, state=(made["END"], d_m)
    )


def _filled_up(vectors):
    """With zeros, so that the kernel reads 16 bytes of a vector at once."""
    more = -vectors.shape[-1] % 8
    return jnp.pad(vectors, [(0, 0)] * (vectors.ndim - 1) + [(0, more)]) if more else vectors


class Tile(NamedTuple):
    """How a block divides its work.

    Attributes:
      steps: that it runs at once.
      columns: of the memory, that it has.
      shared: bytes of shared memory.
    """

    steps: int
    columns: int
    shared: int


def tile(rows: int, columns: int, size: int, most: int) -> Tile | None:
    """The tile of a memory of so many rows and columns; None if none fits.

    Args:
      rows, columns: of the memory, as a kernel has it: it multiplies with its rows.
      size: bytes of a factor.
      most: bytes of shared memory that there are.
    """
    for steps, slice_ in TILES:
        across = WARPS // (slice_ // 16)
        tiles = -(-rows // (8 * across))
        shared = _shared(rows + -rows % 8, steps, slice_, across * tiles * 8, size)
        whole = steps * size >= 64  # a matrix instruction's worth
        if whole and shared <= most and tiles <= MOST_TILES:
            return Tile(steps, slice_, shared)
    return None


def _shared(rows, steps, columns, padded, size):
    """The bytes of `Shared` in products.cu, and a little more."""

    def stride(count):
        return 64 * (-(-count * size // 64) | 1)

    vectors = (2 * steps + columns) * stride(rows)
    others = (padded + columns + steps) * stride(steps)
    return vectors + others + 8 * KIB


class _Plan:
    """The problem as the kernels are told it: time, then one axis of rows, then heads."""

    def __init__(self, problem: Problem, operands: Operands, target: Target):
        self.problem, self.operands, self.chip = problem, operands, launch.chip(target)
        self.time, *batch, self.count, self.keys = operands.q.shape
        self.values = operands.v.shape[-1]
        self.batch = Batch(batch)

    def steps(self, *sizes):
        return Result((self.time, None, self.count, *sizes), jnp.dtype("float32"))

    def chunks(self, *sizes):
        return Result((-(-self.time // CHUNK), *self.heads(*sizes).shape), jnp.dtype("float32"))

    def heads(self, *sizes):
        return Result((None, self.count, *sizes), jnp.dtype("float32"))

    def state(self):
        return self.heads(self.keys, self.values)

    def tile(self, transposed):
        rows, columns = (self.keys, self.values)[:: -1 if transposed else 1]
        found = tile(rows, columns, self.operands.q.dtype.itemsize, self.chip.shared)
        assert found is not None  # `unsupported` said so
        return found

    def slices(self, transposed=False):
        """How many blocks a head has."""
        columns = self.keys if transposed else self.values
        return -(-columns // self.tile(transposed).columns)

    def run(self, query, left, right, results, *, transposed=False, **given):
        """The memory or its gradient over time; what it gives, ``OUT`` and ``results``, by name.

        Args:
          query, left, right: see ``products.cu``.
          results: a ``Result`` each.
          transposed: whether a column is a key's, and a row a value's.
          given: other arrays. With ``M``, m before all steps, it runs forward; else it is a
            gradient.
        """
        chosen = self.tile(transposed)
        constants = {
            "ROWS": left.shape[-1],
            "COLUMNS": right.shape[-1],
            "ROW_STEP": 1 if transposed else self.values,
            "COLUMN_STEP": self.values if transposed else 1,
            "STEPS": chosen.steps,
            "SLICE": chosen.columns,
            "SHARED": chosen.shared,
            "WARPS": WARPS,
            "BACK": "M" not in given,
        }
        make = functools.partial(
            source.text,
            "products",
            defined=factors(self.operands.q.dtype),
            types=(query.dtype, left.dtype, right.dtype),
        )
        vectors = {"QUERY": query, "LEFT": left, "RIGHT": right}
        arguments = {name: _filled_up(a) for name, a in vectors.items()} | given
        width = right.shape[-1]
        results = results | {"OUT": self.steps(arguments["RIGHT"].shape[-1])}
        threads, blocks = 32 * (WARPS + 1), self.slices(transposed)
        made = self._call(make, arguments, results, constants, threads, blocks)
        return made | {"OUT": made["OUT"][..., :width]}

    def gates(self, given):
        """The gradients by the gates and by m before all steps."""
        results = {"D_LOG_F": self.steps(), "D_LOG_I": self.steps(), "D_M": self.heads()}
        constants = {"SLICES": self.slices(), "SHARED": 2 * KIB}
        make = functools.partial(source.text, "gates")
        return self._call(make, given, results, constants, CHUNK, 1).values()

    def _call(self, make, arguments, results, constants, threads, blocks):
        """Calls the kernel that ``make`` gives the text of, so many blocks for a head of a row."""
        operands = self.operands
        flags = {"MASK": operands.mask, "STARTS": operands.starts}
        arguments |= {"LOG_F": operands.log_f, "LOG_I": operands.log_i}
        arguments |= {name: flag for name, flag in flags.items() if flag is not None}
        untimed = ("STATE", "M", "D_FINAL_M")
        flat = [self.batch.flat(a, int(name not in untimed)) for name, a in arguments.items()]
        constants |= {
            "CHUNK": CHUNK,
            "HEADS": self.count,
            "REVERSE": self.problem.reverse,
            "STABILISED": self.problem.stabilised,
        }
        text = make((*arguments, *results), constants)

        def run(shapes, args, members, rows):
            tiles, count = rows * self.count * blocks, math.prod(members)
            numbers = launch.Numbers(
                blocks=1,
                at_once=tiles * count,
                threads=threads,
                shared=constants["SHARED"],
                steps=self.time,
                rows=rows,
                tiles=tiles,
                groups=tiles * count,
                together=False,
            )
            return launch.run(text, self.chip.architecture, numbers, shapes, args, members)

        made = zip(results, call(run, flat, [*results.values()]), strict=True)
        return {
            name: self.batch.unflat(array, results[name].shape.index(None)) for name, array in made
        }
