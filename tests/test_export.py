"""One exported module serves every platform, and any number of steps and rows."""

import cases
import jax
import jax.numpy as jnp
import pytest
from jax import export

import jaxrnn

CELLS = {
    "lstm": jaxrnn.lstm(6),
    "gru": jaxrnn.gru(6, residuals="states"),
    "attention": jaxrnn.attention(6, heads=2),
    "stack": jaxrnn.stack(jaxrnn.lstm(6), jaxrnn.bidirectional(jaxrnn.gru(3)), jaxrnn.project(2)),
}
PLATFORMS = ("cpu", "tpu", "cuda")


def run(cell):
    def unroll(params, xs, lengths):
        return jaxrnn.unroll(cell, params, xs, lengths=lengths)[1]

    def grads(params, xs, lengths):
        return jax.grad(lambda *a: (unroll(*a, lengths) ** 2).sum(), (0, 1))(params, xs)

    return unroll, grads


@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize("symbolic", (False, True))
def test_one_module_for_all_platforms(name, symbolic):
    cell = CELLS[name]
    pytest.importorskip("flatbuffers", reason="jax.export needs flatbuffers to write a module")
    params = cell.init(jax.random.key(0), 3)
    xs, lengths = jax.random.normal(jax.random.key(1), (7, 3, 3)), jnp.array([7, 0, 4])
    shapes = xs, lengths
    if symbolic:
        steps, rows = export.symbolic_shape("T, B")
        shapes = (
            jax.ShapeDtypeStruct((steps, rows, 3), xs.dtype),
            jax.ShapeDtypeStruct((rows,), lengths.dtype),
        )
    for function in run(cell):
        exported = export.export(jax.jit(function), platforms=PLATFORMS)(params, *shapes)
        assert exported.platforms == PLATFORMS
        again = export.deserialize(exported.serialize())
        came = again.call(params, xs, lengths)
        assert cases.error(came, function(params, xs, lengths)) < 1e-5


@pytest.mark.parametrize("name", CELLS)
def test_step(name):
    """A step for serving, exported alone."""
    cell = jaxrnn.stack(jaxrnn.lstm(6), jaxrnn.project(2)) if name == "stack" else CELLS[name]
    pytest.importorskip("flatbuffers", reason="jax.export needs flatbuffers to write a module")
    params = cell.init(jax.random.key(0), 3)
    state, x = cell.initial_state(params, (2,)), jnp.ones((2, 3))
    exported = export.export(jax.jit(cell.step), platforms=PLATFORMS)(params, state, x)
    came = export.deserialize(exported.serialize()).call(params, state, x)
    assert cases.error(came, cell.step(params, state, x)) < 1e-6
