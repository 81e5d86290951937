"""What no other test looked at, as faults that were planted have shown (`make mutants`)."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import RECUR, TOLERANCE, error

import jaxrnn
import jaxrnn.interop
from jaxrnn._src.ops.step_loop import loop

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


def test_a_known_choice_beyond_the_last_case(x64):
    """A loop's count picks between numbers; what is beyond them picks the last, as in XLA."""

    def picking_update(state, x, r):
        cases = lambda h: (jnp.asarray(0.5, h.dtype), jnp.asarray(2.0, h.dtype))
        pick = lambda i, h: jnp.tanh(h * jax.lax.select_n(i, *cases(h)))
        return (jax.lax.fori_loop(0, 4, pick, state[0] + x[0] + r[0]),)

    cell = jaxrnn.gated(picking_update, gates=1)(4)
    params, xs = cell.init(KEY, 3), jnp.ones((5, 2, 3))
    runs = [None, "xla", "reference"]
    came, xla, wanted = (jaxrnn.unroll(cell, params, xs, implementation=run) for run in runs)
    assert error(came, wanted) < 1e-12 and error(xla, wanted) < 1e-12
    h = np.asarray(xs[0]) @ np.asarray(params["w"])[:, 0] + np.asarray(params["b"])[0]
    for factor in (0.5, 2.0, 2.0, 2.0):
        h = np.tanh(h * factor)
    assert error(wanted[1][0], h) < 1e-12


@pytest.mark.parametrize("implementation", (*RECUR, "reference"))
def test_nan_on_either_side_of_a_bound(implementation):
    """What is larger, or smaller, than NaN is NaN."""

    def bounding_update(state, x, r):
        (h, *_), (a, b) = state, x
        return h, jnp.maximum(a, b), jnp.minimum(a, b), jnp.maximum(b, a), jnp.minimum(b, a)

    cell = jaxrnn.gated(bounding_update, gates=2, states=5)(3)
    params = jax.tree.map(jnp.zeros_like, cell.init(KEY, 1))
    params["b"] = jnp.array([[jnp.nan, 2.0, jnp.nan], [1.0, jnp.nan, jnp.nan]])
    state, _ = jaxrnn.unroll(cell, params, jnp.ones((2, 1)), implementation=implementation)
    assert all(np.isnan(bound).all() for bound in state[1:])


@pytest.mark.parametrize("dtype", ("float32", "bfloat16"))
def test_narrow_inputs_of_float64_weights(x64, dtype):
    """Outputs and the inputs' gradient are written in the inputs' type."""
    cell, rng = jaxrnn.lstm(5), np.random.default_rng(0)
    params, xs = cell.init(KEY, 3), jnp.asarray(rng.normal(size=(4, 2, 3)), dtype)
    weights = jnp.asarray(rng.normal(size=(4, 2, 5)), dtype)

    @functools.partial(jax.jit, static_argnums=0)
    def run(implementation, xs):
        unroll = lambda xs: jaxrnn.unroll(cell, params, xs, implementation=implementation)[1]
        ys, pull = jax.vjp(unroll, xs)
        return ys, *pull(weights)

    wanted = run("reference", xs)
    for implementation in RECUR:
        came = run(implementation, xs)
        assert {a.dtype.name for a in came} == {dtype}
        assert error(came, wanted) < TOLERANCE[dtype][1]


@pytest.mark.parametrize("dtype", ("float16", "bfloat16"))
@pytest.mark.parametrize("implementation", RECUR)
def test_halves_are_rounded_to_even(implementation, dtype):
    """Half as much again of an odd number lies halfway between two of a narrow type."""

    def adding_update(state, x, r):
        return (x[0] + r[0],)

    cell = jaxrnn.gated(adding_update, gates=1)(1)
    params = {"w": np.full((1, 1, 1), 1.5), "r": np.zeros((1, 1, 1)), "b": np.zeros((1, 1))}
    params = jax.tree.map(lambda p: jnp.asarray(p, jnp.float32), params)
    digits = 11 if dtype == "float16" else 8
    odd = np.arange(2 ** (digits - 1) + 1, 2**digits, 2).astype(jnp.dtype(dtype))
    xs = jnp.asarray(np.concatenate([odd, -odd]))[None, :, None]
    came = np.asarray(jaxrnn.unroll(cell, params, xs, implementation=implementation)[1])
    exact = np.asarray(xs, np.float32) * np.float32(1.5)
    np.testing.assert_array_equal(came, exact.astype(xs.dtype))
    assert (np.abs(exact - came.astype(np.float32)) == 0.5).any(), "there are halves"
