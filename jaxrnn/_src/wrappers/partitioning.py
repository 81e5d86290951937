"""Names for the axes of a module's parameters, by which Flax divides them over devices."""

from collections.abc import Callable
from typing import Any

import jax

from jaxrnn._src.core.checks import described
from jaxrnn._src.core.typing import Params, Partitioning


def named(params: Params, partitioning: Partitioning | None, box: Callable[..., Any]) -> Params:
    """The parameters with ``box(array, names)`` in place of those that ``partitioning`` names.

    Args:
      params: nested dicts of arrays.
      partitioning: from the name of a parameter, wherever it is, to the names of its axes.

    Raises:
      TypeError, ValueError: ``partitioning`` is no such mapping, or does not fit the parameters.
    """
    if partitioning is None:
        return params
    known = sorted({_name(path) for path, _ in jax.tree.leaves_with_path(params)})
    for name, names in dict(partitioning).items():
        if name not in known:
            raise ValueError(f"partitioning: got the name {name!r}, want some of {tuple(known)}")
        if not isinstance(names, tuple):
            want = "a tuple with the name of each axis, or None for one that is not divided"
            raise TypeError(f"partitioning[{name!r}]: got {described(names)}, want {want}")

    def boxed(path, array):
        names = partitioning.get(_name(path))
        if names is None:
            return array
        if len(names) != array.ndim:
            want = f"{array.ndim}, one for each axis of {array.shape}"
            raise ValueError(f"partitioning[{_name(path)!r}]: got {names!r}, want {want}")
        return box(array, names)

    return jax.tree.map_with_path(boxed, params)


def _name(path):
    return str(path[-1].key)
