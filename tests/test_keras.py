"""Keras's numbers in float64, with its weights: outputs, final states and all gradients.

Keras repeats the last output at a masked step where ours is zero: real steps are compared.
"""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import error

import jaxrnn
from jaxrnn._src.core.sequence import select

keras = pytest.importorskip("keras")
pytestmark = [
    pytest.mark.usefixtures("x64"),
    pytest.mark.skipif(keras.backend.backend() != "jax", reason="Keras runs on another backend"),
]

T, B, H, INPUTS = 7, 4, 4, 3
HOLES = ["1111111", "0110100", "1000001", "0000000"]  # a row of the batch each, 1 a real step
CELLS = {  # Keras's layer, our cell
    "elman": (keras.layers.SimpleRNN, jaxrnn.elman(H)),
    "lstm": (keras.layers.LSTM, jaxrnn.lstm(H)),
    "gru": (keras.layers.GRU, jaxrnn.gru(H)),
    "gru_reset_before": (
        lambda *args, **options: keras.layers.GRU(*args, reset_after=False, **options),
        jaxrnn.gru(H, reset_after=False),
    ),
}


def their_layer(name, way):
    with their_rules():
        keras.utils.set_random_seed(0)
        layer = CELLS[name][0](
            H,
            dtype="float64",
            go_backwards=way == "backward",
            bias_initializer="glorot_normal",
            return_sequences=True,
            return_state=True,
        )
        layer = keras.layers.Bidirectional(layer, dtype="float64") if way == "both" else layer
        layer.build((B, T, INPUTS))
    for one in (layer.forward_layer, layer.backward_layer) if way == "both" else (layer,):
        one.cell.activation = jnp.tanh  # Keras's own goes through float32 on JAX
    return layer


@contextlib.contextmanager
def their_rules():
    """Keras mixes types and ranks."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def our_params(name, weights):
    """Keras's kernels [K, G * H] and biases as our parameters: its GRU has the order z r h."""
    weights = (jnp.atleast_2d(a) for a in weights)
    w, r, b = (a.reshape(a.shape[0], -1, H) for a in weights)
    if name.startswith("gru"):
        w, r, b = (jnp.stack([a[:, 1], a[:, 0], a[:, 2]], 1) for a in (w, r, b))
    if name == "gru":
        return {"w": w, "r": r, "b": b[0].at[:2].add(b[1, :2]), "rb": b[1, 2]}
    return {"w": w, "r": r, "b": b[0]}


@pytest.mark.parametrize("way", ["forward", "backward", "both"])
@pytest.mark.parametrize("name", CELLS)
def test_same_numbers(name, way):
    layer, cell = their_layer(name, way), CELLS[name][1]
    cell = jaxrnn.bidirectional(cell) if way == "both" else cell
    weights, fixed = (
        [v.value for v in variables]
        for variables in (layer.trainable_variables, layer.non_trainable_variables)
    )
    mask = jnp.array([[step == "1" for step in row] for row in HOLES])

    def theirs(weights, xs, state):
        with their_rules():
            out, _ = layer.stateless_call(weights, fixed, xs, mask=mask, initial_state=state)
        ys, *final = out
        return select(mask, ys[:, ::-1] if way == "backward" else ys, 0), final

    def ours(weights, xs, state):
        params = our_params(name, weights[:3])
        if way == "both":
            params = {"forward": params, "backward": our_params(name, weights[3:])}
        state = jax.tree.structure(cell.initial_state(params, (B,))).unflatten(state)
        final, ys = jaxrnn.unroll(
            cell, params, xs.swapaxes(0, 1), state, mask=mask.T, reverse=way == "backward"
        )
        return ys.swapaxes(0, 1), jax.tree.leaves(final)

    @jax.jit(static_argnums=0)
    def everything(run, given, cotangents):
        out, pull = jax.vjp(run, *given)
        return out, pull(cotangents)

    rng = np.random.default_rng(0)
    normal = lambda shape: jnp.array(rng.normal(size=shape))  # noqa: E731
    ys, *states = layer.compute_output_shape((B, T, INPUTS))
    given = weights, normal((B, T, INPUTS)), [normal(shape) for shape in states]
    cotangents = normal(ys), [normal(shape) for shape in states]
    came, truth = (everything(run, given, cotangents) for run in (ours, theirs))
    assert error(came, truth) < 1e-12
