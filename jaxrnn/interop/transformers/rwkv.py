"""RWKV, version 4."""

from typing import Any

from jaxrnn._src.builders.stateless import layer_norm, project
from jaxrnn._src.cells.embedding import embedding
from jaxrnn._src.cells.rwkv4 import rwkv4, rwkv4_channels
from jaxrnn._src.core.cell import Cell
from jaxrnn._src.core.typing import Params
from jaxrnn.interop.layers import stacked
from jaxrnn.interop.transformers.parts import Pair, layer
from jaxrnn.interop.transformers.weights import Weights


def rwkv(options: dict[str, Any], weights: Weights) -> tuple[Cell, Params]:
    """The cell of a ``RwkvForCausalLM``, and its parameters."""
    size, hidden = options["vocab_size"], options["hidden_size"]
    width = options.get("attention_hidden_size") or hidden
    inner = options.get("intermediate_size") or 4 * hidden
    norm = layer_norm(epsilon=options.get("layer_norm_epsilon", 1e-5))

    def normal(weights, name):
        return {
            "scale": weights(f"{name}.weight", hidden),
            "bias": weights(f"{name}.bias", hidden),
        }

    def shift(weights, name):
        return {"mix": weights(f"time_mix_{name}", 1, 1, hidden)[0, 0]}

    def seen(weights, name, features):
        return {"0": shift(weights, name), "1": weights.linear(name, hidden, features, False)}

    def time(weights) -> Pair:
        names = ("key", "value", "receptance")
        return rwkv4(hidden, width=width), {
            "0": {str(i): seen(weights, name, width) for i, name in enumerate(names)},
            "1": {"w": weights("time_decay", width), "u": weights("time_first", width)},
            "2": weights.linear("output", width, hidden, False),
        }

    def channels(weights) -> Pair:
        key = seen(weights, "key", inner) | {"2": weights.linear("value", inner, hidden, False)}
        params = {"0": key, "1": seen(weights, "receptance", hidden)}
        return rwkv4_channels(hidden, width=inner), params

    model = weights.under("rwkv")
    table = model("embeddings.weight", size, hidden)
    pairs: list[Pair] = [(embedding(size, hidden), {"table": table})]
    pairs.append((norm, normal(model, "blocks.0.pre_ln")))
    for i in range(options["num_hidden_layers"]):
        block = model.under(f"blocks.{i}")
        pairs.append(layer((norm, normal(block, "ln1")), time(block.under("attention"))))
        pairs.append(layer((norm, normal(block, "ln2")), channels(block.under("feed_forward"))))
    last_norm = layer_norm(epsilon=1e-5)  # whatever the configuration says of the others
    pairs.append((last_norm, normal(model, "ln_out")))
    tied = options.get("tie_word_embeddings", False)
    last = weights.last_product("head.weight", table, tied)
    pairs.append((project(size, bias=False), last))
    return stacked(pairs)
