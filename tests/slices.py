"""Random batches, cut into slices of which some are shorter: the kernel for CPUs beside XLA.

A program of its own, run by `test_cpu_random` with so many threads, in as many rounds:

    NPROC=5 python tests/slices.py 5 10
"""

import pathlib
import sys

import cases
import jax
import numpy as np

import jaxrnn


def of_parts(hidden, **gated):
    """A cell with neither heads nor residuals, whose rows are always cut."""
    del gated
    return jaxrnn.gru(hidden, reset_after=False)


CELLS = jaxrnn.lstm, jaxrnn.gru, jaxrnn.elman, cases.peephole, of_parts
FEWEST = 12  # rows of a thread: a smaller batch is not cut
CALLS = 10  # of each program: it takes threads that meet


def drawn(rng, threads):
    """A cell, the arrays of a call, and its options."""
    make, (steps, inputs) = CELLS[rng.integers(len(CELLS))], rng.integers(1, (90, 8)).tolist()
    if rng.random() < 0.75:
        # About as many rows for each thread: the last has fewer, or the last few, or none has.
        batch = threads * rng.integers(FEWEST + 1, 25) + rng.integers(-threads, threads + 1)
    else:  # threads share the units
        batch = rng.integers(1, FEWEST * threads)
    width, heads = int(rng.integers(1, 60)), (1, 1, 1, 2)[rng.integers(4)]
    residuals = ("gates", "states", "chunks")[rng.integers(3)]
    cell = make(heads * width, heads=heads, residuals=residuals)
    params = jax.eval_shape(lambda key: cell.init(key, inputs), jax.random.key(0))
    # Small enough that no rounding grows from step to step.
    scaled = lambda p: (rng.normal(size=p.shape) / 2 / width**0.5).astype(p.dtype)
    params = jax.tree.map(scaled, params)
    xs = rng.normal(size=(steps, batch, inputs)).astype(np.float32)
    flags = {
        name: rng.random((steps, batch)) < share
        for name, share in (("mask", 0.7), ("starts", 0.2))
        if rng.random() < 0.5
    }
    return cell, (params, xs), {"reverse": bool(rng.random() < 0.5)}, flags


def check(cell, moving, options, flags):
    """Outputs, states and gradients, in every one of several calls."""

    def results(which):
        def run(moving, flags):
            more = dict(**options, **flags, implementation=which)
            out, pull = jax.vjp(lambda *moving: jaxrnn.unroll(cell, *moving, **more), *moving)
            return out, pull(cases.cotangents(out))

        return jax.jit(run)

    ours, wanted = results("cpu"), results("xla")(moving, flags)
    for _ in range(CALLS):
        came = ours(moving, flags)
        for a, b, most in zip(came, wanted, cases.TOLERANCE["float32"], strict=True):
            off = cases.error(a, b)
            assert off < most, f"{off=}: {cell}, xs {moving[1].shape}, {options}, {[*flags]}"


if __name__ == "__main__":
    threads, count = map(int, sys.argv[1:])
    rng = np.random.default_rng(threads)
    for _ in range(count):
        check(*drawn(rng, threads))
    names = [path.read_text() for path in pathlib.Path("/proc/self/task").glob("*/comm")]
    assert not names or names.count("tf_XLAEigen\n") == threads, "XLA has other threads"
