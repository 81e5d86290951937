"""Independently recurrent networks."""

import jax

from jaxrnn._src.builders.lifted import lifted
from jaxrnn._src.core import checks, param_spec
from jaxrnn._src.core.cell import Cell, constructor
from jaxrnn._src.core.linear import affine
from jaxrnn._src.core.tags import tag
from jaxrnn._src.core.typing import Activation


@constructor
def indrnn(hidden: int, *, activation: Activation = "relu") -> Cell:
    """The independently recurrent network (Li et al. 2018, arXiv:1803.04831).

        h = activation(W x + u * h + b)

    No unit sees another. The paper keeps ``|u|`` below 2^(1/T) while it trains with relu; that is
    for the optimiser to do.

    Args:
      hidden: H, the size of the state and the output.
      activation: the name of a function in ``jax.nn`` ("tanh", "relu", ...), or any elementwise
        function.

    Returns:
      A ``Cell``. State ``(h,)``, [..., H]; parameters ``w`` [I, H], ``u`` [H], uniform between 0
      and 1 at first, and ``b`` [H].

    Raises:
      ValueError: ``activation`` is the name of nothing in ``jax.nn``.

    >>> cell = jaxrnn.indrnn(hidden=4)
    >>> params = cell.init(jax.random.key(0), 2)
    >>> (h,), ys = jaxrnn.unroll(cell, params, jnp.ones((7, 3, 2)))
    >>> ys.shape, bool((ys[-1] == h).all())
    ((7, 3, 4), True)
    """
    hidden, activation = checks.size("hidden", hidden), checks.activation(activation)
    spec = {
        "w": ((param_spec.INPUTS, hidden), param_spec.input_init),
        "u": ((hidden,), jax.nn.initializers.uniform(1.0)),
        "b": ((hidden,), param_spec.zeros),
    }

    def step(others, state, x, dot):
        del dot
        h = tag("indrnn.h", activation(x + others["u"] * state[0]))
        return (h,), h

    inputs = lambda params, x: affine(x, params["w"], params["b"])
    return lifted(spec, {"h": hidden}, inputs, step, others=("u",))
