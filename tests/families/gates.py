"""Networks with other gates than an LSTM's and a GRU's."""

import numpy as np
import truth
from case import PARTS, Case

import jaxrnn


def ugrnn(params, state, x):
    (h,) = state
    g, c = sum(truth._gates(params, h, x))
    g, c = truth.sigmoid(g), np.tanh(c)
    h = g * h + (1 - g) * c
    return (h,), h


def _whole(blocks):
    """Blocks [N, D, D] on the diagonal of one matrix."""
    count, width, _ = blocks.shape
    whole = np.zeros((count, width, count, width), blocks.dtype)
    whole[range(count), :, range(count)] = blocks
    return whole.reshape(count * width, count * width)


def mgu(variant, before=False):
    def step(params, state, x):
        (h,), w, r, b = state, params["w"], params["r"], params["b"]
        if r.ndim == 4:
            r = np.stack([_whole(r[:, :, k]) for k in range(r.shape[2])], 1)
        f = {
            0: lambda: x @ w[:, 0] + h @ r[:, 0] + b[0],
            1: lambda: h @ r[:, 0] + b[0],
            2: lambda: h @ r[:, 0],
            3: lambda: b[0],
        }[variant]()
        f = truth.sigmoid(f)
        rn = (f * h) @ r[:, -1] if before else f * (h @ r[:, -1])
        n = np.tanh(x @ w[:, -1] + rn + b[-1])
        h = (1 - f) * h + f * n
        return (h,), h

    return step


def janet(beta):
    def step(params, state, x):
        (h,) = state
        s, g = sum(truth._gates(params, h, x))
        h = truth.sigmoid(s) * h + (1 - truth.sigmoid(s - beta)) * np.tanh(g)
        return (h,), h

    return step


def slstm(forget):
    def step(params, state, x):
        h, c, n, m = state
        i, f, z, o = sum(truth._gates(params, h, x))
        kept = np.log(forget(f)) + m
        m = np.where((n == 0) | (i.real > kept.real), i, kept)
        i, f = np.exp(i - m), np.where(n == 0, 0, np.exp(kept - m))
        c, n = f * c + i * np.tanh(z), f * n + i
        h = truth.sigmoid(o) * c / n
        return (h, c, n, m), h

    return step


ROWS = {
    "ugrnn": Case(jaxrnn.ugrnn, ugrnn),
    "mgu0": Case(jaxrnn.mgu, mgu(0)),
    "mgu1": Case(lambda h: jaxrnn.mgu(h, variant=1), mgu(1)),
    "mgu2": Case(lambda h: jaxrnn.mgu(h, variant=2), mgu(2)),
    "mgu3": Case(lambda h: jaxrnn.mgu(h, variant=3), mgu(3)),
    "mgu_heads": Case(lambda h: jaxrnn.mgu(h, variant=1, heads=2), mgu(1), heads=2),
    "mgu_before": Case(lambda h: jaxrnn.mgu(h, reset_after=False), mgu(0, True), PARTS),
    "mgu3_before": Case(
        lambda h: jaxrnn.mgu(h, variant=3, reset_after=False), mgu(3, True), PARTS
    ),
    "janet": Case(jaxrnn.janet, janet(1)),
    "janet_beta": Case(lambda h: jaxrnn.janet(h, beta=0.25, longest=50), janet(0.25)),
    "slstm": Case(lambda h: jaxrnn.slstm(h, heads=1), slstm(truth.sigmoid)),
    "slstm_exp": Case(lambda h: jaxrnn.slstm(h, forget="exp", heads=2), slstm(np.exp), heads=2),
}
