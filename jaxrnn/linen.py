"""Flax Linen modules, generic in the cell. Batch first: xs [...batch, T, I]."""

from collections.abc import Mapping, Sequence
from typing import Any

from jax.typing import DTypeLike

from jaxrnn._src.core import inputs, params_tree
from jaxrnn._src.core.cell import Cell, check_cell
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

with extra("flax", "jaxrnn.linen"):
    import flax.core
    import flax.linen as nn


class RNN(nn.Module):
    """A cell as a module.

    Its parameters stand under "cell". A cell that draws random numbers takes them from the stream
    "dropout"; ``apply`` without that stream is evaluation.

    Attributes:
      cell: any ``jaxrnn.Cell``.
      dtype: the type that parameters and inputs are cast to in a call; None leaves them.
      param_dtype: the type of the parameters; None for the one that ``cell.init`` makes.
      implementation: see ``jaxrnn.unroll``.
      partitioning: from the name of a parameter, in every layer, to the names of its axes: what
        ``nn.with_logical_partitioning`` says of one, and ``nn.get_partition_spec`` reads. None for
        none.

    Raises:
      TypeError: ``cell`` is no ``Cell``; ``partitioning`` gives what is no tuple.
      ValueError: ``partitioning`` names a parameter that the cell has not, or not all of its axes.

    >>> import jaxrnn.linen
    >>> rnn = jaxrnn.linen.RNN(jaxrnn.lstm(hidden=8))
    >>> xs = jnp.ones((2, 5, 3))
    >>> variables = rnn.init(jax.random.key(0), xs)
    >>> rnn.apply(variables, xs, lengths=jnp.array([5, 2])).shape
    (2, 5, 8)

    ``step`` and ``initial_state`` are methods for ``apply``:

    >>> state = rnn.apply(variables, (2,), method="initial_state")
    >>> state, y = rnn.apply(variables, state, xs[:, 0], method="step")
    >>> y.shape
    (2, 8)
    """

    cell: Cell
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike | None = None
    implementation: ImplementationName | None = None
    partitioning: Partitioning | None = None

    def __post_init__(self) -> None:
        check_cell("cell", self.cell)
        super().__post_init__()

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
          deterministic: True if the cell draws nothing, False if it has to; None leaves it to
            whether ``apply`` was given the stream "dropout".
          return_state: whether to return the final state too.
          return_states: whether to return the final state and those after all steps.

        Returns:
          ys [...batch, T, O], or ``(state, ys)``, or ``(state, (ys, states))``, where states have
          time and batch as ys have them. For the rest see ``jaxrnn.unroll``.

        Raises:
          ValueError: an argument is given under both of its names; the cell draws random numbers,
            ``deterministic`` is False, and there is no stream "dropout".
        """
        batch_major.check_inputs(xs, time_major)
        cell, params = self._cell(), self._params(inputs.sizes(xs))
        draw = self.has_rng("dropout") and not deterministic
        missed = deterministic is False and not draw and not self.is_initializing()
        if missed and cell.draws:
            want = 'apply(..., rngs={"dropout": key})'
            raise ValueError(f"rngs: got no 'dropout' and deterministic=False, want {want}")
        state, ys = batch_major.run(
            cell,
            params,
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
            key=self.make_rng("dropout") if draw else None,
            implementation=self.implementation,
            return_states=return_states,
        )
        return (state, ys) if return_state or return_states else ys

    def step(self, state: State, x: Inputs) -> tuple[State, Outputs]:
        """One step in evaluation: x [...batch, I] -> ``(state, y)``, y [...batch, O]."""
        params, x = batch_major.cast(self.dtype, self._params(inputs.sizes(x)), x)
        return self._cell().step(params, state, x)

    def initial_state(self, batch_shape: Shape) -> State:
        """The state that ``step`` begins with."""
        params = flax.core.meta.unbox(self.get_variable("params", "cell", {}))
        return self._cell().initial_state(params, batch_shape)

    def cell_and_params(self, variables: Mapping[str, Any]) -> tuple[Cell, Params]:
        """What all functions of jaxrnn take: the cell, and its parameters as a dict of arrays.

        Args:
          variables: of this module, from ``init``. Those of a module that is part of another are
            a part of its variables.

        >>> import jaxrnn.linen
        >>> rnn = jaxrnn.linen.RNN(jaxrnn.gru(hidden=8))
        >>> variables = rnn.init(jax.random.key(0), jnp.ones((2, 5, 3)))
        >>> cell, params = rnn.cell_and_params(variables)
        >>> jaxrnn.trace(cell, params, jnp.ones((5, 2, 3)))["z"].shape
        (5, 2, 8)
        """
        params = flax.core.meta.unbox(params_tree.dicts(variables.get("params", {})))
        return self._cell(), params.get("cell", {})

    def _cell(self) -> Cell:
        return self.cell

    @nn.compact
    def _params(self, in_size: InSize) -> Params:
        """Flattened, the empty dict of a cell without parameters is lost: so it may be missing."""
        cell = self._cell()
        lost = not self.is_initializing() and not self.has_variable("params", "cell")
        if lost and params_tree.is_empty(cell.init, in_size):
            return {}

        def init(key):
            params = params_tree.dicts(cell.init(key, in_size))
            (params,) = batch_major.cast(self.param_dtype, params)
            return named(params, self.partitioning, nn.LogicallyPartitioned)

        return self.param("cell", init)


class Bidirectional(RNN):
    """Two cells, one run from each end, as a module: ``RNN(jaxrnn.bidirectional(...))``.

    Attributes:
      cell: the cell run forward.
      backward, merge: see ``jaxrnn.bidirectional``.

    >>> import jaxrnn.linen
    >>> rnn = jaxrnn.linen.Bidirectional(jaxrnn.gru(hidden=8))
    >>> rnn.init_with_output(jax.random.key(0), jnp.ones((2, 5, 3)))[0].shape
    (2, 5, 16)
    """

    backward: Cell | None = None
    merge: Merge = "concat"

    def _cell(self) -> Cell:
        return bidirectional(self.cell, self.backward, merge=self.merge)
