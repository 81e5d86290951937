"""Flax's recurrent modules, of both its libraries: the names of modules are the same in both."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxrnn._src.core import checks, params_tree
from jaxrnn._src.core.cell import Cell, call_of, check_cell, repr_of
from jaxrnn._src.core.typing import Params, Shape, Theirs
from jaxrnn._src.wrappers.stack import bidirectional, merge_function
from jaxrnn.interop.flax_cells import ROWS
from jaxrnn.interop.layout import check_places, made_by, options, to_arrays, to_params


def from_flax(
    source: Theirs, variables: Mapping[str, Any] | None = None, *, shape: Shape | None = None
) -> tuple[Cell, Params]:
    """A recurrent module of Flax's, with its numbers.

    Args:
      source: of ``flax.linen`` or ``flax.nnx`` a cell, an ``RNN``, or a ``Bidirectional`` of two
        ``RNN``; of an ``RNN`` only the cell counts, not how it lays out its sequences. The cells
        are SimpleCell, LSTMCell, OptimizedLSTMCell and GRUCell; of Linen also MGUCell and
        ConvLSTMCell.
      variables: of a Linen module, ``{"params": ...}``; None of an nnx module, which carries its
        own.
      shape: of the input's places, as ``(height, width)``, which a ConvLSTMCell does not know;
        None for others.

    Returns:
      ``(cell, params)``, arrays in the module's types. A residual of SimpleCell adds the identity
      to ``r``, and the 1 that ConvLSTMCell adds to f in each step is in the bias. MGUCell, whose
      gate keeps the old state where that of ``jaxrnn.mgu`` lets in the new, is ``jaxrnn.ugrnn``
      without its reset gate, and with it a cell of its own, made by ``jaxrnn.gated``. Flax's
      carry ``(c, h)`` of an LSTM is the state ``(h, c)`` here.

    Raises:
      TypeError: ``source`` is another module; there are no variables, or some too many.
      ValueError: the cell has no such option (``carry_init``, an activation, a ``dtype`` that is
        not the parameters'); an ``RNN`` is reversed, which is an argument of ``jaxrnn.unroll``;
        both directions share one ``RNN``; arrays that do not fit; no ``shape``.

    >>> from flax import linen
    >>> import jaxrnn.interop
    >>> rnn, xs = linen.RNN(linen.GRUCell(4)), jnp.ones((2, 5, 3))
    >>> variables = rnn.init(jax.random.key(0), xs)
    >>> cell, params = jaxrnn.interop.from_flax(rnn, variables)
    >>> ours = jaxrnn.unroll(cell, params, xs.swapaxes(0, 1))[1].swapaxes(0, 1)
    >>> cell, bool(jnp.allclose(ours, rnn.apply(variables, xs), atol=1e-6))
    (gru(hidden=4), True)
    """
    import flax.core
    from flax import linen, nnx

    if isinstance(source, linen.Module):
        if not isinstance(variables, Mapping) or "params" not in variables:
            came = type(variables).__name__
            raise TypeError(f"variables: got {came}, want {{'params': ...}} of a Linen module")
        arrays = flax.core.meta.unbox(params_tree.dicts(variables["params"]))
        return _from(linen, source, arrays, "variables['params']", shape)
    if isinstance(source, nnx.Module):
        if variables is not None:
            raise TypeError("variables: got some, want None: an nnx module carries its own")
        arrays = nnx.to_pure_dict(nnx.state(source, nnx.Param))
        return _from(nnx, source, arrays, "source", shape)
    raise TypeError(
        f"source: got {type(source).__name__}, want a module of flax.linen or flax.nnx"
    )


def to_linen(cell: Cell, params: Params) -> tuple[Theirs, dict[str, Any]]:
    """A cell as Linen's, with its numbers.

    Args:
      cell: a ``jaxrnn.elman``, ``lstm``, ``gru`` with ``reset_after``, ``ugrnn`` or ``conv_lstm``,
        of the options that Linen's have too; or a ``bidirectional`` of such.
      params: its parameters.

    Returns:
      ``(module, variables)``: a cell of ``flax.linen``, or a ``Bidirectional``. To run a cell over
      a sequence: ``linen.RNN(module)`` with ``{"params": {"cell": variables["params"]}}``.

    Raises:
      TypeError: Linen has no such cell.
      ValueError: nor such an option; ``params`` do not fit the cell.

    >>> import jaxrnn.interop
    >>> cell = jaxrnn.lstm(4)
    >>> module, variables = jaxrnn.interop.to_linen(cell, cell.init(jax.random.key(0), 3))
    >>> sorted(variables["params"])
    ['hf', 'hg', 'hi', 'ho', 'if', 'ig', 'ii', 'io']
    """
    from flax import linen

    params = params_tree.dicts(params)
    if _is_bidirectional(cell):
        both, merge = _directions(cell, params, to_linen)
        rnns = [linen.RNN(module) for module, _ in both]
        arrays = {
            name: {"cell": variables["params"]}
            for name, (_, variables) in zip(("forward_rnn", "backward_rnn"), both)
        }
        return linen.Bidirectional(rnns[0], rnns[1], **merge), {"params": arrays}
    row, given, arrays = _to(cell, params, "linen")
    if row.name == "ConvLSTMCell":
        given = given | {"kernel_size": params["w"].shape[:-3]}
    hidden, dtype = params["b"].shape[-1], params["r"].dtype
    module = getattr(linen, row.name)(hidden, **given, param_dtype=dtype)
    return module, {"params": arrays}


def to_nnx(cell: Cell, params: Params) -> Theirs:
    """A cell as nnx's, with its numbers.

    Args:
      cell: a ``jaxrnn.elman``, ``lstm`` or ``gru`` with ``reset_after``, of the options that nnx's
        have too; or a ``bidirectional`` of such.
      params: its parameters.

    Returns:
      A cell of ``flax.nnx``, for ``nnx.RNN``; or a ``Bidirectional``.

    Raises:
      TypeError: nnx has no such cell.
      ValueError: nor such an option; ``params`` do not fit the cell, or a ``gru`` has an ``rb``
        that is not zero, a bias that nnx leaves out.

    >>> from flax import nnx
    >>> import jaxrnn.interop
    >>> cell = jaxrnn.gru(4)
    >>> module = jaxrnn.interop.to_nnx(cell, cell.init(jax.random.key(0), 3))
    >>> nnx.RNN(module)(jnp.ones((2, 5, 3))).shape
    (2, 5, 4)
    """
    from flax import nnx

    params = params_tree.dicts(params)
    if _is_bidirectional(cell):
        both, merge = _directions(cell, params, to_nnx)
        return nnx.Bidirectional(*map(nnx.RNN, both), **merge)
    row, given, arrays = _to(cell, params, "nnx")
    inputs, hidden, dtype = params["w"].shape[0], params["b"].shape[-1], params["r"].dtype
    given = given | {"dtype": None, "param_dtype": dtype}
    given |= {"recurrent_kernel_init": jax.nn.initializers.zeros}  # theirs knows no bfloat16
    make = functools.partial(getattr(nnx, row.name), inputs, hidden, **given)
    module = nnx.eval_shape(lambda: make(rngs=nnx.Rngs(0)))
    nnx.update(module, arrays)
    return module


def _from(library, source, arrays, name, shape):
    """Our cell and parameters of a module of one of the libraries.

    Args:
      library: ``flax.linen`` or ``flax.nnx``.
      source: the module.
      arrays: the module's, dicts of dicts.
      name: what the caller calls them.
      shape: see ``from_flax``.
    """
    kind = type(source)
    if kind is library.Bidirectional:
        ends = {"forward_rnn": source.forward_rnn, "backward_rnn": source.backward_rnn}
        for end, rnn in ends.items():
            if type(rnn) is not library.RNN:
                raise TypeError(f"{end}: got {type(rnn).__name__}, want an RNN")
        if source.forward_rnn.cell is source.backward_rnn.cell:
            raise ValueError("backward_rnn: got the cell of forward_rnn, want one of its own")
        _check_names(name, arrays, ends)
        (forward, ahead), (backward, back) = (
            _from_rnn(library, rnn, arrays[end], f"{name}[{end!r}]", shape)
            for end, rnn in ends.items()
        )
        backward = None if backward == forward else backward
        merge = "concat" if source.merge_fn is kind.merge_fn else source.merge_fn
        cell = bidirectional(forward, backward, merge=merge)
        return cell, {"forward": ahead, "backward": back}
    if kind is library.RNN:
        if source.reverse:
            want = "want False: a cell runs either way, by jaxrnn.unroll(..., reverse=True)"
            raise ValueError(f"reverse: got True, {want}, whose outputs are those of keep_order")
        return _from_rnn(library, source, arrays, name, shape)
    return _from_cell(library, source, arrays, name, shape)


def _from_rnn(library, rnn, arrays, name, shape):
    """The same of an ``RNN``, whichever way it runs."""
    _check_names(name, arrays, ["cell"])
    return _from_cell(library, rnn.cell, arrays["cell"], f"{name}['cell']", shape)


def _from_cell(library, source, arrays, name, shape):
    rows = [row for row in _rows(library) if type(source) is getattr(library, row.name)]
    if not rows:
        names = sorted({row.name for row in _rows(library)})
        want = f"one of {[*names, 'RNN', 'Bidirectional']} of {library.__name__}"
        raise TypeError(f"source: got {type(source).__name__}, want {want}")
    row = next(
        row
        for row in rows
        if all(getattr(source, name) == value for name, value in row.options.items())
    )
    _check_options(source, row)
    given = {ours: _named(getattr(source, theirs)) for theirs, ours in row.functions.items()}
    kernel = None
    if row.name == "ConvLSTMCell":
        kernel = tuple(source.kernel_size)
        arrays = _filled(arrays) if not source.use_bias else arrays
        given = {"shape": shape, "kernel": kernel}
    check_places(shape, kernel, row.name)
    hidden = source.features if library.__name__ == "flax.linen" else source.hidden_features
    cell = row.make(hidden, **given)
    params = to_params(cell, row.layout, arrays, name)
    if source.dtype is not None and jnp.dtype(source.dtype) != params["r"].dtype:
        want = f"None or {params['r'].dtype}, the parameters'"
        came = jnp.dtype(source.dtype)
        raise ValueError(f"dtype: got {came}, want {want}: jaxrnn's modules have such a dtype")
    if getattr(source, "residual", False):
        params["r"] += jnp.eye(hidden, dtype=params["r"].dtype)[:, None]
    return cell, params


def _check_options(source, row):
    """Nothing is otherwise in a cell of Flax's than in ours."""
    usual = {
        "gate_fn": (jax.nn.sigmoid,),
        "activation_fn": (jax.nn.tanh,),
        "carry_init": (jax.nn.initializers.zeros, None),
        "padding": ("SAME",),
        "strides": (None, 1, (1,), (1, 1), (1, 1, 1)),
    }
    for name, allowed in usual.items():
        value = getattr(source, name, allowed[0])
        value = tuple(value) if isinstance(value, list) else value
        if name not in row.functions and value not in allowed:
            came, want, ours = repr_of(value), repr_of(allowed[0]), row.make.__name__
            raise ValueError(f"{name}: got {came}, want {want}: {ours} has no other")


def _named(function):
    """The name of a function in ``jax.nn``, or itself if it is of elsewhere."""
    name = getattr(function, "__name__", "")
    return name if getattr(jax.nn, name, None) is function else function


def _filled(arrays):
    """With biases of zero."""
    zero = lambda own: {"bias": jnp.zeros_like(own["kernel"], shape=own["kernel"].shape[-1:])}
    return {name: (zero(own) if "kernel" in own else {}) | own for name, own in arrays.items()}


def _check_names(name, arrays, want):
    if set(arrays) != set(want):
        raise ValueError(f"{name}: got {sorted(arrays)}, want {sorted(want)}")


def _rows(library):
    return ROWS[library.__name__.removeprefix("flax.")]


def _to(cell, params, library):
    """The row of a cell, the options of Flax's class, and its arrays."""
    rows = {}
    for row in ROWS[library]:
        rows.setdefault(row.make, row)
    row = rows[made_by(cell, rows, f"flax.{library}")]
    peer = f"flax.{library}.{row.name}"
    places = ("shape", "kernel") if row.name == "ConvLSTMCell" else ()
    given = options(cell, peer, (*row.functions.values(), *places))
    functions = {theirs: checks.activation(given[ours]) for theirs, ours in row.functions.items()}
    return row, row.options | functions, to_arrays(cell, row.layout, params, peer)


def _is_bidirectional(cell):
    check_cell("cell", cell)
    return cell.made is not None and cell.made.constructor == bidirectional


def _directions(
    cell: Cell, params: Params, convert: Callable[[Cell, Params], Any]
) -> tuple[Any, dict[str, Any]]:
    """Both cells of a ``bidirectional``, converted, and what Flax calls its ``merge``."""
    given = dict(call_of(cell).kwargs)
    forward, backward, merge = given["forward"], given["backward"], given["merge"]
    backward = forward if backward is None else backward
    params = params_tree.parts(params, {"forward": forward.init, "backward": backward.init})
    both = convert(forward, params["forward"]), convert(backward, params["backward"])
    return both, {} if merge == "concat" else {"merge_fn": merge_function(merge)}
