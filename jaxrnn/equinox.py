"""An Equinox module, generic in the cell. Time first, as everywhere in Equinox: xs [T, I]."""

import importlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax

from jaxrnn._src.core import checks, params_tree
from jaxrnn._src.core.cell import Cell, check_cell, unroll
from jaxrnn._src.core.extras import extra
from jaxrnn._src.core.typing import (
    ImplementationName,
    InputArray,
    Inputs,
    InSize,
    Outputs,
    Params,
    PRNGKey,
    Shape,
    State,
    Theirs,
)

with extra("equinox", "jaxrnn.equinox"):
    # Where it is not installed, a type checker takes `import equinox` for this file.
    eqx: Theirs = importlib.import_module("equinox")

if TYPE_CHECKING:
    Module = object  # Equinox gives the class of its modules no types
else:
    Module = eqx.Module


class RNN(Module):
    """A cell as a module.

    Its parameters are arrays of the module, so that ``equinox.filter_grad``, ``tree_at`` and
    ``tree_serialise_leaves`` find them; the cell is no array, and needs no ``static=True``.

    Args:
      cell: any ``jaxrnn.Cell``.
      in_features: I, the size of the inputs; None for tokens, a dict of these for a dict.
      key: a ``jax.random`` key for new parameters.
      params: the cell's parameters, as from a file or another library; None makes new ones.
      inference: true after ``equinox.nn.inference_mode``: the cell draws nothing.
      implementation: see ``jaxrnn.unroll``.

    Raises:
      TypeError: ``cell`` is no ``Cell``, or there is neither a key nor ``params``.

    >>> import equinox
    >>> import jaxrnn.equinox
    >>> rnn = jaxrnn.equinox.RNN(jaxrnn.lstm(hidden=8), 3, key=jax.random.key(0))
    >>> rnn(jnp.ones((5, 3))).shape, jax.vmap(rnn)(jnp.ones((2, 5, 3))).shape
    ((5, 8), (2, 5, 8))
    >>> state, y = rnn.step(rnn.initial_state(), jnp.ones(3))
    >>> y.shape
    (8,)
    """

    cell: Cell
    params: Params
    inference: bool
    implementation: ImplementationName | None = eqx.field(static=True)

    def __init__(
        self,
        cell: Cell,
        in_features: InSize = None,
        *,
        key: PRNGKey | None = None,
        params: Params | None = None,
        inference: bool = False,
        implementation: ImplementationName | None = None,
    ) -> None:
        check_cell("cell", cell)
        checks.check_bool("inference", inference)
        self.cell = cell
        self.inference = inference
        self.implementation = implementation
        if params is None:
            if key is None:
                raise TypeError("key: got None, want a key for new parameters, or params=")
            params = cell.init(key, in_features)
        self.params = params_tree.dicts(params)

    def __call__(
        self,
        xs: Inputs,
        *,
        state: State | None = None,
        lengths: InputArray | Sequence[int] | None = None,
        mask: InputArray | None = None,
        starts: InputArray | None = None,
        segment_ids: InputArray | None = None,
        reverse: bool = False,
        key: PRNGKey | None = None,
        return_state: bool = False,
        return_states: bool = False,
    ) -> Outputs:
        """Runs the cell over xs [T, I], or [T, ...batch, I]; of integers, tokens, [T, ...batch].

        ``jax.vmap`` over rows is as fast as batch axes are.

        Args:
          key: for a cell that draws random numbers, as ``dropout``; not used in inference.
          return_state: whether to return the final state too.
          return_states: whether to return the final state and those after all steps.

        Returns:
          ys [T, ...batch, O], or ``(state, ys)``, or ``(state, (ys, states))``. For the rest see
          ``jaxrnn.unroll``.

        Raises:
          ValueError: the cell draws random numbers, and gets no key outside of inference.
        """
        state, ys = unroll(
            self.cell,
            self.params,
            xs,
            state,
            lengths=lengths,
            mask=mask,
            starts=starts,
            segment_ids=segment_ids,
            reverse=reverse,
            key=key,
            deterministic=self.inference,
            return_states=return_states,
            implementation=self.implementation,
        )
        return (state, ys) if return_state or return_states else ys

    def step(self, state: State, x: Inputs) -> tuple[State, Outputs]:
        """One step in evaluation: x [...batch, I] -> ``(state, y)``, y [...batch, O]."""
        return self.cell.step(self.params, state, x)

    def initial_state(self, batch_shape: Shape = ()) -> State:
        """The state that ``step`` begins with."""
        return self.cell.initial_state(self.params, batch_shape)

    def cell_and_params(self) -> tuple[Cell, dict[str, Any]]:
        """What all functions of jaxrnn take: the cell, and its parameters as a dict of arrays."""
        return self.cell, jax.tree.map(lambda a: a, self.params)
