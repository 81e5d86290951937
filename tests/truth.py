"""What the papers say, as loops in NumPy: one row, one step at a time, nothing shared with jaxrnn.

Everything is analytic, so the same loop in complex numbers differentiates itself: the imaginary
part of f(a + i h v) is h times the derivative along v, exact to rounding for a tiny h.
"""

import numpy as np

TINY = 1e-40


def sigmoid(a):
    return 1 / (1 + np.exp(-a))


def relu(a):
    return np.where(a.real > 0, a, 0)


def _gates(params, h, x):
    """Input and recurrent parts, each [G, H]; r in blocks where it has four axes."""
    w, r, b = params["w"], params["r"], params["b"]
    if r.ndim == 3:
        rec = np.einsum("d,dgh->gh", h, r)
    else:
        heads, width = r.shape[:2]
        blocks = [h[n * width : (n + 1) * width] for n in range(heads)]
        rec = np.concatenate([np.einsum("d,dge->ge", a, m) for a, m in zip(blocks, r)], 1)
    return np.einsum("i,igh->gh", x, w) + b, rec


def elman(activation):
    def step(params, state, x):
        (h,) = state
        (xh,), (rh,) = _gates(params, h, x)
        return (activation(xh + rh),)

    return step


def lstm(params, state, x):
    h, c = state
    x, r = _gates(params, h, x)
    i, f, g, o = x + r
    c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    return sigmoid(o) * np.tanh(c), c


def peephole_lstm(params, state, x):
    h, c = state
    x, r = _gates(params, h, x)
    i, f, g, o = x + r
    new = sigmoid(f + params["pf"] * c) * c + sigmoid(i + params["pi"] * c) * np.tanh(g)
    return sigmoid(o + params["po"] * new) * np.tanh(new), new


def gru(params, state, x):
    (h,) = state
    (xr, xz, xn), (rr, rz, rn) = _gates(params, h, x)
    r, z = sigmoid(xr + rr), sigmoid(xz + rz)
    n = np.tanh(xn + r * (rn + params["rb"]))
    return ((1 - z) * n + z * h,)


def gru_reset_before(params, state, x):
    (h,) = state
    (xr, xz, xn), (rr, rz, _) = _gates(params, h, x)
    r, z = sigmoid(xr + rr), sigmoid(xz + rz)
    n = np.tanh(xn + (r * h) @ params["r"][:, 2])
    return ((1 - z) * n + z * h,)


def mgu(params, state, x):
    (h,) = state
    (xf, xn), (rf, rn) = _gates(params, h, x)
    f = sigmoid(xf + rf)
    return ((1 - f) * h + f * np.tanh(xn + f * rn),)


def turned(step):
    """The same with the gates in the opposite order."""

    def opposite(params, state, x):
        return step({n: a[..., ::-1, :] for n, a in params.items()}, state, x)

    return opposite


def first(step):
    """A step that gives its state, the first part of which is the output."""

    def with_output(params, state, x):
        state = step(params, state, x)
        return state, state[0]

    return with_output


def run(step, params, state, initial, xs, mask, starts, reverse):
    """One row of a cell: (state, ys [T, ...]); both states are tuples of arrays."""
    size = step(params, initial, xs[0])[1].shape
    ys = np.zeros((len(xs), *size), np.result_type(xs, *state, *arrays(params)))
    for t, fresh in order(mask, starts, reverse):
        if fresh:
            state = initial
        if mask[t]:
            state, ys[t] = step(params, state, xs[t])
    return state, ys


def arrays(params):
    """Those of a dict of dicts."""
    for value in params.values():
        yield from arrays(value) if isinstance(value, dict) else (value,)


def order(mask, starts, reverse):
    """The times as they come, and whether the state is put back before each."""
    if not reverse:
        return [(t, starts[t]) for t in range(len(mask))]
    out, cut = [], False
    for t in reversed(range(len(mask))):
        out.append((t, cut and mask[t]))
        cut = starts[t] or (cut and not mask[t])
    return out


def attention(params, xs, mask, starts, reverse, window=None):
    """One row of self-attention by the textbook: every query against all it may see."""
    _, _, heads, width = params["qkv"].shape
    kept, ys = [], np.zeros((len(xs), params["out"].shape[-1]), xs.dtype)
    for t, fresh in order(mask, starts, reverse):
        if fresh:
            kept = []
        if not mask[t]:
            continue
        q, k, v = np.einsum("i,ijnd->jnd", xs[t], params["qkv"])
        place = len(kept)
        q, k = rotated(q, place), rotated(k, place)
        kept.append((k, v))
        seen = kept if window is None else kept[-window:]
        for n in range(heads):
            scores = np.exp(np.array([q[n] @ k[n] for k, _ in seen]) / np.sqrt(width))
            mixed = sum(s * v[n] for s, (_, v) in zip(scores / scores.sum(), seen))
            ys[t] += mixed @ params["out"][n]
    return ys


def rotated(a, place):
    """Pairs (d, d + D/2) of a [N, D] as complex numbers, turned by place / 10000^(2d/D)."""
    half = a.shape[-1] // 2
    angle = place * 10000.0 ** (-np.arange(half) / max(half, 1))
    first, second, rest = a[:, :half], a[:, half : 2 * half], a[:, 2 * half :]
    turned = [
        first * np.cos(angle) - second * np.sin(angle),
        first * np.sin(angle) + second * np.cos(angle),
    ]
    return np.concatenate([*turned, rest], -1)
