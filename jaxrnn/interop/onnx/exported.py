"""From a cell to a model of recurrent nodes."""

from typing import Any

import jax
import numpy as np

from jaxrnn._src.core import params_tree
from jaxrnn._src.core.cell import Cell, check_cell
from jaxrnn._src.core.typing import Params, Theirs
from jaxrnn._src.wrappers.stack import bidirectional, dropout, stack
from jaxrnn.interop.onnx import operators
from jaxrnn.interop.onnx.activations import DEFAULTS
from jaxrnn.interop.onnx.cells import backward
from jaxrnn.interop.onnx.direction import OPERATORS, from_cell


def to_onnx(cell: Cell, params: Params, *, lengths: bool = False, state: bool = False) -> Theirs:
    """A cell as an ONNX model of recurrent operators, with free T and B.

    The operators are RNN, GRU and LSTM, and opset 27's LinearAttention and CausalConvWithState.

    Its input is ``xs`` [T, B, I] and its first output ``ys`` [T, B, O], as of ``jaxrnn.unroll`` in
    evaluation. Then come the final states, layer by layer: ``h_0`` and, of an LSTM, ``c_0``, each
    [D, B, H] for D directions; ``h_1``, and so on. LinearAttention has ``S_0``, [B, M, D, E] for
    M heads of keys, and CausalConvWithState ``window_0``, [B, H, K - 1].

    Args:
      cell: one of ``jaxrnn.elman``, ``irnn``, ``lstm``, ``gru`` and ``jaxrnn.interop.onnx``'s
        ``onnx_lstm``; in ``bidirectional``, ``initialized``, or
        ``jaxrnn.interop``'s ``double_bias``, ``without_bias`` or ``onnx.backward``; or
        ``jaxrnn.interop.onnx.onnx_linear_attention``, or a depthwise ``conv1d`` without a
        dilation; or a ``stack`` of these and of ``dropout``, which is nothing in evaluation. Heads
        become zeros in R.
      params: the cell's parameters, of one floating type, which is the model's.
      lengths: the model has an input ``lengths``, int32 [B], which RNN, GRU and LSTM take.
      state: it has inputs ``initial_h_0`` and so on, like the final states; else it begins with
        zeros.

    Returns:
      An ``onnx.ModelProto``: ``onnx.save(model, path)`` writes it. Of opset 17; 22 for bfloat16;
      27 where an operator is of that.

    Raises:
      ValueError: what ONNX's operators cannot say.

    >>> import jaxrnn.interop
    >>> cell = jaxrnn.stack(jaxrnn.lstm(4), jaxrnn.bidirectional(jaxrnn.gru(2)))
    >>> model = jaxrnn.interop.to_onnx(cell, cell.init(jax.random.key(0), 3), lengths=True)
    >>> [node.op_type for node in model.graph.node]
    ['LSTM', 'Squeeze', 'GRU', 'Transpose', 'Reshape']
    >>> [value.name for value in (*model.graph.input, *model.graph.output)]
    ['xs', 'lengths', 'ys', 'h_0', 'c_0', 'h_1']
    """
    from onnx import helper

    check_cell("cell", cell)
    params = jax.tree.map(np.asarray, params_tree.dicts(params))
    layers = list(_layers(cell, params))
    if not layers:
        raise ValueError(f"cell: got {cell}, want a recurrent layer in it")
    types = {leaf.dtype.name for leaf in jax.tree.leaves(params)} or {"float32"}
    if len(types) != 1 or not types <= {"float16", "bfloat16", "float32", "float64"}:
        raise ValueError(f"params: got {sorted(types)}, want one floating type")
    newer = any(operators.has(layer) for layer, _ in layers)
    if newer and types == {"float64"}:
        raise ValueError("params: got float64, want a narrower type: the operator has none wider")
    if newer and lengths:
        raise ValueError("lengths: got True, want False: the operator has no lengths")
    (kind,) = types
    made = _Written(kind, lengths, state)
    for i, (layer, own) in enumerate(layers):
        write = made.operator if operators.has(layer) else made.layer
        try:
            write(i, layer, own, last=i == len(layers) - 1)
        except ValueError as error:
            error.add_note(f"in layer {i}, {layer}")
            raise
    graph = helper.make_graph(
        made.nodes, "jaxrnn", made.inputs, made.outputs, initializer=made.weights
    )
    opset, version = (22, 10) if kind == "bfloat16" else (17, 8)
    opset, version = (operators.OPSET, operators.IR_VERSION) if newer else (opset, version)
    return helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", opset)],
        ir_version=version,
        producer_name="jaxrnn",
    )


def _layers(cell, params):
    """``(cell, params)`` of each layer that does something in evaluation."""
    made = cell.made
    if made is not None and made.constructor is stack:
        params = params_tree.parts(params, {str(i): c.init for i, c in enumerate(made.args)})
        for i, inner in enumerate(made.args):
            yield from _layers(inner, params[str(i)])
    elif made is None or made.constructor is not dropout:
        yield cell, params


def _directions(cell, params):
    """ONNX's name of a cell's direction, and the ``Direction`` of each."""
    made = cell.made
    given = {} if made is None else dict(made.kwargs)
    if made is not None and made.constructor is backward:
        return "reverse", [from_cell(given["cell"], params)]
    if made is None or made.constructor is not bidirectional:
        return "forward", [from_cell(cell, params)]
    if given["merge"] != "concat":
        raise ValueError(f"merge: got {given['merge']!r}, want 'concat'")
    cells = given["forward"], given["backward"] or given["forward"]
    params = params_tree.parts(params, dict(zip(("forward", "backward"), (c.init for c in cells))))
    both = [from_cell(one, params[way]) for one, way in zip(cells, ("forward", "backward"))]
    shared = [
        (one.op, one.hidden, one.clip, one.flag, one.b is None, one.p is None) for one in both
    ]
    if shared[0] != shared[1]:
        raise ValueError(
            f"bidirectional: got {cells[0]} and {cells[1]}, want them in one operator"
        )
    return "bidirectional", both


class _Written:
    """A graph as it is written, layer by layer.

    Args:
      kind: the type of the parameters of all layers, by its name.
      lengths, state: of ``to_onnx``.
    """

    def __init__(self, kind, lengths, state):
        from onnx import TensorProto, helper

        self.lengths, self.state = "lengths" if lengths else "", state
        self.type = helper.np_dtype_to_tensor_dtype(np.dtype(kind))
        self.nodes, self.weights, self.outputs = [], [], []
        self.fed, self.features, self.inputs = "xs", None, []
        if lengths:
            info = helper.make_tensor_value_info("lengths", TensorProto.INT32, ["B"])
            self.inputs.append(info)

    def info(self, name, *shape):
        from onnx import helper

        return helper.make_tensor_value_info(name, self.type, shape)

    def constant(self, name, array):
        from onnx import numpy_helper

        self.weights.append(numpy_helper.from_array(array, name))
        return name

    def layer(self, i, cell, params, last):
        """Adds a layer, fed with the one before."""
        from onnx import helper

        way, parts = _directions(cell, params)
        one, count = parts[0], len(parts)
        kind = OPERATORS[one.op]
        self.enter(i, one.w.shape[1])
        stacked = lambda name: self.constant(
            f"{name.upper()}_{i}", np.stack([getattr(part, name) for part in parts])
        )
        states = [f"{name}_{i}" for name in kind.states]
        begins = [f"initial_{name}" if self.state else "" for name in states]
        shape = count, "B", one.hidden
        self.inputs += [self.info(name, *shape) for name in begins if name]
        w, r, b, p = (
            "" if getattr(one, name) is None else stacked(name) for name in ("w", "r", "b", "p")
        )
        inputs = [self.fed, w, r, b, self.lengths, *begins, p]
        while not inputs[-1]:
            inputs.pop()
        self.nodes.append(
            helper.make_node(
                one.op,
                inputs,
                [f"Y_{i}", *states],
                name=f"layer_{i}",
                **_attributes(parts, kind, way),
            )
        )
        self.leave(i, count * one.hidden, last)
        self.joined(i, count)
        self.outputs += [self.info(name, *shape) for name in states]

    def operator(self, i, cell, params, last):
        """Adds a layer that is one of ``operators``."""
        from onnx import helper

        one = operators.from_cell(cell, params)
        self.enter(i, one.inputs)
        begins = f"initial_{one.state}_{i}" if self.state else ""
        if begins:
            self.inputs.append(self.info(begins, "B", *one.shape))
        turned, read, state = f"turned_{i}", f"Y_{i}", f"{one.state}_{i}"
        self.nodes.append(helper.make_node("Transpose", [self.fed], [turned], perm=one.perm))
        parts = [turned]
        if one.parts:
            parts = [f"part_{i}_{k}" for k in range(len(one.parts))]
            sizes = self.constant(f"sizes_{i}", np.array(one.parts))
            self.nodes.append(helper.make_node("Split", [turned, sizes], parts, axis=2))
        weights = [self.constant(f"{name}_{i}", array) for name, array in one.weights.items()]
        inputs = one.ordered(parts, weights, begins)
        while not inputs[-1]:
            inputs.pop()
        self.nodes.append(
            helper.make_node(one.op, inputs, [read, state], name=f"layer_{i}", **one.attributes)
        )
        self.leave(i, one.outputs, last)
        back = [one.perm.index(axis) for axis in range(3)]
        self.nodes.append(helper.make_node("Transpose", [read], [self.fed], perm=back))
        self.outputs.append(self.info(state, "B", *one.shape))

    def enter(self, i, features):
        """A layer reads what the one before has given."""
        if i == 0:
            self.inputs.insert(0, self.info("xs", "T", "B", features))
        elif features != self.features:
            want = f"{self.features}: the layer before gives them"
            raise ValueError(f"params: got ones for {features} features, want {want}")

    def leave(self, i, features, last):
        """A layer gives what the next one reads, or the model."""
        self.features, self.fed = features, "ys" if last else f"ys_{i}"
        if last:
            self.outputs.insert(0, self.info("ys", "T", "B", features))

    def joined(self, i, count):
        """From Y [T, D, B, H] to ys [T, B, D * H]."""
        from onnx import helper

        if count == 1:
            axes = self.constant(f"axes_{i}", np.array([1]))
            self.nodes.append(helper.make_node("Squeeze", [f"Y_{i}", axes], [self.fed]))
            return
        shape = self.constant(f"shape_{i}", np.array([0, 0, -1]))
        moved = [f"moved_{i}"]
        self.nodes += [
            helper.make_node("Transpose", [f"Y_{i}"], moved, perm=[0, 2, 1, 3]),
            helper.make_node("Reshape", [*moved, shape], [self.fed]),
        ]


def _attributes(parts, kind, way) -> dict[str, Any]:
    """A node's attributes: those that are not their defaults."""
    one = parts[0]
    activations = [a for part in parts for a in part.activations]
    found = {"hidden_size": one.hidden}
    if way != "forward":
        found["direction"] = way
    if [a.name for a in activations] != [*kind.activations * len(parts)]:
        found["activations"] = [a.name for a in activations]
    for name, place in (("alpha", 0), ("beta", 1)):
        numbers = [getattr(a, name) for a in activations if len(DEFAULTS.get(a.name, ())) > place]
        if numbers:
            found[f"activation_{name}"] = numbers
    if one.clip is not None:
        found["clip"] = one.clip
    if one.flag:
        found[kind.flag] = 1
    return found
