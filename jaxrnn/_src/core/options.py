"""How a cell is run over a sequence, beside its parameters, its state and its inputs."""

import dataclasses
import functools
from typing import Any

import jax
import numpy as np

InputArray = jax.Array | np.ndarray[Any, np.dtype[Any]]  # as in typing.py, which imports this


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("mask", "starts", "key"),
    meta_fields=("reverse", "implementation"),
)
@dataclasses.dataclass(frozen=True)
class Options:
    """What ``Cell.unroll`` is told beside ``params``, ``state`` and ``xs``.

    ``jaxrnn.unroll`` makes it of its arguments, checked. To JAX it is a tree of ``mask``,
    ``starts`` and ``key``; ``reverse`` and ``implementation`` are static, so ``jax.jit`` compiles
    for each of their values.

    Attributes:
      mask: bool [T, ...batch], true at a real step; at any other, the state is held and the output
        is zero. None if all steps are real. ``lengths`` are in it.
      starts: bool [T, ...batch], true where the initial state is put back before the step; None
        for nowhere.
      reverse: from the last step to the first; outputs stay at their input's time.
      key: a ``jax.random`` key for what is drawn; None is evaluation.
      implementation: the name of one; None for the best that can run.

    >>> options = jaxrnn.Options(mask=jnp.array([True, True, False]))
    >>> options.replace(reverse=True).reverse, len(jax.tree.leaves(options))
    (True, 1)
    """

    mask: InputArray | None = None
    starts: InputArray | None = None
    reverse: bool = False
    key: jax.Array | None = None
    implementation: str | None = None

    def replace(self, **changes: Any) -> "Options":
        """The same, but for ``changes``, by name."""
        return dataclasses.replace(self, **changes)
