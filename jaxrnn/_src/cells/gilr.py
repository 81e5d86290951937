"""The gated impulse linear recurrence: a gate and a candidate, made of the input alone."""

from jax.nn import sigmoid
from jax.numpy import tanh

from jaxrnn._src.builders.diagonal import diagonal
from jaxrnn._src.core import checks, linear, param_spec
from jaxrnn._src.core.cell import Cell, constructor
from jaxrnn._src.core.tags import tag


def impulse(hidden, gates, update):
    """A cell of h = f * h + (1 - f) * c.

    Args:
      hidden: H.
      gates: how many gates ``update`` takes.
      update: ``(*gates) -> (f, 1 - f, c)``, of [..., H] each. It gives 1 - f itself, which may be
        smaller than the distance between f and its neighbour.
    """
    hidden = checks.size("hidden", hidden)

    def inputs(params, x):
        keep, add, candidate = update(*linear.gates(params, x))
        return keep, add * candidate

    return diagonal(param_spec.feedforward(hidden, gates), hidden, inputs, lambda params, h, x: h)


@constructor
def gilr(hidden: int, *, lower_bound: float = 0.0) -> Cell:
    """Gated impulse linear recurrence (Martin & Cundy 2018, arXiv:1709.04057).

        g = sigmoid(W_g x + b_g)        i = tanh(W_i x + b_i)
        h = g * h + (1 - g) * i

    Args:
      hidden: H, the size of the state and the output.
      lower_bound: the least a gate keeps, from 0 to below 1: lower_bound + (1 - lower_bound) * g
        takes the place of g. HGRN (Qin et al. 2023, arXiv:2311.04823) has it, learned, and growing
        from layer to layer; here it is a number.

    Returns:
      A ``Cell``, run by ``jaxrnn.linear_scan``. State ``(h,)``, [..., H]; parameters ``w``
      [I, 2, H] and ``b`` [2, H], gates in the order g i.

    Raises:
      ValueError: ``lower_bound`` is negative, or 1 or more.

    >>> cell = jaxrnn.gilr(hidden=4)
    >>> params = cell.init(jax.random.key(0), 2)
    >>> (h,), ys = jaxrnn.unroll(cell, params, jnp.ones((7, 3, 2)))
    >>> ys.shape, bool((ys[-1] == h).all())
    ((7, 3, 4), True)
    """
    if not 0 <= lower_bound < 1:
        raise ValueError(f"lower_bound: got {lower_bound}, want a number from 0 to below 1")

    def update(a_g, a_i):
        free = 1 - lower_bound
        g = tag("gilr.g", lower_bound + free * sigmoid(a_g))
        i = tag("gilr.i", tanh(a_i))
        return g, free * sigmoid(-a_g), i

    return impulse(hidden, 2, update)
