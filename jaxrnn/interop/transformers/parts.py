"""What several language models have in common: layers, networks, attention, positions."""

from typing import Any

import numpy as np

from jaxrnn._src.builders.stateless import project
from jaxrnn._src.core.cell import Cell
from jaxrnn._src.core.dtypes import promoted
from jaxrnn._src.core.typing import Params
from jaxrnn._src.wrappers.stack import parallel, residual, stack
from jaxrnn.interop.transformers.weights import Numbers, Weights

Pair = tuple[Cell, Params]


def layer(norm: Pair, inner: Pair) -> Pair:
    """``x + inner(norm(x))``."""
    return residual(stack(norm[0], inner[0])), {"0": norm[1], "1": inner[1]}


def shifted_norm(weights: Weights, name: str, features: int) -> dict[str, Numbers]:
    """The parameters of a ``jaxrnn.rms_norm`` whose weight is kept as a difference from 1.

    In float32 at least, as the model adds it: a bfloat16 near 1 has no digits for it.
    """
    difference = weights(f"{name}.weight", features)
    return {"scale": 1 + difference.astype(promoted(difference.dtype, np.dtype("float32")))}


def gated_network(activation: str, gate: Params, up: Params, down: Params) -> Pair:
    """``down(activation(gate(x)) * up(x))``, of the parameters of three ``jaxrnn.project``."""

    def product(params, activation=None):
        return project(params["w"].shape[1], activation=activation, bias="b" in params)

    both = parallel(product(gate, activation), product(up), merge="product")
    return stack(both, product(down)), {"0": {"0": gate, "1": up}, "1": down}


def convolution(
    weights: Weights, name: str, kernel: int, features: int, bias: bool
) -> dict[str, Numbers]:
    """The parameters of a depthwise ``jaxrnn.conv1d``, the newest input's weight first."""
    w = weights(f"{name}.weight", features, 1, kernel)[:, 0, ::-1].T
    zeros = np.zeros(features, w.dtype)
    return {"w": w, "b": weights(f"{name}.bias", features) if bias else zeros}


def by_head(weights: Weights, name: str, hidden: int, heads: int, width: int) -> Numbers:
    """The weight of queries, keys or values, [I, N, D]."""
    return weights(f"{name}.weight", heads * width, hidden).T.reshape(hidden, heads, width)


def keys_values_out(
    weights: Weights, hidden: int, heads: int, kv_heads: int, width: int
) -> dict[str, Numbers]:
    """The weights kv and out of a ``jaxrnn.grouped_attention``."""
    kv = [by_head(weights, f"{name}_proj", hidden, kv_heads, width) for name in "kv"]
    out = weights("o_proj.weight", hidden, heads * width).T.reshape(heads, width, hidden)
    return {"kv": np.stack(kv, 1), "out": out}


def rotary(options: dict[str, Any], width: int, partial: float) -> dict[str, Any]:
    """The options ``rotary`` and ``base`` of a ``jaxrnn.grouped_attention``.

    Args:
      options: a configuration; older ones have the numbers beside all others.
      width: of a head.
      partial: which part of it is rotated if none is given.
    """
    own = options.get("rope_parameters") or options.get("rope_scaling") or {}
    given = {"rope_theta": 10000.0, "partial_rotary_factor": partial} | options | own
    kind = own.get("rope_type") or own.get("type") or "default"
    if kind != "default":
        raise ValueError(f"config: got rope_type={kind!r}, want 'default': there is no other here")
    return {"rotary": int(width * given["partial_rotary_factor"]), "base": given["rope_theta"]}
