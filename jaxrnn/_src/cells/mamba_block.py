"""The blocks of Mamba and Mamba-2: projections, a short convolution, the memory, a gate."""

from jaxrnn._src.builders.stateless import project, rms_norm
from jaxrnn._src.cells.conv1d import conv1d
from jaxrnn._src.cells.mamba import mamba, ssd
from jaxrnn._src.core import checks
from jaxrnn._src.core.cell import Cell, constructor
from jaxrnn._src.wrappers.stack import parallel, stack


@constructor
def mamba_block(
    hidden: int,
    *,
    width: int | None = None,
    state: int = 16,
    rank: int | None = None,
    kernel: int = 4,
    bias: bool = False,
) -> Cell:
    """The block of Mamba (Gu & Dao 2023, arXiv:2312.00752, section 3.4).

        y = W_o (mamba(silu(conv1d(W_x x))) * silu(W_z x))

    Args:
      hidden: O, the size of the output.
      width: H, the size of the recurrence; None for twice that of the output.
      state, rank: of ``jaxrnn.mamba``.
      kernel: how many steps the convolution sees, which is depthwise: ``jaxrnn.conv1d``.
      bias: whether the products W have one.

    Returns:
      A ``Cell`` with the parameters and the state of what it is made of: a ``jaxrnn.stack`` of
      both branches in ``jaxrnn.parallel``, the recurrent one first, and of ``jaxrnn.project``.

    >>> cell = jaxrnn.mamba_block(4, state=8)
    >>> params = cell.init(jax.random.key(0), 4)
    >>> jaxrnn.unroll(cell, params, jnp.ones((7, 4)))[1].shape
    (7, 4)
    """
    hidden = checks.size("hidden", hidden)
    width = 2 * hidden if width is None else checks.size("width", width)
    recurrent = stack(
        project(width, bias=bias),
        conv1d(width, kernel=kernel, depthwise=True, activation="silu"),
        mamba(width, state=state, rank=rank),
    )
    gate = project(width, activation="silu", bias=bias)
    return stack(parallel(recurrent, gate, merge="product"), project(hidden, bias=bias))


@constructor
def mamba2_block(
    hidden: int,
    *,
    width: int | None = None,
    heads: int = 4,
    state: int = 64,
    groups: int = 1,
    kernel: int = 4,
    bias: bool = False,
    epsilon: float = 1e-5,
) -> Cell:
    """The block of Mamba-2 (Dao & Gu 2024, arXiv:2405.21060, section 7).

        v, B, C = silu(conv1d(W x))
        y = W_o rms_norm(ssd(v, B, C, U x) * silu(W_z x))

    Args:
      hidden: O, the size of the output.
      width: H, the size of all heads' values together; None for twice that of the output.
      heads, state, groups: of ``jaxrnn.ssd``; the norm has as many groups.
      kernel: how many steps the convolution sees, which is depthwise: ``jaxrnn.conv1d``.
      bias: whether the products W and U have one.
      epsilon: of ``jaxrnn.rms_norm``.

    Returns:
      A ``Cell`` with the parameters and the state of what it is made of: a ``jaxrnn.stack`` of
      both branches in ``jaxrnn.parallel``, the recurrent one first, of ``jaxrnn.rms_norm`` and of
      ``jaxrnn.project``.

    Raises:
      ValueError: ``heads`` does not divide ``width``, or ``groups`` not ``heads``.

    >>> cell = jaxrnn.mamba2_block(4, heads=2, state=8)
    >>> params = cell.init(jax.random.key(0), 4)
    >>> jaxrnn.unroll(cell, params, jnp.ones((7, 4)))[1].shape
    (7, 4)
    """
    hidden = checks.size("hidden", hidden)
    width, heads = checks.heads(2 * hidden if width is None else width, heads, name="width")
    state, groups = checks.size("state", state), checks.size("groups", groups)
    convolved = width + 2 * groups * state
    seen = stack(
        project(convolved, bias=bias),
        conv1d(convolved, kernel=kernel, depthwise=True, activation="silu"),
    )
    recurrent = stack(
        parallel(seen, project(heads, bias=bias)),
        ssd(width, heads=heads, state=state, groups=groups),
    )
    gate = project(width, activation="silu", bias=bias)
    return stack(
        parallel(recurrent, gate, merge="product"),
        rms_norm(epsilon=epsilon, groups=groups),
        project(hidden, bias=bias),
    )
