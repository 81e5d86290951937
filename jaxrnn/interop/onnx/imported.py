"""From a model's recurrent nodes to a cell."""

import os
import re
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxrnn._src.core import checks
from jaxrnn._src.core.cell import Cell
from jaxrnn._src.core.typing import InputArray, Params, Theirs
from jaxrnn._src.wrappers.learned import learned_state
from jaxrnn._src.wrappers.stack import bidirectional, stack
from jaxrnn.interop.onnx import activations, operators
from jaxrnn.interop.onnx.cells import backward
from jaxrnn.interop.onnx.direction import OPERATORS, Direction, to_cell
from jaxrnn.interop.onnx.graph import RECURRENT, Graph, attributes, label, moves

DIRECTIONS = ("forward", "reverse", "bidirectional")
ATTRIBUTES = {
    "activation_alpha",
    "activation_beta",
    "activations",
    "clip",
    "direction",
    "hidden_size",
    "layout",
}
INPUTS = ("X", "W", "R", "B", "sequence_lens", "initial_h", "initial_c", "P")


def from_onnx(
    model: Theirs,
    weights: Mapping[str, InputArray] | None = None,
    *,
    node: str | None = None,
    double_bias: bool = False,
) -> tuple[Cell, Params]:
    """The recurrent nodes of an ONNX model as a cell.

    RNN, GRU and LSTM with all they can say; and opset 27's LinearAttention and
    CausalConvWithState, one node at a time.

    What a node is given when it runs is what ``jaxrnn.unroll`` is given:

        X               xs [T, B, I]; [B, T, I] with layout=1
        sequence_lens   lengths [B]
        initial_h, c    state: of direction d ``(initial_h[d],)``, or ``(initial_h[d],
                        initial_c[d])`` of an LSTM; a pair of these if it is bidirectional
        Y               ys [T, B, D * H], of Y [T, D, B, H]
        Y_h, Y_c        the final state

    LinearAttention becomes ``jaxrnn.interop.onnx.onnx_linear_attention``, whose input is query,
    key, value, decay and beta side by side, [T, B, ...], and whose state is the operator's, once
    for each head of queries. CausalConvWithState becomes a depthwise ``jaxrnn.conv1d``, whose
    state has its last axes the other way round.

    Several nodes, each fed with the output of the one before and nothing else, become a
    ``jaxrnn.stack``: what PyTorch's ``num_layers`` is exported as. What comes before the first and
    after the last is not looked at. PyTorch's newer exporter, ``dynamo=True``, writes LSTM and GRU
    as nodes, but ``torch.nn.RNN`` as a matmul for each step, which is an error here.

    Args:
      model: an ``onnx.ModelProto``, the path of one, or an ``onnx.NodeProto``.
      weights: arrays by the names of tensors, for weights that the model does not hold: those of
        a node by itself, for one.
      node: the name of one of the model's nodes, or of an output of it: that node alone.
      double_bias: whether a node's two biases stay apart, ``jaxrnn.interop.double_bias``. One,
        their sum, computes the same, but trains otherwise.

    Returns:
      ``(cell, params)``. The cell is one of ``jaxrnn.elman``, ``lstm`` and ``gru`` if it can be,
      else ``jaxrnn.interop.onnx.onnx_lstm``; in ``jaxrnn.bidirectional`` or
      ``jaxrnn.interop.onnx.backward``; and in ``jaxrnn.learned_state`` if the model holds an
      initial state other than zero. Without biases it is in ``jaxrnn.interop.without_bias``, but
      for the former two, whose bias is zero.

      ``clip`` bounds what enters all activations
      but LSTM's h(c), and ``input_forget`` is f = 1 - i: the operators' text leaves both open, and
      ONNX Runtime has them so.

    Raises:
      ValueError: what cannot be a cell, with the node's name; ``double_bias`` of one that has
        none, or is no ``elman``, ``lstm`` or ``gru``.
      TypeError: ``model`` is none.

    >>> import jaxrnn.interop
    >>> cell = jaxrnn.lstm(4)
    >>> params = cell.init(jax.random.key(0), 3)
    >>> model = jaxrnn.interop.to_onnx(cell, params)
    >>> again, same = jaxrnn.interop.from_onnx(model)
    >>> again, bool((same["w"] == params["w"]).all())
    (lstm(hidden=4), True)
    """
    graph = Graph(_model(model), weights or {})
    nodes = _chosen(graph, node)
    newer = [label(one) for one in nodes if one.op_type in operators.OPERATORS]
    if newer and len(nodes) > 1:
        want = "one node at a time, with node=: what is between them is not looked at"
        raise ValueError(f"model: got {', '.join(map(label, nodes))}, want {want}")
    if newer and double_bias:
        raise ValueError(f"double_bias: got True, want False: {newer[0]} has no two biases")
    layers = []
    for one in nodes:
        try:
            if newer:
                layers.append(operators.to_cell(graph, one))
            else:
                layers.append(_layer(graph, one, double_bias))
        except (TypeError, ValueError) as error:
            error.add_note(f"in node {label(one)}")
            raise
    for before, after in zip(nodes, nodes[1:]):
        _check_chain(graph, before, after)
    if len(layers) == 1:
        return layers[0]
    cells, params = zip(*layers)
    return stack(*cells), {str(i): p for i, p in enumerate(params)}


def _model(model):
    """What came as an ``onnx.ModelProto``."""
    import onnx

    if isinstance(model, (str, os.PathLike)):
        return onnx.load(model)
    if isinstance(model, onnx.NodeProto):
        return onnx.helper.make_model(onnx.helper.make_graph([model], "node", [], []))
    if not isinstance(model, onnx.ModelProto):
        want = "an onnx.ModelProto, the path of one, or an onnx.NodeProto"
        raise TypeError(f"model: got {type(model).__name__}, want {want}")
    return model


def _chosen(graph, name):
    """The nodes to import."""
    known = ", ".join(map(label, graph.nodes))
    if name is None:
        if not graph.nodes:
            others = sorted({node.op_type for node in graph.model.graph.node})
            want = f"one of {', '.join(RECURRENT)} among them{_hint(graph)}"
            raise ValueError(f"model: got nodes {others}, want {want}")
        return graph.nodes
    found = [n for n in graph.nodes if name and name in (n.name, *n.output)]
    if len(found) != 1:
        raise ValueError(f"node: got {name!r}, want the name of one of: {known}")
    return found


def _hint(graph):
    """What to do about modules that PyTorch's exporter has written as matmuls, as ``nn.RNN``."""
    notes = (p.value for n in graph.model.graph.node for p in n.metadata_props)
    found = {
        name for note in notes for name in re.findall(r"torch\.nn\.modules\.rnn\.(\w+)", note)
    }
    if not found:
        return ""
    # The older exporter writes layers as nodes, but a module of one step as matmuls too.
    layers = any(not name.endswith("Cell") for name in found)
    return (
        f": PyTorch's exporter has written {', '.join(sorted(found))} as a matmul for each step;"
        f" {'export with dynamo=False, or ' if layers else ''}convert the module by"
        " jaxrnn.interop.from_torch"
    )


def _layer(graph, node, double):
    """``(cell, params)`` of a node; ``double`` keeps its two biases apart."""
    given = _attributes(node)
    kind = OPERATORS[node.op_type]
    inputs = dict(zip(INPUTS, node.input))
    way = given.get("direction", "forward")
    if way not in DIRECTIONS:
        raise ValueError(f"direction: got {way!r}, want one of {DIRECTIONS}")
    count = 2 if way == "bidirectional" else 1
    weights = {
        name: graph.constant(name, inputs[name]) if inputs.get(name) else None
        for name in ("W", "R", "B", "P")
    }
    w, r = _checked_weights(weights, count, len(kind.order), given.get("hidden_size"))
    hidden = r.shape[-1]
    if double and weights["B"] is None:
        raise ValueError("double_bias: got True, want False: there are no biases")
    functions = activations.read(
        _names(given, kind, count),
        given.get("activation_alpha", ()),
        given.get("activation_beta", ()),
    )
    clip = given.get("clip")
    clip = None if clip is None else checks.number("clip", clip, above=0)
    each = len(kind.activations)
    found = []
    for d in range(count):
        b, p = (None if a is None else a[d] for a in (weights["B"], weights["P"]))
        one = Direction(
            node.op_type,
            hidden,
            functions[each * d : each * (d + 1)],
            clip,
            bool(given.get(kind.flag or "", 0)),
            w[d],
            r[d],
            b,
            p,
        )
        found.append(to_cell(one, double))
    _check_lengths(graph, inputs.get("sequence_lens"))
    states = _states(graph, inputs, kind, given.get("layout", 0), (count, hidden))
    if states is not None:
        found = [_begins(*one, states[:, d]) for d, one in enumerate(found)]
    if way == "bidirectional":
        (ahead, first), (back, second) = found
        cell = bidirectional(ahead) if ahead == back else bidirectional(ahead, back)
        return cell, {"forward": first, "backward": second}
    ((cell, params),) = found
    return backward(cell) if way == "reverse" else cell, params


def _attributes(node: Theirs) -> dict[str, Any]:
    """The attributes of an RNN, GRU or LSTM by name."""
    flag = OPERATORS[node.op_type].flag
    return attributes(node, ATTRIBUTES | ({flag} if flag else set()))


def _names(given, kind, count):
    """The names of a node's activations: of each direction in turn."""
    names = given.get("activations", kind.activations * count)
    want = len(kind.activations) * count
    if kind is OPERATORS["RNN"] and count == 1:
        names = names[:1]  # the attribute's default, which some tools write down, has two
    if len(names) != want:
        raise ValueError(f"activations: got {tuple(names)}, want {want} of them")
    return names


def _checked_weights(weights, count, gates, hidden_size):
    """W and R; all have the shapes that the operator says."""
    w, r = weights["W"], weights["R"]
    if w is None or r is None:
        raise ValueError("W, R: got none, want both")
    if w.ndim != 3 or r.ndim != 3:
        raise ValueError(f"W, R: got shapes {w.shape} and {r.shape}, want three axes")
    hidden = r.shape[-1] if hidden_size is None else hidden_size
    sizes = {"W": (gates * hidden, w.shape[-1]), "R": (gates * hidden, hidden)}
    sizes |= {"B": (2 * gates * hidden,), "P": (3 * hidden,)}
    for name, array in weights.items():
        if array is None:
            continue
        checks.check_floating(name, array)
        if array.dtype != w.dtype:
            raise TypeError(f"{name}: got {array.dtype}, want {w.dtype}, as W")
        if array.shape != (count, *sizes[name]):
            want = f"{(count, *sizes[name])}, of {count} directions and hidden_size={hidden}"
            raise ValueError(f"{name}: got shape {array.shape}, want {want}")
    return w, r


def _check_lengths(graph, tensor):
    """Lengths are no part of a cell: they are not in the model."""
    if tensor and graph.value(tensor) is not None:
        want = "want an input: leave it out of the node and give it to unroll as `lengths`"
        raise ValueError(f"sequence_lens: {tensor!r} is in the model, {want}")


def _states(graph, inputs, kind, layout, shape):
    """The initial states that a model holds, [states, D, H]; None if zero, or given as it runs."""
    found = [_state(graph, inputs.get(f"initial_{name}"), layout) for name in kind.states]
    if all(state is None for state in found):
        return None
    zeros = np.zeros(shape, next(state.dtype for state in found if state is not None))
    return np.stack([zeros if state is None else state for state in found])


def _state(graph, tensor, layout):
    """An initial state [D, H]; None if it is zero, or given as the model runs."""
    if not tensor:
        return None
    value = graph.state("initial state", tensor)
    if value is None:
        return None
    value = np.swapaxes(value, 0, 1) if layout else value
    if (value != value[:, :1]).any():
        want = "one for all rows: leave it out of the node and give it to unroll as `state`"
        raise ValueError(f"initial state: got another one for each row in {tensor!r}, want {want}")
    return value[:, 0]


def _begins(cell, params, states):
    """A cell that begins with states [H], each."""
    learned = {str(i): jnp.asarray(state) for i, state in enumerate(states)}
    return learned_state(cell), {"cell": params, "state": learned}


def _check_chain(graph, before, after):
    """A node is fed with the output of another and with nothing else, as a stack would feed it."""
    lens = [dict(zip(INPUTS, node.input)).get("sequence_lens", "") for node in (before, after)]
    if lens[0] != lens[1]:
        came = f"{lens[0]!r} for {label(before)} and {lens[1]!r} for {label(after)}"
        raise ValueError(f"sequence_lens: got {came}, want the same; or one node, with node=")
    given, fed = _attributes(before), after.input[0]
    y = before.output[0] if before.output else ""
    hidden = graph.value(before.input[2]).shape[-1]
    count = 2 if given.get("direction") == "bidirectional" else 1
    layouts = [one.get("layout", 0) for one in (given, _attributes(after))]
    steps, rows = graph.steps_and_rows(y, layouts[0])
    truth = np.arange(1.0, 1 + steps * count * rows * hidden, dtype=np.float32)
    truth = truth.reshape(steps, count, rows, hidden)
    nodes, _ = graph.behind(fed, {y})
    same = False
    if all(map(moves, nodes)):
        ys = truth.transpose(2, 0, 1, 3) if layouts[0] else truth
        try:
            xs = graph.value(fed, {y: ys})
        except Exception as error:
            error.add_note(f"between nodes {label(before)} and {label(after)}")
            raise
        want = truth.transpose(0, 2, 1, 3).reshape(steps, rows, count * hidden)
        want = want.swapaxes(0, 1) if layouts[1] else want
        same = xs is not None and np.array_equal(xs, want)
    if not same:
        raise ValueError(
            f"model: {label(after)} is not fed with the output of {label(before)} alone, so they"
            f" are no stack; import one node at a time, with node="
        )
