"""xLSTM, with the blocks of the xLSTM 7B."""

from typing import Any

import numpy as np

from jaxrnn._src.builders.stateless import project, rms_norm, soft_cap
from jaxrnn._src.cells.embedding import embedding
from jaxrnn._src.cells.mlstm_block import mlstm_block
from jaxrnn._src.core.cell import Cell
from jaxrnn._src.core.typing import Params
from jaxrnn.interop.layers import stacked
from jaxrnn.interop.transformers.parts import Pair, gated_network, layer
from jaxrnn.interop.transformers.weights import Weights, only


def xlstm(options: dict[str, Any], weights: Weights) -> tuple[Cell, Params]:
    """The cell of an ``xLSTMForCausalLM``, and its parameters."""
    options = _XLSTM | options
    only(options, use_bias=False, eps=1e-6)
    size, heads, fused = options["vocab_size"], options["num_heads"], _is_fused(options)
    hidden = _either(options, "hidden_size", "embedding_dim")
    values, of_keys = (int(hidden * options[f"{name}_dim_factor"]) for name in ("v", "qk"))
    for name, width in (("v", values), ("qk", of_keys)):
        if width % heads:
            want = f"num_heads={heads} to divide it"
            raise ValueError(f"config: got {name}_dim_factor for a width of {width}, want {want}")
    wide = options["ffn_round_up_to_multiple_of"]
    inner = int((hidden * options["ffn_proj_factor"] + wide - 1) // wide * wide)
    cell = mlstm_block(
        hidden,
        width=values,
        heads=heads,
        key=of_keys // heads,
        cap=options["gate_soft_cap"],
        epsilon=options["norm_eps"],
    )

    def norm(weights, name) -> Pair:
        scale = weights(f"{name}.weight", hidden)
        return rms_norm(epsilon=options["norm_eps"]), {"scale": scale}

    def products(weights, one, names, widths, bias=False):
        """Of one array, or of one for each name, in turn: side by side."""
        if fused:
            return weights.linear(one, hidden, sum(widths), bias)
        parts = [weights.linear(n, hidden, width, bias) for n, width in zip(names, widths)]
        return {name: np.concatenate([p[name] for p in parts], -1) for name in parts[0]}

    def memory(weights) -> Pair:
        widths = (of_keys, of_keys, values, values)
        both = products(weights, "qkv_opreact", ("q", "k", "v", "ogate_preact"), widths)["w"]
        names = ("igate_preact", "fgate_preact")
        gates = products(weights, "ifgate_preact", names, (heads, heads), bias=True)
        entering = {"0": {"w": both[:, :-values]}, "1": {"w": gates["w"]}}
        recurrent = {
            "0": entering,
            "1": {"c": gates["b"].reshape(2, heads)},
            "2": {"scale": weights("multihead_norm.weight", values)},
        }
        leaving = weights.linear("out_proj", values, hidden, False)
        return cell, {"0": {"0": recurrent, "1": {"w": both[:, -values:]}}, "1": leaving}

    def network(weights) -> Pair:
        names = ("proj_up_gate", "proj_up")
        both = products(weights, "proj_up_gate_z", names, (inner, inner))["w"]
        down = weights.linear("proj_down", inner, hidden, False)
        return gated_network("silu", {"w": both[:, :inner]}, {"w": both[:, inner:]}, down)

    model = weights.under("backbone")
    table = model("embeddings.weight", size, hidden)
    pairs: list[Pair] = [(embedding(size, hidden), {"table": table})]
    for i in range(_either(options, "num_blocks", "num_hidden_layers")):
        block = model.under(f"blocks.{i}")
        pairs.append(layer(norm(block, "norm_mlstm"), memory(block.under("mlstm_layer"))))
        pairs.append(layer(norm(block, "norm_ffn"), network(block.under("ffn"))))
    pairs.append(norm(model, "out_norm"))
    pairs.append((project(size, bias=False), weights.last_product("lm_head.weight", table, False)))
    pairs.append((soft_cap(options["output_logit_soft_cap"]), {}))
    return stacked(pairs)


def _either(options, *names):
    """The first that a configuration has: it has two names for each of its sizes."""
    given = [options[name] for name in names if options.get(name) is not None]
    if not given:
        raise ValueError(f"config: got neither of {names}, want one")
    return given[0]


def _is_fused(options):
    """Whether products of the same input are one array."""
    modes = ("single", "fused")
    if options["weight_mode"] not in modes:
        came = f"weight_mode={options['weight_mode']!r}"
        raise ValueError(f"config: got {came}, want one of {modes}")
    return options["weight_mode"] == "fused"


# What a config.json may leave out.
_XLSTM = {
    "num_heads": 8,
    "use_bias": False,
    "norm_eps": 1e-6,
    "qk_dim_factor": 0.5,
    "v_dim_factor": 1.0,
    "ffn_proj_factor": 2.667,
    "ffn_round_up_to_multiple_of": 64,
    "gate_soft_cap": 15.0,
    "output_logit_soft_cap": 30.0,
    "weight_mode": "single",
}
