"""The LSTM with a matrix for its memory."""

from typing import Literal

import jax.numpy as jnp
from jax.nn import log_sigmoid, sigmoid

from jaxrnn._src.core import checks, linear, param_spec
from jaxrnn._src.core.cell import Cell, constructor
from jaxrnn._src.core.dtypes import arithmetic, promoted
from jaxrnn._src.core.sequence import select
from jaxrnn._src.core.streaming import streamed
from jaxrnn._src.core.tags import tag
from jaxrnn._src.ops import matrix_memory

_LEAST = 1e-6  # what is divided by at least, for exp(-m) may be 0; the authors' code adds it


@constructor
def mlstm(hidden: int, *, heads: int = 4, gate: Literal["exp", "sigmoid"] = "exp") -> Cell:
    """The mLSTM of the xLSTM (Beck et al. 2024, arXiv:2405.04517).

        q, v, o = W x + b       k = (W_k x + b_k) / sqrt(D)       i, f = U x + c, for each head
        p = m                   m = max(logsigmoid(f) + p, i)
        C = exp(logsigmoid(f) + p - m) C + exp(i - m) k v'
        n = exp(logsigmoid(f) + p - m) n + exp(i - m) k
        h = sigmoid(o) * C' q / max(|n' q|, exp(-m))

    With ``gate="sigmoid"``, the mLSTMsig (Beck et al. 2025, arXiv:2503.14376), there are neither
    n nor m:

        C = sigmoid(f) C + sigmoid(i) k v'       h = sigmoid(o) * C' q

    ``unroll`` is not a scan: chunks of steps are run at once, as attention is. The norm of each
    head that the papers' blocks have before o, their convolution and their other layers are not of
    this cell.

    With ``gate="exp"`` the division is ill-conditioned: n' q passes through zero, where a small
    change is a large one of h. Rounding parameters and inputs to bfloat16 changes h by some per
    cent of its largest value, and gradients by more, even if all else is float64; the error of
    bfloat16 is of that size. Use float32 where that is too much, or ``gate="sigmoid"``, which
    divides by nothing.

    Args:
      hidden: H, the size of the output, and of all heads together.
      heads: N, a divisor of ``hidden``.
      gate: what the input gate is: "exp" or "sigmoid".

    Returns:
      A ``Cell``. State ``(C, n, m)``, [..., N, D, D] of key and value, [..., N, D] and [..., N],
      for heads of width D = H / N, in the first paper's stabilised form: C and n are divided by
      exp(m). With "sigmoid" it is ``(C,)``. Parameters ``w`` [I, 4, H] and ``b`` [4, H] of
      q k v o; ``u`` [I, 2, N] and ``c`` [2, N] of i f, which begin at zero but for f's c, from 3
      to 6 as the authors have it.

    Raises:
      ValueError: ``heads`` does not divide ``hidden``; an unknown ``gate``.

    >>> cell = jaxrnn.mlstm(hidden=8, heads=2)
    >>> params = cell.init(jax.random.key(0), 3)
    >>> (C, n, m), ys = jaxrnn.unroll(cell, params, jnp.ones((100, 5, 3)))
    >>> ys.shape, C.shape, n.shape, m.shape
    ((100, 5, 8), (5, 2, 4, 4), (5, 2, 4), (5, 2))
    """
    hidden, heads = checks.heads(hidden, heads)
    if gate not in ("exp", "sigmoid"):
        raise ValueError(f"gate: got {gate!r}, want 'exp' or 'sigmoid'")
    width, stabilised = hidden // heads, gate == "exp"
    spec = {
        "w": ((param_spec.INPUTS, 4, hidden), param_spec.input_init),
        "b": ((4, hidden), param_spec.zeros),
        "u": ((param_spec.INPUTS, 2, heads), param_spec.zeros),
        "c": ((2, heads), _gate_bias),
    }

    def initial_state(params, batch_shape):
        shapes = ((width, width), (width,), ()) if stabilised else ((width, width),)
        dtype = arithmetic(params)
        return tuple(jnp.zeros((*batch_shape, heads, *shape), dtype) for shape in shapes)

    def inputs(params, x):
        """The output gate, and what the memory takes."""
        param_spec.check(spec, params, x)
        total, product = arithmetic(params), promoted(x.dtype, params["w"].dtype)
        by_head = (a.reshape(*a.shape[:-1], heads, width) for a in linear.gates(params, x))
        q, k, v, o = (a.astype(total) for a in by_head)
        q, k, v = tag("mlstm.q", q), tag("mlstm.k", k / width**0.5), tag("mlstm.v", v)
        o = tag("mlstm.o", o)
        if stabilised:  # the value 1, so that n is the last column of C
            v = jnp.concatenate([v, jnp.ones_like(v[..., :1])], -1)
        gates = linear.affine(x, params["u"], params["c"]).astype(total)
        i, f = tag("mlstm.i", gates[..., 0, :]), tag("mlstm.f", gates[..., 1, :])
        taken = (a.astype(product) for a in (q, k, v))
        return o, (*taken, log_sigmoid(f), i if stabilised else log_sigmoid(i))

    def packed(state):
        if not stabilised:
            return state[0], jnp.zeros_like(state[0][..., 0, 0])
        return jnp.concatenate([state[0], state[1][..., None]], -1), state[2]

    def unpacked(state):
        memory, m = state
        return (memory[..., :-1], memory[..., -1], m) if stabilised else (memory,)

    def outputs(o, y, m):
        y = _normalised(y, m[..., None]) if stabilised else y
        y = sigmoid(o) * y
        return y.reshape(*y.shape[:-2], hidden)

    def step(params, state, x, key=None):
        del key
        state = checks.completed_state(initial_state, params, state, x.shape[:-1])
        o, taken = inputs(params, x)
        state, read = matrix_memory.one(stabilised, packed(state), taken)
        h = tag("mlstm.h", outputs(o, *read))
        return unpacked(state), h.astype(x.dtype)

    def unroll(params, state, xs, options):
        o, (q, k, v, log_f, log_i) = inputs(params, xs)
        state = initial_state(params, xs.shape[1:-1]) if state is None else state
        state, read = matrix_memory.matrix_memory(
            q,
            k,
            v,
            log_f,
            log_i,
            packed(state),
            stabilised=stabilised,
            mask=options.mask,
            starts=options.starts,
            reverse=options.reverse,
            implementation=options.implementation,
        )
        return unpacked(state), select(options.mask, outputs(o, *read), 0).astype(xs.dtype)

    init = lambda key, n: param_spec.made(spec, key, n)
    whole = streamed(unroll, initial_state, inputs)
    return Cell(init, initial_state, step, whole, states=("C", "n", "m") if stabilised else ("C",))


def _normalised(y, m):
    """``C' q / max(|n' q|, exp(-m))`` of y, which is both products side by side."""
    y = y * jnp.exp(jnp.minimum(m, 0))  # above and below, for exp(-m) may be infinite
    least = jnp.maximum(jnp.exp(-jnp.maximum(m, 0)), _LEAST)
    return y[..., :-1] / jnp.maximum(jnp.abs(y[..., -1:]), least)


def _gate_bias(key, shape, dtype):
    del key
    return jnp.stack([jnp.zeros(shape[1], dtype), jnp.linspace(3, 6, shape[1], dtype=dtype)])
