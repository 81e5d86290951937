"""The recurrent network that begins with the identity."""

from jax.nn.initializers import normal

from jaxrnn._src.cells.elman import elman
from jaxrnn._src.core import param_spec
from jaxrnn._src.core.cell import Cell, constructor
from jaxrnn._src.core.typing import Residuals
from jaxrnn._src.wrappers.initialized import initialized


@constructor
def irnn(hidden: int, *, heads: int = 1, residuals: Residuals = "gates") -> Cell:
    """Rectified linear units that begin with the identity (Le et al. 2015, arXiv:1504.00941).

        h = relu(W x + R h + b)

    Args:
      hidden: H, the size of the state and the output.
      heads, residuals: see ``jaxrnn.gated``.

    Returns:
      A ``Cell``. State ``(h,)``, [..., H]; parameters ``w`` [I, 1, H], normal with a deviation of
      0.001 at first, ``r`` [H, 1, H] and ``b`` [1, H].

    >>> cell = jaxrnn.irnn(hidden=2)
    >>> params = cell.init(jax.random.key(0), 3)
    >>> params["r"][:, 0]
    Array([[1., 0.],
           [0., 1.]], dtype=float32)
    """
    cell = elman(hidden, activation="relu", heads=heads, residuals=residuals)
    return initialized(cell, w=normal(0.001), r=param_spec.identity)
