"""Cells without a state: the same function at every step, run for all steps at once."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxrnn._src.core import checks
from jaxrnn._src.core.cell import Cell, constructor
from jaxrnn._src.core.layer_norm import normalised
from jaxrnn._src.core.linear import affine
from jaxrnn._src.core.sequence import select
from jaxrnn._src.core.streaming import streamed
from jaxrnn._src.core.typing import Activation, Array, Init, Params


@constructor
def stateless(init: Init, apply: Callable[[Params, Array], Array]) -> Cell:
    """Makes a cell of a function of the features alone.

    Args:
      init: ``(key, in_size) -> params``.
      apply: ``(params, x) -> y``, [..., I] -> [..., O], for any leading axes.

    Returns:
      A ``Cell`` with the state ``()``.

    >>> double = jaxrnn.stateless(lambda key, in_size: {}, lambda params, x: 2 * x)
    >>> jaxrnn.unroll(double, {}, jnp.ones((3, 1)))[1][:, 0]
    Array([2., 2., 2.], dtype=float32)
    """

    def step(params, state, x, key=None):
        del key
        return state, apply(params, x)

    def unroll(params, state, xs, mask, starts, reverse, key, implementation, every=False):
        del state, starts, reverse, key, implementation  # nothing is carried, nothing chosen
        ys = select(mask, apply(params, xs), 0)
        return (), (ys, ()) if every else ys

    initial_state = lambda params, batch_shape: ()
    whole = streamed(unroll, initial_state, lambda params, xs: ())
    return Cell(init, initial_state, step, whole)


@constructor
def project(hidden: int, *, activation: Activation | None = None) -> Cell:
    """A linear map of the features, with an activation: ``activation(x W + b)``.

    Args:
      hidden: O, the size of the output.
      activation: the name of a function in ``jax.nn``, a function, or None.

    Returns:
      A ``Cell`` without a state; parameters ``w`` [I, O] and ``b`` [O].

    >>> cell = jaxrnn.project(4, activation="relu")
    >>> jaxrnn.unroll(cell, cell.init(jax.random.key(0), 2), jnp.ones((3, 2)))[1].shape
    (3, 4)
    """
    hidden = checks.size("hidden", hidden)
    function = checks.activation(activation) if activation is not None else None

    def init(key, in_size):
        in_size = checks.size("in_size", in_size)
        w = jax.nn.initializers.lecun_normal()(key, (in_size, hidden))
        return {"w": w, "b": jnp.zeros(hidden)}

    def apply(params, x):
        want = {"w": (x.shape[-1], hidden), "b": (hidden,)}
        checks.check_params(params, want, "w", x)
        y = affine(x, params["w"], params["b"])
        return (y if function is None else function(y)).astype(x.dtype)

    return stateless(init, apply)


@constructor
def layer_norm(*, epsilon: float = 1e-6) -> Cell:
    """Layer normalisation over the features (Ba et al. 2016, arXiv:1607.06450).

        (x - mean) / sqrt(variance + epsilon) * scale + bias

    Args:
      epsilon: added to the variance.

    Returns:
      A ``Cell`` without a state; parameters ``scale`` and ``bias``, each [I]. The arithmetic is
      float32 at least.

    >>> cell = jaxrnn.layer_norm()
    >>> ys = jaxrnn.unroll(cell, cell.init(None, 2), jnp.array([[1.0, 3.0]]))[1]
    >>> ys.round(3)
    Array([[-1.,  1.]], dtype=float32)
    """

    def init(key, in_size):
        del key
        return {"scale": jnp.ones(in_size), "bias": jnp.zeros(in_size)}

    def apply(params, x):
        want = {"scale": x.shape[-1:], "bias": x.shape[-1:]}
        checks.check_params(params, want, "scale", x)
        y = normalised(x, params["scale"], params["bias"], epsilon=epsilon)
        return y.astype(x.dtype)

    return stateless(init, apply)
