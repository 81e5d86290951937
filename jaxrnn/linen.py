"""Flax Linen modules, generic in the cell. Batch first: xs [...batch, T, I]."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
from jax.typing import DTypeLike

from jaxrnn._src.core import checks, params_tree
from jaxrnn._src.core.cell import Cell
from jaxrnn._src.core.typing import ImplementationName, InputArray, Merge, Params, State
from jaxrnn._src.wrappers import batch_major
from jaxrnn._src.wrappers.stack import bidirectional


class RNN(nn.Module):
    """A cell as a module.

    Its parameters stand under "cell". A cell that draws random numbers takes them from the stream
    "dropout"; ``apply`` without that stream is evaluation.

    Attributes:
      cell: any ``jaxrnn.Cell``.
      dtype: the type that parameters and inputs are cast to in a call; None leaves them.
      implementation: see ``jaxrnn.unroll``.

    >>> import jaxrnn.linen
    >>> rnn = jaxrnn.linen.RNN(jaxrnn.lstm(hidden=8))
    >>> xs = jnp.ones((2, 5, 3))
    >>> variables = rnn.init(jax.random.key(0), xs)
    >>> rnn.apply(variables, xs, seq_lengths=jnp.array([5, 2])).shape
    (2, 5, 8)
    """

    cell: Cell
    dtype: DTypeLike | None = None
    implementation: ImplementationName | None = None

    @nn.compact
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
        checks.check_inputs(xs, batch_major.LAYOUT)
        cell = self._cell()
        state, ys = batch_major.run(
            cell, self._params(cell, xs.shape[-1]), xs, initial_state,
            dtype=self.dtype, seq_lengths=seq_lengths, mask=mask, starts=starts,
            reverse=reverse, implementation=self.implementation,
            key=self.make_rng("dropout") if self.has_rng("dropout") else None,
        )  # fmt: skip
        return (state, ys) if return_state else ys

    def _cell(self) -> Cell:
        return self.cell

    def _params(self, cell: Cell, in_size: int) -> Params:
        """Flattened, the empty dict of a cell without parameters is lost: so it may be missing."""
        lost = not self.is_initializing() and not self.has_variable("params", "cell")
        if lost and params_tree.is_empty(cell.init, in_size):
            return {}
        return self.param("cell", cell.init, in_size)


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
