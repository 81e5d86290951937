"""Equinox's layers and models as ours, and our cells as Equinox's."""

import importlib

import jax

from jaxrnn._src.cells.lstm import lstm
from jaxrnn._src.core import params_tree
from jaxrnn._src.core.cell import Cell
from jaxrnn._src.core.typing import InputArray, Params, Theirs
from jaxrnn.interop import equinox_layers
from jaxrnn.interop.equinox_layers import LAYOUTS
from jaxrnn.interop.layers import stacked
from jaxrnn.interop.layout import made_by, options, to_arrays


def from_equinox(module: Theirs, xs: InputArray | None = None) -> tuple[Cell, Params]:
    """Equinox's layers as a cell, with their numbers: one, several, or those of a whole model.

    Args:
      module: an ``equinox.nn.LSTMCell`` or ``equinox.nn.GRUCell``; one without biases becomes a
        cell whose biases are zero. Or another layer: ``Linear``, ``MLP``, ``LayerNorm``,
        ``RMSNorm``, ``Embedding``, ``Dropout``, ``Identity``; ``jaxrnn.equinox.RNN``. Or several,
        as a list or an ``equinox.nn.Sequential``, where functions (or ``Lambda``) may follow a
        ``Linear``. Or a module of your own that scans such layers.
      xs: an input [T, I] (of tokens, ints [T]) of a module of your own. What that computes is
        known only to its ``__call__``, so its layers are taken in the order of its fields, and
        run over ``xs``: they have to give what ``module(xs)`` gives, at all steps or at the last.

    Returns:
      ``(cell, params)``: a ``jaxrnn.lstm`` or ``jaxrnn.gru``, or a ``jaxrnn.stack``, and arrays of
      the module's types. ``Dropout`` draws where ``jaxrnn.unroll`` is given a key.

    Raises:
      TypeError: it is another module, or has one.
      ValueError: its arrays have other shapes, as those of an ensemble; it has what has no
        counterpart, and what that is; a module of your own gives other numbers.

    >>> import equinox
    >>> import jaxrnn.interop
    >>> module = equinox.nn.GRUCell(3, 4, key=jax.random.key(0))
    >>> head = equinox.nn.Linear(4, 2, key=jax.random.key(1))
    >>> cell, params = jaxrnn.interop.from_equinox([module, head, jax.nn.sigmoid])
    >>> cell
    stack(gru(hidden=4), project(hidden=2, activation='sigmoid'))
    >>> jaxrnn.unroll(cell, params, jnp.ones((5, 3)))[1].shape
    (5, 2)
    """
    if not equinox_layers.is_own(module):
        if xs is not None:
            raise ValueError("xs: got an input, want None: only a module of your own is run")
        return stacked(equinox_layers.of_layers(module))
    if xs is None:
        kind = type(module).__name__
        want = f"an input of the {kind}, to see that its layers run in the order of its fields"
        raise ValueError(f"xs: got None, want {want}; or hand in a list of its layers")
    cell, params = stacked(equinox_layers.of_model(module))
    equinox_layers.check_same(module, cell, params, xs)
    return cell, params


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
    make = made_by(cell, LAYOUTS, "Equinox")
    kind = equinox.nn.LSTMCell if make is lstm else equinox.nn.GRUCell
    hidden = options(cell, f"equinox.nn.{kind.__name__}")["hidden"]
    arrays = to_arrays(cell, LAYOUTS[make], params, "Equinox")
    inputs = params["w"].shape[0]
    module = equinox.filter_eval_shape(kind, inputs, hidden, key=jax.random.key(0))
    fields = lambda module: [getattr(module, name) for name in arrays]
    return equinox.tree_at(fields, module, list(arrays.values()))
