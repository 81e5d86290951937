"""Mixtures of experts: Shazeer et al. 2017, with the network of Shazeer 2020."""

import numpy as np
from case import Case
from truth import sigmoid

import jaxrnn


def mixture(top_k, normalise):
    def step(params, state, x):
        p = np.exp(x @ params["router"])
        p = p / p.sum()
        chosen = sorted(range(len(p)), key=lambda e: -p[e].real)[:top_k]
        total = sum(p[e] for e in chosen) if normalise else 1
        y = sum(p[e] / total * network(x, params["w"][e], params["out"][e]) for e in chosen)
        if "shared_w" in params:
            shared = network(x, params["shared_w"], params["shared_out"])
            y = y + sigmoid(x @ params["shared_gate"]) * shared
        return state, y

    return step


def network(x, w, out):
    z = x @ w[:, 0]
    return (z * sigmoid(z) * (x @ w[:, 1])) @ out


ROWS = {
    "mixture_of_experts": Case(
        lambda h: jaxrnn.mixture_of_experts(h, experts=4, width=5, shared=3), mixture(2, True), ()
    ),
    "mixture_of_experts_as_is": Case(
        lambda h: jaxrnn.mixture_of_experts(h, experts=3, normalise=False), mixture(2, False), ()
    ),
}
