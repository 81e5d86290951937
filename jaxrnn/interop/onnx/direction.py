"""One direction of a node, between a node and a cell: read from either, and made into either."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrnn._src.cells.elman import elman
from jaxrnn._src.cells.gru import gru
from jaxrnn._src.cells.irnn import irnn
from jaxrnn._src.cells.lstm import lstm
from jaxrnn._src.core.cell import Cell, call_of, unroll
from jaxrnn._src.core.typing import Params
from jaxrnn._src.wrappers.initialized import initialized
from jaxrnn.interop.biases import double_bias, parted, summed, without_bias
from jaxrnn.interop.onnx import operators
from jaxrnn.interop.onnx.activations import Activation, described, named
from jaxrnn.interop.onnx.cells import onnx_lstm


class Operator(NamedTuple):
    """What an operator has.

    Attributes:
      order: where it keeps each of our gates: h; r z n, of z r h; i f g o, of i o f c.
      activations: its default activations.
      clipped: those whose input ``clip`` bounds. Of LSTM's, ONNX Runtime leaves h(c) alone.
      flag: an attribute that only it has.
      states: the names of its states.
    """

    order: tuple[int, ...]
    activations: tuple[str, ...]
    clipped: tuple[bool, ...]
    flag: str | None
    states: tuple[str, ...]


OPERATORS = {
    "RNN": Operator((0,), ("Tanh",), (True,), None, ("h",)),
    "GRU": Operator((1, 0, 2), ("Sigmoid", "Tanh"), (True,) * 2, "linear_before_reset", ("h",)),
    "LSTM": Operator(
        (0, 2, 3, 1), ("Sigmoid", "Tanh", "Tanh"), (True, True, False), "input_forget", ("h", "c")
    ),
}
INPUT_FORGET = (0, 3, 1)  # i g o, where f is made of i


class Direction(NamedTuple):
    """One direction of a node.

    Attributes:
      op: the operator's name.
      hidden: H.
      activations: without a clip.
      clip: the node's; None for no bound.
      flag: whether the operator's flag is set.
      w, r: [G * H, I] and [G * H, H], NumPy arrays in the operator's order, as all that follow.
      b: both biases [2 * G * H], or None.
      p: LSTM's peepholes [3 * H], or None.
    """

    op: str
    hidden: int
    activations: tuple[Activation, ...]
    clip: float | None
    flag: bool
    w: np.ndarray
    r: np.ndarray
    b: np.ndarray | None
    p: np.ndarray | None = None


def to_cell(one: Direction, double: bool) -> tuple[Cell, Params]:
    """``(cell, params)`` of a ``Direction``; ``double`` keeps its two biases apart."""
    kind = OPERATORS[one.op]
    clips = [one.clip if clipped else None for clipped in kind.clipped]
    acts = [named(dataclasses.replace(a, clip=clip)) for a, clip in zip(one.activations, clips)]
    order = INPUT_FORGET if one.op == "LSTM" and one.flag else kind.order
    gates = lambda m: np.moveaxis(m.reshape(-1, one.hidden, m.shape[-1]), -1, 0)[:, order]
    both = np.zeros(2 * len(one.w), one.w.dtype) if one.b is None else one.b
    b, rb = both.reshape(2, -1, one.hidden)[:, order]
    params = {"w": gates(one.w), "r": gates(one.r), "b": b, "rb": rb}
    if one.op == "RNN":
        cell = elman(one.hidden, activation=acts[0])
    elif one.op == "LSTM":
        cell = _lstm(one, acts, params)
    else:
        f, g = acts
        cell = gru(one.hidden, reset_after=one.flag, activation=g, gate_activation=f)
    params = {name: jnp.asarray(array) for name, array in params.items()}
    if double:
        return double_bias(cell), params
    b, rb = params.pop("b"), params.pop("rb")
    if one.b is None and call_of(cell).constructor is not onnx_lstm:
        return without_bias(cell), params
    return cell, params | summed(b, rb, candidate=one.op == "GRU" and one.flag)


def _lstm(one, acts, params):
    """The cell; changes its parameters to what it has."""
    if one.p is not None:
        params |= zip(("pi", "po", "pf"), one.p.reshape(3, -1))
        if one.flag:
            del params["pf"]
    f, g, h = acts
    # 1 - sigmoid(a) is sigmoid(-a): what is ONNX's i is our f, with other signs.
    if g != h or (one.flag and one.activations[0].name != "Sigmoid"):
        options = {"peepholes": one.p is not None, "input_forget": one.flag}
        return onnx_lstm(one.hidden, activations=tuple(acts), **options)
    if one.flag:
        params |= {name: _negated(params[name]) for name in ("w", "r", "b", "rb")}
        if one.p is not None:
            params["pf"] = -params.pop("pi")
    return lstm(
        one.hidden, peepholes=one.p is not None, coupled=one.flag, activation=g, gate_activation=f
    )


def _negated(gates):
    """The first of three gates with another sign: [..., 3, H], or [3, H]."""
    return np.concatenate([-gates[..., :1, :], gates[..., 1:, :]], -2)


def from_cell(cell: Cell, params: Params) -> Direction:
    """The ``Direction`` that a cell is, with parameters as NumPy arrays.

    Raises:
      ValueError: there is none, or the parameters are not the cell's; says why.
    """
    made = cell.made
    while made is not None and made.constructor in (initialized, double_bias, without_bias):
        made = dict(made.kwargs)["cell"].made
    make = None if made is None else made.constructor
    if made is None or make not in _READ:
        names = ", ".join(sorted(known.__name__ for known in (*_READ, *operators.CELLS)))
        raise ValueError(f"cell: got {cell}, want what ONNX has operators for: {names}")
    try:
        op, activations, flag = _READ[make](dict(made.kwargs))
        activations = tuple(map(described, activations))
        clip = _clip(op, activations)
    except ValueError as error:
        error.add_note(f"in {cell}")
        raise
    _check_params(cell, params)
    arrays = dict(params)
    if "b" in arrays:
        arrays["b"], arrays["rb"] = parted(params)
    if make is lstm and flag:  # as in `_lstm`, back
        arrays |= {n: _negated(arrays[n]) for n in ("w", "r", "b", "rb") if n in arrays}
        if "pf" in arrays:
            arrays["pi"] = -arrays.pop("pf")
    hidden, dtype = arrays["w"].shape[-1], arrays["w"].dtype
    order = INPUT_FORGET if op == "LSTM" and flag else OPERATORS[op].order
    places = len(OPERATORS[op].order)

    def gates(array):
        """[..., K, H] -> [G, H, ...] in the operator's order, zero for a gate that is made."""
        whole = np.zeros((places, hidden, *array.shape[:-2]), dtype)
        whole[list(order)] = np.moveaxis(array, (-2, -1), (0, 1))
        return whole

    bias = peephole = None
    if "b" in arrays:
        bias = np.concatenate([gates(arrays[name]).ravel() for name in ("b", "rb")])
    if "po" in arrays:
        zero = np.zeros(hidden, dtype)
        peephole = np.concatenate([arrays.get(name, zero) for name in ("pi", "po", "pf")])
    return Direction(
        op,
        hidden,
        tuple(dataclasses.replace(a, clip=None) for a in activations),
        clip,
        flag,
        w=gates(arrays["w"]).reshape(places * hidden, -1),
        r=gates(_dense(arrays["r"])).reshape(places * hidden, -1),
        b=bias,
        p=peephole,
    )


def _check_params(cell, params):
    """The parameters are those of the cell, as it checks them itself."""
    known = isinstance(params, dict) and np.ndim(params.get("w", 0)) > 0
    xs = jax.ShapeDtypeStruct((1, len(params["w"]) if known else 1), "float32")
    jax.eval_shape(lambda p, xs: unroll(cell, p, xs), params, xs)


def _dense(r):
    """Recurrent weights [H, G, H], of those in heads [N, D, G, D] too."""
    if r.ndim == 3:
        return r
    heads, width, gates, _ = r.shape
    whole = np.zeros((heads, width, gates, heads, width), r.dtype)
    for head in range(heads):
        whole[head, :, :, head] = r[head]
    return whole.reshape(heads * width, gates, heads * width)


def _read_lstm(given):
    for name in ("cell_clip", "projection"):
        if given[name] is not None:
            raise ValueError(f"{name}: got {given[name]}, want None: ONNX's LSTM has none")
    f, g = given["gate_activation"], given["activation"]
    if given["coupled"] and described(f).name != "Sigmoid":
        want = "'sigmoid' if coupled: ONNX has f = 1 - i, not i = 1 - f"
        raise ValueError(f"gate_activation: got {f}, want {want}")
    return "LSTM", (f, g, g), given["coupled"]


def _read_gru(given):
    return "GRU", (given["gate_activation"], given["activation"]), given["reset_after"]


# Of a cell's arguments: the operator, its activations, and whether its flag is set.
_READ = {
    elman: lambda given: ("RNN", (given["activation"],), False),
    irnn: lambda given: ("RNN", ("relu",), False),
    gru: _read_gru,
    lstm: _read_lstm,
    onnx_lstm: lambda given: ("LSTM", given["activations"], given["input_forget"]),
}


def _clip(op, activations):
    """The one bound of all that are clipped."""
    clip = activations[0].clip
    wanted = [clip if clipped else None for clipped in OPERATORS[op].clipped]
    came = [a.clip for a in activations]
    if came != wanted:
        raise ValueError(f"clip: got {came} of the activations, want {wanted}: {op} has one clip")
    return clip
