"""Flax NNX modules, generic in the cell. Batch first: xs [...batch, T, I]."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from jaxrnn._src.core import params_tree
from jaxrnn._src.core.cell import Cell
from jaxrnn._src.core.typing import (
    Array,
    ImplementationName,
    InputArray,
    Merge,
    Params,
    Shape,
    State,
)
from jaxrnn._src.wrappers import batch_major
from jaxrnn._src.wrappers.stack import bidirectional


class RNN(nnx.Module):
    """A cell as a module.

    Args:
      cell: any ``jaxrnn.Cell``.
      in_features: I, the size of the inputs.
      dtype: the type that parameters and inputs are cast to in a call; None leaves them.
      implementation: see ``jaxrnn.unroll``.
      rngs: keys for the parameters and, if the cell draws random numbers, its stream "dropout".

    Attributes:
      params: the cell's parameters, each an ``nnx.Param``.
      deterministic: true after ``eval()``: the cell draws nothing.

    >>> from flax import nnx
    >>> import jaxrnn.nnx
    >>> rnn = jaxrnn.nnx.RNN(jaxrnn.lstm(hidden=8), in_features=3, rngs=nnx.Rngs(0))
    >>> rnn(jnp.ones((2, 5, 3)), seq_lengths=jnp.array([5, 2])).shape
    (2, 5, 8)
    """

    def __init__(
        self,
        cell: Cell,
        in_features: int,
        *,
        dtype: DTypeLike | None = None,
        implementation: ImplementationName | None = None,
        rngs: nnx.Rngs,
    ) -> None:
        self.cell = cell
        self.dtype = dtype
        self.implementation = implementation
        self.deterministic = False
        params = params_tree.dicts(cell.init(rngs.params(), in_features))
        draws = _draws(cell, params, in_features)
        self.rngs: nnx.RngStream | None = rngs.dropout.fork() if draws else nnx.data(None)
        self.params: Params = nnx.data(jax.tree.map(nnx.Param, params))

    def __call__(
        self,
        xs: InputArray,
        *,
        initial_state: State | None = None,
        seq_lengths: InputArray | Sequence[int] | None = None,
        mask: InputArray | None = None,
        starts: InputArray | None = None,
        reverse: bool = False,
        return_state: bool = False,
    ) -> Any:
        """Runs the cell over xs [...batch, T, I].

        Args:
          initial_state: the cell's state; None for the initial one.
          seq_lengths: int [...batch].
          mask, starts: bool [...batch, T].
          reverse: from the last step to the first.
          return_state: whether to return the final state too.

        Returns:
          ys [...batch, T, O], or ``(state, ys)``. For the rest see ``jaxrnn.unroll``.
        """
        key = None if self.rngs is None or self.deterministic else self.rngs()
        state, ys = batch_major.run(
            self.cell, self._values(), xs, initial_state, dtype=self.dtype,
            seq_lengths=seq_lengths, mask=mask, starts=starts, reverse=reverse, key=key,
            implementation=self.implementation,
        )  # fmt: skip
        return (state, ys) if return_state else ys

    def step(self, state: State, x: InputArray) -> tuple[State, Array]:
        """One step in evaluation: x [...batch, I] -> ``(state, y)``, y [...batch, O]."""
        params, x = batch_major.cast(self.dtype, self._values(), x)
        return self.cell.step(params, state, jnp.asarray(x))

    def initial_state(self, batch_shape: Shape) -> State:
        """The state that ``step`` begins with."""
        return self.cell.initial_state(self._values(), batch_shape)

    def _values(self) -> Params:
        is_param = lambda p: isinstance(p, nnx.Param)
        return jax.tree.map(lambda p: p[...], self.params, is_leaf=is_param)


class Bidirectional(RNN):
    """Two cells, one run from each end, as a module: ``RNN(jaxrnn.bidirectional(...))``.

    Args:
      forward, backward, merge: see ``jaxrnn.bidirectional``.
      in_features, dtype, implementation, rngs: see ``RNN``.

    >>> from flax import nnx
    >>> import jaxrnn.nnx
    >>> rnn = jaxrnn.nnx.Bidirectional(jaxrnn.gru(hidden=8), in_features=3, rngs=nnx.Rngs(0))
    >>> rnn(jnp.ones((2, 5, 3))).shape
    (2, 5, 16)
    """

    def __init__(
        self,
        forward: Cell,
        in_features: int,
        *,
        backward: Cell | None = None,
        merge: Merge = "concat",
        **options: Any,
    ) -> None:
        super().__init__(bidirectional(forward, backward, merge=merge), in_features, **options)


def _draws(cell: Cell, params: Params, in_size: int) -> bool:
    """Whether the cell draws random numbers: whether its results depend on the key."""

    def run(key, params, xs):
        return cell.unroll(params, None, xs, None, None, False, key, None)

    jaxpr = jax.make_jaxpr(run)(jax.random.key(0), params, jnp.zeros((1, in_size))).jaxpr
    needed = {v for v in jaxpr.outvars if not hasattr(v, "val")}
    for eqn in reversed(jaxpr.eqns):
        if needed.intersection(eqn.outvars):
            needed.update(v for v in eqn.invars if not hasattr(v, "val"))
    return jaxpr.invars[0] in needed
