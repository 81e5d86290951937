"""Weights from and to Keras: its recurrent layers and cells, their directions and stacks."""

import importlib
import sys
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxrnn._src.cells.elman import elman
from jaxrnn._src.cells.gru import gru
from jaxrnn._src.cells.lstm import lstm
from jaxrnn._src.core import params_tree
from jaxrnn._src.core.cell import Cell
from jaxrnn._src.core.typing import Merge, Params, Theirs
from jaxrnn._src.wrappers import stack
from jaxrnn.interop import biases
from jaxrnn.interop.layers import (
    both,
    check,
    ends,
    is_a,
    layers,
    name_of,
    one_bias,
    only,
    options,
    stacked,
)
from jaxrnn.interop.onnx.activations import Activation

_ACTIVATIONS = {  # Keras's name of a function, and what a cell takes
    "linear": "identity",
    "softsign": "soft_sign",
    "exponential": "exp",
    "leaky_relu": Activation("LeakyRelu", 0.2),
    **{
        name: name
        for name in (
            "tanh",
            "sigmoid",
            "relu",
            "relu6",
            "elu",
            "selu",
            "celu",
            "silu",
            "softplus",
            "mish",
            "hard_sigmoid",
            "hard_silu",
            "hard_tanh",
            "log_sigmoid",
            "squareplus",
            "sparse_plus",
            "sparse_sigmoid",
        )
    },
}
_MERGES: dict[str | None, Merge] = {
    "concat": "concat",
    "sum": "sum",
    "ave": "mean",
    "mul": "product",
    None: None,
}


def from_keras(source: Theirs, *, double_bias: bool = False) -> tuple[Cell, Params]:
    """A cell with the weights of a recurrent layer of Keras's.

    Args:
      source: a ``SimpleRNN``, ``LSTM`` or ``GRU`` (both kinds of reset), a cell of these, an
        ``RNN`` or ``StackedRNNCells`` of such cells, or a ``Bidirectional`` of such layers; or
        several as a list or a ``keras.Sequential``, where ``Dropout`` and ``SpatialDropout1D``
        may stand too. It has been built. What says how it is run and not what it computes is
        left aside: ``return_sequences``, ``return_state``, ``stateful``, ``unroll`` and
        ``zero_output_for_mask``; at padding, Keras repeats an output where here it is zero.
      double_bias: whether the two biases of a ``GRU`` with ``reset_after`` stay apart,
        ``jaxrnn.interop.double_bias``. One computes the same, but trains otherwise. Keras's
        other layers have one.

    Returns:
      ``(cell, params)``: an ``elman``, ``lstm`` or ``gru``, ``bidirectional``, or a ``stack``.
      A layer's ``dropout`` becomes ``jaxrnn.dropout(rate, per="sequence")`` before its cell;
      without biases a cell is in ``jaxrnn.interop.without_bias``.

    Raises:
      TypeError: ``source`` is none of these.
      ValueError: it has not been built, or has what no cell has, and what that is: an
        activation, ``recurrent_dropout``, ``go_backwards``.

    >>> import keras
    >>> import jaxrnn.interop
    >>> layer = keras.layers.LSTM(4, recurrent_activation="hard_sigmoid", dropout=0.5)
    >>> layer.build((None, None, 3))
    >>> cell, params = jaxrnn.interop.from_keras(layer)
    >>> for part in cell.made.args:
    ...     print(part)
    dropout(rate=0.5, per='sequence')
    lstm(hidden=4, gate_activation='hard_sigmoid')
    >>> jaxrnn.unroll(cell, params, jnp.ones((5, 2, 3)))[1].shape
    (5, 2, 4)
    """
    cell, params = stacked(_pairs(sys.modules.get("keras"), source, double_bias))
    check(cell, params)
    return cell, params


def _pairs(keras: Any, source: Theirs, double: bool) -> list[tuple[Cell, Params]]:
    """Pairs of a cell and its parameters, from the first layer of ``source`` to the last."""
    several = _listed(source)
    if keras is not None and several is None:
        if isinstance(source, keras.Sequential):
            several = source.layers
        elif isinstance(source, keras.layers.StackedRNNCells):
            several = source.cells
        elif isinstance(source, keras.layers.Bidirectional):
            return [_bidirectional(keras, source, double)]
        elif isinstance(source, keras.layers.RNN):
            return _of_layer(keras, source, double, backwards=False)
        elif isinstance(source, keras.layers.Dropout):
            return [(_dropout(keras, source), {})]
        elif getattr(type(source), "call", None) in [kind.call for kind in _cells(keras)]:
            return _of_cell(keras, source, double)
    if several is None:
        theirs = keras is not None and isinstance(source, keras.Layer)
        came = f"{type(source).__name__} {source.name!r}" if theirs else repr(source)
        want = "a SimpleRNN, LSTM or GRU of Keras's, a cell of these, an RNN, Bidirectional or"
        want += " Dropout, or several of them as a list or Sequential"
        raise (ValueError if theirs else TypeError)(f"source: got {came}, want {want}")
    if not several:
        raise ValueError("source: got no layers, want one or more")
    return [pair for one in several for pair in _pairs(keras, one, double)]


def _listed(source: Theirs) -> Theirs:
    return source if isinstance(source, (list, tuple)) else None


def _cells(keras):
    """The classes of cells; one made of these with a call of its own is another."""
    return keras.layers.SimpleRNNCell, keras.layers.LSTMCell, keras.layers.GRUCell


def _of_layer(keras, layer, double, backwards):
    if layer.go_backwards != backwards:
        want = f"{backwards}: hand in its cell, and run it by jaxrnn.unroll(..., reverse=True)"
        raise ValueError(
            f"source: got {layer.name!r} with go_backwards={not backwards}, want {want}"
        )
    return _pairs(keras, layer.cell, double)


def _bidirectional(keras, layer, double):
    forward, backward = (
        stacked(_of_layer(keras, one, double, backwards))
        for one, backwards in ((layer.forward_layer, False), (layer.backward_layer, True))
    )
    return both(forward, backward, _MERGES[layer.merge_mode])


def _dropout(keras, layer):
    if isinstance(layer, keras.layers.SpatialDropout1D):
        return stack.dropout(layer.rate, per="sequence")
    if getattr(layer, "noise_shape", None) is not None or type(layer) is not keras.layers.Dropout:
        raise ValueError(f"source: got {layer.name!r}, want Dropout without a noise_shape")
    return stack.dropout(layer.rate)


def _of_cell(keras, cell, double):
    """The pair of a cell, behind that of its dropout if it has one."""
    if not cell.built:
        raise ValueError(f"source: got {cell.name!r} without weights, want it built: build(shape)")
    if cell.recurrent_dropout:
        want = "0: Keras draws for each gate by itself. Compare jaxrnn.variational_dropout"
        raise ValueError(f"source: got {cell.name!r} with recurrent_dropout, want {want}")
    if cell.dropout and hasattr(cell, "dropout_mask_count"):
        want = "implementation=2: 1 draws for each gate by itself"
        raise ValueError(f"source: got {cell.name!r} with dropout, want {want}")
    hidden, is_gru = cell.units, isinstance(cell, keras.layers.GRUCell)
    given: dict[str, Any] = {"activation": _activation(keras, cell, "activation")}
    if isinstance(cell, keras.layers.SimpleRNNCell):
        made = elman(hidden, **given)
    else:
        given["gate_activation"] = _activation(keras, cell, "recurrent_activation")
        reset = {"reset_after": cell.reset_after} if is_gru else {}
        made = gru(hidden, **reset, **given) if is_gru else lstm(hidden, **given)

    def gates(variable):
        """[..., G * H] -> [K, G, H]"""
        a = keras.ops.convert_to_numpy(variable.value)
        a = a.reshape(-1, variable.shape[-1] // hidden, hidden)
        return jnp.array(_reordered(a) if is_gru else a)

    params = {"w": gates(cell.kernel), "r": gates(cell.recurrent_kernel)}
    if not cell.use_bias:
        made = biases.without_bias(made)
    else:
        b, *rb = gates(cell.bias)
        if rb and double:
            made, params = biases.double_bias(made), params | {"b": b, "rb": rb[0]}
        else:
            params |= biases.summed(b, rb[0], candidate=True) if rb else {"b": b}
    before = [(stack.dropout(cell.dropout, per="sequence"), {})] if cell.dropout else []
    return [*before, (made, params)]


def _activation(keras, cell, which):
    """What our cell takes for an activation of theirs."""
    function = getattr(cell, which)
    for theirs, ours in _ACTIVATIONS.items():
        if getattr(keras.activations, theirs, None) is function:
            return ours
    came = getattr(function, "__name__", function)
    want = f"one of {tuple(_ACTIVATIONS)}"
    raise ValueError(f"source: got {cell.name!r} with {which}={came}, want {want}")


def to_keras(cell: Cell, params: Params) -> Theirs:
    """A layer of Keras's with the weights of a cell, or a ``keras.Sequential`` of several.

    Args:
      cell: an ``elman``, ``lstm`` or ``gru`` (both kinds of reset) with activations that Keras
        has; ``bidirectional`` of one or of a ``stack`` of them; a ``stack`` of all these and
        ``jaxrnn.dropout``. ``without_bias`` is known, and ``double_bias`` of a ``gru``.
      params: its parameters.

    Returns:
      A layer, built, in the parameters' type. It gives all outputs (``return_sequences``), zero
      at padding (``zero_output_for_mask``), and batch first. A ``jaxrnn.dropout`` for each
      sequence right before a cell is its ``dropout``.

    Raises:
      ValueError: the cell has no counterpart, and why; the parameters are not its own.

    >>> import jaxrnn.interop
    >>> cell = jaxrnn.bidirectional(jaxrnn.gru(4), merge="sum")
    >>> layer = jaxrnn.interop.to_keras(cell, cell.init(jax.random.key(0), 3))
    >>> layer.merge_mode, layer.compute_output_shape((2, 5, 3))
    ('sum', (2, 5, 4))
    """
    # Where it is not installed, a type checker takes `import keras` for this file.
    keras: Theirs = importlib.import_module("keras")

    params = params_tree.dicts(params)
    dtype = check(cell, params)
    if dtype not in ("float32", "float64"):
        want = "float32 or float64: Keras makes no layers of others, but has mixed_bfloat16"
        raise ValueError(f"params: got {dtype}, want {want}")
    made = []
    for one, own, rate in _with_dropout(layers(cell, params)):
        if is_a(one, stack.dropout):
            per = options(one)["per"]
            kind = keras.layers.Dropout if per == "step" else keras.layers.SpatialDropout1D
            made.append((kind(options(one)["rate"], dtype=dtype), []))
        elif is_a(one, stack.bidirectional):
            made.append(_both(keras, one, own, dtype))
        else:
            made.append(_layer(keras, [_cell(one, own, rate)], dtype))
    weighty = [(layer, weights) for layer, weights in made if weights]
    for layer, weights in weighty:
        layer.build((None, None, weights[0].shape[0]))
        layer.set_weights(weights)
    if len(made) == 1:
        return made[0][0]
    inputs = keras.Input((None, weighty[0][1][0].shape[0]), dtype=dtype)
    return keras.Sequential([inputs, *(layer for layer, _ in made)])


def _with_dropout(pairs):
    """Triples of a cell, its parameters and the rate of a dropout, the same at all steps.

    Such a dropout right before a recurrent cell goes into its triple.
    """
    triples, rate = [], 0.0
    for cell, params in pairs:
        alone = is_a(cell, stack.dropout) or is_a(cell, stack.bidirectional)
        if rate and not alone:
            triples[-1] = (cell, params, rate)
        else:
            triples.append((cell, params, 0.0))
        drops = is_a(cell, stack.dropout) and options(cell)["per"] == "sequence"
        rate = options(cell)["rate"] if drops else 0.0
    return triples


def _both(keras, cell, params, dtype):
    """A Bidirectional layer, and its weights."""
    merges = {ours: theirs for theirs, ours in _MERGES.items()}
    merge = options(cell)["merge"]
    if merge not in merges:
        raise ValueError(f"cell: got {cell}, want a merge of {tuple(merges)}: Keras has no other")
    made = []
    for end, own in ends(cell, params):
        parts = [_cell(*triple) for triple in _with_dropout(layers(end, own))]
        made.append(_layer(keras, parts, dtype, go_backwards=bool(made)))
    (forward, first), (backward, second) = made
    layer = keras.layers.Bidirectional(
        forward, merge_mode=merges[merge], backward_layer=backward, dtype=dtype
    )
    return layer, first + second


def _layer(keras, parts, dtype, go_backwards=False):
    """A layer of such parts as ``_cell`` gives, and its weights."""
    run = {"return_sequences": True, "zero_output_for_mask": True, "go_backwards": go_backwards}
    weights = [a for part in parts for a in part[2]]
    if len(parts) == 1:
        kind, given, _ = parts[0]
        return getattr(keras.layers, kind)(**given, **run, dtype=dtype), weights
    make = lambda kind, given, _: getattr(keras.layers, f"{kind}Cell")(**given, dtype=dtype)
    return keras.layers.RNN([make(*part) for part in parts], **run, dtype=dtype), weights


def _cell(cell, params, rate):
    """What Keras calls a cell: its layer, what that is made with, and its weights."""
    cell, count = one_bias(cell)
    two = False
    if is_a(cell, elman):
        only("Keras", cell, heads=1)
        kind, given = "SimpleRNN", {"activation": _theirs(cell, "activation")}
    elif is_a(cell, lstm):
        only("Keras", cell, heads=1, peepholes=False, coupled=False, cell_clip=None)
        only("Keras", cell, projection=None)
        gates = {"recurrent_activation": _theirs(cell, "gate_activation")}
        kind, given = "LSTM", {"activation": _theirs(cell, "activation"), **gates}
    elif is_a(cell, gru):
        only("Keras", cell, heads=1)
        two = options(cell)["reset_after"]
        gates = {"recurrent_activation": _theirs(cell, "gate_activation")}
        activation = _theirs(cell, "activation")
        kind, given = "GRU", {"reset_after": two, "activation": activation, **gates}
    else:
        want = "elman, lstm or gru, bidirectional or not, and stacks of them and dropout"
        raise ValueError(f"cell: got {cell}, want {want}: Keras has no other")
    if count == 2 and not two:
        raise ValueError(f"cell: got double_bias of {cell}, want it without: Keras has one bias")
    given |= {"units": int(options(cell)["hidden"]), "use_bias": count > 0, "dropout": rate}
    arrays = [params["w"], params["r"]]
    if count:
        arrays.append(np.stack(biases.parted(params)) if two else params["b"])
    arrays = [np.asarray(a) for a in arrays]
    arrays = [_reordered(a) for a in arrays] if kind == "GRU" else arrays
    return kind, given, [a.reshape(*a.shape[:-2], -1) for a in arrays]


def _theirs(cell, which):
    """Keras's name of a cell's activation."""
    came = name_of(options(cell)[which])
    for theirs, ours in _ACTIVATIONS.items():
        if ours == came:
            return theirs
    want = f"{which} to be one of {tuple(_ACTIVATIONS.values())}: Keras has no other"
    raise ValueError(f"cell: got {cell}, want {want}")


def _reordered(a):
    """A GRU's gates [..., G, H]: Keras has them in the order z r h, and here it is r z n."""
    return a[..., [1, 0, 2], :]
