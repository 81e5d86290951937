"""Weights from and to Keras: the same numbers, gradients and bits, or an error."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import cotangents, error

import jaxrnn
from jaxrnn._src.core import checks
from jaxrnn.interop import double_bias, from_keras, to_keras, without_bias
from jaxrnn.interop.keras import _ACTIVATIONS

keras = pytest.importorskip("keras")
layers = keras.layers
pytestmark = [
    pytest.mark.usefixtures("x64"),
    pytest.mark.skipif(keras.backend.backend() != "jax", reason="Keras runs on another backend"),
]

B, T, INPUTS = 3, 5, 2
RUN = {"return_sequences": True, "return_state": True}
MADE = {
    "elman": lambda: layers.SimpleRNN(4, **RUN),
    "elman, no bias": lambda: layers.SimpleRNN(5, activation="relu", use_bias=False, **RUN),
    "lstm": lambda: layers.LSTM(1, **RUN),
    "lstm, activations": lambda: layers.LSTM(
        3, activation="softsign", recurrent_activation="hard_sigmoid", **RUN
    ),
    "gru": lambda: layers.GRU(7, **RUN),
    "gru, activations": lambda: layers.GRU(
        3, activation="leaky_relu", recurrent_activation="hard_sigmoid", **RUN
    ),
    "gru, reset before, activations": lambda: layers.GRU(
        3, activation="exponential", recurrent_activation="softsign", reset_after=False, **RUN
    ),
    "gru, no bias": lambda: layers.GRU(3, use_bias=False, **RUN),
    "gru, reset before": lambda: layers.GRU(4, reset_after=False, **RUN),
    "both": lambda: layers.Bidirectional(layers.LSTM(3, **RUN)),
    "both, other sizes": lambda: layers.Bidirectional(
        layers.GRU(3, **RUN), backward_layer=layers.SimpleRNN(2, go_backwards=True, **RUN)
    ),
    "both, apart": lambda: layers.Bidirectional(
        layers.GRU(3, return_sequences=True), merge_mode=None
    ),
    "both, mean": lambda: layers.Bidirectional(layers.GRU(3, **RUN), merge_mode="ave"),
    "cells": lambda: layers.RNN([layers.LSTMCell(3), layers.GRUCell(2)], **RUN),
    "both, cells": lambda: layers.Bidirectional(
        layers.RNN([layers.SimpleRNNCell(3), layers.GRUCell(2)], return_sequences=True),
        merge_mode="mul",
    ),
    "sequential": lambda: keras.Sequential(
        [
            layers.Bidirectional(layers.SimpleRNN(2, return_sequences=True), merge_mode="sum"),
            layers.GRU(3, return_sequences=True),
            layers.LSTM(2, return_sequences=True),
        ]
    ),
}
each_layer = pytest.mark.parametrize("name", MADE)


@contextlib.contextmanager
def their_rules():
    """Keras mixes types and ranks; its default type is set here."""
    default = keras.config.dtype_policy()
    keras.config.set_dtype_policy("float64")
    try:
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            yield
    finally:
        keras.config.set_dtype_policy(default)


def built(make, inputs=INPUTS):
    """A layer with random weights, biases too."""
    with their_rules():
        keras.utils.set_random_seed(0)
        layer = make()
        layer.build((B, T, inputs))
        rng = np.random.default_rng(0)
        layer.set_weights([rng.normal(size=a.shape) for a in layer.weights])
    return layer


def weights_of(layer):
    return [keras.ops.convert_to_numpy(v.value) for v in layer.weights]


def back(cell, params):
    with their_rules():
        return to_keras(cell, params)


def cells(layer):
    """The cells in a layer."""
    if isinstance(layer, layers.Bidirectional):
        return cells(layer.forward_layer) + cells(layer.backward_layer)
    if isinstance(layer, keras.Sequential):
        return [cell for one in layer.layers for cell in cells(one)]
    if isinstance(layer, layers.Dropout):
        return []
    return getattr(layer.cell, "cells", [layer.cell])


def exact(layer):
    """The layer, with JAX's tanh: Keras's own goes through float32."""
    for cell in cells(layer):
        if cell.activation is keras.activations.tanh:
            cell.activation = jnp.tanh
    return layer


def their_run(layer):
    """``(weights, xs [T, B, I]) -> (final state's arrays, ys)``"""
    fixed = [v.value for v in layer.non_trainable_variables]

    def run(weights, xs):
        with their_rules():
            out, _ = layer.stateless_call(weights, fixed, xs.swapaxes(0, 1))
        if getattr(layer, "merge_mode", "") is None:  # two outputs, and no state
            return [], tuple(ys.swapaxes(0, 1) for ys in out)
        ys, *final = out if isinstance(out, (tuple, list)) else (out,)
        return jax.tree.leaves(final), ys.swapaxes(0, 1)

    return run


@each_layer
def test_same_numbers_and_gradients(name):
    layer = built(MADE[name])
    cell, params = from_keras(layer, double_bias=True)
    theirs = their_run(exact(layer))
    gives_states = getattr(layer, "return_state", False)

    def ours(params, xs):
        final, ys = jaxrnn.unroll(cell, params, xs)
        return jax.tree.leaves(final) if gives_states else [], ys

    @jax.jit(static_argnums=0)
    def everything(run, weights, xs):
        out, pull = jax.vjp(run, weights, xs)
        return out, pull(cotangents(out))

    xs = jnp.array(np.random.default_rng(1).normal(size=(T, B, INPUTS)))
    truth, (weights, wanted) = everything(theirs, [v.value for v in layer.trainable_variables], xs)
    came, (gradient, of_xs) = everything(ours, params, xs)
    assert error((came, of_xs), (truth, wanted)) < 1e-12
    # Gradients lie as the weights do.
    assert error(weights_of(back(cell, gradient)), weights) < 1e-12


def said(layer):
    """What a layer says of itself that a cell keeps."""
    if isinstance(layer, layers.Bidirectional):
        ends = (layer.forward_layer, layer.backward_layer)
        return layer.merge_mode, *(one.go_backwards for one in ends), *map(said, ends)
    if isinstance(layer, keras.Sequential):
        return tuple(map(said, layer.layers))
    if isinstance(layer, layers.Dropout):
        return type(layer), layer.rate
    names = ("units", "use_bias", "activation", "recurrent_activation", "reset_after", "dropout")
    return tuple([type(c), *(getattr(c, n, None) for n in names)] for c in cells(layer))


@each_layer
def test_there_and_back(name):
    """The same bits if both biases are kept, the same function in any case."""
    layer = built(MADE[name])
    cell, params = from_keras(layer, double_bias=True)
    same = back(cell, params)
    weights = weights_of(layer)
    assert all(map(np.array_equal, weights_of(same), weights))
    assert len(weights_of(same)) == len(weights) and {a.dtype for a in weights} == {
        np.dtype(float)
    }
    if name == "cells":  # of which a stack is made
        layer = keras.Sequential([layers.LSTM(3), layers.GRU(2)])
    assert said(same) == said(layer) and type(same) is type(layer)
    if "gru" in name or "both" in name:
        one = from_keras(layer)
        again, bits = from_keras(back(*one))
        assert again == one[0] and jax.tree.all(jax.tree.map(np.array_equal, bits, one[1]))
        xs = jnp.array(np.random.default_rng(1).normal(size=(T, B, INPUTS)))
        assert error(jaxrnn.unroll(*one, xs)[1], jaxrnn.unroll(cell, params, xs)[1]) < 1e-12


def test_what_comes():
    """The cell that a user would have written."""
    lstm, gru, drop = jaxrnn.lstm(4), jaxrnn.gru(4), jaxrnn.dropout(0.5, per="sequence")
    for make, wanted in (
        (lambda: layers.LSTM(4, unit_forget_bias=False), lstm),
        (lambda: layers.LSTMCell(4), lstm),
        (
            lambda: layers.RNN(layers.GRUCell(4, reset_after=False), stateful=False),
            jaxrnn.gru(4, reset_after=False),
        ),
        (
            lambda: layers.StackedRNNCells([layers.LSTMCell(4), layers.GRUCell(4)]),
            jaxrnn.stack(lstm, gru),
        ),
        (lambda: layers.GRU(4, use_bias=False), without_bias(gru)),
        (lambda: layers.Bidirectional(layers.GRU(4)), jaxrnn.bidirectional(gru)),
        (
            lambda: layers.Bidirectional(layers.LSTM(4, dropout=0.5), merge_mode="mul"),
            jaxrnn.bidirectional(jaxrnn.stack(drop, lstm), merge="product"),
        ),
        (lambda: layers.SimpleRNN(4, activation="swish"), jaxrnn.elman(4, activation="silu")),
    ):
        assert from_keras(built(make))[0] == wanted
    both = [built(lambda: layers.GRU(4)), built(lambda: layers.LSTM(4), inputs=4)]
    assert from_keras(both)[0] == jaxrnn.stack(gru, lstm)
    assert from_keras(both, double_bias=True)[0] == jaxrnn.stack(double_bias(gru), lstm)


def test_dropout():
    """Layers keep their dropout: Keras's own field is the same for all steps of a sequence."""
    make = lambda: keras.Sequential(
        [
            layers.Dropout(0.1),
            layers.GRU(3, return_sequences=True),
            layers.SpatialDropout1D(0.2),
            layers.Bidirectional(layers.LSTM(2, dropout=0.3, return_sequences=True)),
            layers.LSTM(2, dropout=0.4, return_sequences=True),
        ]
    )
    layer = built(make)
    assert said(back(*from_keras(layer))) == said(layer)
    linear = lambda: layers.SimpleRNN(4, "linear", dropout=0.5, return_sequences=True)
    with their_rules():
        layer = built(linear, 4)
        layer.set_weights([np.eye(4), np.zeros((4, 4)), np.zeros(4)])
        theirs = np.array(layer(jnp.ones((B, T, 4)), training=True)).swapaxes(0, 1)
    ours = jaxrnn.unroll(*from_keras(layer), jnp.ones((T, B, 4)), key=jax.random.key(0))[1]
    for ys in (theirs, ours):  # [T, B, 4]
        assert set(np.unique(ys)) == {0, 2} and (ys == ys[:1]).all() and (ys != ys[:, :1]).any()


@pytest.mark.parametrize("theirs", _ACTIVATIONS)
def test_activations(theirs):
    x = jnp.linspace(-7, 7, 57)
    ours = checks.activation(_ACTIVATIONS[theirs])(x)
    with their_rules():
        wanted = getattr(keras.activations, theirs)(x)
    assert error(ours, wanted) < (1e-6 if theirs == "tanh" else 1e-15)


def test_type_and_padding():
    """A layer from here has its parameters' type, and zero at padding."""
    cell = jaxrnn.bidirectional(jaxrnn.gru(3))
    params = jax.tree.map(jnp.float32, cell.init(jax.random.key(0), INPUTS))
    layer = back(cell, params)
    assert {v.dtype for v in layer.weights} == {"float32"} == {layer.compute_dtype}
    xs = jnp.ones((T, B, INPUTS), "float32")
    mask = jnp.array([[1, 1, 1], [1, 1, 0], [1, 0, 1], [1, 0, 0], [1, 0, 1]], bool)
    with their_rules():
        ys = layer(xs.swapaxes(0, 1), mask=mask.T)
    assert error(ys.swapaxes(0, 1), jaxrnn.unroll(cell, params, xs, mask=mask)[1]) < 1e-6


class Other(layers.LSTMCell):
    def call(self, inputs, states, training=False):
        return super().call(2 * inputs, states, training)


LSTM, GRU = jaxrnn.lstm(4), jaxrnn.gru(4)


def source(make, *args, **options):
    return lambda: from_keras(built(lambda: make(*args, **options)))


def ones(cell):
    """Parameters, of which nothing is compiled."""
    shapes = jax.eval_shape(lambda key: cell.init(key, 3), jax.random.key(0))
    return jax.tree.map(lambda a: jnp.asarray(np.ones(a.shape, a.dtype)), shapes)


def to(cell, params=None):
    return lambda: back(cell, ones(cell) if params is None else params)


V, TYPE = ValueError, TypeError
BAD = {  # the call, the error, and what its text has
    "no source": (lambda: from_keras(None), TYPE, "source: got None", "Bidirectional"),
    "no layers": (lambda: from_keras([]), V, "source: got no layers", "one or more"),
    "another layer": (source(layers.Dense, 3), V, "source: got Dense 'dense", "a SimpleRNN"),
    "in a stack": (
        lambda: from_keras([layers.Dense(3)]),
        V,
        "source: got Dense 'dense",
        "a SimpleRNN",
    ),
    "another cell": (
        lambda: from_keras(layers.ConvLSTM1D(3, 3)),
        V,
        "got ConvLSTMCell",
        "want a SimpleRNN",
    ),
    "a call of its own": (source(layers.RNN, Other(3)), V, "source: got Other", "a SimpleRNN"),
    "not built": (lambda: from_keras(layers.LSTM(3)), V, "'lstm_cell", "want it built"),
    "backwards": (
        source(layers.LSTM, 3, go_backwards=True),
        V,
        "with go_backwards=True, want False",
        "reverse=True",
    ),
    "both backwards": (
        source(
            layers.Bidirectional, layers.LSTM(3, go_backwards=True), backward_layer=layers.LSTM(3)
        ),
        V,
        "with go_backwards=True, want False",
    ),
    "recurrent dropout": (
        source(layers.LSTM, 3, recurrent_dropout=0.5),
        V,
        "with recurrent_dropout",
        "want 0",
        "jaxrnn.variational_dropout",
    ),
    "dropout of each gate": (
        source(layers.GRU, 3, dropout=0.5, implementation=1),
        V,
        "implementation=2",
    ),
    "noise": (
        source(layers.Dropout, 0.5, noise_shape=(1, None, None)),
        V,
        "without a noise_shape",
    ),
    "other noise": (source(layers.AlphaDropout, 0.5), V, "got AlphaDropout"),
    "activation": (
        source(layers.SimpleRNN, 3, activation="gelu"),
        V,
        "with activation=gelu",
        "'tanh'",
    ),
    "activation of one's own": (
        source(layers.LSTM, 3, recurrent_activation=jnp.sin),
        V,
        "recurrent_activation=sin",
    ),
    "two outputs in a stack": (
        lambda: from_keras(
            [
                built(lambda: layers.Bidirectional(layers.GRU(3), merge_mode=None)),
                built(lambda: layers.GRU(3)),
            ]
        ),
        V,
        "gives 2 outputs, want one array",
    ),
    # to Keras
    "ours": (to(jaxrnn.mgu(4)), V, "cell: got mgu(", "Keras has no other"),
    "not a cell": (lambda: to_keras(jaxrnn.lstm, {}), TYPE, "cell: ", "want a Cell"),
    "nothing": (to(jaxrnn.dropout(0.5)), V, "params: got no arrays"),
    "peepholes": (to(jaxrnn.lstm(4, peepholes=True)), V, "want peepholes=False"),
    "coupled": (to(jaxrnn.lstm(4, coupled=True)), V, "want coupled=False"),
    "cell_clip": (to(jaxrnn.lstm(4, cell_clip=1.0)), V, "want cell_clip=None"),
    "projection": (to(jaxrnn.lstm(4, projection=2)), V, "want projection=None"),
    "heads": (to(jaxrnn.elman(4, heads=2)), V, "want heads=1: Keras has no other"),
    "ours activation": (to(jaxrnn.elman(4, activation="gelu")), V, "want activation to be one"),
    "gates' activation": (to(jaxrnn.lstm(4, gate_activation=jnp.sin)), V, "gate_activation"),
    "double bias": (to(double_bias(LSTM)), V, "got double_bias of lstm", "Keras has one bias"),
    "our merge": (to(jaxrnn.bidirectional(GRU, merge=jnp.maximum)), V, "want a merge of"),
    "in a direction": (
        to(jaxrnn.bidirectional(jaxrnn.stack(GRU, jaxrnn.dropout(0.5)))),
        V,
        "got dropout(",
    ),
    "params": (to(LSTM, {"w": jnp.ones((3, 4, 4))}), V, "params: got ['w']"),
    "type": (
        to(LSTM, jax.tree.map(jnp.bfloat16, ones(LSTM))),
        V,
        "params: got bfloat16",
        "want float32 or float64",
    ),
    "types": (
        to(LSTM, ones(LSTM) | {"b": jnp.ones((4, 4), "float16")}),
        V,
        "params: got the types",
        "want one",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_the_error_says_what_is_wrong(name):
    call, kind, *texts = BAD[name]
    with pytest.raises(kind) as caught:
        call()
    said = "\n".join([str(caught.value), *getattr(caught.value, "__notes__", ())])
    assert caught.type is kind and all(text in said for text in texts), said
