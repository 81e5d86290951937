"""Cells that mix their state with something made of the input alone."""

import functools

from jax.nn import sigmoid
from jax.numpy import tanh

from jaxrnn._src.builders.gated import gated
from jaxrnn._src.builders.lifted import lifted
from jaxrnn._src.core import checks, param_spec
from jaxrnn._src.core.cell import Cell, constructor
from jaxrnn._src.core.linear import affine
from jaxrnn._src.core.tags import tag
from jaxrnn._src.core.typing import Activation, Residuals


@functools.lru_cache(256)
def _ran_update(activation):
    def ran_update(state, x, r):
        (_, c), (xi, xf, xc), (ri, rf) = state, x, r
        i, f = tag("ran.i", sigmoid(xi + ri)), tag("ran.f", sigmoid(xf + rf))
        c = tag("ran.c", i * xc + f * c)
        h = tag("ran.h", activation(c))
        return h, c

    return ran_update


@constructor
def ran(
    hidden: int, *, activation: Activation = "tanh", heads: int = 1, residuals: Residuals = "gates"
) -> Cell:
    """Recurrent additive network (Lee et al. 2017, arXiv:1705.07393).

        i, f = sigmoid(W x + R h + b)
        c = i * (W_c x + b_c) + f * c             h = activation(c)

    The paper has no b_c; here it begins at zero.

    Args:
      hidden: H, the size of the state and the output.
      activation: the name of a function in ``jax.nn``, or any elementwise function. The paper's
        are "tanh" and "identity".
      heads, residuals: see ``jaxrnn.gated``.

    Returns:
      A ``Cell``. State ``(h, c)``, each [..., H]; parameters ``w`` [I, 3, H], ``r`` [H, 2, H] and
      ``b`` [3, H], gates in the order i f c, of which c is not recurrent.

    Raises:
      ValueError: ``activation`` is the name of nothing in ``jax.nn``.
      TypeError: ``activation`` is not elementwise.

    >>> cell = jaxrnn.ran(hidden=4, activation="identity")
    >>> params = cell.init(jax.random.key(0), 2)
    >>> (h, c), ys = jaxrnn.unroll(cell, params, jnp.ones((7, 3, 2)))
    >>> ys.shape, bool((h == c).all())
    ((7, 3, 4), True)
    """
    update = _ran_update(checks.activation(activation))
    make = gated(update, gates=("i", "f", "c"), states=("h", "c"), recurrent=("i", "f"))
    return make(hidden, heads=heads, residuals=residuals)


def atr_update(state, x, r):
    (h,), (p,), (q,) = state, x, r
    p, q = tag("atr.p", p), tag("atr.q", q)
    i, f = tag("atr.i", sigmoid(p + q)), tag("atr.f", sigmoid(p - q))
    h = tag("atr.h", i * p + f * h)
    return (h,)


@constructor
def atr(hidden: int, *, heads: int = 1, residuals: Residuals = "gates") -> Cell:
    """Addition-subtraction twin-gated recurrence (Zhang et al. 2018, arXiv:1810.12546).

        p = W x + b                               q = R h
        i = sigmoid(p + q)                        f = sigmoid(p - q)
        h = i * p + f * h

    The paper has no b; here it begins at zero.

    Args:
      hidden: H, the size of the state and the output.
      heads, residuals: see ``jaxrnn.gated``.

    Returns:
      A ``Cell``. State ``(h,)``, [..., H]; parameters ``w`` [I, 1, H], ``r`` [H, 1, H] and ``b``
      [1, H].

    >>> cell = jaxrnn.atr(hidden=4)
    >>> params = cell.init(jax.random.key(0), 2)
    >>> (h,), ys = jaxrnn.unroll(cell, params, jnp.ones((7, 3, 2)))
    >>> ys.shape, params["w"].shape
    ((7, 3, 4), (2, 1, 4))
    """
    return gated(atr_update, gates=("p",))(hidden, heads=heads, residuals=residuals)


def cfn_update(state, x, r):
    (h,), (xtheta, xeta, xn), (rtheta, reta) = state, x, r
    theta, eta = tag("cfn.theta", sigmoid(xtheta + rtheta)), tag("cfn.eta", sigmoid(xeta + reta))
    n = tag("cfn.n", tanh(xn))
    h = tag("cfn.h", theta * tanh(h) + eta * n)
    return (h,)


@constructor
def cfn(hidden: int, *, heads: int = 1, residuals: Residuals = "gates") -> Cell:
    """Chaos-free network (Laurent & von Brecht 2016, arXiv:1612.06212).

        theta, eta = sigmoid(W x + R h + b)
        h = theta * tanh(h) + eta * tanh(W_n x + b_n)

    The biases of theta and eta begin at 1 and -1. The paper has no b_n; here it begins at zero.

    Args:
      hidden: H, the size of the state and the output.
      heads, residuals: see ``jaxrnn.gated``.

    Returns:
      A ``Cell``. State ``(h,)``, [..., H]; parameters ``w`` [I, 3, H], ``r`` [H, 2, H] and ``b``
      [3, H], gates in the order theta eta n, of which n is not recurrent.

    >>> cell = jaxrnn.cfn(hidden=4)
    >>> params = cell.init(jax.random.key(0), 2)
    >>> params["b"][:, 0]
    Array([ 1., -1.,  0.], dtype=float32)
    >>> jaxrnn.unroll(cell, params, jnp.ones((7, 3, 2)))[1].shape
    (7, 3, 4)
    """
    gates, recurrent = ("theta", "eta", "n"), ("theta", "eta")
    make = gated(cfn_update, gates=gates, bias=(1.0, -1.0, 0.0), recurrent=recurrent)
    return make(hidden, heads=heads, residuals=residuals)


def star_update(state, x, r):
    (h,), (xk, xz), (rk,) = state, x, r
    k, z = tag("star.k", sigmoid(xk + rk)), tag("star.z", tanh(xz))
    h = tag("star.h", tanh(h + k * (z - h)))
    return (h,)


@constructor
def star(hidden: int, *, heads: int = 1, residuals: Residuals = "gates") -> Cell:
    """Stackable recurrent cell (Turkoglu et al. 2019, arXiv:1911.11033).

        k = sigmoid(W x + R h + b)                z = tanh(W_z x + b_z)
        h = tanh((1 - k) * h + k * z)

    These are the paper's equations. Its released code subtracts a constant in one of the two
    places where it takes k's sigmoid, as JANET does, and begins k's bias as a random number.

    Args:
      hidden: H, the size of the state and the output.
      heads, residuals: see ``jaxrnn.gated``.

    Returns:
      A ``Cell``. State ``(h,)``, [..., H]; parameters ``w`` [I, 2, H], ``r`` [H, 1, H] and ``b``
      [2, H], gates in the order k z, of which z is not recurrent.

    >>> cell = jaxrnn.star(hidden=4)
    >>> params = cell.init(jax.random.key(0), 2)
    >>> (h,), ys = jaxrnn.unroll(cell, params, jnp.ones((7, 3, 2)))
    >>> ys.shape, params["r"].shape
    ((7, 3, 4), (4, 1, 4))
    """
    make = gated(star_update, gates=("k", "z"), recurrent=("k",))
    return make(hidden, heads=heads, residuals=residuals)


@constructor
def minimal_rnn(hidden: int) -> Cell:
    """MinimalRNN (Chen 2017, arXiv:1711.06788).

        z = tanh(W x + b)                         u = sigmoid(R h + U z + b_u)
        h = u * h + (1 - u) * z

    The gate sees the input through z alone, so it is no update of gates made of the input: it has
    no fused kernel. z and U z are made of all steps at once.

    Args:
      hidden: H, the size of the state and the output.

    Returns:
      A ``Cell``. State ``(h,)``, [..., H]; parameters ``w`` [I, H], ``u`` and ``r`` [H, H] and
      ``b`` [2, H], those of z and u.

    >>> cell = jaxrnn.minimal_rnn(hidden=4)
    >>> params = cell.init(jax.random.key(0), 2)
    >>> (h,), ys = jaxrnn.unroll(cell, params, jnp.ones((7, 3, 2)))
    >>> ys.shape, bool((ys[-1] == h).all())
    ((7, 3, 4), True)
    """
    hidden = checks.size("hidden", hidden)
    spec = {
        "w": ((param_spec.INPUTS, hidden), param_spec.input_init),
        "u": ((hidden, hidden), param_spec.input_init),
        "r": ((hidden, hidden), param_spec.recurrent_init),
        "b": ((2, hidden), param_spec.zeros),
    }

    def inputs(params, x):
        z = tag("minimal_rnn.z", tanh(affine(x, params["w"], params["b"][0])))
        return z, affine(z, params["u"], params["b"][1])

    def step(_, state, x, dot):
        (h,), (z, xu) = state, x
        u = tag("minimal_rnn.u", sigmoid(xu + dot("r", h)))
        h = tag("minimal_rnn.h", z + u * (h - z))
        return (h,), h

    return lifted(spec, {"h": hidden}, inputs, step, products=("r",))
