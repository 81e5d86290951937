"""RecurrentGemma."""

from typing import Any

import numpy as np
from jax.numpy import bfloat16

from jaxrnn._src.builders.stateless import project, rms_norm, soft_cap
from jaxrnn._src.cells.embedding import embedding
from jaxrnn._src.cells.grouped_attention import grouped_attention
from jaxrnn._src.cells.rg_lru import rg_lru_block
from jaxrnn._src.core.cell import Cell
from jaxrnn._src.core.typing import Params
from jaxrnn.interop.layers import stacked
from jaxrnn.interop.transformers.parts import (
    Pair,
    by_head,
    convolution,
    gated_network,
    keys_values_out,
    layer,
    rotary,
    shifted_norm,
)
from jaxrnn.interop.transformers.weights import Weights, check_each, only


def recurrent_gemma(options: dict[str, Any], weights: Weights) -> tuple[Cell, Params]:
    """The cell of a ``RecurrentGemmaForCausalLM``, and its parameters."""
    options = _RECURRENT_GEMMA | options
    only(options, hidden_activation="gelu_pytorch_tanh", attention_bias=False)
    size, hidden, heads = (options[name] for name in _SIZES)
    width, kernel = options.get("lru_width") or hidden, options["conv1d_width"]
    kv_heads = options.get("num_key_value_heads") or heads
    norm = rms_norm(epsilon=options["rms_norm_eps"])
    recurrent = rg_lru_block(hidden, width=width, heads=heads, kernel=kernel)
    attention = grouped_attention(
        hidden,
        heads=heads,
        kv_heads=kv_heads,
        bias=True,
        window=options["attention_window_size"],
        **rotary(options, hidden // heads, partial=0.5),
    )

    def recurrence(weights) -> Pair:
        gates, each = weights.under("rg_lru"), width // heads
        both = [gates(f"{name}_gate_weight", heads, each, each) for name in _GATES]
        biases = [gates(f"{name}_gate_bias", heads, each).reshape(width) for name in _GATES]
        w = np.stack(both, 2)
        memory = {
            "w": w[0] if heads == 1 else w,
            "b": np.stack(biases),
            "l": gates("recurrent_param", width),
        }
        seen = {
            "0": weights.linear("linear_x", hidden, width, True),
            "1": convolution(weights, "conv_1d", kernel, width, True),
            "2": memory,
        }
        branches = {"0": seen, "1": weights.linear("linear_y", hidden, width, True)}
        return recurrent, {"0": branches, "1": weights.linear("linear_out", width, hidden, True)}

    def attending(weights) -> Pair:
        q = by_head(weights, "q_proj", hidden, heads, hidden // heads)
        rest = keys_values_out(weights, hidden, heads, kv_heads, hidden // heads)
        return attention, {"q": q, **rest, "b": weights("o_proj.bias", hidden)}

    def network(weights) -> Pair:
        inner = options["intermediate_size"] // 2
        gate, up = (weights.linear(f"{n}_proj", hidden, inner, True) for n in ("gate", "up"))
        return gated_network("gelu", gate, up, weights.linear("down_proj", inner, hidden, True))

    kinds = {"recurrent": recurrence, "attention": attending}
    order = options["block_types"]
    check_each("block_types", order, kinds)
    model = weights.under("model")
    table = model("embed_tokens.weight", size, hidden)
    # As a bfloat16, which is what transformers multiplies by in any type.
    scale = np.asarray(hidden**0.5, bfloat16).astype(table.dtype)
    pairs: list[Pair] = [(embedding(size, hidden), {"table": table * scale})]
    for i in range(options["num_hidden_layers"]):
        block = model.under(f"layers.{i}")
        mixing = kinds[order[i % len(order)]](block.under("temporal_block"))
        pairs.append(layer((norm, shifted_norm(block, "temporal_pre_norm", hidden)), mixing))
        mixing = network(block.under("mlp_block"))
        pairs.append(layer((norm, shifted_norm(block, "channel_pre_norm", hidden)), mixing))
    pairs.append((norm, shifted_norm(model, "final_norm", hidden)))
    last = weights.last_product("lm_head.weight", table, options["tie_word_embeddings"])
    pairs += [(project(size, bias=False), last), (soft_cap(options["logits_soft_cap"]), {})]
    return stacked(pairs)


_SIZES = ("vocab_size", "hidden_size", "num_attention_heads")
_GATES = ("recurrent", "input")
# What a config.json may leave out.
_RECURRENT_GEMMA = {
    "attention_bias": False,
    "attention_window_size": 2048,
    "block_types": ("recurrent", "recurrent", "attention"),
    "conv1d_width": 4,
    "hidden_activation": "gelu_pytorch_tanh",
    "logits_soft_cap": 30.0,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
}
