"""LSTMs whose output is projected (Sak et al. 2014), and cells whose gates are normalised."""

import numpy as np
from case import LIFTED, PARTS, RECUR, Case
from truth import sigmoid

import jaxrnn


def projected_lstm(params, state, x):
    """Sak et al. 2014, equations 7 to 12, without peepholes."""
    h, c = state
    i, f, g, o = (
        np.einsum("i,ih->h", x, params["w"][:, k])
        + np.einsum("p,ph->h", h, params["r"][:, k])
        + params["b"][k]
        for k in range(4)
    )
    c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    h = (sigmoid(o) * np.tanh(c)) @ params["p"]
    return (h, c), h


def layer_norm(z, epsilon):
    z = z - z.mean()
    return z / np.sqrt((z * z).mean() + epsilon)


def norm(z, scale, per_gate):
    """Of [G, H], all together or gate by gate."""
    z = np.stack([layer_norm(gate, 1e-5) for gate in z]) if per_gate else layer_norm(z, 1e-5)
    return scale * z


def products(params, h, x):
    return np.einsum("i,igh->gh", x, params["w"]), np.einsum("d,dgh->gh", h, params["r"])


def layer_norm_lstm(per_gate):
    """Ba et al. 2016."""

    def step(params, state, x):
        h, c = state
        wx, rh = products(params, h, x)
        wx, rh = norm(wx, params["sw"], per_gate), norm(rh, params["sr"], per_gate)
        i, f, g, o = wx + rh + params["b"]
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(params["sc"] * layer_norm(c, 1e-5) + params["bc"])
        return (h, c), h

    return step


def layer_norm_gru(per_gate):
    """Haste's."""

    def step(params, state, x):
        (h,) = state
        wx, rh = products(params, h, x)
        xr, xz, xn = norm(wx, params["sw"], per_gate) + params["b"]
        rr, rz, rn = norm(rh, params["sr"], per_gate)
        r, z = sigmoid(xr + rr), sigmoid(xz + rz)
        n = np.tanh(xn + r * (rn + params["rb"]))
        h = z * h + (1 - z) * n
        return (h,), h

    return step


def dreamer_gru(params, state, x):
    """DreamerV2's GRUCell without a bias before the normalisation."""
    (h,) = state
    r = params["r"]
    if r.ndim == 3:
        rh = np.einsum("d,dgh->gh", h, r)
    else:
        rh = np.einsum("nd,ndge->gne", h.reshape(r.shape[:2]), r).reshape(3, -1)
    parts = np.einsum("i,igh->gh", x, params["w"]) + rh
    reset, cand, update = params["scale"] * layer_norm(parts, 1e-3) + params["bias"]
    cand = np.tanh(sigmoid(reset) * cand)
    update = sigmoid(update - 1)
    h = update * cand + (1 - update) * h
    return (h,), h


ROWS = {
    "lstm_projection": Case(lambda h: jaxrnn.lstm(h, projection=4), projected_lstm, RECUR),
    "lstm_projection_wide": Case(lambda h: jaxrnn.lstm(h, projection=9), projected_lstm, PARTS),
    "layer_norm_lstm": Case(jaxrnn.layer_norm_lstm, layer_norm_lstm(False), PARTS),
    "layer_norm_lstm_per_gate": Case(
        lambda h: jaxrnn.layer_norm_lstm(h, per_gate=True), layer_norm_lstm(True), RECUR
    ),
    "layer_norm_gru": Case(jaxrnn.layer_norm_gru, layer_norm_gru(False), PARTS),
    "layer_norm_gru_per_gate": Case(
        lambda h: jaxrnn.layer_norm_gru(h, per_gate=True), layer_norm_gru(True), PARTS
    ),
    "dreamer_gru": Case(jaxrnn.dreamer_gru, dreamer_gru, PARTS),
    "dreamer_gru_heads": Case(
        lambda h: jaxrnn.dreamer_gru(h, heads=2), dreamer_gru, LIFTED, heads=2
    ),
}
