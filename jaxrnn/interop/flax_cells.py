"""Flax's cells: which of ours each one is, and how it lays out its parameters."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.nn import sigmoid
from jax.numpy import tanh

from jaxrnn._src.builders.gated import Gated, gated
from jaxrnn._src.cells.conv_lstm import conv_lstm
from jaxrnn._src.cells.elman import elman
from jaxrnn._src.cells.gru import gru
from jaxrnn._src.cells.lstm import lstm
from jaxrnn._src.cells.ugrnn import ugrnn
from jaxrnn._src.core.cell import Cell
from jaxrnn._src.core.tags import tag
from jaxrnn._src.core.typing import Array
from jaxrnn.interop.layout import Layout, convolutional, joined, split


def flax_mgu_update(
    state: tuple[Array, ...], x: tuple[Array, ...], r: tuple[Array, ...], rb: Array
) -> tuple[Array, ...]:
    """The minimal gated unit as Flax has it.

        f = sigmoid(W_f x + R_f h + b_f)      n = tanh(W x + b + f * (R h + rb))
        h = (1 - f) * n + f * h

    A ``Cell`` with the state ``(h,)``; parameters ``w`` [I, 2, H], ``r`` [H, 2, H] and ``b``
    [2, H], gates in the order f n, and the bias ``rb`` [H]. In ``jaxrnn.mgu``, as in the paper
    (Zhou et al. 2016, arXiv:1603.09420), f and 1 - f change places in the last line alone.
    """
    (h,), (xf, xn), (rf, rn) = state, x, r
    f = tag("flax_mgu.f", sigmoid(xf + rf))
    n = tag("flax_mgu.n", tanh(xn + f * (rn + rb)))
    h = tag("flax_mgu.h", n + f * (h - n))
    return (h,)


flax_mgu: Gated = gated(
    flax_mgu_update, gates=("f", "n"), bias=(1, 0), unit={"rb": jax.nn.initializers.zeros}
)


class Row(NamedTuple):
    """A cell of Flax's and ours.

    Attributes:
      name: of Flax's class.
      make: our constructor.
      layout: of the parameters.
      functions: what Flax calls the functions that ours can have otherwise, and what we do.
      options: what Flax's class is made with.
    """

    name: str
    make: Callable[..., Cell]
    layout: Layout
    functions: dict[str, str] = {}  # noqa: RUF012
    options: dict[str, Any] = {}  # noqa: RUF012


def _layers(inputs, states, bias, rb=False):
    """A layer for each gate's input part and one for its recurrent part.

    Args:
      inputs, states: their names, a gate at each place.
      bias: the names of those with the biases.
      rb: whether the last of ``states`` has the bias that is our ``rb``.
    """

    def ours(arrays):
        gates = lambda names, which: jnp.stack([arrays[name][which] for name in names], -2)
        params = {"w": gates(inputs, "kernel"), "r": gates(states, "kernel")}
        params["b"] = gates(bias, "bias")
        return params | ({"rb": arrays[states[-1]]["bias"]} if rb else {})

    def theirs(params):
        arrays = {}
        for names, kernels in ((inputs, params["w"]), (states, params["r"])):
            arrays |= {name: {"kernel": kernels[:, k]} for k, name in enumerate(names)}
        for name, b in zip(bias, params["b"]):
            arrays[name]["bias"] = b
        if rb:
            arrays[states[-1]]["bias"] = params["rb"]
        return arrays

    return Layout(ours, theirs)


def _fused(gates, bias, missing=()):
    """One layer for all input parts and one for all recurrent ones; ``bias`` names one of them."""

    def ours(arrays):
        kernel = lambda name: split(arrays[name]["kernel"], gates)
        b = split(arrays[bias]["bias"], gates)
        params = {"w": kernel("dense_i"), "r": kernel("dense_h"), "b": b}
        return params | {name: jnp.zeros_like(b[0]) for name in missing}

    def theirs(params):
        kernels = {"dense_i": params["w"], "dense_h": params["r"]}
        arrays = {name: {"kernel": joined(kernel)} for name, kernel in kernels.items()}
        arrays[bias]["bias"] = joined(params["b"])
        return arrays

    return Layout(ours, theirs, missing)


_LSTM = ("hi", "hf", "hg", "ho")
_RNN = {"activation_fn": "activation"}
_BOTH = {"gate_fn": "gate_activation", **_RNN}
_MINIMAL = (("if", "in"), ("hf", "hn"), ("if", "in"))
_LINEN_LSTM = _layers(("ii", "if", "ig", "io"), _LSTM, _LSTM)
_LINEN_GRU = _layers(("ir", "iz", "in"), ("hr", "hz", "hn"), ("ir", "iz", "in"), rb=True)

ROWS: dict[
    str, tuple[Row, ...]
] = {  # of several with the same constructor of ours, ours becomes the first
    "linen": (
        Row("SimpleCell", elman, _layers(("i",), ("h",), ("i",)), _RNN),
        Row("OptimizedLSTMCell", lstm, _LINEN_LSTM, _BOTH),
        Row("LSTMCell", lstm, _LINEN_LSTM, _BOTH),
        Row("GRUCell", gru, _LINEN_GRU, _BOTH),
        Row("MGUCell", flax_mgu, _layers(*_MINIMAL, rb=True), options={"reset_gate": True}),
        Row("MGUCell", ugrnn, _layers(*_MINIMAL), options={"reset_gate": False}),
        Row("ConvLSTMCell", conv_lstm, convolutional("ih", "hh", "kernel", "bias")),
    ),
    "nnx": (
        Row("SimpleCell", elman, _fused(1, "dense_i"), _RNN),
        Row("OptimizedLSTMCell", lstm, _fused(4, "dense_h"), _BOTH),
        Row("LSTMCell", lstm, _layers(("ii", "if_", "ig", "io"), _LSTM, _LSTM), _BOTH),
        # Without a bias of the candidate: google/flax#5594.
        Row("GRUCell", gru, _fused(3, "dense_i", missing=("rb",)), _BOTH),
    ),
}
