"""SRU, RG-LRU and Mamba, whose input is part of the output: behind a projection to its size."""

import numpy as np
from case import LINEAR, PARTS, Case
from truth import sigmoid

import jaxrnn


def behind(cell):
    return lambda h: jaxrnn.stack(jaxrnn.project(h), cell(h))


def projected(step):
    def both(params, state, x):
        return step(params["1"], state, _affine(params["0"], x))

    return both


def sru(alpha):
    def step(params, state, x):
        (c,), w, v, b = state, params["w"], params["v"], params["b"]
        f = sigmoid(x @ w[:, 1] + v[0] * c + b[0])
        r = sigmoid(x @ w[:, 2] + v[1] * c + b[1])
        c = f * c + (1 - f) * (x @ w[:, 0])
        h = r * c + (1 - r) * (x @ w[:, 3] if alpha is None else alpha * x)
        return (c,), h

    return step


def rg_lru(params, state, x):
    h, count = state
    w, b, rate = params["w"], params["b"], np.log(1 + np.exp(params["l"]))
    w = w[None] if w.ndim == 3 else w
    heads = np.split(x, len(w))
    r, i = (
        sigmoid(np.concatenate([a @ m[:, k] for a, m in zip(heads, w)]) + b[k]) for k in range(2)
    )
    a = np.exp(-8 * r * rate)
    h = i * x if count == 0 else a * h + np.sqrt(1 - a**2) * i * x
    return (h, count + 1), h


def _affine(params, x):
    return x @ params["w"] + params["b"]


def _gelu(a):
    return a / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (a + 0.044715 * a**3)))


def rg_lru_block(params, state, x):
    window, *state = state
    (recurrent, gate), out = params["0"].values(), params["1"]
    seen = np.concatenate([window, _affine(recurrent["0"], x)[None]])  # the newest last
    conv = recurrent["1"]
    state, h = rg_lru(recurrent["2"], state, (conv["w"][::-1] * seen).sum(0) + conv["b"])
    return (seen[1:], *state), _affine(out, h * _gelu(_affine(gate, x)))


def mamba(params, state, x):
    """Gu & Dao 2023, algorithm 2 with their simplified discretisation of B."""
    (h,), d = state, params["d"]
    B, C = np.einsum("i,igd->gd", x, params["bc"])
    dt = np.log(1 + np.exp(x @ params["r1"] @ params["r2"] + params["c"]))[:, None]
    h = np.exp(-dt * np.exp(params["l"])) * h.reshape(len(x), -1) + dt * B * x[:, None]
    return (h.reshape(-1),), h @ C + d * x


def mamba_block(params, state, x):
    window, h = state
    (recurrent, gate), out = params["0"].values(), params["1"]
    seen = np.concatenate([window, (x @ recurrent["0"]["w"])[None]])
    conv = recurrent["1"]
    entering = _silu((conv["w"][::-1] * seen).sum(0) + conv["b"])
    state, y = mamba(recurrent["2"], (h,), entering)
    return (seen[1:], *state), (y * _silu(x @ gate["w"])) @ out["w"]


def rwkv4(params, state, x):
    """Peng et al. 2023, equations 11 to 16, with a and b divided by exp(m)."""
    *windows, a, b, m = state
    seen, core, out = params["0"].values(), params["1"], params["2"]
    k, v, r = (_mixed(p, window[0], x) for p, window in zip(seen, windows, strict=True))
    scale = np.exp(np.where(m.real < -1e30, -np.inf, m - np.max(k.real)))  # of what was before
    now, bonus = np.exp(k - np.max(k.real)), np.exp(core["u"])
    y = sigmoid(r) * (scale * a + bonus * now * v) / (scale * b + bonus * now)
    kept = np.exp(-np.exp(core["w"])) * scale
    before = m - np.exp(core["w"])
    most = np.where(before.real > k.real, before, k)
    a, b = (
        (kept * old + now * new) * np.exp(np.max(k.real) - most) for old, new in ((a, v), (b, 1))
    )
    return (*[x[None]] * 3, a, b, most), y @ out["w"]


def rwkv4_channels(params, state, x):
    (k, r), (for_k, for_r) = params.values(), state
    key = _mixed(k, for_k[0], x)
    key = np.where(key.real > 0, key, 0) ** 2
    y = sigmoid(_mixed(r, for_r[0], x)) * (key @ k["2"]["w"])
    return (x[None], x[None]), y


def _mixed(params, before, x):
    mix = params["0"]["mix"]
    return (mix * x + (1 - mix) * before) @ params["1"]["w"]


def _silu(a):
    return a * sigmoid(a)


ROWS = {
    "sru": Case(behind(jaxrnn.sru), projected(sru(np.sqrt(3))), PARTS),
    "sru_project": Case(
        lambda h: jaxrnn.sru(h, project=True, highway_bias=-1.0), sru(None), PARTS
    ),
    "mamba": Case(behind(lambda h: jaxrnn.mamba(h, state=4, rank=2)), projected(mamba), LINEAR),
    "mamba_block": Case(
        lambda h: jaxrnn.mamba_block(4, width=h, state=4, rank=2, kernel=3), mamba_block, LINEAR
    ),
    "rwkv4": Case(behind(lambda h: jaxrnn.rwkv4(h, width=4)), projected(rwkv4), faster=()),
    "rwkv4_channels": Case(
        behind(lambda h: jaxrnn.rwkv4_channels(h, width=5)), projected(rwkv4_channels), faster=()
    ),
    "rg_lru": Case(behind(jaxrnn.rg_lru), projected(rg_lru), LINEAR),
    "rg_lru_heads": Case(
        behind(lambda h: jaxrnn.rg_lru(h, heads=2)), projected(rg_lru), LINEAR, heads=2
    ),
    "rg_lru_block": Case(lambda h: jaxrnn.rg_lru_block(4, width=h), rg_lru_block, LINEAR),
}
