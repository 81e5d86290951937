"""Cells with another number of biases: two that are summed, or none."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrnn._src.cells.elman import elman
from jaxrnn._src.cells.gru import gru
from jaxrnn._src.cells.lstm import lstm
from jaxrnn._src.core import checks
from jaxrnn._src.core.cell import Cell, constructor
from jaxrnn._src.core.typing import Array, Params, Shape
from jaxrnn._src.wrappers.reparameterised import with_params

_SUMMED = (elman, lstm, gru)


@constructor
def double_bias(cell: Cell) -> Cell:
    """A cell with a bias beside each of its two products, as PyTorch, cuDNN and Keras's GRU have.

        W x + b + R h + rb      in place of      W x + R h + b

    It computes the same, but two biases take two steps in training where one takes one.

    Args:
      cell: an ``elman``, ``lstm`` or ``gru``.

    Returns:
      A ``Cell`` with the state of ``cell``, which runs as it does; parameters as those of
      ``cell``, with both ``b`` and ``rb`` [G, H]. ``rb`` begins at zero.

    Raises:
      ValueError: another cell.

    >>> import jaxrnn.interop
    >>> cell = jaxrnn.interop.double_bias(jaxrnn.gru(4))
    >>> params = cell.init(jax.random.key(0), 3)
    >>> params["b"].shape, params["rb"].shape
    ((3, 4), (3, 4))
    >>> jaxrnn.unroll(cell, params, jnp.ones((5, 2, 3)))[1].shape
    (5, 2, 4)
    """
    names = _shapes("double_bias", cell)

    def init(key, in_size):
        params = cell.init(key, in_size)
        return params | {"rb": jnp.zeros_like(params["b"])}

    def one(params):
        checks.check_names(params, {*names, "rb"})
        b, rb = params["b"], params["rb"]
        checks.check_floating("params['rb']", rb)
        if rb.shape != b.shape:
            raise ValueError(f"params['rb']: got shape {rb.shape}, want {b.shape}, that of b")
        return {name: params[name] for name in names} | summed(b, rb, candidate="rb" in names)

    return with_params(cell, one, init)


@constructor
def without_bias(cell: Cell) -> Cell:
    """A cell whose biases are zero and no parameters.

    Args:
      cell: an ``elman``, ``lstm`` or ``gru``.

    Returns:
      A ``Cell`` with the state of ``cell``, which runs as it does; parameters as those of
      ``cell`` without ``b`` and ``rb``.

    Raises:
      ValueError: another cell.

    >>> import jaxrnn.interop
    >>> cell = jaxrnn.interop.without_bias(jaxrnn.lstm(4))
    >>> sorted(cell.init(jax.random.key(0), 3))
    ['r', 'w']
    """
    shapes = _shapes("without_bias", cell)
    biases = [name for name in shapes if name in ("b", "rb")]
    kept = [name for name in shapes if name not in biases]

    def init(key, in_size):
        params = cell.init(key, in_size)
        return {name: params[name] for name in kept}

    def completed(params):
        checks.check_names(params, kept)
        checks.check_floating("params['w']", params["w"])
        return params | {name: jnp.zeros(shapes[name], params["w"].dtype) for name in biases}

    return with_params(cell, completed, init)


def summed(b: Array, rb: Array, candidate: bool) -> dict[str, Array]:
    """Two biases [G, H] as one; ``candidate`` says that the last gate's is no part of a sum."""
    return {"b": b.at[:-1].add(rb[:-1]), "rb": rb[-1]} if candidate else {"b": b + rb}


def parted(params: Params) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Two biases [G, H] of the parameters of a cell with two, or with one and the candidate's."""
    b, rb = np.asarray(params["b"]), np.asarray(params.get("rb", 0))
    if rb.ndim == b.ndim:
        return b, rb
    candidate = np.zeros_like(b)
    candidate[-1] = rb
    return b, candidate


def _shapes(name: str, cell: Cell) -> dict[str, Shape]:
    """The shapes of a cell's parameters, if it is one of those with biases that are summed."""
    if not isinstance(cell, Cell) or not cell.made or cell.made.constructor not in _SUMMED:
        raise ValueError(f"{name}: got {cell!r}, want an elman, lstm or gru")
    params = jax.eval_shape(lambda key: cell.init(key, 1), jax.random.key(0))
    return {name: a.shape for name, a in params.items()}
