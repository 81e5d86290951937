"""Equinox's cells."""

import importlib

import jax
import jax.numpy as jnp

from jaxrnn._src.cells.gru import gru
from jaxrnn._src.cells.lstm import lstm
from jaxrnn._src.core import params_tree
from jaxrnn._src.core.cell import Cell
from jaxrnn._src.core.typing import Params, Theirs
from jaxrnn.interop.layout import Layout, joined, made_by, options, split, to_arrays, to_params


def _layout(gates, own=()):
    """Kernels [G * H, I] and a bias [G * H]; ``own`` are our name and theirs of another bias."""

    def ours(arrays):
        rows = lambda name: split(arrays[name].T, gates)
        params = {
            "w": rows("weight_ih"),
            "r": rows("weight_hh"),
            "b": split(arrays["bias"], gates),
        }
        return params | {name: arrays[their] for name, their in own}

    def theirs(params):
        w, r, b = (joined(params[name]) for name in "wrb")
        arrays = {"weight_ih": w.T, "weight_hh": r.T, "bias": b}
        return arrays | {their: params[name] for name, their in own}

    return Layout(ours, theirs)


_LAYOUTS = {lstm: _layout(4), gru: _layout(3, (("rb", "bias_n"),))}


def from_equinox(module: Theirs) -> tuple[Cell, Params]:
    """A cell of Equinox's, with its numbers.

    Args:
      module: an ``equinox.nn.LSTMCell`` or ``equinox.nn.GRUCell``. One without biases becomes a
        cell whose biases are zero.

    Returns:
      ``(cell, params)``, a ``jaxrnn.lstm`` or ``jaxrnn.gru`` and arrays of the module's types.

    Raises:
      TypeError: it is another module.
      ValueError: its arrays have other shapes, as those of an ensemble.

    >>> import equinox
    >>> import jaxrnn.interop
    >>> module = equinox.nn.GRUCell(3, 4, key=jax.random.key(0))
    >>> cell, params = jaxrnn.interop.from_equinox(module)
    >>> cell, jaxrnn.unroll(cell, params, jnp.ones((5, 3)))[1].shape
    (gru(hidden=4), (5, 4))
    """
    # Where it is not installed, a type checker takes `import equinox` for this file.
    nn: Theirs = importlib.import_module("equinox").nn

    makers = {nn.LSTMCell: lstm, nn.GRUCell: gru}
    if type(module) not in makers:
        names = [f"equinox.nn.{kind.__name__}" for kind in makers]
        raise TypeError(f"module: got {type(module).__name__}, want one of {names}")
    make = makers[type(module)]
    cell = make(module.hidden_size)
    names = ["weight_ih", "weight_hh", "bias", *(["bias_n"] if make is gru else [])]
    arrays = {name: getattr(module, name) for name in names}
    if not module.use_bias:
        rows, dtype = arrays["weight_hh"].shape[0], arrays["weight_hh"].dtype
        arrays |= {"bias": jnp.zeros(rows, dtype)}
        arrays |= {"bias_n": jnp.zeros(module.hidden_size, dtype)} if make is gru else {}
    return cell, to_params(cell, _LAYOUTS[make], arrays, "module")


def to_equinox(cell: Cell, params: Params) -> Theirs:
    """A cell as Equinox's, with its numbers.

    Args:
      cell: a ``jaxrnn.lstm`` or a ``jaxrnn.gru`` with ``reset_after``, of no other options.
      params: its parameters.

    Returns:
      An ``equinox.nn.LSTMCell`` or ``equinox.nn.GRUCell``.

    Raises:
      TypeError: Equinox has no such cell.
      ValueError: nor such an option; ``params`` do not fit the cell.

    >>> import jaxrnn.interop
    >>> cell = jaxrnn.lstm(4)
    >>> module = jaxrnn.interop.to_equinox(cell, cell.init(jax.random.key(0), 3))
    >>> h, c = module(jnp.ones(3), (jnp.zeros(4), jnp.zeros(4)))
    """
    equinox: Theirs = importlib.import_module("equinox")

    params = params_tree.dicts(params)
    make = made_by(cell, _LAYOUTS, "Equinox")
    kind = equinox.nn.LSTMCell if make is lstm else equinox.nn.GRUCell
    hidden = options(cell, f"equinox.nn.{kind.__name__}")["hidden"]
    arrays = to_arrays(cell, _LAYOUTS[make], params, "Equinox")
    inputs = params["w"].shape[0]
    module = equinox.filter_eval_shape(kind, inputs, hidden, key=jax.random.key(0))
    fields = lambda module: [getattr(module, name) for name in arrays]
    return equinox.tree_at(fields, module, list(arrays.values()))
