"""Light gated recurrent unit."""

from jax.nn import relu, sigmoid

from jaxrnn._src.builders.gated import gated
from jaxrnn._src.core.cell import Cell, constructor
from jaxrnn._src.core.tags import tag
from jaxrnn._src.core.typing import Residuals


def ligru_update(state, x, r, drop=lambda g: g):
    (h,), (xz, xn), (rz, rn) = state, x, r
    n = tag("ligru.n", drop(relu(xn + rn)))
    z = tag("ligru.z", sigmoid(xz + rz))
    h = tag("ligru.h", n + z * (h - n))
    return (h,)


@constructor
def ligru(hidden: int, *, heads: int = 1, residuals: Residuals = "gates") -> Cell:
    """Light gated recurrent unit (Ravanelli et al. 2018, arXiv:1803.10225).

        z = sigmoid(W x + R h + b)                n = relu(W_n x + R_n h + b_n)
        h = z * h + (1 - z) * n

    The paper normalises W x and W_n x over the batch, which bounds what relu lets grow. Here they
    stand as they are: a cell knows nothing of other rows.

    Args:
      hidden: H, the size of the state and the output.
      heads, residuals: see ``jaxrnn.gated``.

    Returns:
      A ``Cell``. State ``(h,)``, [..., H]; parameters ``w`` [I, 2, H], ``r`` [H, 2, H] and ``b``
      [2, H], gates in the order z n.

    >>> cell = jaxrnn.ligru(hidden=4)
    >>> params = cell.init(jax.random.key(0), 2)
    >>> (h,), ys = jaxrnn.unroll(cell, params, jnp.ones((7, 3, 2)))
    >>> ys.shape, bool((ys >= 0).all())
    ((7, 3, 4), True)
    """
    return gated(ligru_update, gates=("z", "n"))(hidden, heads=heads, residuals=residuals)
