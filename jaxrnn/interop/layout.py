"""A peer's cell is often one of ours with its arrays laid out otherwise."""

import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrnn._src.core import checks
from jaxrnn._src.core.cell import Cell, call_of, check_cell, repr_of
from jaxrnn._src.core.typing import Array, Params, Shape


class Layout(NamedTuple):
    """How a peer lays out the parameters of a cell.

    Attributes:
      ours: ``arrays -> params``, of the peer's arrays: dicts, of dicts.
      theirs: ``params -> arrays``.
      missing: names of our parameters that the peer has no place for: they are zero there.
    """

    ours: Callable[[Any], Params]
    theirs: Callable[[Params], Any]
    missing: tuple[str, ...] = ()


def to_params(cell: Cell, layout: Layout, arrays: Mapping[str, Any], name: str) -> Params:
    """A peer's arrays as the parameters of our cell; ``name`` is what its caller calls them."""
    return layout.ours(_fitting(cell, layout.theirs, arrays, name))


def to_arrays(cell: Cell, layout: Layout, params: Params, peer: str) -> dict[str, Any]:
    """Parameters of our cell as a peer's arrays."""
    params = _fitting(cell, lambda params: params, params, "params")
    for name in layout.missing:
        if np.any(params[name]):
            raise ValueError(f"params[{name!r}]: got other numbers than 0, but {peer} has no such")
    return layout.theirs(params)


def _fitting(cell, laid, arrays, name):
    """Arrays with the names and shapes of the parameters of a cell, ``laid`` out in some way.

    The size of the input is whatever the first array says whose shape depends on it.
    """
    unit = math.prod(
        dict(call_of(cell).kwargs).get("shape", ())
    )  # a feature at each place, if any

    def shapes(features):
        init = lambda key: laid(cell.init(key, features * unit))
        return _flat(jax.eval_shape(init, jax.random.key(0)))

    came, one, two = _flat(arrays), shapes(1), shapes(2)
    if set(came) != set(one):
        raise ValueError(f"{name}: got {sorted(came)}, want {sorted(one)}")
    for path, array in came.items():
        checks.check_floating(f"{name}[{path!r}]", array)
    sizes = (
        1 + (size - n) // (m - n)
        for path, array in came.items()
        for size, n, m in zip(array.shape, one[path].shape, two[path].shape)
        if n != m
    )
    for path, want in shapes(max(next(sizes), 1)).items():
        if came[path].shape != want.shape:
            shape = came[path].shape
            raise ValueError(f"{name}[{path!r}]: got shape {shape}, want {want.shape}: {cell}")
    return jax.tree.map(jnp.asarray, arrays)


def _flat(tree):
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def made_by(
    cell: Cell, constructors: Iterable[Callable[..., Cell]], peer: str
) -> Callable[..., Cell]:
    """The one of some constructors that made a cell."""
    check_cell("cell", cell)
    for constructor in constructors:
        if cell.made is not None and cell.made.constructor == constructor:
            return constructor
    names = [constructor.__name__ for constructor in constructors]
    raise TypeError(f"cell: got {cell}, want one of {names}: {peer} has no other")


def options(cell: Cell, peer: str, held: tuple[str, ...] = (), **fixed: Any) -> dict[str, Any]:
    """The arguments of the call that made a cell, each of which a peer's cell can have.

    Args:
      cell: the cell.
      peer: what the peer calls its own.
      held: names of the arguments which that has too. The others have their defaults, but for
        those that only say how parameters begin and what a backward keeps.
      fixed: what an argument is in the peer's, where it is not the default.
    """
    made = call_of(cell)
    given, parameters = dict(made.kwargs), inspect.signature(made.constructor).parameters
    for name, value in given.items():
        want = fixed.get(name, parameters[name].default)
        free = name in ("hidden", "forget_bias", "residuals", *held)
        if not free and not _same(name, value, want):
            came, want = f"{name}={repr_of(value)}", repr_of(want)
            raise ValueError(f"cell: got {came}, want {want}: {peer} has no other: {cell}")
    return given


def _same(name, value, other):
    if name.endswith("activation"):
        value, other = map(checks.activation, (value, other))
    return value == other


def split(a: Array, gates: int) -> Array:
    """[..., G * H] -> [..., G, H]."""
    return a.reshape(*a.shape[:-1], gates, -1)


def joined(a: Array) -> Array:
    """[..., G, H] -> [..., G * H]."""
    return a.reshape(*a.shape[:-2], -1)


def from_igfo(kernel: Array, bias: Array) -> tuple[Array, Array]:
    """A kernel [..., 4 * H] and a bias, of an LSTM that adds 1 to f in a step, as ours."""
    swapped = lambda a: split(a, 4)[..., (0, 2, 1, 3), :]
    return swapped(kernel), swapped(bias).at[1].add(1)


def to_igfo(kernel: Array, bias: Array) -> tuple[Array, Array]:
    """Back."""
    swapped = lambda a: joined(a[..., (0, 2, 1, 3), :])
    return swapped(kernel), swapped(bias.at[1].add(-1))


def convolutional(inputs: str, state: str, kernel: str, bias: str) -> Layout:
    """The layout of a convolutional LSTM with two convolutions, each with a bias.

    Args:
      inputs, state: names of the convolutions.
      kernel, bias: names of the arrays of each.
    """

    def ours(arrays):
        x, h = arrays[inputs], arrays[state]
        w, b = from_igfo(x[kernel], x[bias] + h[bias])
        return {"w": w, "r": from_igfo(h[kernel], h[bias])[0], "b": b}

    def theirs(params):
        w, b = to_igfo(params["w"], params["b"])
        r, _ = to_igfo(params["r"], params["b"])
        return {inputs: {kernel: w, bias: b}, state: {kernel: r, bias: jnp.zeros_like(b)}}

    return Layout(ours, theirs)


def check_places(shape: Shape | None, kernel: Shape | None, peer: str) -> None:
    """``shape`` is given for a convolution, which does not know it, and for nothing else."""
    if kernel is None and shape is not None:
        raise ValueError(f"shape: got {shape}, want None: {peer} has no places")
    if kernel is not None and (not isinstance(shape, tuple) or len(shape) != len(kernel)):
        want = f"the {len(kernel)} sizes of the input's places, which {peer} does not know"
        raise ValueError(f"shape: got {shape!r}, want {want}")
