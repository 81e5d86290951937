"""Long expressive memory."""

from jax.nn import sigmoid
from jax.numpy import tanh

from jaxrnn._src.builders.lifted import lifted
from jaxrnn._src.core import checks, linear, param_spec
from jaxrnn._src.core.cell import Cell, constructor
from jaxrnn._src.core.tags import tag
from jaxrnn._src.ops.step_loop import split


@constructor
def lem(hidden: int, *, dt: float = 1.0) -> Cell:
    """Long expressive memory (Rusch et al. 2021, arXiv:2110.04744).

        d, e = dt sigmoid(W x + R y + b)
        z = (1 - d) * z + d * tanh(W_z x + R_z y + b_z)
        y = (1 - e) * y + e * tanh(W_y x + R_y z + b_y)

    y moves by the new z: two products a step, one after the other. It is fused on CPUs only.

    Args:
      hidden: H, the size of the states and the output.
      dt: the longest time step; d and e are each unit's own, from 0 to dt.

    Returns:
      A ``Cell`` with the output y. State ``(y, z)``, each [..., H]; parameters ``w`` [I, 4, H],
      ``r`` [H, 4, H] and ``b`` [4, H], gates in the order d e z y.

    >>> cell = jaxrnn.lem(hidden=4)
    >>> params = cell.init(jax.random.key(0), 2)
    >>> (y, z), ys = jaxrnn.unroll(cell, params, jnp.ones((7, 3, 2)))
    >>> ys.shape, bool((ys[-1] == y).all())
    ((7, 3, 4), True)
    """
    hidden = checks.size("hidden", hidden)

    def step(_, state, x, dot):
        (y, z), (xd, xe, xz, xy) = state, x
        rd, re, rz = split(dot("dez", y), 3)
        d, e = tag("lem.d", dt * sigmoid(xd + rd)), tag("lem.e", dt * sigmoid(xe + re))
        z = tag("lem.z", z + d * (tanh(xz + rz) - z))
        y = tag("lem.y", y + e * (tanh(xy + dot("y", z)) - y))
        return (y, z), y

    products = lambda params: {"dez": params["r"][:, :3], "y": params["r"][:, 3]}
    spec = param_spec.gated(hidden, gates=4)
    return lifted(spec, {"y": hidden, "z": hidden}, linear.gates, step, products=products)
