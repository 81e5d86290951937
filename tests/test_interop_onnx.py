"""ONNX's operators RNN, GRU and LSTM: their own tests, ONNX Runtime, and the way back."""

import copy
import pickle
import random
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import error

import jaxrnn
import jaxrnn.interop
from jaxrnn.interop.onnx import backward, onnx_gru, onnx_lstm
from jaxrnn.interop.onnx.activations import Activation

onnx = pytest.importorskip("onnx")
runtime = pytest.importorskip("onnxruntime")
helper = onnx.helper

T, B, H, I = 4, 3, 3, 2  # noqa: E741
INPUTS = ("X", "W", "R", "B", "sequence_lens", "initial_h", "initial_c", "P")
GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}
ACTIVATIONS = {"RNN": 1, "GRU": 2, "LSTM": 3}
NUMBERS = {  # how many numbers each activation takes
    "Relu": 0, "Tanh": 0, "Sigmoid": 0, "Affine": 2, "LeakyRelu": 1, "ThresholdedRelu": 1,
    "ScaledTanh": 2, "HardSigmoid": 2, "Elu": 1, "Softsign": 0, "Softplus": 0,
}  # fmt: skip


def session(model):
    options = runtime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    model = model.SerializeToString()
    return runtime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def model_of(node, arrays, opset=17):
    """A model of one node, whose inputs are all inputs of the model."""
    kind = helper.np_dtype_to_tensor_dtype
    info = helper.make_tensor_value_info
    inputs = [info(name, kind(a.dtype), a.shape) for name, a in arrays.items()]
    outputs = [info(name, onnx.TensorProto.FLOAT, None) for name in node.output if name]
    graph = helper.make_graph([node], "one", inputs, outputs)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def unrolled(node, arrays):
    """What our cell gives in place of a node: its outputs by name."""
    given = {name: arrays[tensor] for name, tensor in zip(INPUTS, node.input) if tensor}
    weights = {t: arrays[t] for n, t in zip(INPUTS, node.input) if t and n in ("W", "R", "B", "P")}
    cell, params = jaxrnn.interop.from_onnx(node, weights)
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    batch_first = attributes.get("layout", 0)
    turned = (lambda a: a.swapaxes(0, 1)) if batch_first else (lambda a: a)
    xs = jnp.asarray(turned(given["X"]))
    count = given["W"].shape[0]
    names = [f"initial_{s}" for s in ("hc" if node.op_type == "LSTM" else "h")]
    state = None
    if any(name in given for name in names):
        shape = count, xs.shape[1], given["R"].shape[-1]
        zeros = np.zeros(shape, xs.dtype)
        initial = [turned(given[n]) if n in given else zeros for n in names]
        state = tuple(tuple(jnp.asarray(a[d]) for a in initial) for d in range(count))
        state = state if count == 2 else state[0]
    lengths = given.get("sequence_lens")
    state, ys = jaxrnn.unroll(cell, params, xs, state, lengths=lengths)
    y = ys.reshape(*ys.shape[:2], count, -1)  # [T, B, D, H]
    final = np.stack([np.asarray(s) for s in jax.tree.leaves(state)])
    final = final.reshape(count, len(names), *final.shape[1:]).swapaxes(0, 1)
    if batch_first:
        y, final = y.swapaxes(0, 1), final.swapaxes(1, 2)
    else:
        y = y.swapaxes(1, 2)
    return dict(zip(("Y", "Y_h", "Y_c"), (np.asarray(y), *final))), cell


def own_tests():
    from onnx.backend.test.case import node

    for name in ("rnn", "gru", "lstm"):
        __import__(f"onnx.backend.test.case.node.{name}")
    found = {case.name: case for case in node._NodeTestCases}
    return {name: case for name, case in found.items() if len(case.model.graph.node) == 1}


OWN = own_tests()


@pytest.mark.parametrize("name", sorted(OWN))
def test_the_operators_own_tests(name):
    case = OWN[name]
    (node,), graph = case.model.graph.node, case.model.graph
    assert node.op_type in GATES
    for inputs, outputs in case.data_sets:
        came, _ = unrolled(node, dict(zip([i.name for i in graph.input], inputs)))
        places = [("Y", "Y_h", "Y_c")[i] for i, name in enumerate(node.output) if name]
        for place, truth in zip(places, outputs):
            assert came[place].shape == truth.shape
            np.testing.assert_allclose(came[place], truth, rtol=1e-5, atol=1e-5)


def test_there_are_tests_of_every_operator():
    assert len(OWN) >= 18
    assert {case.model.graph.node[0].op_type for case in OWN.values()} == set(GATES)


def drawn(seed):
    """A random node, and arrays for its inputs."""
    rng, choose = np.random.default_rng(seed), random.Random(seed)
    often = lambda: choose.random() < 0.5  # noqa: E731
    op = tuple(GATES)[seed % 3]
    way = ("forward", "reverse", "bidirectional")[seed // 3 % 3]
    count, gates = 1 + (way == "bidirectional"), GATES[op]
    normal = lambda *shape: (0.5 * rng.normal(size=shape)).astype("float32")  # noqa: E731
    arrays = {
        "X": 4 * normal(T, B, I), "W": normal(count, gates * H, I),
        "R": normal(count, gates * H, H), "B": normal(count, 2 * gates * H),
        "sequence_lens": np.array([4, 1, 3], np.int32),
        "initial_h": normal(count, B, H), "initial_c": normal(count, B, H),
        "P": normal(count, 3 * H),
    }  # fmt: skip
    needed = ("X", "W", "R")
    kept = [n for n in INPUTS if n in needed or often()]
    if op != "LSTM":
        kept = [n for n in kept if n not in ("initial_c", "P")]
    options = {"hidden_size": H, "direction": way}
    if often():
        names = [choose.choice(tuple(NUMBERS)) for _ in range(ACTIVATIONS[op] * count)]
        options["activations"] = names
        for which, attribute in enumerate(("activation_alpha", "activation_beta"), 1):
            takers = sum(NUMBERS[name] >= which for name in names)
            if takers:
                options[attribute] = [choose.uniform(0.3, 0.9) for _ in range(takers)]
    if often():
        options["clip"] = choose.uniform(0.2, 0.8)
    if op == "GRU" and often():
        options["linear_before_reset"] = 1
    if op == "LSTM" and often():
        options["input_forget"] = 1
    names = [n if n in kept else "" for n in INPUTS]
    while not names[-1]:
        names.pop()
    outputs = ("Y", "Y_h", "Y_c")[: 3 if op == "LSTM" else 2]
    return helper.make_node(op, names, outputs, **options), {n: arrays[n] for n in kept}


@pytest.mark.parametrize("seed", range(54))
def test_onnx_runtime(seed):
    """Every attribute and input, in random company. ONNX Runtime's CPU kernels have no layout=1:
    that is held against the same with layout=0."""
    node, arrays = drawn(seed)
    truths = session(model_of(node, arrays)).run(None, arrays)
    if seed % 4 == 3:
        node.attribute.append(helper.make_attribute("layout", 1))
        for name in ("X", "initial_h", "initial_c"):
            if name in arrays:
                arrays[name] = arrays[name].swapaxes(0, 1)
        y, *final = truths
        truths = [y.transpose(2, 0, 1, 3), *(a.swapaxes(0, 1) for a in final)]
    came, cell = unrolled(node, arrays)
    for place, truth in zip(node.output, truths):
        assert came[place].shape == truth.shape
        np.testing.assert_allclose(came[place], truth, rtol=1e-5, atol=1e-5, err_msg=repr(cell))
