"""Numbers of Keras and Flax in float64, with their weights: outputs, final states, gradients."""

import contextlib
import functools
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import error

import jaxrnn

os.environ.setdefault("KERAS_BACKEND", "jax")
keras = pytest.importorskip("keras")
linen = pytest.importorskip("flax.linen")
pytestmark = [
    pytest.mark.usefixtures("x64"),
    pytest.mark.skipif(keras.backend.backend() != "jax", reason="Keras runs on another backend"),
]

T, B, C, H = 5, 3, 2, 4


@contextlib.contextmanager
def their_rules():
    """Both mix types and ranks."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def normal(shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def agree(ours, theirs, *given):
    """Same results, and same gradients of all that is given."""

    @functools.partial(jax.jit, static_argnums=0)
    def everything(run, *given):
        out, pull = jax.vjp(run, *given)
        return out, pull(jax.tree.map(lambda a: normal(a.shape, a.size), out))

    def by_their_rules(*given):
        with their_rules():
            return theirs(*given)

    wanted = everything(by_their_rules, *given)
    assert error(everything(ours, *given), wanted) < 1e-12


def built(layer, shape):
    """A layer of Keras, as a function of its weights and its call's arguments."""
    with their_rules():
        layer.build(shape)
    if hasattr(layer, "cell"):
        layer.cell.activation = jnp.tanh  # Keras's own goes through float32 on JAX
    weights = [normal(v.shape, i) for i, v in enumerate(layer.trainable_variables)]
    fixed = [v.value for v in layer.non_trainable_variables]
    return weights, lambda weights, *args, **options: layer.stateless_call(
        weights, fixed, *args, **options
    )[0]


@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("depthwise", [False, True])
def test_conv1d(depthwise, dilation):
    hidden = C if depthwise else H
    cell = jaxrnn.conv1d(hidden, kernel=3, dilation=dilation, depthwise=depthwise)
    groups = C if depthwise else 1
    weights, keras_run = built(
        keras.layers.Conv1D(
            hidden, 3, padding="causal", dilation_rate=dilation, groups=groups, dtype="float64"
        ),
        (B, T, C),
    )
    flax = linen.Conv(
        hidden,
        (3,),
        padding="CAUSAL",
        kernel_dilation=dilation,
        feature_group_count=groups,
        param_dtype=jnp.float64,
    )

    def ours(weights, xs):
        w, b = weights
        w = w[::-1, 0] if depthwise else w[::-1]  # theirs ends with the newest input
        return jaxrnn.unroll(cell, {"w": w, "b": b}, xs.swapaxes(0, 1))[1].swapaxes(0, 1)

    def flax_run(weights, xs):
        return flax.apply({"params": {"kernel": weights[0], "bias": weights[1]}}, xs)

    for theirs in keras_run, flax_run:
        agree(ours, theirs, weights, normal((B, T, C)))


def our_lstm(weights, xs, state, cell, order, **options):
    """Weights [*k, C, 4 * H] with gates in some order; images and states as theirs are."""
    gates = lambda a: a.reshape(*a.shape[:-1], 4, H)[..., order, :]
    params = dict(zip("wrb", map(gates, weights), strict=True))
    xs = xs.swapaxes(0, 1).reshape(T, B, -1)
    flat = tuple(s.reshape(B, -1) for s in state)
    final, ys = jaxrnn.unroll(cell, params, xs, flat, **options)
    ys = ys.reshape(T, *state[0].shape).swapaxes(0, 1)
    return ys, [a.reshape(s.shape) for a, s in zip(final, state)]


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((6,), {"dilation_rate": 2}),
        ((4, 5), {}),
        ((5, 4), {"strides": (2, 1)}),
        ((2, 3, 4), {"strides": 2}),
    ],
)
def test_conv_lstm_of_keras(shape, options, reverse):
    kernel = (3, 2, 2)[: len(shape)]
    layer = getattr(keras.layers, f"ConvLSTM{len(shape)}D")(
        H,
        kernel,
        padding="same",
        return_sequences=True,
        return_state=True,
        dtype="float64",
        go_backwards=reverse,
        **options,
    )
    size = (B, T, *shape, C)
    weights, run = built(layer, size)
    stride = options.get("strides", 1)
    dilation = options.get("dilation_rate", 1)
    cell = jaxrnn.conv_lstm(H, shape=shape, kernel=kernel, stride=stride, dilation=dilation)
    states = [normal(s, i) for i, s in enumerate(layer.compute_output_shape(size)[1:])]

    def theirs(weights, xs, state):
        ys, *final = run(weights, xs, initial_state=state)
        return ys[:, ::-1] if reverse else ys, final

    def ours(weights, xs, state):
        return our_lstm(weights, xs, state, cell, jnp.arange(4), reverse=reverse)

    agree(ours, theirs, weights, normal(size), states)


def test_conv_lstm_of_flax():
    shape, kernel = (4, 5), (3, 2)
    theirs_cell = linen.ConvLSTMCell(H, kernel, param_dtype=jnp.float64)
    weights = [normal((*kernel, n, 4 * H), n) for n in (C, H)] + [normal((4 * H,))]
    states = [normal((B, *shape, H), i) for i in range(2)]

    def theirs(weights, xs, state):
        w, r, b = weights
        names = {"ih": {"kernel": w, "bias": b}, "hh": {"kernel": r, "bias": 0 * b}}
        h, c = state
        ys = []
        for x in xs.swapaxes(0, 1):
            (c, h), y = theirs_cell.apply({"params": names}, (c, h), x)
            ys.append(y)
        return jnp.stack(ys, 1), [h, c]

    def ours(weights, xs, state):
        w, r, b = weights
        b = b.at[2 * H : 3 * H].add(1)  # theirs adds it in a step
        cell = jaxrnn.conv_lstm(H, shape=shape, kernel=kernel)
        return our_lstm((w, r, b), xs, state, cell, jnp.array([0, 2, 1, 3]))  # theirs: i g f o

    agree(ours, theirs, weights, normal((B, T, *shape, C)), states)
