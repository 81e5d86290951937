"""Cells without a state: the same function at every step, run for all steps at once."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxrnn._src.core import checks
from jaxrnn._src.core.cell import Cell, constructor
from jaxrnn._src.core.dtypes import promoted
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

    def unroll(params, state, xs, options, every=False):
        del state  # nothing is carried
        ys = select(options.mask, apply(params, xs), 0)
        return (), (ys, ()) if every else ys

    initial_state = lambda params, batch_shape: ()
    whole = streamed(unroll, initial_state, lambda params, xs: ())
    return Cell(init, initial_state, step, whole)


@constructor
def project(hidden: int, *, activation: Activation | None = None, bias: bool = True) -> Cell:
    """A linear map of the features, with an activation: ``activation(x W + b)``.

    Args:
      hidden: O, the size of the output.
      activation: the name of a function in ``jax.nn``, a function, or None.
      bias: whether there is b.

    Returns:
      A ``Cell`` without a state; parameters ``w`` [I, O] and, with a bias, ``b`` [O].

    >>> cell = jaxrnn.project(4, activation="relu")
    >>> jaxrnn.unroll(cell, cell.init(jax.random.key(0), 2), jnp.ones((3, 2)))[1].shape
    (3, 4)
    """
    hidden = checks.size("hidden", hidden)
    function = checks.activation(activation) if activation is not None else None

    def init(key, in_size):
        in_size = checks.size("in_size", in_size)
        w = jax.nn.initializers.lecun_normal()(key, (in_size, hidden))
        return {"w": w, "b": jnp.zeros(hidden)} if bias else {"w": w}

    def apply(params, x):
        want = {"w": (x.shape[-1], hidden)} | ({"b": (hidden,)} if bias else {})
        checks.check_params(params, want, "w", x)
        y = affine(x, params["w"], params["b"] if bias else None)
        return (y if function is None else function(y)).astype(x.dtype)

    return stateless(init, apply)


@constructor
def soft_cap(cap: float) -> Cell:
    """Keeps every feature between -cap and cap (Gemma Team 2024, arXiv:2408.00118).

        cap tanh(x / cap)

    Args:
      cap: a number above 0.

    Returns:
      A ``Cell`` without a state and without parameters. The arithmetic is float32 at least.

    Raises:
      ValueError: ``cap`` is not above 0, or infinite.
      TypeError: it is no number.

    >>> cell = jaxrnn.soft_cap(30.0)
    >>> jaxrnn.unroll(cell, {}, jnp.array([[0.0, 1e9]]))[1]
    Array([[ 0., 30.]], dtype=float32)
    """
    cap = checks.cap(cap)

    def apply(params, x):
        del params
        z = x.astype(promoted(x.dtype, jnp.dtype("float32")))
        return (cap * jnp.tanh(z / cap)).astype(x.dtype)

    return stateless(lambda key, in_size: {}, apply)


@constructor
def layer_norm(*, epsilon: float = 1e-6, groups: int = 1, bias: bool = True) -> Cell:
    """Layer normalisation over the features (Ba et al. 2016, arXiv:1607.06450).

        (x - mean) / sqrt(variance + epsilon) * scale + bias

    Args:
      epsilon: added to the variance.
      groups: G, how many parts of the features have a mean and a variance of their own.
      bias: whether there is one.

    Returns:
      A ``Cell`` without a state; parameters ``scale`` and, with a bias, ``bias``, each [I]. The
      arithmetic is float32 at least.

    Raises:
      ValueError: ``groups`` does not divide I.

    >>> cell = jaxrnn.layer_norm()
    >>> ys = jaxrnn.unroll(cell, cell.init(None, 2), jnp.array([[1.0, 3.0]]))[1]
    >>> ys.round(3)
    Array([[-1.,  1.]], dtype=float32)
    """
    return _norm(epsilon, groups, bias, centered=True)


@constructor
def rms_norm(*, epsilon: float = 1e-6, groups: int = 1) -> Cell:
    """Root mean square normalisation (Zhang & Sennrich 2019, arXiv:1910.07467).

        x / sqrt(mean(x^2) + epsilon) * scale

    Args:
      epsilon: added to the mean square.
      groups: G, how many parts of the features have a mean square of their own.

    Returns:
      A ``Cell`` without a state; parameters ``scale`` [I]. The arithmetic is float32 at least.

    Raises:
      ValueError: ``groups`` does not divide I.

    >>> cell = jaxrnn.rms_norm()
    >>> ys = jaxrnn.unroll(cell, cell.init(None, 2), jnp.array([[1.0, 7.0]]))[1]
    >>> bool(jnp.allclose(ys, jnp.array([[0.2, 1.4]])))
    True
    """
    return _norm(epsilon, groups, bias=False, centered=False)


def _norm(epsilon, groups, bias, centered):
    """The cell of ``normalised`` for each of so many groups of the features."""
    groups = checks.size("groups", groups)
    names = ("scale", "bias") if bias else ("scale",)

    def check_groups(features):
        if features % groups:
            raise ValueError(f"groups: got {groups}, want a divisor of I={features}")

    def init(key, in_size):
        del key
        check_groups(checks.size("in_size", in_size))
        begins = {"scale": jnp.ones(in_size), "bias": jnp.zeros(in_size)}
        return {name: begins[name] for name in names}

    def apply(params, x):
        checks.check_params(params, dict.fromkeys(names, x.shape[-1:]), "scale", x)
        check_groups(x.shape[-1])
        parts = lambda a: a.reshape(*a.shape[:-1], groups, a.shape[-1] // groups)
        given = (parts(params[name]) for name in names)
        y = normalised(parts(x), *given, epsilon=epsilon, centered=centered)
        return y.reshape(x.shape).astype(x.dtype)

    return stateless(init, apply)
