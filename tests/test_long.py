"""More than 65,536 steps in float32: finite, and as near to float64 as a short run is.

Sixteen bits cannot count the steps (cuDNN stops there), and as their number is prime, no chunk or
piece divides it.
"""

import functools

import cases
import jax
import numpy as np
import pytest

import jaxrnn
from jaxrnn._src.core.lowering_target import Target
from jaxrnn._src.ops.linear_scan import xla
from jaxrnn._src.ops.linear_scan.problem import Problem, completed

STEPS, SIZE = 65_537, 4
CELLS = {
    "lstm": jaxrnn.lstm(SIZE, forget_bias=0.0),
    "gru": jaxrnn.gru(SIZE),
    "lru": jaxrnn.lru(SIZE, state=8, r_min=0.9, r_max=0.999),
    "s5": jaxrnn.s5(SIZE, state=8),
    "rg_lru": jaxrnn.rg_lru(SIZE),
    "gilr": jaxrnn.gilr(SIZE),
    "min_gru": jaxrnn.min_gru(SIZE),
    "min_lstm": jaxrnn.min_lstm(SIZE),
    "mlstm": jaxrnn.mlstm(SIZE, heads=2),
    "mlstm_sigmoid": jaxrnn.mlstm(SIZE, heads=2, gate="sigmoid"),
    "kimi_delta": jaxrnn.kimi_delta(SIZE, heads=2, negative=True),
    "attention": jaxrnn.attention(SIZE, heads=1, window=4),
}
# By what its gradients may be off: those of an mlstm go through a denominator near zero.
GRADED = {"lstm": 1e-5, "mlstm": 1e-4, "mlstm_sigmoid": 1e-5}
pytestmark = pytest.mark.usefixtures("x64")


@functools.cache
def given(dtype):
    """Parameters of each cell, and one sequence for all: the same numbers in either type."""
    rng = np.random.default_rng(3)
    make = jax.jit(lambda key: {name: cell.init(key, SIZE) for name, cell in CELLS.items()})
    params = jax.tree.map(lambda p: p + 0.1 * rng.normal(size=p.shape), make(jax.random.key(3)))
    both = params, rng.normal(size=(STEPS, 1, SIZE))
    return jax.tree.map(lambda a: a.astype("float32").astype(dtype), both)


def stepped(cell, params, xs):
    """The law: a scan of the cell's step."""
    state = cell.initial_state(params, xs.shape[1:-1])
    return jax.lax.scan(lambda state, x: cell.step(params, state, x), state, xs)


def of_each(run, names, dtype):
    """``run(cell, params, xs)`` of each cell, by one program."""

    @jax.jit
    def all_of_them(params, xs):
        return {name: run(CELLS[name], params[name], xs) for name in names}

    return all_of_them(*given(dtype))


def test_every_recurrence():
    def run(cell, params, xs):
        # On a CPU, an mlstm runs step after step, and rounds as its step does: see below.
        name = "xla" if cell is CELLS["mlstm"] else None
        return jaxrnn.unroll(cell, params, xs, implementation=name)

    came, wanted = of_each(run, CELLS, "float32"), of_each(stepped, CELLS, "float64")
    off = {name: cases.error(came[name], wanted[name]) for name in CELLS}
    assert max(off.values()) < 1e-5, off


@pytest.mark.skipif(cases.NO_KERNEL is not None, reason=str(cases.NO_KERNEL))
def test_an_mlstm_on_a_cpu():
    """No further off than its step, whose rounding a denominator near zero makes large."""
    run = functools.partial(jaxrnn.unroll, implementation="cpu")
    wanted, *both = (
        of_each(function, ("mlstm",), dtype)
        for function, dtype in ((stepped, "float64"), (stepped, "float32"), (run, "float32"))
    )
    step, kernel = (cases.error(came, wanted) for came in both)
    assert kernel < 1.2 * step, (kernel, step)


def test_gradients():
    """Of parameters and inputs; nothing is done in pieces here, and all steps are kept."""

    def graded(run):
        def both(cell, params, xs):
            out, pull = jax.vjp(lambda *moving: run(cell, *moving), params, xs)
            return pull(cases.cotangents(cases.floating(out)))

        return both

    came = of_each(graded(jaxrnn.unroll), GRADED, "float32")
    wanted = of_each(graded(stepped), GRADED, "float64")
    off = {name: cases.error(came[name], wanted[name]) for name in GRADED}
    assert all(off[name] < most for name, most in GRADED.items()), off


def test_the_linear_recurrence():
    """As exact as step by step, whatever is multiplied first: on a CPU and as on a GPU."""
    rng = np.random.default_rng(0)
    a, b = 0.9 + rng.random((STEPS, 1, 2)) / 10, rng.normal(size=(STEPS, 1, 2))
    a, b = a.astype(np.float32), b.astype(np.float32)

    @jax.jit
    def run(*arrays):
        operands = completed(*arrays, None, None, None, False)
        return {
            platform: xla.forward(
                Problem(False, None), operands, (True, True), False, Target(platform)
            )
            for platform in ("cpu", "cuda")
        }

    h, hs = np.zeros((1, 2)), []
    for factor, added in zip(a.astype(float), b.astype(float)):
        h = factor * h + added
        hs.append(h)
    for platform, came in run(a, b).items():
        assert cases.error(came, [h, np.stack(hs)]) < 1e-5, platform
