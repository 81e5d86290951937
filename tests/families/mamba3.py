"""Mamba-3 with one input and one output a head, as its authors' kernel of one step has it."""

import numpy as np
from case import LINEAR, Case
from truth import sigmoid

import jaxrnn
from families.memories import softplus


def mamba3(params, state, x):
    S, k, u, phi = state
    d = params["d"]
    heads, width = len(d), params["bc"].shape[-1]
    k, u, phi = (a.reshape(heads, -1) for a in (k, u, phi))
    S = S.reshape(heads, width, -1)
    v = (x @ params["v"]).reshape(heads, -1)
    rate, decay, part = np.einsum("i,ign->gn", x, params["u"])
    dt, trap = softplus(rate + params["c"]), sigmoid(part)
    rising = softplus(decay)
    alpha = np.exp(-dt * np.where(rising.real < 1e-4, 1e-4, rising))
    beta, gamma = alpha * dt * (1 - trap), trap * dt
    phi = phi + np.pi * dt[:, None] * np.tanh(x @ params["p"])
    phi = phi - 2 * np.pi * np.floor(phi.real / (2 * np.pi))
    B, C = (
        turned(a / np.sqrt((a**2).mean() + 1e-5) * scale + bias, phi)
        for a, scale, bias in zip(
            np.einsum("i,igd->gd", x, params["bc"]), params["scale"], params["b"]
        )
    )
    S = np.stack(
        [
            alpha[n] * S[n] + beta[n] * np.outer(k[n], u[n]) + gamma[n] * np.outer(B[n], v[n])
            for n in range(heads)
        ]
    )
    y = np.stack([C[n] @ S[n] + d[n] * v[n] for n in range(heads)])
    return tuple(a.reshape(-1) for a in (S, B, v, phi)), y.reshape(-1)


def turned(a, phi):
    """By a matrix for each pair of the first half."""
    a = a.astype(np.result_type(a, phi))
    for n, angles in enumerate(phi):
        for i, angle in enumerate(angles):
            cos, sin = np.cos(angle), np.sin(angle)
            a[n, 2 * i : 2 * i + 2] = np.array([[cos, -sin], [sin, cos]]) @ a[n, 2 * i : 2 * i + 2]
    return a


ROWS = {
    "mamba3": Case(lambda h: jaxrnn.mamba3(h, heads=2, state=8), mamba3, LINEAR, heads=2),
}
