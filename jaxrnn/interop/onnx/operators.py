"""ONNX's LinearAttention and CausalConvWithState: a cell of a node, and nodes of a cell."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrnn._src.cells.conv1d import conv1d
from jaxrnn._src.core import checks
from jaxrnn._src.core.cell import Cell
from jaxrnn._src.core.typing import Params, Theirs
from jaxrnn.interop.layers import is_a, options, plain
from jaxrnn.interop.onnx.graph import Graph, attributes
from jaxrnn.interop.onnx.linear_attention import (
    RULES,
    attention_sizes,
    onnx_linear_attention,
)

OPERATORS = {  # and their attributes, of which chunk_size changes no result
    "CausalConvWithState": {"activation"},
    "LinearAttention": {"chunk_size", "kv_num_heads", "q_num_heads", "scale", "update_rule"},
}
CELLS = (conv1d, onnx_linear_attention)  # theirs, in the same order
OPSET = 27  # the first that has them
IR_VERSION = 13


def to_cell(graph: Graph, node: Theirs) -> tuple[Cell, Params]:
    """``(cell, params)`` of a node of these operators."""
    given = attributes(node, OPERATORS[node.op_type])
    inputs = [*node.input, *[""] * (6 - len(node.input))]
    _check_state(graph, inputs[_STATE])
    read = _convolution if node.op_type == "CausalConvWithState" else _linear_attention
    return read(graph, given, inputs)


def _check_state(graph, tensor):
    """A state is given as the model runs, or is zero."""
    if tensor and graph.state("past_state", tensor) is not None:
        want = "an input: leave it out of the node and give it to unroll as `state`"
        raise ValueError(f"past_state: {tensor!r} is in the model, want {want}")


def _convolution(graph, given, inputs):
    weight = graph.constant("weight", inputs[1])
    if weight.ndim != 3 or weight.shape[1] != 1:
        raise ValueError(f"weight: got shape {weight.shape}, want (channels, 1, kernel)")
    features, _, kernel = weight.shape
    bias = graph.constant("bias", inputs[2]) if inputs[2] else np.zeros(features, weight.dtype)
    name = given.get("activation", "none")
    if name not in ("none", "silu", "swish"):
        raise ValueError(f"activation: got {name!r}, want 'none', 'silu' or 'swish'")
    activation = None if name == "none" else "silu"
    cell = conv1d(features, kernel=kernel, depthwise=True, activation=activation)
    return cell, {"w": jnp.asarray(weight[:, 0, ::-1].T), "b": jnp.asarray(bias)}


def _linear_attention(graph, given, inputs):
    rule = given.get("update_rule", "gated_delta")
    if missing := {"q_num_heads", "kv_num_heads"} - set(given):
        raise ValueError(f"attributes: got none of {sorted(missing)}, which a node must have")
    heads, kv_heads = given["q_num_heads"], given["kv_num_heads"]
    sizes = {}
    for name, tensor in zip(("query", "key", "value", "", "decay", "beta"), inputs):
        if name and tensor:
            sizes[name] = graph.last_size(tensor)
            if sizes[name] is None:
                want = "a model whose types say it: onnx.helper.make_tensor_value_info"
                raise ValueError(f"{name}: got no last size of {tensor!r}, want {want}")
    for name, rules in (("decay", ("gated", "gated_delta")), ("beta", ("delta", "gated_delta"))):
        if rule in rules and name not in sizes:
            raise ValueError(f"{name}: got none, want one: the rule {rule!r} has it")
        if rule in RULES and rule not in rules and name in sizes:
            raise ValueError(f"{name}: got one, want none: the rule {rule!r} has no {name}")
    cell = onnx_linear_attention(
        heads * sizes["value"] // kv_heads,
        rule=rule,
        heads=heads,
        kv_heads=None if kv_heads == heads else kv_heads,
        key=sizes["key"] // kv_heads,
        decay_by_key="decay" in sizes and sizes["decay"] != kv_heads,
        shared_beta="beta" in sizes and sizes["beta"] != kv_heads,
        scale=given.get("scale") or None,
    )
    letters = {"query": "q", "key": "k", "value": "v", "decay": "g", "beta": "b"}
    wanted = attention_sizes(options(cell))
    for name, size in sizes.items():
        if size != wanted[letters[name]]:
            want = f"{wanted[letters[name]]}, of {cell}"
            raise ValueError(f"{name}: got {size} features, want {want}")
    return cell, {}


class Node(NamedTuple):
    """A node of one of these operators, and how [T, B, ...] becomes what it reads.

    Attributes:
      op, attributes: of the node.
      inputs, outputs: how many features it reads and gives.
      perm: the order of the axes T, B, features in what it reads.
      parts: the sizes of the inputs that lie side by side; empty for one input.
      places: at which input of the node each of these stands.
      weights: the inputs that the model holds, by name, which come after the first.
      state, shape: the name of its state, which is input 3, and the shape without the batch.
    """

    op: str
    attributes: dict[str, Any]
    inputs: int
    outputs: int
    perm: list[int]
    parts: list[int]
    places: list[int]
    weights: dict[str, np.ndarray[Any, Any]]
    state: str
    shape: tuple[int, ...]

    def ordered(self, parts: list[str], weights: list[str], begins: str) -> list[str]:
        """The names of the node's inputs in its order, empty where it has none."""
        names = dict(zip(self.places, parts)) | dict(enumerate(weights, 1)) | {_STATE: begins}
        return [names.get(i, "") for i in range(6)]


_STATE = 3  # the place of the state among the inputs of both


def has(cell: Cell) -> bool:
    """Whether a cell is one of these operators, or could be."""
    return any(is_a(plain(cell), constructor) for constructor in CELLS)


def from_cell(cell: Cell, params: Params) -> Node:
    """The node that a cell is, with parameters as NumPy arrays.

    Raises:
      ValueError: there is none, or the parameters are not the cell's; says why.
    """
    cell = plain(cell)
    return (_from_convolution if is_a(cell, conv1d) else _from_attention)(params, options(cell))


def _from_convolution(params, given):
    name, hidden, kernel = given["activation"], given["hidden"], given["kernel"]
    function = None if name is None else checks.activation(name)
    if function not in (None, jax.nn.silu):
        raise ValueError(f"activation: got {name!r}, want None or 'silu': ONNX has no other")
    for option, wanted in (("depthwise", True), ("dilation", 1)):
        if given[option] != wanted:
            want = f"{wanted}: ONNX's CausalConvWithState has no other"
            raise ValueError(f"{option}: got {given[option]!r}, want {want}")
    checks.check_params(
        params, {"w": (kernel, hidden), "b": (hidden,)}, None, np.zeros((1, hidden), np.float32)
    )
    w = np.ascontiguousarray(params["w"][::-1].T[:, None])
    return Node(
        op="CausalConvWithState",
        attributes={"activation": "none" if function is None else "silu"},
        inputs=hidden,
        outputs=hidden,
        perm=[1, 2, 0],
        parts=[],
        places=[0],
        weights={"W": w, "B": params["b"]},
        state="window",
        shape=(hidden, kernel - 1),
    )


def _from_attention(params, given):
    checks.check_names(params, {})
    sizes = attention_sizes(given)
    heads, kv_heads = given["heads"], given["kv_heads"] or given["heads"]
    places = {"q": 0, "k": 1, "v": 2, "g": 4, "b": 5}
    key, value = sizes["q"] // heads, sizes["v"] // kv_heads
    return Node(
        op="LinearAttention",
        attributes={
            "update_rule": given["rule"],
            "q_num_heads": heads,
            "kv_num_heads": kv_heads,
        }
        | ({} if given["scale"] is None else {"scale": float(given["scale"])}),
        inputs=sum(sizes.values()),
        outputs=given["hidden"],
        perm=[1, 0, 2],
        parts=[*sizes.values()],
        places=[places[name] for name in sizes],
        weights={},
        state="S",
        shape=(kv_heads, key, value),
    )
