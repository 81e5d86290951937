"""What nobody uses is not made: outputs where only the last state is used, and gradients.

That it is found wherever it stands, and what is left transformed, is held of a toy
(`test_operation`). Here are the implementations, and the cells made of others.
"""

import functools

import cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import CELLS, RECUR, REFERENCE
from emulated import emulated
from interpreted import interpreted
from jax import export
from jax.interpreters import partial_eval
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from transforms import equations

import jaxrnn

LONG, ROWS, WIDTH = 20_000, 8, 256
SHAPE = cases.Shape(11, (5,), 3, 6)
OUTPUTS = "11x5x6x"  # of SHAPE, in the text of a program

MEMORY = {
    "lstm": jaxrnn.lstm(WIDTH),
    "layer_norm_lstm": jaxrnn.layer_norm_lstm(WIDTH),
    "mlstm": jaxrnn.mlstm(WIDTH),
    "min_gru": jaxrnn.min_gru(WIDTH),
    "rg_lru_block": jaxrnn.rg_lru_block(WIDTH),
    "stack": jaxrnn.stack(jaxrnn.lstm(WIDTH), jaxrnn.lstm(WIDTH)),
}


@pytest.mark.parametrize("name", MEMORY)
def test_memory_of_the_last_state(name):
    """It does not grow with the number of steps: the outputs alone would be 164 MB."""
    cell = MEMORY[name]
    params = jax.eval_shape(lambda: cell.init(jax.random.key(0), 1))
    xs = jax.ShapeDtypeStruct((LONG, ROWS, 1), jnp.float32)
    run = lambda p, x: jaxrnn.unroll(cell, p, x)[0]
    used = jax.jit(run).lower(params, xs).compile().memory_analysis().temp_size_in_bytes
    assert used < 4 * LONG * ROWS * WIDTH / 6


def last(e, implementation=None, **options):
    """The final state as a function of (params, xs)."""
    return lambda p, x: jaxrnn.unroll(
        e.cell, p, x, e.state, implementation=implementation, **options
    )[0]


def made(function, *args):
    """What is left of each operation when dead code is gone: name, what is wanted, ``save``."""
    jaxpr = jax.make_jaxpr(function)(*args).jaxpr
    alive, _ = partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
    found = [eqn for eqn in equations(alive) if "wanted" in eqn.params]
    return [(eqn.primitive.name, eqn.params["wanted"], eqn.params.get("save")) for eqn in found]


ONE_OUTPUT = [("lstm", i, given) for i in RECUR for given in (False, True)]
ONE_OUTPUT += [("gru_heads", None, True), ("lstm_chunks", None, True)]
ONE_OUTPUT += [("gru_reset_before", "xla", False), ("min_gru", "xla", False)]
ONE_OUTPUT += [("min_gru", "xla", True)]


@pytest.mark.parametrize(("name", "implementation", "given"), ONE_OUTPUT)
def test_state_and_gradient(x64, name, implementation, given):
    """The state has the same bits with and without outputs; its gradient is the reference's."""
    e = cases.example(CELLS[name], SHAPE)
    options = {"mask": e.mask, "starts": e.starts, "reverse": True} if given else {}
    fast, slow = (last(e, i, **options) for i in (implementation, REFERENCE))
    weights = cases.cotangents(e.state)

    def gradient(run, *moving):
        return jax.vjp(run, *moving)[1](weights)

    @jax.jit
    def all_at_once(*moving):
        whole = jaxrnn.unroll(e.cell, *moving, e.state, implementation=implementation, **options)
        return whole, fast(*moving), gradient(fast, *moving), gradient(slow, *moving)

    (with_outputs, _), state, came, wanted = all_at_once(e.params, e.xs)
    for a, b in zip(state, with_outputs, strict=True):
        np.testing.assert_array_equal(a, b)
    assert cases.error(came, wanted) < 1e-11
    (_, (*states, ys), save), *_ = made(fast, e.params, e.xs)
    assert all(states) and not ys and not save
    # The backward reads outputs only where nothing is held or put back.
    forward = made(functools.partial(gradient, fast), e.params, e.xs)[:-1]
    assert forward[-1][1][-1] == (not given and name != "gru_reset_before")


def test_a_stack_makes_the_outputs_that_are_used():
    cell = jaxrnn.stack(jaxrnn.lstm(6), jaxrnn.gru(6), jaxrnn.project(2))
    e = cases.example(cases.Case(lambda hidden: cell), SHAPE, dtype=jnp.float32)
    first, second = made(last(e), e.params, e.xs)
    assert first[1] == (True, True, True) and second[1] == (True, False)
    # Nor is a layer that nobody looks at.
    assert made(lambda p, x: last(e)(p, x)[0], e.params, e.xs) == [
        ("recur", (True, True, False), False)
    ]


def test_gradients_that_nobody_uses():
    """As of weights that are frozen."""
    e = cases.example(CELLS["lstm"], SHAPE, dtype=jnp.float32)

    def gradient(p, x):
        return jax.grad(lambda p, x: last(e)(p, x)[0].sum(), (0, 1))(p, x)

    picks = (lambda d: d[0]["b"], lambda d: d[1])
    runs = [lambda p, x, pick=pick: pick(gradient(p, x)) for pick in picks]
    for run in runs:
        ((_, wanted, _),) = [m for m in made(run, e.params, e.xs) if m[0] == "recur_backward"]
        assert sum(wanted) == 1
    whole, parts = jax.jit(lambda *a: (gradient(*a), [run(*a) for run in runs]))(e.params, e.xs)
    for pick, part in zip(picks, parts):
        assert cases.error(part, pick(whole)) < 1e-6


@pytest.mark.skipif(jax.device_count() < 8, reason="wants 8 devices")
def test_rows_stay_on_their_devices():
    e = cases.example(CELLS["lstm"], cases.Shape(11, (16,), 3, 6), dtype=jnp.float32)
    run = last(e._replace(state=None), mask=e.mask)
    wanted = run(e.params, e.xs)
    mesh = jax.make_mesh((8,), ("rows",), axis_types=(jax.sharding.AxisType.Auto,))
    xs = jax.device_put(e.xs, NamedSharding(mesh, P(None, "rows")))
    compiled = jax.jit(run).lower(e.params, xs).compile()
    assert cases.error(compiled(e.params, xs), wanted) < 1e-6
    text = compiled.as_text()
    assert "all-gather" not in text and "11,2,6" not in text


def test_export():
    pytest.importorskip("flatbuffers", reason="jax.export needs flatbuffers to write a module")
    e = cases.example(CELLS["lstm"], SHAPE, dtype=jnp.float32)
    run = jax.jit(last(e))
    exported = export.export(run, platforms=("cpu", "tpu", "cuda"))(e.params, e.xs)
    assert OUTPUTS not in exported.mlir_module()
    came = export.deserialize(exported.serialize()).call(e.params, e.xs)
    assert cases.error(came, run(e.params, e.xs)) < 1e-5


def test_the_kernel_for_tpus():
    e = cases.example(CELLS["lstm"], SHAPE, dtype=jnp.float32)
    with interpreted():
        lowered = jax.jit(last(e, "tpu", mask=e.mask, starts=e.starts)).lower(e.params, e.xs)
        came = lowered.compile()(e.params, e.xs)
    assert OUTPUTS not in lowered.as_text()
    assert (
        cases.error(came, last(e, REFERENCE, mask=e.mask, starts=e.starts)(e.params, e.xs)) < 1e-5
    )


def test_the_linear_kernel_for_tpus():
    e = cases.example(CELLS["min_gru"], SHAPE, dtype=jnp.float32)
    with interpreted():
        run = last(e, "tpu", mask=e.mask)
        assert made(run, e.params, e.xs) == [("linear_scan", (True, False), False)]
        came = jax.jit(run)(e.params, e.xs)
    assert cases.error(came, last(e, REFERENCE, mask=e.mask)(e.params, e.xs)) < 1e-5


def test_the_kernel_for_gpus():
    e = cases.example(CELLS["lstm"], SHAPE, dtype=jnp.float32)
    with emulated(), jax.default_matmul_precision("highest"):
        lowered = jax.jit(last(e, "gpu", mask=e.mask, starts=e.starts)).lower(e.params, e.xs)
        came = jax.block_until_ready(lowered.compile()(e.params, e.xs))
    assert OUTPUTS not in lowered.as_text()
    assert (
        cases.error(came, last(e, REFERENCE, mask=e.mask, starts=e.starts)(e.params, e.xs)) < 1e-5
    )
