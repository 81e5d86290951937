"""The LSTM with a matrix for its memory, and that memory alone."""

from typing import Literal

import jax.numpy as jnp
from jax.nn import log_sigmoid, sigmoid

from jaxrnn._src.builders.memory import by_head, keys, reads, spread
from jaxrnn._src.core import checks, linear, param_spec
from jaxrnn._src.core.cell import Cell, constructor
from jaxrnn._src.core.dtypes import arithmetic, promoted
from jaxrnn._src.core.sequence import select
from jaxrnn._src.core.streaming import streamed
from jaxrnn._src.core.tags import tag, tag_all
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
        "c": ((2, heads), _gate_bias(0)),
    }

    def inputs(params, x):
        """The output gate, and what the memory takes."""
        total = arithmetic(params)
        q, k, v, o = (by_head(a, heads).astype(total) for a in linear.gates(params, x))
        q, k, v = tag("mlstm.q", q), tag("mlstm.k", k / width**0.5), tag("mlstm.v", v)
        gates = linear.affine(x, params["u"], params["c"]).astype(total)
        i, f = tag("mlstm.i", gates[..., 0, :]), tag("mlstm.f", gates[..., 1, :])
        return tag("mlstm.o", o), (q, k, v, i, f)

    def outputs(o, y):
        y = sigmoid(o) * y
        return tag("mlstm.h", y.reshape(*y.shape[:-2], hidden))

    return _memory(spec, (heads, width, width), inputs, outputs, stabilised=stabilised)


@constructor
def mlstm_memory(
    hidden: int, *, heads: int = 4, key: int | None = None, cap: float | None = None
) -> Cell:
    """The memory of ``jaxrnn.mlstm`` alone, for what a block has made of its input before.

        q, z, v, a, b = x      k = z / sqrt(D)      i = cap(a + c_i)      f = cap(b + c_f)
        p = m                  m = max(logsigmoid(f) + p, i)
        C = exp(logsigmoid(f) + p - m) C + exp(i - m) k v'
        n = exp(logsigmoid(f) + p - m) n + exp(i - m) k
        y = C' q / max(|n' q|, exp(-m))

    With a number for ``cap``, cap(a) is cap tanh(a / cap) (Beck et al. 2025, arXiv:2503.13427).

    Args:
      hidden: H, the size of the output, and of all heads' values v together.
      heads: N, a divisor of ``hidden``.
      key: D, the width of a head's q and z; None for that of its values, E = H / N.
      cap: what keeps i and f between -cap and cap; None for no bound.

    Returns:
      A ``Cell``. Its input is q, z, v, a and b side by side: 2 N D + H + 2 N features. State
      ``(C, n, m)``, [..., N, D, E], [..., N, D] and [..., N], as that of ``jaxrnn.mlstm``.
      Parameters ``c`` [2, N], of i and f, which begin at -10 and from 3 to 6, as the authors
      have it.

    Raises:
      ValueError: ``heads`` does not divide ``hidden``, ``cap`` is not above 0 or is infinite, or
        the input has another size.

    >>> cell = jaxrnn.mlstm_memory(hidden=8, heads=2, key=3)
    >>> params = cell.init(jax.random.key(0), 2 * 2 * 3 + 8 + 2 * 2)
    >>> (C, n, m), ys = jaxrnn.unroll(cell, params, jnp.ones((100, 5, 24)))
    >>> ys.shape, C.shape, n.shape, m.shape
    ((100, 5, 8), (5, 2, 3, 4), (5, 2, 3), (5, 2))
    """
    hidden, heads, width = keys(hidden, heads, key)
    cap = None if cap is None else checks.cap(cap)
    ends = (heads * width, 2 * heads * width, 2 * heads * width + hidden)
    features = ends[-1] + 2 * heads
    spec = {"c": ((2, heads), _gate_bias(-10))}

    def inputs(params, x):
        checks.check_features(x, features)
        q, k, v, gates = jnp.split(x.astype(arithmetic(params)), ends, -1)
        q, k, v = (by_head(a, heads) for a in (q, k / width**0.5, v))
        q, k, v = tag_all("mlstm_memory", q=q, k=k, v=v)
        gates = by_head(gates, 2)
        gates = gates + spread(params["c"], gates)
        gates = gates if cap is None else cap * jnp.tanh(gates / cap)
        i, f = tag_all("mlstm_memory", i=gates[..., 0, :], f=gates[..., 1, :])
        return None, (q, k, v, i, f)

    def outputs(_, y):
        return tag("mlstm_memory.y", y.reshape(*y.shape[:-2], hidden))

    cell = _memory(spec, (heads, width, hidden // heads), inputs, outputs)
    return reads(cell, features, "2 N D + H + 2 N")


def _memory(spec, sizes, inputs, outputs, stabilised=True):
    """A cell with the memory of ``ops.matrix_memory``.

    Args:
      spec: the parameters: see ``param_spec.made``.
      sizes: ``(N, D, E)``, heads and the widths of a key and of a value.
      inputs: ``(params, x) -> (beside, (q, k, v, i, f))``, with the gates before their functions.
      outputs: ``(beside, y) -> y``, [..., N, E] -> [..., O], with what ``inputs`` gave.
      stabilised: i is the logarithm of the input gate, and y is divided by the greater of |n' q|
        and exp(-m); else i is what a sigmoid makes the gate of.
    """
    heads, width, values = sizes

    def initial_state(params, batch_shape):
        shapes = ((width, values), (width,), ()) if stabilised else ((width, values),)
        dtype = arithmetic(params)
        return tuple(jnp.zeros((*batch_shape, heads, *shape), dtype) for shape in shapes)

    def given(params, x):
        """What ``outputs`` needs, and what the memory takes."""
        param_spec.check(spec, params, x)
        beside, (q, k, v, i, f) = inputs(params, x)
        if stabilised:  # the value 1, so that n is the last column of C
            v = jnp.concatenate([v, jnp.ones_like(v[..., :1])], -1)
        weight = params["w"] if "w" in params else params["c"]
        product = promoted(x.dtype, weight.dtype)
        taken = (a.astype(product) for a in (q, k, v))
        return beside, (*taken, log_sigmoid(f), i if stabilised else log_sigmoid(i))

    def packed(state):
        if not stabilised:
            return state[0], jnp.zeros_like(state[0][..., 0, 0])
        return jnp.concatenate([state[0], state[1][..., None]], -1), state[2]

    def unpacked(state):
        memory, m = state
        return (memory[..., :-1], memory[..., -1], m) if stabilised else (memory,)

    def read(beside, y, m):
        return outputs(beside, _normalised(y, m[..., None]) if stabilised else y)

    def step(params, state, x, key=None):
        del key
        state = checks.completed_state(initial_state, params, state, x.shape[:-1])
        beside, taken = given(params, x)
        state, found = matrix_memory.one(stabilised, packed(state), taken)
        return unpacked(state), read(beside, *found).astype(x.dtype)

    def unroll(params, state, xs, options):
        beside, (q, k, v, log_f, log_i) = given(params, xs)
        state = initial_state(params, xs.shape[1:-1]) if state is None else state
        state, found = matrix_memory.matrix_memory(
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
        ys = select(options.mask, read(beside, *found), 0)
        return unpacked(state), ys.astype(xs.dtype)

    init = lambda key, n: param_spec.made(spec, key, n)
    whole = streamed(unroll, initial_state, given)
    return Cell(init, initial_state, step, whole, states=("C", "n", "m") if stabilised else ("C",))


def _normalised(y, m):
    """``C' q / max(|n' q|, exp(-m))`` of y, which is both products side by side."""
    y = y * jnp.exp(jnp.minimum(m, 0))  # above and below, for exp(-m) may be infinite
    least = jnp.maximum(jnp.exp(-jnp.maximum(m, 0)), _LEAST)
    return y[..., :-1] / jnp.maximum(jnp.abs(y[..., -1:]), least)


def _gate_bias(i):
    """An initializer of [2, N]: i for the input gate, and from 3 to 6 for the forget gate."""

    def init(key, shape, dtype):
        del key
        return jnp.stack([jnp.full(shape[1], i, dtype), jnp.linspace(3, 6, shape[1], dtype=dtype)])

    return init
