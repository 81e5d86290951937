"""The block of Gated DeltaNet: projections, a short convolution, the memory, a norm, a gate."""

from jaxrnn._src.builders.memory import keys
from jaxrnn._src.builders.stateless import project, rms_norm
from jaxrnn._src.cells.conv1d import conv1d
from jaxrnn._src.cells.delta_net import gated_delta_memory
from jaxrnn._src.core import checks
from jaxrnn._src.core.cell import Cell, constructor
from jaxrnn._src.wrappers.stack import parallel, stack


@constructor
def gated_delta_block(
    hidden: int,
    *,
    width: int | None = None,
    heads: int = 4,
    key_heads: int | None = None,
    key: int | None = None,
    kernel: int = 4,
    epsilon: float = 1e-6,
) -> Cell:
    """The block of Gated DeltaNet (Yang et al. 2024, arXiv:2412.06464, section 3.4).

        y = W_o (norm(gated_delta_memory(silu(conv1d(W x)), U x)) * silu(W_z x))

    The norm is ``jaxrnn.rms_norm``, of each head by itself.

    Args:
      hidden: O, the size of the output.
      width: H, the size of all heads' values together; None for that of the output.
      heads, key_heads, key: of ``jaxrnn.gated_delta_memory``.
      kernel: how many steps the convolution sees, which is depthwise: ``jaxrnn.conv1d``.
      epsilon: of ``jaxrnn.rms_norm``.

    Returns:
      A ``Cell`` with the parameters and the state of what it is made of: a ``jaxrnn.stack`` of
      both branches in ``jaxrnn.parallel``, the recurrent one first, and of ``jaxrnn.project``.

    Raises:
      ValueError: ``heads`` does not divide ``width``, or ``key_heads`` not ``heads``.

    >>> cell = jaxrnn.gated_delta_block(4, heads=2)
    >>> params = cell.init(jax.random.key(0), 4)
    >>> jaxrnn.unroll(cell, params, jnp.ones((7, 4)))[1].shape
    (7, 4)
    """
    hidden = checks.size("hidden", hidden)
    width = hidden if width is None else width
    width, heads, of_keys = keys(width, heads, key, name="width")
    memory = gated_delta_memory(width, heads=heads, key_heads=key_heads, key=of_keys)
    convolved = 2 * (heads if key_heads is None else key_heads) * of_keys + width
    seen = stack(
        project(convolved, bias=False),
        conv1d(convolved, kernel=kernel, depthwise=True, activation="silu"),
    )
    recurrent = stack(
        parallel(seen, project(2 * heads, bias=False)),
        memory,
        rms_norm(epsilon=epsilon, groups=heads),
    )
    gate = project(width, activation="silu", bias=False)
    return stack(parallel(recurrent, gate, merge="product"), project(hidden, bias=False))
