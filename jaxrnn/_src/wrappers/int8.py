"""Weights kept as int8, for inference."""

import jax
import jax.numpy as jnp

from jaxrnn._src.core import checks, params_tree
from jaxrnn._src.core.cell import Cell, check_cell, constructor
from jaxrnn._src.core.typing import Params
from jaxrnn._src.wrappers.reparameterised import with_params

NAMES = ("w", "r", "p")  # of the weights that products take; all else stays as it is
_MOST = 127  # -128 is left out: a weight and its negative are equally far from zero


def quantize(cell: Cell, params: Params) -> tuple[Cell, Params]:
    """Rounds a cell's weights to int8, one scale for each output of each gate.

        scale = max |w| / 127      w ~ int8 * scale      with an error of scale / 2 at most

    For inference. What it saves is room: weights at rest and in files take a quarter of float32's.
    It makes nothing faster. A call turns the weights back into floats, once before its loop, and
    has both in memory while it runs; a ``step`` by itself does so at each step. What is lost in
    accuracy ``python -m benchmarks int8`` measures.

    Args:
      cell: a cell, or one made of others.
      params: its parameters. Those named ``w`` and ``r``, and ``p`` of an LSTM with
        ``projection``, are rounded, [..., I, G, H] or [I, H] each, where all I share a scale.
        Biases and whatever else there is stay as they are.

    Returns:
      ``(cell, params)``: ``jaxrnn.int8(cell)``, and its parameters.

    Raises:
      ValueError: none of the parameters has such a name.
      TypeError: ``cell`` is no cell; a weight is not floating, as when it is int8 already.

    >>> cell = jaxrnn.lstm(hidden=8)
    >>> params = cell.init(jax.random.key(0), 3)
    >>> small, rounded = jaxrnn.quantize(cell, params)
    >>> small, rounded["r"].dtype, rounded["r_scale"].shape
    (int8(cell=lstm(hidden=8)), dtype('int8'), (1, 4, 8))
    >>> ys, wanted = (jaxrnn.unroll(*with_, jnp.ones((5, 3)))[1]
    ...               for with_ in ((small, rounded), (cell, params)))
    >>> bool(abs(ys - wanted).max() < 0.01)
    True
    """
    params = params_tree.dicts(params)
    checks.check_mapping("params", params)
    small, rounded = int8(cell), _rounded(params)
    if jax.tree.structure(rounded) == jax.tree.structure(params):
        names = sorted({path[-1].key for path, _ in jax.tree.leaves_with_path(params)})
        raise ValueError(f"params: got {names}, want any of {NAMES}: nothing else is rounded")
    return small, rounded


@constructor
def int8(cell: Cell) -> Cell:
    """A cell whose weights are int8, with scales: what ``jaxrnn.quantize`` gives, for inference.

    Args:
      cell: a cell.

    Returns:
      A ``Cell`` with the state of ``cell``. In place of ``w`` [I, G, H] its parameters have ``w``,
      int8, and ``w_scale`` [1, G, H]; and so for ``r`` and ``p``.

    Raises:
      TypeError: weights come that are not int8.
      ValueError: weights come without their scales.

    >>> cell = jaxrnn.int8(jaxrnn.gru(4))
    >>> params = cell.init(jax.random.key(0), 3)
    >>> sorted(params), params["w"].dtype
    (['b', 'r', 'r_scale', 'rb', 'w', 'w_scale'], dtype('int8'))
    """
    check_cell("int8", cell)
    init = lambda key, in_size: _rounded(params_tree.dicts(cell.init(key, in_size)))
    return with_params(cell, lambda params: _wide(params), init)


def _rounded(params, path="params"):
    """A dict of parameters, or of dicts of them, with its weights as int8."""
    out = {}
    for name, value in params.items():
        where = f"{path}[{name!r}]"
        if isinstance(value, dict):
            out[name] = _rounded(value, where)
        elif name in NAMES and value.ndim > 1:
            checks.check_floating(where, value)
            # The inputs' axis: of [..., I, G, H] the third from the end, of [I, H] the second.
            value = jnp.asarray(value)
            most = abs(value).max(-min(value.ndim, 3), keepdims=True)
            scale = jnp.where(most == 0, 1, most / _MOST)
            whole = jnp.round(value / scale).clip(-_MOST, _MOST)
            out[name], out[f"{name}_scale"] = whole.astype(jnp.int8), scale
        else:
            out[name] = value
    return out


def _wide(params, path="params"):
    """The inverse, but for what was rounded."""
    out, scales = {}, {f"{name}_scale" for name in NAMES}
    for name, value in params.items():
        where = f"{path}[{name!r}]"
        if isinstance(value, dict):
            out[name] = _wide(value, where)
        elif name in NAMES and value.ndim > 1:
            if value.dtype != jnp.int8:
                raise TypeError(f"{where}: got {value.dtype}, want int8, as jaxrnn.quantize gives")
            if f"{name}_scale" not in params:
                raise ValueError(f"{path}: got {sorted(params)}, want {name}_scale beside {name}")
            scale = params[f"{name}_scale"]
            out[name] = value.astype(scale.dtype) * scale
        elif name not in scales:
            out[name] = value
    return out
