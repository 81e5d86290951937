"""Memories that are matrices: from linear attention to the delta rules."""

import functools

import numpy as np
from case import LIFTED, Case
from truth import sigmoid

import jaxrnn
from families.gated_linear import projected


def silu(a):
    return a * sigmoid(a)


def softplus(a):
    return np.log(1 + np.exp(a))


def unit(k):
    """Each head's vector, of length 1 but for what keeps it from a division by zero."""
    return k / np.sqrt((k**2).sum(-1, keepdims=True) + 1e-6)


def entering(params, x, heads):
    """q, k and v by head."""
    q, k = np.einsum("i,igd->gd", x, params["qk"])
    return tuple(a.reshape(heads, -1) for a in (q, k, x @ params["v"]))


def written(S, k, v):
    return S + np.einsum("nd,ne->nde", k, v)


def read(S, q):
    return np.einsum("nd,nde->ne", q, S)


def erased(S, k, beta):
    """(I - beta k k') S, of each head."""
    return np.stack([(np.eye(len(a)) - b * np.outer(a, a)) @ s for s, a, b in zip(S, k, beta)])


def linear_attention(params, state, x):
    (S,) = state  # with n as its last column
    q, k, v = entering(params, x, len(S))
    q, k = (np.where(a.real > 0, a + 1, np.exp(a)) for a in (q, k))
    S = written(S, k, np.concatenate([v, np.ones((len(v), 1))], 1))
    both = read(S, q)
    return (S,), (both[:, :-1] / (both[:, -1:] + 1e-6)).reshape(-1)


def retention(params, state, x):
    """Sun et al. 2023, with the pairs of its rotation as complex numbers."""
    S, count = state
    q, k, v = entering(params, x, len(S))
    half = q.shape[1] // 2
    angles = count.real / 10000.0 ** (np.arange(half) / max(half, 1))

    def turned(a):
        first, second, rest = np.split(a, [half, 2 * half], 1)
        cos, sin = np.cos(angles), np.sin(angles)
        return np.concatenate([first * cos - second * sin, first * sin + second * cos, rest], 1)

    gamma = 1 - 2.0 ** (-5 - np.arange(len(S)))
    S = written(gamma[:, None, None] * S, turned(k) / np.sqrt(k.shape[1]), v)
    return (S, count + 1), read(S, turned(q)).reshape(-1)


def gla(params, state, x):
    (S,) = state
    q, k, v = entering(params, x, len(S))
    alpha = sigmoid(x @ params["g1"] @ params["g2"] + params["c"]) ** (1 / 16)
    S = written(alpha.reshape(k.shape)[:, :, None] * S, k, v)
    return (S,), read(S, q).reshape(-1) / np.sqrt(q.shape[1])


def hgrn2(lower, params, state, x):
    (S,) = state
    q, z, v = entering(params, x, len(S))
    f = lower + (1 - lower) * sigmoid(z)
    S = written(f[:, :, None] * S, 1 - f, v)
    return (S,), read(S, silu(q)).reshape(-1)


def activated(params, x, heads):
    q, k, v = entering(params, x, heads)
    return unit(silu(q)) / np.sqrt(q.shape[1]), unit(silu(k)), silu(v)


def delta_net(most, params, state, x):
    (S,) = state
    q, k, v = activated(params, x, len(S))
    beta = most * sigmoid(x @ params["u"])
    S = written(erased(S, k, beta), beta[:, None] * k, v)
    return (S,), read(S, q).reshape(-1)


def gated_delta_net(params, state, x):
    (S,) = state
    q, k, v = activated(params, x, len(S))
    rate, beta = np.einsum("i,ign->gn", x, params["u"])
    alpha, beta = np.exp(-np.exp(params["l"]) * softplus(rate + params["c"])), sigmoid(beta)
    S = written(alpha[:, None, None] * erased(S, k, beta), beta[:, None] * k, v)
    return (S,), read(S, q).reshape(-1)


def kimi_delta(params, state, x):
    (S,) = state
    q, k, v = activated(params, x, len(S))
    beta = sigmoid(x @ params["u"])
    rate = softplus(x @ params["g1"] @ params["g2"] + params["c"]).reshape(k.shape)
    alpha = np.exp(-np.exp(params["l"])[:, None] * rate)
    S = written(erased(alpha[:, :, None] * S, k, beta), beta[:, None] * k, v)
    return (S,), read(S, q).reshape(-1)


def delta_product(params, state, x):
    (S,) = state
    heads = len(S)
    q = unit(silu((x @ params["q"]).reshape(heads, -1)))
    for n in range(params["k"].shape[1]):
        k = unit(silu((x @ params["k"][:, n]).reshape(heads, -1)))
        v = silu((x @ params["v"][:, n]).reshape(heads, -1))
        beta = 2 * sigmoid(x @ params["u"][:, n])
        S = written(erased(S, k, beta), beta[:, None] * k, v)
    return (S,), read(S, q).reshape(-1) / np.sqrt(q.shape[1])


def rwkv6(params, state, x):
    """Peng et al. 2024, equations 18 to 20 without their token shift."""
    (S,) = state
    r, k, v = entering(params, x, len(S))
    w = np.exp(-np.exp(params["c"] + np.tanh(x @ params["w1"]) @ params["w2"]))
    y = read(written(S, params["u"] * k, v), r)
    return (written(w.reshape(k.shape)[:, :, None] * S, k, v),), y.reshape(-1)


def rwkv7(params, state, x):
    """Peng et al. 2025, with S of value and key as the paper has it."""
    (S,) = state
    r, k, v = entering(params, x, len(S))
    (of_w, of_a), c = np.einsum("i,igr->gr", x, params["wa1"]), params["c"]
    w = np.exp(-np.exp(-0.5) * sigmoid(c[0] + np.tanh(of_w) @ params["w2"])).reshape(k.shape)
    a = sigmoid(c[1] + of_a @ params["a2"]).reshape(k.shape)
    removed = unit(k * params["xi"])
    k = k * (1 + (a - 1) * params["alpha"])
    new, y = [], []
    for n in range(len(S)):
        transition = np.diag(w[n]) - np.outer(removed[n], a[n] * removed[n])
        by_value = S[n].T @ transition + np.outer(v[n], k[n])
        new.append(by_value.T)
        y.append(by_value @ r[n] + (r[n] * params["rho"][n] * k[n]).sum() * v[n])
    return (np.stack(new),), np.concatenate(y)


def mamba2(params, state, x):
    (S,) = state
    v = silu(x @ params["v"]).reshape(len(S), -1)
    B, C = silu(np.einsum("i,igd->gd", x, params["bc"]))
    dt = softplus(x @ params["u"] + params["c"])
    a = np.exp(-np.exp(params["l"]) * dt)
    S = a[:, None, None] * S + dt[:, None, None] * B[:, None] * v[:, None]
    return (S,), (C @ S + params["d"][:, None] * v).reshape(-1)


def ssd(groups, params, state, x):
    """With v, B, C and what makes dt side by side in x."""
    (S,) = state
    heads, width, values = S.shape
    v, B, C, u = np.split(x, np.cumsum([heads * values, *[groups * width] * 2]))
    v = v.reshape(heads, values)
    B, C = (np.repeat(a.reshape(groups, width), heads // groups, 0) for a in (B, C))
    dt = softplus(u + params["c"])
    a = np.exp(-np.exp(params["l"]) * dt)
    S = a[:, None, None] * S + dt[:, None, None] * B[:, :, None] * v[:, None]
    return (S,), (read(S, C) + params["d"][:, None] * v).reshape(-1)


def mamba2_block(groups, params, state, x):
    window, *state = state
    (recurrent, gate), norm, out = params["0"].values(), params["1"], params["2"]
    (projected, conv), rate = recurrent["0"]["0"].values(), recurrent["0"]["1"]
    seen = np.concatenate([window, (x @ projected["w"])[None]])
    entering = silu((conv["w"][::-1] * seen).sum(0) + conv["b"])
    state, y = ssd(groups, recurrent["1"], state, np.concatenate([entering, x @ rate["w"]]))
    y = (y * silu(x @ gate["w"])).reshape(groups, -1)
    y = (y / np.sqrt((y**2).mean(1, keepdims=True) + 1e-5)).reshape(-1) * norm["scale"]
    return (seen[1:], *state), y @ out["w"]


def gated_delta_block(params, state, x):
    """Yang et al. 2024, section 3.4, with fewer heads of keys than of values."""
    window, S = state
    (recurrent, gate), out = params["0"].values(), params["1"]
    (entering, gates), memory, norm = recurrent["0"].values(), recurrent["1"], recurrent["2"]
    seen = np.concatenate([window, (x @ entering["0"]["w"])[None]])
    mixed = silu((entering["1"]["w"][::-1] * seen).sum(0) + entering["1"]["b"])
    heads, width, values = S.shape
    of_keys = (len(mixed) - heads * values) // 2
    q, k, v = np.split(mixed, [of_keys, 2 * of_keys])
    rate, beta = np.split(x @ gates["w"], 2)
    alpha, beta = np.exp(-np.exp(memory["l"]) * softplus(rate + memory["c"])), sigmoid(beta)
    q, k = (np.repeat(unit(a.reshape(-1, width)), heads * width // of_keys, 0) for a in (q, k))
    v = v.reshape(heads, values)
    S = written(alpha[:, None, None] * erased(S, k, beta), beta[:, None] * k, v)
    y = read(S, q) / np.sqrt(width)
    y = (y / np.sqrt((y**2).mean(1, keepdims=True) + 1e-6)).reshape(-1) * norm["scale"]
    return (seen[1:], S), (y * silu(x @ gate["w"])) @ out["w"]


def row(cell, truth, **options):
    """Of two heads, by default with keys that are wider than the values."""
    options = {"heads": 2, "key": 4} | options
    return Case(lambda h: cell(h, **options), truth, LIFTED, heads=2)


ROWS = {
    "linear_attention": row(jaxrnn.linear_attention, linear_attention),
    "retention": row(jaxrnn.retention, retention, key=5),
    "gla": row(jaxrnn.gla, gla, rank=2),
    "hgrn2": row(jaxrnn.hgrn2, functools.partial(hgrn2, 0)),
    "hgrn2_bounded": row(jaxrnn.hgrn2, functools.partial(hgrn2, 0.25), lower_bound=0.25),
    "delta_net": row(jaxrnn.delta_net, functools.partial(delta_net, 1)),
    "delta_net_negative": row(
        jaxrnn.delta_net, functools.partial(delta_net, 2), key=2, negative=True
    ),
    "gated_delta_net": row(jaxrnn.gated_delta_net, gated_delta_net),
    "kimi_delta": row(jaxrnn.kimi_delta, kimi_delta, rank=2),
    "delta_product": row(jaxrnn.delta_product, delta_product, writes=3),
    "rwkv6": row(jaxrnn.rwkv6, rwkv6, rank=2),
    "rwkv7": row(jaxrnn.rwkv7, rwkv7, rank=2),
    "mamba2": Case(lambda h: jaxrnn.mamba2(h, heads=2, state=4), mamba2, LIFTED, heads=2),
    "ssd": Case(
        lambda h: jaxrnn.stack(jaxrnn.project(h + 2 * 4 + 2), jaxrnn.ssd(h, heads=2, state=4)),
        projected(functools.partial(ssd, 1)),
        LIFTED,
        heads=2,
    ),
    "gated_delta_block": Case(
        lambda h: jaxrnn.gated_delta_block(4, width=2 * h, heads=4, key_heads=2, key=3, kernel=3),
        gated_delta_block,
        LIFTED,
        heads=2,
    ),
    "mamba2_block": Case(
        lambda h: jaxrnn.mamba2_block(4, width=2 * h, heads=4, state=3, groups=2, kernel=3),
        functools.partial(mamba2_block, 2),
        LIFTED,
        heads=2,
    ),
}
