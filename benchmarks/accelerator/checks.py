"""Is every implementation right on this device? Against float64 on the host.

The truth is the reference on the host's CPU in float64, with the very numbers that the device is
given: they are rounded to the type that is checked first. Float32 is computed with products of
full precision, unless the check is of rounded ones. An error is the largest one of an array over
the largest value of that array. Repeated runs are compared with the first of them.
"""

import functools
import math
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxrnn
from benchmarks.accelerator import attention, driver, linear
from benchmarks.accelerator.cases import packed, unpacked
from benchmarks.accelerator.kinds import (
    ALWAYS,
    CELLS,
    COMMON,
    FULL,
    KINDS,
    MEMORY,
    REPEATED,
    SHAPES,
    TINY,
)
from benchmarks.accelerator.once import once
from benchmarks.shared.shapes import Shape
from jaxrnn._src.core.dispatch import NAMES, REFERENCE
from jaxrnn._src.ops.gpu import library

# Of outputs and states; of gradients and tangents.
TOLERANCE = {"float32": (5e-6, 1.5e-5), "bfloat16": (2e-2, 4e-2), "float16": (4e-3, 8e-3)}
ROUNDED = (2e-3, 4e-3)  # of float32 whose factors are rounded to TF32
# For every product XLA would compile many tilings and time them on the device, one program at a
# time: most of a minute for a check that runs for a millisecond. A product is cuBLAS' here, as a
# tiling would have to be compiled too. The rows are timed with what XLA finds.
GPU = (("xla_gpu_autotune_level", 0), ("xla_gpu_enable_triton_gemm", False))
_BEST_FIRST = NAMES[::-1]  # reference stands first there
OUTPUTS = ("outputs", "outputs kept")  # all else that a kind gives are gradients and tangents


class Case(NamedTuple):
    """One check."""

    kind: str
    cell: str
    dtype: str
    shape: Shape
    implementation: str

    def __str__(self):
        shape = "" if self.shape.name == "base" else f" {self.shape.name}"
        return f"{self.cell} {self.kind}{shape} {self.dtype} {self.implementation}"


def cases(chosen, order):
    """All checks, ``order`` being how to take several axes: see ``accelerator.broadly``."""
    shapes = [TINY] if chosen.tiny else list(SHAPES.values())
    some = [c for c in order(KINDS, chosen.dtypes, shapes, chosen.cells) if _wanted(*c)]
    families = ("lstm", linear.NAME, attention.NAME, MEMORY)
    names = {like: _names(like, chosen.dtypes, shapes[0]) for like in families}
    found = [
        Case(kind, cell, dtype, linear.fitted(cell, shape), name)
        for kind, dtype, shape, cell in some
        for name in names[_family(cell)]
        if name == names[_family(cell)][0] or (kind in ALWAYS and shape.name == "base")
    ]
    return [*_alone(found), *found]


def _alone(cases):
    """The kernels for NVIDIA GPUs by the driver alone, where they run: without transforms."""
    for case in cases:
        few = case.shape.name in ("base", REPEATED.name)
        plain = case.kind in ALWAYS or KINDS[case.kind].runs > 1
        alone = _family(case.cell) in ("lstm", linear.NAME)  # whose gradient is one kernel
        ours = case.implementation == driver.KERNEL and alone
        if few and ours and (plain or KINDS[case.kind].precision != FULL):
            yield case._replace(implementation=driver.NAME)


def _family(cell):
    """A cell with the same implementations."""
    if cell == MEMORY:
        return cell
    return next((f.NAME for f in (linear, attention) if cell in f.CELLS), "lstm")


def _names(cell, dtypes, shape):
    """Of the implementations that run a cell here in any type."""
    runs = {name for dtype in dtypes for name in implementations(cell, dtype, shape)}
    return [name for name in _BEST_FIRST if name in runs]


def _wanted(kind, dtype, shape, cell):
    """Not every combination: what an implementation may get wrong apart is checked apart."""
    always, common = kind in ALWAYS, cell in COMMON
    if cell in linear.CELLS:
        return always and dtype != "float16" and shape.name in ("base", linear.CHUNKS.name)
    if cell == MEMORY:
        return always and dtype != "float16" and shape.name in ("base", "steps")
    if cell in attention.CELLS:
        return (kind == "plain" or (kind in ALWAYS and dtype != "float16")) and shape.name in (
            "base",
            attention.BLOCKS.name,
        )
    if shape in (linear.CHUNKS, attention.BLOCKS):
        return False
    repeated = KINDS[kind].runs > 1
    if repeated or shape is REPEATED:
        return repeated and shape in (REPEATED, TINY) and common and dtype != "float16"
    if shape.name != "base":
        return always and common and dtype != "float16"
    if KINDS[kind].weights == dtype:
        return False  # the same as without
    if KINDS[kind].precision != FULL:
        return common and dtype == "float32"
    return always or (dtype != "float16" and (common or kind == "heads"))


def implementations(cell, dtype, shape):
    """The names of those that can run a cell here, the best first."""
    layer = _layer(cell, dtype, linear.fitted(cell, shape))
    return [name for name in _BEST_FIRST if why_not(name, *layer) is None]


def usual(cell, dtype, shape):
    """The name of the one that a user gets, who asks for none."""
    return jaxrnn.explain(*_layer(cell, dtype, linear.fitted(cell, shape))).choices[0].runs


def explained(case):
    """Which implementation a layer runs on here, and why not on the others."""
    return str(jaxrnn.explain(*_layer(case.cell, case.dtype, case.shape)))


def _layer(cell, dtype, shape):
    """A cell, and what its parameters and inputs look like."""
    cell = CELLS[cell](shape.H)
    params = jax.eval_shape(lambda: cell.init(jax.random.key(0), shape.I))
    params = jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape, dtype), params)
    return cell, params, jax.ShapeDtypeStruct((shape.T, shape.B, shape.I), dtype)


def why_not(implementation, cell, *arrays, **flags):
    """Why an implementation cannot run here; None if it can."""
    try:
        jaxrnn.explain(cell, *arrays, implementation=implementation, **flags)
    except ValueError as error:
        return str(error)


def missing(device):
    """Why the kernel for a GPU is not there at all, None if it is; no GPU needs it."""
    if device.platform != "gpu" or "NVIDIA" not in device.device_kind:
        return None
    return library.missing()


def failed(case, problem):
    """The row of a check whose process died."""
    name = str(unpacked(Case, case))
    return case | {"name": name, "passed": False, "errors": {}, "problem": problem}


def measure(case):
    """One check, as it is kept: passed, failed, or neither where the implementation cannot."""
    begin = time.monotonic()
    row = packed(case) | {"name": str(case), "passed": False, "errors": {}}
    try:
        row |= _checked(case)
    except Exception as error:  # whatever it is, it is this check's result
        row["problem"] = f"{type(error).__name__}: {error}"
    return row | {"seconds": time.monotonic() - begin}


def _checked(case):
    if case.implementation == driver.NAME:
        with driver.alone():
            return _checked(case._replace(implementation=driver.KERNEL))
    given = _given(case.kind, case.cell, case.dtype, case.shape)
    params, xs, state = given.moving
    why = why_not(case.implementation, given.cell, params, xs, state, **given.flags)
    if why:
        return {"passed": None, "problem": why}
    kind = KINDS[case.kind]
    with jax.default_matmul_precision(kind.precision):
        came = _computed(given, case.kind, case.implementation)
        if kind.runs > 1:
            return _repeated(given, case, came, kind.runs)
    wanted = _truth(case.kind, case.cell, case.dtype, case.shape)
    errors = {name: _error(came[name], value) for name, value in wanted.items()}
    tolerance = TOLERANCE[case.dtype] if kind.precision == FULL else ROUNDED
    limits = {n: tolerance[n.split(".")[0] not in OUTPUTS] for n in errors}
    wrong = [n for n, error in errors.items() if error is None or error > limits[n]]
    problem = None
    if wrong:
        worst = max(wrong, key=lambda n: math.inf if errors[n] is None else errors[n] / limits[n])
        size = "not finite" if errors[worst] is None else f"an error of {errors[worst]:.1e}"
        problem = f"{len(wrong)} of {len(errors)} arrays, worst {worst}: {size}"
    return {"passed": not wrong, "errors": errors, "problem": problem}


def _repeated(given, case, first, runs):
    """A run is any other one, bit for bit. A race between blocks would show in some."""
    differ = dict.fromkeys(first, 0)
    for _ in range(runs - 1):
        came = _computed(given, case.kind, case.implementation)
        for name, array in came.items():
            differ[name] += array.tobytes() != first[name].tobytes()
    wrong = [name for name, count in differ.items() if count]
    problem = f"of {runs} runs, some differ in {', '.join(wrong)}" if wrong else None
    share = {name: count / runs for name, count in differ.items()}
    return {"passed": not wrong, "errors": share, "problem": problem}


class Given(NamedTuple):
    """Everything a check starts from, as NumPy arrays."""

    cell: jaxrnn.Cell
    moving: tuple  # params, xs, state
    cotangents: tuple  # of the state and of ys
    flags: dict


def _given(kind, cell, dtype, shape):
    rng, kind = np.random.default_rng(0), KINDS[kind]
    cell = CELLS[cell](shape.H, **kind.layer)

    def random(like, dtype, scale=1.0):
        numbers = scale * rng.standard_normal(like.shape, np.float32)
        return numbers.astype(jnp.dtype(dtype))

    def tree(shapes, dtype, scale=1.0):
        return jax.tree.map(lambda like: random(like, dtype, scale), shapes)

    init = lambda: cell.init(jax.random.key(0), shape.I)
    params = tree(jax.eval_shape(init), kind.weights or dtype, shape.H**-0.5)
    xs = random(np.empty((shape.T, shape.B, shape.I)), dtype)
    state = jax.eval_shape(lambda: cell.initial_state(params, (shape.B,)))
    ys = np.empty((shape.T, shape.B, shape.H))
    lengths = np.resize([shape.T, 0, shape.T // 2, shape.T, 1], shape.B)
    flags = {
        "lengths": lengths.astype(np.int32),
        "mask": rng.random((shape.T, shape.B)) < 0.7,
        "starts": rng.random((shape.T, shape.B)) < 0.3,
        "reverse": True,
    }
    return Given(
        cell,
        (params, xs, tree(state, "float32")),
        (tree(state, "float32"), random(ys, dtype)),
        {name: flags[name] for name in kind.flags},
    )


def _computed(given, kind, implementation):
    """What the kind computes, as NumPy arrays by name."""
    arrays = {name: flag for name, flag in given.flags.items() if name != "reverse"}
    device = jax.config.jax_default_device or jax.devices()[0]
    options = GPU if device.platform == "gpu" else ()
    program = _program(given.cell, kind, "reverse" in given.flags, implementation, options)
    tree = program(given.moving, given.cotangents, arrays)
    found, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): np.asarray(value)
        for path, value in found
    }


@functools.cache
def _program(cell, kind, reverse, implementation, options):
    """One for all types: the truth of each is in float64, and is compiled once."""

    @functools.partial(jax.jit, compiler_options=dict(options))
    def compute(moving, cotangents, arrays):
        def run(*moving):
            return jaxrnn.unroll(
                cell, *moving, **arrays, reverse=reverse, implementation=implementation
            )

        return KINDS[kind].compute(run, moving, cotangents)

    return compute


@once(16)  # the implementations follow one another, and some truths are 150 MB
def _truth(kind, cell, dtype, shape):
    """What is right, as NumPy arrays by name: of all implementations."""

    def wide(a):
        return a.astype(np.float64)

    given = _given(kind, cell, dtype, shape)
    moving, cotangents = jax.tree.map(wide, (given.moving, given.cotangents))
    given = given._replace(moving=moving, cotangents=cotangents)
    with jax.enable_x64(True), jax.default_device(jax.devices("cpu")[0]):
        return _computed(given, kind, REFERENCE)


def _error(came, wanted):
    """The largest error over the largest value; None if it is not finite."""
    if came.shape != wanted.shape:
        raise ValueError(f"got {came.shape}, want {wanted.shape}")
    error = np.abs(came.astype(np.float64) - wanted).max() / max(np.abs(wanted).max(), 1e-6)
    return float(error) if np.isfinite(error) else None


def brief(row):
    """A check in a few words."""
    if row["passed"] is None:
        return "cannot run"
    if not row["passed"]:
        return "[red]failed[/]"
    return f"right, error {max(row['errors'].values()):.1e}"
