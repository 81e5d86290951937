"""Test-time training: Sun et al. 2024."""

import numpy as np
from case import LIFTED, Case
from truth import sigmoid

import jaxrnn
from families.memories import entering


def ttt_linear(batch):
    """Equation 6 with f of section 2.7 and the learning rate of section 2.7, the loss halved."""

    def step(params, state, x):
        M, G, n = state
        heads, _, width = params["m"].shape
        M, G = (a.reshape(params["m"].shape) for a in (M, G))
        q, k, v = entering(params, x, heads)
        rate = sigmoid(x @ params["u"] + params["c"]) / width
        new, y = [], []
        for head in range(heads):
            matrix, offset = np.split(params["m"][head] + M[head], [width])
            scale, bias = params["scale"][head], params["bias"][head]
            z, deviation = standardised(k[head] @ matrix + offset[0])
            wrong = k[head] + scale * z + bias - v[head]
            by_z = wrong * scale
            by_z = (by_z - by_z.mean() - z * (by_z * z).mean()) / deviation
            slope = np.concatenate([np.outer(k[head], by_z), by_z[None]])
            new.append(G[head] + rate[head] * slope)
            matrix, offset = np.split(params["m"][head] + M[head] - new[-1], [width])
            z, _ = standardised(q[head] @ matrix + offset[0])
            y.append(q[head] + scale * z + bias)
        G = np.stack(new)
        if n[0].real + 1 == batch:
            M, G, n = M - G, 0 * G, n - n
        else:
            n = n + 1
        return (M.reshape(-1), G.reshape(-1), n), np.concatenate(y)

    return step


def standardised(a):
    """Of mean 0 and variance 1, and what it was divided by."""
    deviation = np.sqrt(((a - a.mean()) ** 2).mean() + 1e-6)
    return (a - a.mean()) / deviation, deviation


ROWS = {
    "ttt_linear": Case(
        lambda h: jaxrnn.ttt_linear(h, heads=2, batch=2), ttt_linear(2), LIFTED, heads=2
    ),
}
