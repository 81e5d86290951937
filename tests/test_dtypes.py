"""What implementations give at the edges of a type: NaN, ties, inputs narrower than weights."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import RECUR, TOLERANCE, error

import jaxrnn

KEY = jax.random.key(0)


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
