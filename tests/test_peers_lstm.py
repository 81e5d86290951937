"""Keras's numbers in float64 for an LSTM with other activations, with its weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import error

import jaxrnn

keras = pytest.importorskip("keras")
pytestmark = [
    pytest.mark.usefixtures("x64", "plain_jax"),
    pytest.mark.skipif(keras.backend.backend() != "jax", reason="Keras runs on another backend"),
]

H, INPUTS = 4, 3


@pytest.mark.parametrize("names", [("softplus", "hard_sigmoid"), ("relu", "sigmoid")])
def test_activations(names):
    keras.utils.set_random_seed(0)
    layer = keras.layers.LSTM(
        H,
        activation=names[0],
        recurrent_activation=names[1],
        dtype="float64",
        bias_initializer="glorot_normal",
        return_sequences=True,
    )
    layer.build((2, 7, INPUTS))
    cell = jaxrnn.lstm(H, activation=names[0], gate_activation=names[1])

    def theirs(weights, xs):
        return layer.stateless_call(weights, [v.value for v in layer.non_trainable_variables], xs)[
            0
        ]

    def ours(weights, xs):
        w, r, b = (jnp.atleast_2d(a).reshape(-1, 4, H) for a in weights)  # i f g o, as here
        params = {"w": w, "r": r, "b": b[0]}
        return jaxrnn.unroll(cell, params, xs.swapaxes(0, 1))[1].swapaxes(0, 1)

    rng = np.random.default_rng(0)
    weights = [v.value for v in layer.trainable_variables]
    xs, d = (jnp.array(rng.normal(size=shape)) for shape in ((2, 7, INPUTS), (2, 7, H)))
    came, wanted = ((run(weights, xs), jax.vjp(run, weights, xs)[1](d)) for run in (ours, theirs))
    assert error(came, wanted) < 1e-12
