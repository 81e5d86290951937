"""One exported module serves every platform, and any number of steps and rows."""

import cases
import jax
import jax.numpy as jnp
import pytest
from jax import export

import jaxrnn

CELLS = {  # one of each operation and kernel, several in one module
    "stack": jaxrnn.stack(
        jaxrnn.bidirectional(jaxrnn.lstm(3), jaxrnn.gru(3)),
        jaxrnn.gru(6, residuals="states"),
        jaxrnn.project(2),
    ),
    "attention": jaxrnn.attention(6, heads=2),
    "gated_delta_net": jaxrnn.gated_delta_net(6, heads=2),
}
PLATFORMS = ("cpu", "tpu", "cuda")


def results(cell):
    """Outputs and gradients."""

    def run(params, xs, lengths):
        unroll = lambda *moving: jaxrnn.unroll(cell, *moving, lengths=lengths)[1]
        ys, pull = jax.vjp(unroll, params, xs)
        return ys, pull(2 * ys)

    return jax.jit(run)


@pytest.mark.parametrize("name", CELLS)
def test_one_module_for_all_platforms(name):
    """Of sizes that are known, and of any."""
    pytest.importorskip("flatbuffers", reason="jax.export needs flatbuffers to write a module")
    cell = CELLS[name]
    params = cell.init(jax.random.key(0), 3)
    xs, lengths = jax.random.normal(jax.random.key(1), (7, 3, 3)), jnp.array([7, 0, 4])
    steps, rows = export.symbolic_shape("T, B")
    any_size = (
        jax.ShapeDtypeStruct((steps, rows, 3), xs.dtype),
        jax.ShapeDtypeStruct((rows,), lengths.dtype),
    )
    run = results(cell)
    wanted = run(params, xs, lengths)
    for shapes in ((xs, lengths), any_size):
        exported = export.export(run, platforms=PLATFORMS)(params, *shapes)
        assert exported.platforms == PLATFORMS
        came = export.deserialize(exported.serialize()).call(params, xs, lengths)
        assert cases.error(came, wanted) < 1e-5


@pytest.mark.parametrize("name", CELLS)
def test_step(name):
    """A step for serving, exported alone."""
    pytest.importorskip("flatbuffers", reason="jax.export needs flatbuffers to write a module")
    cell = CELLS[name]
    if name == "stack":  # without what has no step
        cell = jaxrnn.stack(jaxrnn.lstm(6), jaxrnn.gru(6), jaxrnn.project(2))
    params = cell.init(jax.random.key(0), 3)
    state, x = cell.initial_state(params, (2,)), jnp.ones((2, 3))
    exported = export.export(jax.jit(cell.step), platforms=PLATFORMS)(params, state, x)
    came = export.deserialize(exported.serialize()).call(params, state, x)
    assert cases.error(came, cell.step(params, state, x)) < 1e-6
