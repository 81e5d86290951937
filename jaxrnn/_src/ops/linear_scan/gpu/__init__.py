"""The linear recurrence on an NVIDIA GPU: one kernel, which moves each array once.

Memory bounds it, and ``kernel.cu`` reads every input once and writes every result once. Blocks
exchange nothing, so they need not be on the chip together, and none waits for another.
"""

import math
from typing import NamedTuple

import numpy as np

from jaxrnn._src.core.lowering_target import Target
from jaxrnn._src.ops.gpu import chips, launch
from jaxrnn._src.ops.linear_scan.gpu import source
from jaxrnn._src.ops.linear_scan.problem import Operands, Problem, keeps
from jaxrnn._src.ops.row_partition import Argument, Batch, Result, call

EXPORTED = False  # an exported program should run where this library's kernels are not
CONFIRMED = ()  # compute capabilities of which a GPU has run it; on the others it runs on request

THREADS = 256  # of a block
WORDS = 32  # of 32 bits, that a thread reads ahead: they stay in its registers
SECTOR = 32  # bytes that memory moves at least


def unsupported(problem: Problem, operands: Operands, target: Target) -> str | None:
    """Why the kernel can't run the problem, or None."""
    why = launch.why_not(target)
    if why is not None:
        return why
    if target.devices > 1:  # a custom call that is told of its rows alone
        return "XLA would gather sharded channels for it; inside of jax.shard_map it runs"
    if not all(isinstance(n, int) for n in operands.b.shape):
        return "a size is symbolic"
    if operands.h0.size == 0:
        return "there is no row or no channel"
    if problem.implementation is None:
        return chips.unconfirmed(launch.chip(target), CONFIRMED)
    return None


def forward(problem, operands, wanted, save, target):
    """Returns (final state, hs), then the states before each step if a backward needs them."""
    plan, before = _Plan(problem, operands, target), save and keeps(operands)
    arguments = plan.factors() | {"B": plan.flat(operands.b), "H0": plan.flat(operands.h0)}
    results = {"FINAL": plan.state()}
    results |= {"HS": plan.steps(operands.b.dtype)} if wanted[1] else {}
    results |= {"BEFORE": plan.steps(operands.h0.dtype)} if before else {}
    out = plan.call(arguments, results)
    return [out["FINAL"], out.get("HS"), *([out["BEFORE"]] if before else [])]


def backward(problem, operands, outputs, residuals, cotangents, wanted, target):
    """Returns the gradients of the operands."""
    plan, (d_final, d_hs) = _Plan(problem, operands, target), cotangents
    constant = operands.a is None
    arguments, results = plan.factors(), {"D_H0": plan.state()}
    arguments |= {} if d_final is None else {"D_FINAL": plan.flat(d_final)}
    arguments |= {} if d_hs is None else {"D_HS": plan.flat(d_hs)}
    results |= {"D_B": plan.steps(operands.b.dtype)} if wanted.b else {}
    if wanted.constant if constant else wanted.a:
        states = {"BEFORE": residuals[0]} if residuals else {"H0": operands.h0, "HS": outputs[1]}
        arguments |= {name: plan.flat(array) for name, array in states.items()}
        results["D_A"] = plan.state() if constant else plan.steps(operands.a.dtype)
    out = plan.call(arguments, results)
    gradients = operands._replace(h0=out["D_H0"])  # what is not wanted may be anything
    if "D_B" in out:
        gradients = gradients._replace(b=out["D_B"])
    if "D_A" not in out:
        return gradients
    if not constant:
        return gradients._replace(a=out["D_A"])
    d_a = out["D_A"].sum(tuple(range(len(plan.batch.sizes))))
    return gradients._replace(constant=d_a.astype(operands.factor_dtype))


class Tile(NamedTuple):
    """How a block divides its work.

    Attributes:
      columns: numbers of a step, next to each other, that it runs.
      steps: of a strip, which is what a thread has of a column at a time.
      threads: of the block.
      shared: bytes of shared memory.
    """

    columns: int
    steps: int
    threads: int
    shared: int


def tile(columns: int, number: int, narrowest: int, words: int, blocks: int) -> Tile:
    """The widest blocks of which there are as many as the chip runs at once, else the narrowest.

    Args:
      columns: of a step, of all members.
      number: bytes of one in arithmetic.
      narrowest: bytes of one in the array whose numbers are smallest.
      words: of 32 bits, that are read for a step of a column.
      blocks: as many as the chip has multiprocessors.
    """
    least = max(8, SECTOR // narrowest)
    wide = next((n for n in (32, 16) if n > least and -(-columns // n) >= blocks), least)
    steps = max(n for n in (16, 8, 4, 2) if n * words <= WORDS or n == 2)
    shared = 2 * THREADS * (2 * number + 1)  # `Shared` of kernel.cu, for two tiles of time
    return Tile(wide, steps, THREADS, shared + -shared % 16)


class _Plan:
    """The problem as the kernel is told it: time, then one axis of rows, then channels."""

    def __init__(self, problem: Problem, operands: Operands, target: Target):
        self.problem, self.operands, self.chip = problem, operands, launch.chip(target)
        self.time, *batch, self.width = operands.b.shape
        self.batch = Batch(batch)

    def flat(self, array):
        """[(T,) *batch, D] -> [(T,) R, D]."""
        before = array.ndim - len(self.batch.sizes) - 1
        return self.batch.flat(array, before)

    def factors(self):
        a, constant = self.operands.a, self.operands.constant
        return {"A": self.flat(a)} if constant is None else {"CONSTANT": Argument(constant, None)}

    def state(self):
        return Result((None, self.width), self.operands.h0.dtype)

    def steps(self, dtype):
        return Result((self.time, None, self.width), dtype)

    def call(self, arguments, results):
        """Runs the kernel; what it gives, by the names of ``results``."""
        operands = self.operands
        flags = {"MASK": operands.mask, "STARTS": operands.starts}
        arguments |= {n: self.batch.flat(f, 1) for n, f in flags.items() if f is not None}
        kinds = operands.h0.dtype, operands.factor_dtype, operands.b.dtype
        number, *stored = (np.dtype(kind).itemsize for kind in kinds)
        timed = [a.array for a in arguments.values() if a.rows == 1]
        words = sum(-(-a.dtype.itemsize // 4) for a in timed)

        def run(shapes, args, members, rows):
            count = math.prod(members)
            columns = rows * self.width
            plan = tile(columns * count, number, min(stored), words, self.chip.blocks)
            tiles = -(-columns // plan.columns)
            text = source.text(
                kinds, tuple(arguments | results), plan, self.width, self.problem.reverse
            )
            numbers = launch.Numbers(
                blocks=1,
                at_once=tiles * count,
                threads=plan.threads,
                shared=plan.shared,
                steps=self.time,
                rows=rows,
                tiles=tiles,
                groups=tiles * count,
                together=False,
            )
            return launch.run(text, self.chip.architecture, numbers, shapes, args, members)

        out = call(run, arguments.values(), results.values())
        return {
            name: self.batch.unflat(array, array.ndim - 2)
            for name, array in zip(results, out, strict=True)
        }
