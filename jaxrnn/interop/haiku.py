"""Haiku's cores. Their parameters are a mapping by name, so Haiku itself is never needed."""

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp

from jaxrnn._src.cells.conv_lstm import conv_lstm
from jaxrnn._src.cells.elman import elman
from jaxrnn._src.cells.gru import gru
from jaxrnn._src.cells.lstm import lstm
from jaxrnn._src.core import params_tree
from jaxrnn._src.core.cell import Cell, call_of
from jaxrnn._src.core.typing import Params, Shape
from jaxrnn.interop.layout import (
    Layout,
    check_places,
    convolutional,
    from_igfo,
    joined,
    made_by,
    options,
    split,
    to_arrays,
    to_igfo,
    to_params,
)


def _vanilla():
    def ours(arrays):
        x, h = arrays["linear"], arrays["linear_1"]
        return {"w": x["w"][:, None], "r": h["w"][:, None], "b": (x["b"] + h["b"])[None]}

    def theirs(params):
        w, r, b = (joined(params[name]) for name in "wrb")
        return {"linear": {"w": w, "b": b}, "linear_1": {"w": r, "b": jnp.zeros_like(b)}}

    return Layout(ours, theirs)


def _lstm():
    """One product with x and h side by side."""

    def ours(arrays):
        w, b = from_igfo(arrays["linear"]["w"], arrays["linear"]["b"])
        inputs = w.shape[0] - w.shape[-1]
        return {"w": w[:inputs], "r": w[inputs:], "b": b}

    def theirs(params):
        w, b = to_igfo(jnp.concatenate([params["w"], params["r"]]), params["b"])
        return {"linear": {"w": w, "b": b}}

    return Layout(ours, theirs)


def _gru():
    """Gates in the order z r n, and z lets in what is new: 1 - sigmoid(a) is sigmoid(-a)."""
    names = {"w": "w_i", "r": "w_h", "b": "b"}

    def swapped(a):
        z, r, n = jnp.moveaxis(a, -2, 0)
        return jnp.stack([r, -z, n], -2)

    def back(a):
        r, z, n = jnp.moveaxis(a, -2, 0)
        return jnp.stack([-z, r, n], -2)

    def ours(arrays):
        return {name: swapped(split(arrays[""][their], 3)) for name, their in names.items()}

    def theirs(params):
        return {"": {their: joined(back(params[name])) for name, their in names.items()}}

    return Layout(ours, theirs)


_CONVOLUTIONAL = convolutional("input_to_hidden", "hidden_to_hidden", "w", "b")


class _Kind(NamedTuple):
    """A core of Haiku's: what it calls the first module of it, our cell, and its parameters."""

    name: str
    make: Callable[..., Cell]
    options: dict[str, Any]
    gates: int
    layout: Layout
    modules: dict[str, tuple[str, ...]]


_TWO = {"linear": ("w", "b"), "linear_1": ("w", "b")}
_CONV = {"input_to_hidden": ("w", "b"), "hidden_to_hidden": ("w", "b")}
_KINDS = {
    "VanillaRNN": _Kind("vanilla_rnn", elman, {"activation": "relu"}, 1, _vanilla(), _TWO),
    "LSTM": _Kind("lstm", lstm, {}, 4, _lstm(), {"linear": ("w", "b")}),
    "GRU": _Kind("gru", gru, {"reset_after": False}, 3, _gru(), {"": ("w_i", "w_h", "b")}),
    "Conv1DLSTM": _Kind("conv1_dlstm", conv_lstm, {}, 4, _CONVOLUTIONAL, _CONV),
    "Conv2DLSTM": _Kind("conv2_dlstm", conv_lstm, {}, 4, _CONVOLUTIONAL, _CONV),
    "Conv3DLSTM": _Kind("conv3_dlstm", conv_lstm, {}, 4, _CONVOLUTIONAL, _CONV),
}


def from_haiku(
    params: Mapping[str, Any],
    kind: Literal["VanillaRNN", "LSTM", "GRU", "Conv1DLSTM", "Conv2DLSTM", "Conv3DLSTM"],
    *,
    name: str | None = None,
    shape: Shape | None = None,
) -> tuple[Cell, Params]:
    """A recurrent core of Haiku's, with its numbers.

    Args:
      params: the parameters of a transformed function, ``{"module/name": {"w": ..., ...}}``. Those
        of other modules are left out.
      kind: the name of Haiku's class: "VanillaRNN", "LSTM", "GRU", "Conv1DLSTM", "Conv2DLSTM" or
        "Conv3DLSTM".
      name: of the module, as "net/~/lstm_1"; None for what Haiku calls the first of its kind.
      shape: of the input's places, as ``(height, width)``, which a convolution's parameters do
        not tell; None for others.

    Returns:
      ``(cell, params)``. The 1 that an LSTM of Haiku's adds to f in each step is in the bias; two
      biases of a ``VanillaRNN`` are one, their sum; the z of its GRU is 1 minus ours. A DeepRNN
      without skip connections is ``jaxrnn.stack`` of its layers, each converted by its name.

    Raises:
      ValueError: an unknown kind; no such module, or other arrays than the kind has; no ``shape``.

    >>> import jaxrnn.interop
    >>> theirs = {"net/~/lstm/linear": {"w": jnp.ones((7, 16)), "b": jnp.zeros(16)}}
    >>> cell, params = jaxrnn.interop.from_haiku(theirs, "LSTM", name="net/~/lstm")
    >>> cell, jaxrnn.unroll(cell, params, jnp.ones((5, 3)))[1].shape
    (lstm(hidden=4), (5, 4))
    """
    if kind not in _KINDS:
        raise ValueError(f"kind: got {kind!r}, want one of {tuple(_KINDS)}")
    its = _KINDS[kind]
    name = its.name if name is None else name
    arrays = {
        module.removeprefix(name).removeprefix("/"): dict(own)
        for module, own in params.items()
        if module == name or module.startswith(f"{name}/")
    }
    if not arrays:
        raise ValueError(f"name: got {name!r}, want the name of one of {sorted(params)}")
    if kind == "VanillaRNN":
        _fill(arrays)
    came = {module: sorted(own) for module, own in arrays.items()}
    want = {module: sorted(own) for module, own in its.modules.items()}
    if came != want:
        raise ValueError(f"params of {name!r}: got {came}, want {want}: {kind}")
    first = arrays[next(iter(want))]
    kernel = first["w"].shape[:-2] if its.make is conv_lstm else None
    check_places(shape, kernel, f"haiku.{kind}")
    given = its.options if kernel is None else {"shape": shape, "kernel": kernel}
    cell = its.make(max(first["b"].size // its.gates, 1), **given)
    return cell, to_params(cell, its.layout, arrays, f"params of {name!r}")


def _fill(arrays):
    """Zeros for the second bias, which ``double_bias=False`` leaves out."""
    first, second = arrays.get("linear", {}), arrays.get("linear_1", {})
    if "b" in first:
        second.setdefault("b", jnp.zeros_like(first["b"]))


def to_haiku(cell: Cell, params: Params, *, name: str | None = None) -> dict[str, Any]:
    """A cell's parameters as those of a core of Haiku's.

    Args:
      cell: a ``jaxrnn.lstm``; a ``jaxrnn.gru`` with ``reset_after=False``; a ``jaxrnn.elman`` with
        ``activation="relu"``; or a ``jaxrnn.conv_lstm``: without other options.
      params: its parameters.
      name: of Haiku's module; None for what Haiku calls the first of its kind.

    Returns:
      A dict for the ``apply`` of a transformed function, to be joined with that of the rest of a
      model. The second bias of a ``VanillaRNN`` and of a ``Conv2DLSTM`` is zero.

    Raises:
      TypeError: Haiku has no such cell.
      ValueError: nor such an option; ``params`` do not fit the cell.

    >>> import jaxrnn.interop
    >>> cell = jaxrnn.gru(4, reset_after=False)
    >>> theirs = jaxrnn.interop.to_haiku(cell, cell.init(jax.random.key(0), 3))
    >>> {module: sorted(arrays) for module, arrays in theirs.items()}
    {'gru': ['b', 'w_h', 'w_i']}
    """
    make = made_by(cell, (elman, lstm, gru, conv_lstm), "Haiku")
    places = len(dict(call_of(cell).kwargs).get("shape", (1,)))
    kinds = [kind for kind, its in _KINDS.items() if its.make is make]
    kind = kinds[places - 1]  # of convolutions there is one for each number of axes
    its = _KINDS[kind]
    options(cell, f"haiku.{kind}", ("shape", "kernel"), **its.options)
    arrays = to_arrays(cell, its.layout, params_tree.dicts(params), "Haiku")
    name = its.name if name is None else name
    return {f"{name}/{module}".removesuffix("/"): own for module, own in arrays.items()}
