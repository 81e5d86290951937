"""Mamba and Mamba-2."""

from typing import Any

import numpy as np

from jaxrnn._src.builders.stateless import project, rms_norm
from jaxrnn._src.cells.embedding import embedding
from jaxrnn._src.cells.mamba_block import mamba2_block, mamba_block
from jaxrnn._src.core.cell import Cell
from jaxrnn._src.core.typing import Params
from jaxrnn.interop.layers import stacked
from jaxrnn.interop.transformers.parts import Pair, convolution, layer
from jaxrnn.interop.transformers.weights import Weights, only


def mamba(options: dict[str, Any], weights: Weights) -> tuple[Cell, Params]:
    """The cell of a ``MambaForCausalLM``, and its parameters."""
    options = _MAMBA | options
    only(options, hidden_act="silu", use_conv_bias=True)
    hidden, state, bias = options["hidden_size"], options["state_size"], options["use_bias"]
    width, kernel = int(options["expand"] * hidden), options["conv_kernel"]
    rank = options["time_step_rank"]
    rank = -(-hidden // 16) if rank == "auto" else rank
    cell = mamba_block(hidden, width=width, state=state, rank=rank, kernel=kernel, bias=bias)

    def block(weights):
        entering = weights.linear("in_proj", hidden, 2 * width, bias)
        x, gate = ({name: a[..., part] for name, a in entering.items()} for part in _cut(width))
        low = weights("x_proj.weight", rank + 2 * state, width)
        memory = {
            "bc": np.moveaxis(low[rank:].reshape(2, state, width), -1, 0),
            "r1": low[:rank].T,
            "r2": weights("dt_proj.weight", width, rank).T,
            "c": weights("dt_proj.bias", width),
            "d": weights("D", width),
            "l": weights("A_log", width, state),
        }
        recurrent = {"0": x, "1": convolution(weights, "conv1d", kernel, width, True), "2": memory}
        leaving = weights.linear("out_proj", width, hidden, bias)
        return {"0": {"0": recurrent, "1": gate}, "1": leaving}

    return _model(options, weights, cell, block)


def mamba2(options: dict[str, Any], weights: Weights) -> tuple[Cell, Params]:
    """The cell of a ``Mamba2ForCausalLM``, and its parameters."""
    options = _MAMBA2 | options
    only(
        options | {"time_step_limit": list(options["time_step_limit"])},
        hidden_act="silu",
        use_conv_bias=True,
        time_step_limit=[0.0, float("inf")],
    )
    hidden, state, bias = options["hidden_size"], options["state_size"], options["use_bias"]
    width, kernel = int(options["expand"] * hidden), options["conv_kernel"]
    heads, groups = options["num_heads"], options["n_groups"]
    if heads * options["head_dim"] != width:
        came = f"num_heads={heads} and head_dim={options['head_dim']}"
        raise ValueError(f"config: got {came}, want expand * hidden_size = {width}, their product")
    convolved = width + 2 * groups * state
    cell = mamba2_block(
        hidden,
        width=width,
        heads=heads,
        state=state,
        groups=groups,
        kernel=kernel,
        bias=bias,
        epsilon=options["layer_norm_epsilon"],
    )

    def block(weights):
        entering = weights.linear("in_proj", hidden, width + convolved + heads, bias)
        parts = _cut(width, width + convolved)
        gate, x, rate = ({name: a[..., p] for name, a in entering.items()} for p in parts)
        memory = {
            "c": weights("dt_bias", heads),
            "l": weights("A_log", heads),
            "d": weights("D", heads),
        }
        seen = {"0": x, "1": convolution(weights, "conv1d", kernel, convolved, True)}
        return {
            "0": {"0": {"0": {"0": seen, "1": rate}, "1": memory}, "1": gate},
            "1": {"scale": weights("norm.weight", width)},
            "2": weights.linear("out_proj", width, hidden, bias),
        }

    return _model(options, weights, cell, block)


def _model(options, weights, cell, block):
    """The language model of both, with ``block(weights)`` the parameters of a layer's ``cell``."""
    size, hidden = options["vocab_size"], options["hidden_size"]
    norm = rms_norm(epsilon=options["layer_norm_epsilon"])
    inner = weights.under("backbone")
    table = inner("embeddings.weight", size, hidden)
    pairs: list[Pair] = [(embedding(size, hidden), {"table": table})]
    for i in range(options["num_hidden_layers"]):
        part = inner.under(f"layers.{i}")
        first = norm, {"scale": part("norm.weight", hidden)}
        pairs.append(layer(first, (cell, block(part.under("mixer")))))
    pairs.append((norm, {"scale": inner("norm_f.weight", hidden)}))
    last = weights.last_product("lm_head.weight", table, options["tie_word_embeddings"])
    pairs.append((project(size, bias=False), last))
    return stacked(pairs)


def _cut(*ends):
    """The slices between 0, the ends, and the rest."""
    return [slice(a, b) for a, b in zip((0, *ends), (*ends, None))]


# What a config.json may leave out.
_MAMBA = {
    "expand": 2,
    "conv_kernel": 4,
    "use_bias": False,
    "time_step_rank": "auto",
    "layer_norm_epsilon": 1e-5,
    "state_size": 16,
    "tie_word_embeddings": True,
}
_MAMBA2 = _MAMBA | {
    "head_dim": 64,
    "n_groups": 8,
    "state_size": 128,
    "tie_word_embeddings": False,
    "time_step_limit": (0.0, float("inf")),
}
