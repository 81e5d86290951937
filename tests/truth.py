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
    """One row of self-attention by the textbook."""

    def project(x):
        return np.einsum("i,ijnd->jnd", x, params["qkv"])

    output = lambda x, y: np.einsum("nd,ndh->h", y, params["out"])
    return textbook(project, rotated, output, xs, mask, starts, reverse, window)


def grouped_attention(params, xs, mask, starts, reverse, rotary, base, epsilon, window):
    """The same with shared keys, a norm, rotation of a part, a gate and a bias."""

    def normed(a, scale):
        return a / np.sqrt((a**2).mean(-1, keepdims=True) + epsilon) * scale

    def project(x):
        q = normed(np.einsum("i,ind->nd", x, params["q"]), params["qs"])
        k, v = np.einsum("i,ijmd->jmd", x, params["kv"])
        k = normed(k, params["ks"])
        shared = [n * len(k) // len(q) for n in range(len(q))]
        return q, k[shared], v[shared]

    def turned(a, place):
        return np.concatenate([rotated(a[:, :rotary], place, base), a[:, rotary:]], -1)

    def output(x, y):
        gate = sigmoid(np.einsum("i,ind->nd", x, params["g"]))
        return np.einsum("nd,ndh->h", gate * y, params["out"]) + params["b"]

    return textbook(project, turned, output, xs, mask, starts, reverse, window)


def textbook(project, rotated, output, xs, mask, starts, reverse, window):
    """Attention of one row: every query against all it may see."""
    kept, ys = [], [None] * len(xs)
    for t, fresh in order(mask, starts, reverse):
        if fresh:
            kept = []
        if not mask[t]:
            continue
        q, k, v = project(xs[t])
        place = len(kept)
        q, k = rotated(q, place), rotated(k, place)
        kept.append((k, v))
        seen = kept if window is None else kept[-window:]
        keys, values = (np.stack(a) for a in zip(*seen))
        scores = np.exp(np.einsum("nd,snd->sn", q, keys) / np.sqrt(q.shape[1]))
        ys[t] = output(xs[t], np.einsum("sn,snd->nd", scores / scores.sum(0), values))
    size = next(len(y) for y in ys if y is not None)
    return np.stack([np.zeros(size) if y is None else y for y in ys])


def rotated(a, place, base=10000.0):
    """Pairs (d, d + D/2) of a [N, D] as complex numbers, turned by place / base^(2d/D)."""
    half = a.shape[-1] // 2
    angle = place * base ** (-np.arange(half) / max(half, 1))
    first, second, rest = a[:, :half], a[:, half : 2 * half], a[:, 2 * half :]
    turned = [
        first * np.cos(angle) - second * np.sin(angle),
        first * np.sin(angle) + second * np.cos(angle),
    ]
    return np.concatenate([*turned, rest], -1)
