"""Recurrent networks whose gates are made of the input alone: minGRU and minLSTM."""

import jax.numpy as jnp
from jax.nn import log_sigmoid, sigmoid

from jaxrnn._src.cells.gilr import impulse
from jaxrnn._src.core.cell import Cell, constructor
from jaxrnn._src.core.tags import tag


@constructor
def min_gru(hidden: int, *, positive: bool = True) -> Cell:
    """minGRU (Feng et al. 2024, arXiv:2410.01201).

        z = sigmoid(W_z x + b_z)
        n = g(W_n x + b_n)              with ``positive``
        n = W_n x + b_n                 without
        h = (1 - z) * h + z * n

    g(a) is a + 0.5 if a >= 0, else sigmoid(a).

    Args:
      hidden: H, the size of the state and the output.
      positive: the candidate is g(...) and so above zero, as in the paper's log-space version
        (appendix B); or a linear function, as in its section 3.1. Neither takes logarithms here:
        what is summed has one sign, and the sum is made in float32 at least.

    Returns:
      A ``Cell``, run by ``jaxrnn.linear_scan``. State ``(h,)``, [..., H], zero at first;
      parameters ``w`` [I, 2, H] and ``b`` [2, H], gates in the order z n.

    >>> cell = jaxrnn.min_gru(hidden=4)
    >>> params = cell.init(jax.random.key(0), 2)
    >>> (h,), ys = jaxrnn.unroll(cell, params, jnp.ones((7, 3, 2)))
    >>> ys.shape, bool((ys > 0).all())
    ((7, 3, 4), True)
    """
    candidate = _candidate(positive)

    def update(a_z, a_n):
        z, n = tag("min_gru.z", sigmoid(a_z)), tag("min_gru.n", candidate(a_n))
        return sigmoid(-a_z), z, n

    return impulse(hidden, 2, update)


@constructor
def min_lstm(hidden: int, *, positive: bool = True) -> Cell:
    """minLSTM (Feng et al. 2024, arXiv:2410.01201), its length-independent version.

        f, i = sigmoid(W x + b)
        n = g(W_n x + b_n)              with ``positive``
        n = W_n x + b_n                 without
        h = (f * h + i * n) / (f + i)

    g(a) is a + 0.5 if a >= 0, else sigmoid(a).

    Args:
      hidden: H, the size of the state and the output.
      positive: see ``jaxrnn.min_gru``.

    Returns:
      A ``Cell``, run by ``jaxrnn.linear_scan``. State ``(h,)``, [..., H], zero at first;
      parameters ``w`` [I, 3, H] and ``b`` [3, H], gates in the order f i n.

    >>> cell = jaxrnn.min_lstm(hidden=4)
    >>> params = cell.init(jax.random.key(0), 2)
    >>> (h,), ys = jaxrnn.unroll(cell, params, jnp.ones((7, 3, 2)))
    >>> ys.shape, bool((ys > 0).all())
    ((7, 3, 4), True)
    """
    candidate = _candidate(positive)

    def update(a_f, a_i, a_n):
        log_f, log_i = log_sigmoid(a_f), log_sigmoid(a_i)
        odds = log_f - log_i  # f / (f + i), where both may underflow
        n = tag("min_lstm.n", candidate(a_n))
        return sigmoid(odds), sigmoid(-odds), n

    return impulse(hidden, 3, update)


def _candidate(positive):
    # Where a < 0 the other branch is not taken, and its derivative is finite.
    return (lambda a: jnp.where(a >= 0, a + 0.5, sigmoid(a))) if positive else (lambda a: a)
