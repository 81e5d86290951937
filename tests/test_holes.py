"""What no other test looked at, as faults that were planted have shown (`make mutants`)."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import error

import jaxrnn
import jaxrnn.interop
from jaxrnn.loop import loop

KEY = jax.random.key(0)


def test_weights_of_units_beside_a_number_that_is_closed_over(x64):
    """Both are handed to the update, each in its place."""

    def make(a):
        def closing_update(state, x, r, gain, shift):
            return (jnp.tanh(a * (x[0] + r[0])) * gain + shift,)

        unit = {"gain": jax.nn.initializers.normal(), "shift": jax.nn.initializers.normal()}
        return jaxrnn.gated(closing_update, gates=1, unit=unit)(4)

    params, xs = make(1.0).init(KEY, 3), np.random.default_rng(0).normal(size=(5, 2, 3))

    @jax.jit
    def run(a, params):
        return jaxrnn.unroll(make(a), params, jnp.asarray(xs))[1]

    w, r, b, gain, shift = (np.asarray(params[n]) for n in ("w", "r", "b", "gain", "shift"))
    h, wanted = np.zeros((2, 4)), []
    for x in xs:
        h = np.tanh(1.3 * (x @ w[:, 0] + h @ r[:, 0] + b[0])) * gain + shift
        wanted.append(h)
    assert error(run(1.3, params), np.array(wanted)) < 1e-12


def test_layers_draw_apart():
    """Two layers that drop a half leave a quarter."""
    cell = jaxrnn.stack(jaxrnn.dropout(0.5), jaxrnn.dropout(0.5))
    xs = jnp.ones((50, 4, 100))
    ys = np.asarray(jaxrnn.unroll(cell, cell.init(KEY, 100), xs, key=KEY)[1])
    assert abs((ys != 0).mean() - 0.25) < 0.02


def test_a_byte_changed_in_a_larger_file(tmp_path):
    """An array is known by all of its bytes, not by the first of them."""
    files = pytest.importorskip("jaxrnn.files")
    path, cell = tmp_path / "saved.safetensors", jaxrnn.elman(8)
    files.save(path, cell, cell.init(KEY, 3))
    data = path.read_bytes()
    for i in range(len(data) - 1, 0, -7):
        path.write_bytes(data[:i] + bytes([data[i] ^ 1]) + data[i + 1 :])
        with pytest.raises(ValueError, match="saved.safetensors: "):
            files.load(path)


def test_a_written_size_between_two_directions_and_the_next_layer():
    """A model may say how many features both directions give, in place of -1."""
    onnx = pytest.importorskip("onnx")
    cell = jaxrnn.stack(jaxrnn.bidirectional(jaxrnn.gru(4)), jaxrnn.gru(5))
    model = jaxrnn.interop.to_onnx(cell, cell.init(KEY, 3))
    (shape,) = (one for one in model.graph.initializer if one.name == "shape_0")
    assert onnx.numpy_helper.to_array(shape).tolist() == [0, 0, -1]
    shape.CopyFrom(onnx.numpy_helper.from_array(np.array([0, 0, 8]), "shape_0"))
    assert jaxrnn.interop.from_onnx(model)[0] == cell
    shape.CopyFrom(onnx.numpy_helper.from_array(np.array([0, 0, 12]), "shape_0"))
    with pytest.raises(ValueError):
        jaxrnn.interop.from_onnx(model)


def test_a_product_taken_twice_in_a_step(x64):
    """Its weight's gradient is the sum of both."""

    def step(others, state, x, dot):
        (h,) = state
        h = jnp.tanh(x + dot("r", jnp.tanh(x + dot("r", h))))
        return (h,), h

    rng = np.random.default_rng(0)
    xs, r, h, d_y = (rng.normal(size=s) for s in ((5, 2, 3), (3, 3), (2, 3), (5, 2, 3)))

    @functools.partial(jax.jit, static_argnums=0)
    def gradients(implementation, *moving):
        def loss(xs, r, h):
            _, ys = loop(
                step, xs, {"r": r}, {}, (h,), product="float64", implementation=implementation
            )
            return (ys * d_y).sum()

        return jax.grad(loss, (0, 1, 2))(*moving)

    given = xs, r, h
    came = gradients("xla", *given)
    assert error(came, gradients("reference", *given)) < 1e-12
    assert (np.asarray(came[1]) != 0).all()
