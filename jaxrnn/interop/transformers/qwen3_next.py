"""Qwen3-Next, with experts or without."""

from typing import Any

import numpy as np

from jaxrnn._src.builders.stateless import project, rms_norm
from jaxrnn._src.cells.embedding import embedding
from jaxrnn._src.cells.gated_delta_block import gated_delta_block
from jaxrnn._src.cells.grouped_attention import grouped_attention
from jaxrnn._src.cells.mixture_of_experts import mixture_of_experts
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


def qwen3_next(options: dict[str, Any], weights: Weights) -> tuple[Cell, Params]:
    """The cell of a ``Qwen3NextForCausalLM``, and its parameters."""
    options = _QWEN3_NEXT | options
    only(options, hidden_act="silu", attention_bias=False)
    size, hidden, epsilon = (options[n] for n in ("vocab_size", "hidden_size", "rms_norm_eps"))
    norm = rms_norm(epsilon=epsilon)
    kinds = {
        "linear_attention": ("linear_attn", _linear(options)),
        "full_attention": ("self_attn", _full(options)),
    }
    order = _kinds(options)
    check_each("layer_types", order, kinds)
    model = weights.under("model")
    table = model("embed_tokens.weight", size, hidden)
    pairs: list[Pair] = [(embedding(size, hidden), {"table": table})]
    for i, kind in enumerate(order):
        block, (name, read) = model.under(f"layers.{i}"), kinds[kind]
        first = norm, shifted_norm(block, "input_layernorm", hidden)
        second = norm, shifted_norm(block, "post_attention_layernorm", hidden)
        pairs.append(layer(first, read(block.under(name))))
        network = _experts if _is_sparse(options, i) else _network
        pairs.append(layer(second, network(options, block.under("mlp"))))
    pairs.append((norm, shifted_norm(model, "norm", hidden)))
    last = weights.last_product("lm_head.weight", table, options["tie_word_embeddings"])
    pairs.append((project(size, bias=False), last))
    return stacked(pairs)


def _kinds(options):
    """What each layer is: every fourth attends to all steps, if the configuration is older."""
    count, every = options["num_hidden_layers"], options.get("full_attention_interval", 4)
    usual = [
        "full_attention" if i % every == 0 else "linear_attention" for i in range(1, count + 1)
    ]
    return (options.get("layer_types") or usual)[:count]


def _is_sparse(options, i):
    """Whether a layer has experts."""
    dense = i in (options.get("mlp_only_layers") or ())
    return (
        options["num_experts"] > 0 and not dense and (i + 1) % options["decoder_sparse_step"] == 0
    )


def _linear(options):
    """How a layer of Gated DeltaNet is read."""
    hidden, kernel = options["hidden_size"], options["linear_conv_kernel_dim"]
    names = ("num_key_heads", "num_value_heads", "key_head_dim", "value_head_dim")
    groups, heads, key, value = (options[f"linear_{name}"] for name in names)
    width, of_keys = heads * value, groups * key
    cell = gated_delta_block(
        hidden,
        width=width,
        heads=heads,
        key_heads=groups,
        key=key,
        kernel=kernel,
        epsilon=options["rms_norm_eps"],
    )

    def read(weights) -> Pair:
        # Side by side for each head of keys: what it has, and what its heads of values have.
        mixed = weights.linear("in_proj_qkvz", hidden, 2 * of_keys + 2 * width, False)["w"]
        ends = (key, 2 * key, 2 * key + width // groups)
        parts = np.split(mixed.reshape(hidden, groups, -1), ends, -1)
        q, k, v, z = (a.reshape(hidden, -1) for a in parts)
        gates = weights.linear("in_proj_ba", hidden, 2 * heads, False)["w"]
        b, a = (g.reshape(hidden, -1) for g in np.split(gates.reshape(hidden, groups, -1), 2, -1))
        convolved = convolution(weights, "conv1d", kernel, 2 * of_keys + width, False)
        seen = {"0": {"w": np.concatenate([q, k, v], -1)}, "1": convolved}
        recurrent = {
            "0": {"0": seen, "1": {"w": np.concatenate([a, b], -1)}},
            "1": {"c": weights("dt_bias", heads), "l": weights("A_log", heads)},
            "2": {"scale": np.tile(weights("norm.weight", value), heads)},
        }
        leaving = weights.linear("out_proj", width, hidden, False)
        return cell, {"0": {"0": recurrent, "1": {"w": z}}, "1": leaving}

    return read


def _full(options):
    """How a layer of attention is read."""
    hidden, width, epsilon = (options[n] for n in ("hidden_size", "head_dim", "rms_norm_eps"))
    heads, kv_heads = options["num_attention_heads"], options["num_key_value_heads"]
    cell = grouped_attention(
        hidden,
        heads=heads,
        kv_heads=kv_heads,
        width=width,
        norm=epsilon,
        gate=True,
        context=options["max_position_embeddings"],
        **rotary(options, width, partial=0.25),
    )

    def read(weights) -> Pair:
        # Side by side for each head: its queries, and its gate.
        q, gate = np.split(by_head(weights, "q_proj", hidden, heads, 2 * width), 2, -1)
        norms = {f"{n}s": shifted_norm(weights, f"{n}_norm", width)["scale"] for n in "qk"}
        rest = keys_values_out(weights, hidden, heads, kv_heads, width)
        return cell, rest | norms | {"q": q, "g": gate}

    return read


def _network(options, weights) -> Pair:
    hidden, inner = options["hidden_size"], options["intermediate_size"]
    gate, up = (weights.linear(f"{n}_proj", hidden, inner, False) for n in ("gate", "up"))
    return gated_network("silu", gate, up, weights.linear("down_proj", inner, hidden, False))


def _experts(options, weights) -> Pair:
    """A mixture of experts, whose arrays a model holds as one and a file one by one."""
    hidden, count, inner, shared = (
        options[name]
        for name in (
            "hidden_size",
            "num_experts",
            "moe_intermediate_size",
            "shared_expert_intermediate_size",
        )
    )
    cell = mixture_of_experts(
        hidden,
        experts=count,
        top_k=options["num_experts_per_tok"],
        width=inner,
        normalise=options["norm_topk_prob"],
        shared=shared,
    )
    experts = weights.under("experts")
    if "gate_up_proj" in experts:
        both = experts("gate_up_proj", count, 2 * inner, hidden)
        w = both.reshape(count, 2, inner, hidden).transpose(0, 3, 1, 2)
        out = experts("down_proj", count, hidden, inner).transpose(0, 2, 1)
    else:
        each = [_one(experts.under(str(e)), hidden, inner) for e in range(count)]
        w, out = (np.stack(arrays) for arrays in zip(*each))
    all_see, leaving = _one(weights.under("shared_expert"), hidden, shared)
    params = {"router": weights("gate.weight", count, hidden).T, "w": w, "out": out}
    params |= {"shared_w": all_see, "shared_out": leaving}
    return cell, params | {"shared_gate": weights("shared_expert_gate.weight", 1, hidden)[0]}


def _one(weights, hidden, inner):
    """The weights of one expert, [I, 2, F] and [F, O]."""
    gate, up = (weights(f"{n}_proj.weight", inner, hidden).T for n in ("gate", "up"))
    return np.stack([gate, up], 1), weights("down_proj.weight", hidden, inner).T


# What a config.json may leave out.
_QWEN3_NEXT = {
    "attention_bias": False,
    "decoder_sparse_step": 1,
    "head_dim": 256,
    "hidden_act": "silu",
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 128,
    "linear_num_key_heads": 16,
    "linear_num_value_heads": 32,
    "linear_value_head_dim": 128,
    "max_position_embeddings": 32768,
    "moe_intermediate_size": 512,
    "norm_topk_prob": True,
    "num_attention_heads": 16,
    "num_experts": 512,
    "num_experts_per_tok": 10,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-6,
    "shared_expert_intermediate_size": 512,
    "tie_word_embeddings": False,
}
