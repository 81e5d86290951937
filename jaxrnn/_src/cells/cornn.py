"""Coupled oscillatory recurrent network."""

from jax.numpy import tanh

from jaxrnn._src.builders.lifted import lifted
from jaxrnn._src.core import checks, linear, param_spec
from jaxrnn._src.core.cell import Cell, constructor
from jaxrnn._src.core.tags import tag


@constructor
def cornn(hidden: int, *, dt: float = 0.042, gamma: float = 2.7, epsilon: float = 4.7) -> Cell:
    """Coupled oscillatory recurrent network (Rusch & Mishra 2020, arXiv:2010.00951).

        z = z + dt (tanh(W x + R_y y + R_z z + b) - gamma y - epsilon z)
        y = y + dt z

    Each unit is a driven, damped oscillator at y, with the velocity z. As in the authors' code the
    damping is explicit: on the right stands the z before. Two states recur, so it is no update of
    gates made of one: it has no fused kernel.

    Args:
      hidden: H, the size of the states and the output.
      dt: the time step. The authors tune these three for every task; the defaults are those of
        their code for sequential MNIST.
      gamma: the oscillators' frequency, squared.
      epsilon: their damping.

    Returns:
      A ``Cell`` with the output y. State ``(y, z)``, each [..., H]; parameters ``w`` [I, 1, H],
      ``r`` [H, 2, H], R_y and R_z, and ``b`` [1, H].

    >>> cell = jaxrnn.cornn(hidden=4)
    >>> params = cell.init(jax.random.key(0), 2)
    >>> (y, z), ys = jaxrnn.unroll(cell, params, jnp.ones((7, 3, 2)))
    >>> ys.shape, bool((ys[-1] == y).all())
    ((7, 3, 4), True)
    """
    hidden = checks.size("hidden", hidden)
    spec = param_spec.gated(hidden, gates=1, recurrent=2)

    def step(_, state, x, dot):
        (y, z), (a,) = state, x
        new = tanh(a + dot("y", y) + dot("z", z))
        z = tag("cornn.z", z + dt * (new - gamma * y - epsilon * z))
        y = tag("cornn.y", y + dt * z)
        return (y, z), y

    products = lambda params: {"y": params["r"][:, 0], "z": params["r"][:, 1]}
    return lifted(spec, {"y": hidden, "z": hidden}, linear.gates, step, products=products)
