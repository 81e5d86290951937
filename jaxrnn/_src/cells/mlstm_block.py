"""The block of the mLSTM: projections, the memory, a norm of each head, a gate."""

from jaxrnn._src.builders.memory import keys
from jaxrnn._src.builders.stateless import layer_norm, project
from jaxrnn._src.cells.mlstm import mlstm_memory
from jaxrnn._src.core import checks
from jaxrnn._src.core.cell import Cell, constructor
from jaxrnn._src.wrappers.stack import parallel, stack


@constructor
def mlstm_block(
    hidden: int,
    *,
    width: int | None = None,
    heads: int = 4,
    key: int | None = None,
    cap: float | None = 15.0,
    epsilon: float = 1e-6,
) -> Cell:
    """The mLSTM layer of the xLSTM 7B (Beck et al. 2025, arXiv:2503.13427, section 3).

        y = W_o (norm(mlstm_memory(W x, U x)) * sigmoid(W_z x))

    The norm is ``jaxrnn.layer_norm``, of each head by itself and without a bias.

    Args:
      hidden: O, the size of the output.
      width: H, the size of all heads' values together; None for that of the output.
      heads, key, cap: of ``jaxrnn.mlstm_memory``.
      epsilon: of ``jaxrnn.layer_norm``.

    Returns:
      A ``Cell`` with the parameters and the state of what it is made of: a ``jaxrnn.stack`` of
      both branches in ``jaxrnn.parallel``, the recurrent one first, and of ``jaxrnn.project``.

    Raises:
      ValueError: ``heads`` does not divide ``width``.

    >>> cell = jaxrnn.mlstm_block(4, heads=2)
    >>> params = cell.init(jax.random.key(0), 4)
    >>> jaxrnn.unroll(cell, params, jnp.ones((7, 4)))[1].shape
    (7, 4)
    """
    hidden = checks.size("hidden", hidden)
    width = hidden if width is None else width
    width, heads, of_keys = keys(width, heads, key, name="width")
    entering = project(2 * heads * of_keys + width, bias=False)
    recurrent = stack(
        parallel(entering, project(2 * heads, bias=False)),
        mlstm_memory(width, heads=heads, key=of_keys, cap=cap),
        layer_norm(epsilon=epsilon, groups=heads, bias=False),
    )
    gate = project(width, activation="sigmoid", bias=False)
    return stack(parallel(recurrent, gate, merge="product"), project(hidden, bias=False))
