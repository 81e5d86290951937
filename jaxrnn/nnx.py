"""Flax NNX modules, generic in the cell. Batch first: xs [...batch, T, I]."""

from collections.abc import Sequence
from typing import Any

import jax
from jax.typing import DTypeLike

from jaxrnn._src.core import params_tree
from jaxrnn._src.core.cell import Cell, check_cell
from jaxrnn._src.core.checks import described
from jaxrnn._src.core.extras import extra
from jaxrnn._src.core.typing import (
    ImplementationName,
    InputArray,
    Inputs,
    InSize,
    Merge,
    Outputs,
    Params,
    Partitioning,
    Shape,
    State,
)
from jaxrnn._src.wrappers import batch_major
from jaxrnn._src.wrappers.partitioning import named
from jaxrnn._src.wrappers.stack import bidirectional

with extra("flax", "jaxrnn.nnx"):
    from flax import nnx


class RNN(nnx.Module):
    """A cell as a module.

    Args:
      cell: any ``jaxrnn.Cell``.
      in_features: I, the size of the inputs; None for tokens, a dict of these for a dict.
      dtype: the type that parameters and inputs are cast to in a call; None leaves them.
      param_dtype: the type of the parameters; None for the one that ``cell.init`` makes.
      implementation: see ``jaxrnn.unroll``.
      params: the cell's parameters, as from a file or another library; None makes new ones.
      partitioning: from the name of a parameter, in every layer, to the names of its axes: what
        ``nnx.with_partitioning`` says of one, and ``nnx.get_partition_spec`` reads. None for none.
      rngs: keys for new parameters and, if the cell draws random numbers, its stream "dropout".

    Attributes:
      params: the cell's parameters, each an ``nnx.Param``.
      deterministic: true after ``eval()``: the cell draws nothing.

    Raises:
      TypeError: ``cell`` is no ``Cell``, or ``rngs`` no ``nnx.Rngs`` where one is needed;
        ``partitioning`` gives what is no tuple.
      ValueError: ``partitioning`` names a parameter that the cell has not, or not all of its axes.

    >>> from flax import nnx
    >>> import jaxrnn.nnx
    >>> rnn = jaxrnn.nnx.RNN(jaxrnn.lstm(hidden=8), in_features=3, rngs=nnx.Rngs(0))
    >>> rnn(jnp.ones((2, 5, 3)), lengths=jnp.array([5, 2])).shape
    (2, 5, 8)
    >>> units = {"w": (None, None, "model"), "r": (None, None, "model"), "b": (None, "model")}
    >>> cell = jaxrnn.lstm(hidden=8)
    >>> with jax.set_mesh(jax.make_mesh((1,), ("model",), (jax.sharding.AxisType.Auto,))):
    ...     rnn = jaxrnn.nnx.RNN(cell, in_features=3, partitioning=units, rngs=nnx.Rngs(0))
    >>> tuple(nnx.get_partition_spec(nnx.state(rnn))["params"]["r"].get_value())
    (None, None, 'model')
    """

    def __init__(
        self,
        cell: Cell,
        in_features: InSize,
        *,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike | None = None,
        implementation: ImplementationName | None = None,
        params: Params | None = None,
        partitioning: Partitioning | None = None,
        rngs: nnx.Rngs | None = None,
    ) -> None:
        check_cell("cell", cell)
        self.cell = cell
        self.dtype = dtype
        self.implementation = implementation
        self.deterministic = False
        if params is None:
            params = cell.init(_checked(rngs).params(), in_features)
        (params,) = batch_major.cast(param_dtype, params_tree.dicts(params))
        self.rngs: nnx.RngStream | None = (
            _checked(rngs).dropout.fork() if cell.draws else nnx.data(None)
        )
        params = jax.tree.map(nnx.Param, named(params, partitioning, _named), is_leaf=_is_named)
        self.params: Params = nnx.data(params)

    def __call__(
        self,
        xs: Inputs,
        *,
        state: State | None = None,
        initial_state: State | None = None,
        lengths: InputArray | Sequence[int] | None = None,
        seq_lengths: InputArray | Sequence[int] | None = None,
        mask: InputArray | None = None,
        starts: InputArray | None = None,
        segment_ids: InputArray | None = None,
        reverse: bool = False,
        time_major: bool = False,
        deterministic: bool | None = None,
        return_state: bool = False,
        return_states: bool = False,
    ) -> Any:
        """Runs the cell over xs [...batch, T, I]; of integers, tokens, [...batch, T].

        Args:
          state, initial_state: two names of the cell's state; None for the initial one.
          lengths, seq_lengths: two names of int [...batch].
          mask, starts: bool [...batch, T].
          segment_ids: int [...batch, T], of packed rows.
          reverse: from the last step to the first.
          time_major: time leads in xs, mask, starts, segment_ids and ys: [T, ...batch, I].
          deterministic: whether the cell draws nothing in this call; None is the module's own.
          return_state: whether to return the final state too.
          return_states: whether to return the final state and those after all steps.

        Returns:
          ys [...batch, T, O], or ``(state, ys)``, or ``(state, (ys, states))``, where states have
          time and batch as ys have them. For the rest see ``jaxrnn.unroll``.

        Raises:
          ValueError: an argument is given under both of its names.
        """
        deterministic = self.deterministic if deterministic is None else deterministic
        state, ys = batch_major.run(
            *self.cell_and_params(),
            xs,
            dtype=self.dtype,
            state=state,
            initial_state=initial_state,
            lengths=lengths,
            seq_lengths=seq_lengths,
            mask=mask,
            starts=starts,
            segment_ids=segment_ids,
            reverse=reverse,
            time_major=time_major,
            key=None if self.rngs is None or deterministic else self.rngs(),
            implementation=self.implementation,
            return_states=return_states,
        )
        return (state, ys) if return_state or return_states else ys

    def step(self, state: State, x: Inputs) -> tuple[State, Outputs]:
        """One step in evaluation: x [...batch, I] -> ``(state, y)``, y [...batch, O]."""
        cell, params = self.cell_and_params()
        params, x = batch_major.cast(self.dtype, params, x)
        return cell.step(params, state, x)

    def initial_state(self, batch_shape: Shape) -> State:
        """The state that ``step`` begins with."""
        cell, params = self.cell_and_params()
        return cell.initial_state(params, batch_shape)

    def cell_and_params(self) -> tuple[Cell, Params]:
        """What all functions of jaxrnn take: the cell, and its parameters as a dict of arrays.

        >>> from flax import nnx
        >>> import jaxrnn.nnx
        >>> rnn = jaxrnn.nnx.RNN(jaxrnn.gru(hidden=8), in_features=3, rngs=nnx.Rngs(0))
        >>> cell, params = rnn.cell_and_params()
        >>> jaxrnn.trace(cell, params, jnp.ones((5, 2, 3)))["z"].shape
        (5, 2, 8)
        """
        return self.cell, params_tree.dicts(self.params)


class Bidirectional(RNN):
    """Two cells, one run from each end, as a module: ``RNN(jaxrnn.bidirectional(...))``.

    Args:
      forward, backward, merge: see ``jaxrnn.bidirectional``.
      in_features and others: see ``RNN``.

    >>> from flax import nnx
    >>> import jaxrnn.nnx
    >>> rnn = jaxrnn.nnx.Bidirectional(jaxrnn.gru(hidden=8), in_features=3, rngs=nnx.Rngs(0))
    >>> rnn(jnp.ones((2, 5, 3))).shape
    (2, 5, 16)
    """

    def __init__(
        self,
        forward: Cell,
        in_features: InSize,
        *,
        backward: Cell | None = None,
        merge: Merge = "concat",
        **options: Any,
    ) -> None:
        super().__init__(bidirectional(forward, backward, merge=merge), in_features, **options)


def _named(array: jax.Array, names: tuple[str | None, ...]) -> Any:
    return nnx.with_partitioning(lambda: array, names)()


def _is_named(a: Any) -> bool:
    return isinstance(a, nnx.VariableMetadata)


def _checked(rngs: nnx.Rngs | None) -> nnx.Rngs:
    if not isinstance(rngs, nnx.Rngs):
        raise TypeError(f"rngs: got {described(rngs)}, want an nnx.Rngs, as nnx.Rngs(0)")
    return rngs
