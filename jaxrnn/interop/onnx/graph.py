"""A model's graph: what is constant in it, and what only moves numbers about."""

from collections.abc import Collection, Container, Mapping
from typing import Any

import numpy as np

from jaxrnn._src.core.typing import InputArray, Theirs

RECURRENT = ("RNN", "GRU", "LSTM", "LinearAttention", "CausalConvWithState")
# Operators that give back the numbers of their inputs, moved about or left out.
MOVING = {
    "Concat",
    "Constant",
    "Dropout",
    "Expand",
    "Flatten",
    "Gather",
    "Identity",
    "Reshape",
    "Shape",
    "Slice",
    "Split",
    "Squeeze",
    "Transpose",
    "Unsqueeze",
}


class Graph:
    """The graph of an ``onnx.ModelProto``.

    Args:
      model: the model.
      weights: arrays by the names of tensors, in place of what the model has, or has not.
    """

    def __init__(self, model: Theirs, weights: Mapping[str, InputArray]) -> None:
        graph = model.graph
        self.model = model
        self.nodes: list[Theirs] = [node for node in graph.node if is_recurrent(node)]
        makers = ((name, node) for node in graph.node for name in node.output if name)
        self.maker: dict[str, Theirs] = dict(makers)
        self.place: dict[int, int] = {id(node): i for i, node in enumerate(graph.node)}
        self.constants: dict[str, Theirs] = {tensor.name: tensor for tensor in graph.initializer}
        self.weights: dict[str, np.ndarray[Any, Any]] = {
            name: np.asarray(array) for name, array in weights.items()
        }
        read = {name for node in graph.node for name in node.input if name}
        if unknown := set(weights) - read:
            raise ValueError(
                f"weights: got {sorted(unknown)}, want names of tensors: {sorted(read)}"
            )

    def behind(self, name: str, stop: Container[str] = ()) -> tuple[list[Theirs], set[str]]:
        """What a tensor is made of.

        Args:
          name: the tensor's.
          stop: tensors not to look behind.

        Returns:
          ``(nodes, leaves)``: the nodes in their order, and the names of the tensors that no node
          of the graph makes, or that are given or in ``stop``.
        """
        nodes, leaves, left = {}, set(), [name]
        while left:
            name = left.pop()
            node = self.maker.get(name)
            if node is None or name in stop or name in self.weights:
                leaves.add(name)
            elif id(node) not in nodes:
                nodes[id(node)] = node
                left += [name for name in node.input if name]
        return [nodes[key] for key in sorted(nodes, key=lambda key: self.place[key])], leaves

    def value(
        self, name: str, given: Mapping[str, Any] | None = None
    ) -> np.ndarray[Any, Any] | None:
        """The value of a tensor, or None if it is not known before the model runs.

        Args:
          name: the tensor's.
          given: arrays by name: what else is known.
        """
        from onnx import helper, numpy_helper

        known = self.weights | dict(given or {})
        nodes, leaves = self.behind(name, known)
        if not leaves <= known.keys() | self.constants.keys():
            return None
        arrays = {
            leaf: known[leaf] if leaf in known else numpy_helper.to_array(self.constants[leaf])
            for leaf in leaves
        }
        if not nodes:
            return arrays[name]
        from onnx.reference import ReferenceEvaluator

        kind = helper.np_dtype_to_tensor_dtype
        inputs = [
            helper.make_tensor_value_info(leaf, kind(array.dtype), array.shape)
            for leaf, array in arrays.items()
        ]
        output = helper.make_empty_tensor_value_info(name)
        part = helper.make_model(
            helper.make_graph(nodes, "part", inputs, [output]),
            opset_imports=self.model.opset_import,
            functions=self.model.functions,
        )
        (made,) = ReferenceEvaluator(part).run([name], arrays)
        return np.asarray(made)

    def constant(self, name: str, tensor: str) -> np.ndarray[Any, Any]:
        """The value of a tensor that is a weight: the input ``name`` of a node."""
        array = self.value(tensor)
        if array is None:
            want = f"want weights={{{tensor!r}: array}}"
            raise ValueError(f"{name}: {tensor!r} is no constant: {want}")
        return array

    def state(self, name: str, tensor: str) -> np.ndarray[Any, Any] | None:
        """An initial state that the model holds; None if it is zero, or given as the model runs.

        Raises:
          ValueError: it is made as the model runs; ``name`` is what the error calls it.
        """
        value = self.value(tensor)
        if value is not None:
            return value if value.any() else None
        source = self.source(tensor)
        maker = self.maker.get(source)
        if maker is not None and is_recurrent(maker):
            message = f"{name}: it is made by {label(maker)}, and a cell has its own"
            raise ValueError(f"{message}: import one node at a time, with node=")
        value = self.value(source)
        if value is None and maker is None:
            return None  # an input of the model: the ``state`` of a call
        value = _filled(maker) if value is None else value
        if value is None or value.any():
            raise ValueError(f"{name}: {tensor!r} is made as the model runs, want an input")
        return None

    def source(self, name: str) -> str:
        """The tensor whose numbers another one holds, moved about: through first inputs."""
        while (node := self.maker.get(name)) is not None and moves(node) and node.input:
            name = node.input[0]
        return name

    def last_size(self, name: str) -> int | None:
        """The last size of a tensor; None if the model does not say it."""
        value = self.value(name)
        sizes = self._shape(name) if value is None else value.shape
        return sizes[-1] or None if sizes else None

    def steps_and_rows(self, name: str, layout: int) -> tuple[int, int]:
        """T and B of a tensor, [T, ..., B, ...] or, with ``layout``, [B, T, ...]: any if free."""
        sizes = self._shape(name)
        if len(sizes) != 4:
            return 3, 2
        steps, rows = (sizes[1], sizes[0]) if layout else (sizes[0], sizes[2])
        return steps or 3, rows or 2

    def _shape(self, name: str) -> list[int]:
        """The shape of a tensor, 0 where it is free; empty if nothing is known."""
        from onnx import shape_inference

        found = shape_inference.infer_shapes(self.model).graph
        for info in (*found.value_info, *found.input, *found.output):
            if info.name == name:
                return [d.dim_value for d in info.type.tensor_type.shape.dim]
        return []


def _filled(node):
    """What ConstantOfShape fills its output with, or None of another node."""
    from onnx import helper, numpy_helper

    if node.op_type != "ConstantOfShape":
        return None
    values = [numpy_helper.to_array(helper.get_attribute_value(a)) for a in node.attribute]
    return values[0] if values else np.zeros(1, np.float32)


def attributes(node: Theirs, known: Collection[str]) -> dict[str, Any]:
    """A node's attributes by name, with text for bytes; those that are not known are an error."""
    from onnx import helper

    found = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    if unknown := found.keys() - known:
        raise ValueError(f"attributes: got {sorted(unknown)}, want none but {sorted(known)}")
    text = lambda value: value.decode() if isinstance(value, bytes) else value
    return {k: [*map(text, v)] if isinstance(v, list) else text(v) for k, v in found.items()}


def is_recurrent(node: Theirs) -> bool:
    """One of the operators that have a state."""
    return node.op_type in RECURRENT and node.domain in ("", "ai.onnx")


def moves(node: Theirs) -> bool:
    """Whether a node gives back the numbers of its input, moved about."""
    trains = node.op_type == "Dropout" and len(node.input) > 2 and node.input[2]
    return node.op_type in MOVING and node.domain in ("", "ai.onnx") and not trains


def label(node: Theirs) -> str:
    """A node as an error names it."""
    return f"{node.op_type} {node.name or next(filter(None, node.output), '')!r}"
