"""ONNX's LinearAttention and CausalConvWithState, in and out, by ONNX Runtime."""

import jax
import numpy as np
import pytest
from cases import error

import jaxrnn
import jaxrnn.interop
from benchmarks.shared import zoo
from jaxrnn.interop.onnx import onnx_linear_attention

onnx = pytest.importorskip("onnx")
runtime = pytest.importorskip("onnxruntime")
if onnx.defs.onnx_opset_version() < 27:
    pytest.skip("onnx has no opset 27", allow_module_level=True)
helper = onnx.helper
T, B = 5, 2
SIZES = {"heads": 4, "kv_heads": 2, "key": 3}
CELLS = {
    "linear": onnx_linear_attention(8, rule="linear", **SIZES),
    "gated": onnx_linear_attention(8, rule="gated", scale=0.5, decay_by_key=True, **SIZES),
    "delta": onnx_linear_attention(8, rule="delta", heads=2, key=3, shared_beta=True),
    "gated_delta": onnx_linear_attention(8, **SIZES),
    "convolution": jaxrnn.conv1d(3, kernel=4, depthwise=True),
    "convolution_silu": jaxrnn.conv1d(3, kernel=2, depthwise=True, activation="silu"),
}
DECAYS = {"gated": slice(-6, None), "gated_delta": slice(-4, -2)}  # where they are in an input


def parameters(cell, rng):
    given = dict(cell.made.kwargs)
    if "kernel" not in given:
        return {}
    shapes = {"w": (given["kernel"], 3), "b": 3}
    return {name: np.float32(rng.normal(size=shape)) for name, shape in shapes.items()}


@pytest.mark.parametrize("name", CELLS)
def test_a_cell_and_its_model(name):
    """The same outputs and final states, from a state that is not zero; and the cell again."""
    cell, rng = CELLS[name], np.random.default_rng(0)
    params = parameters(cell, rng)
    model = jaxrnn.interop.to_onnx(cell, params, state=True)
    onnx.checker.check_model(model, full_check=True)
    again, same = jaxrnn.interop.from_onnx(model)
    assert again == cell and jax.tree.all(jax.tree.map(np.array_equal, same, params))
    x, begins = (
        [d.dim_value or B for d in value.type.tensor_type.shape.dim] for value in model.graph.input
    )
    xs, past = (np.float32(rng.normal(size=s) / 2) for s in ((T, B, x[-1]), begins))
    if name in DECAYS:
        xs[..., DECAYS[name]] = -np.abs(xs[..., DECAYS[name]])
    session = runtime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    given = dict(zip([value.name for value in model.graph.input], (xs, past)))
    wanted, final = session.run(None, given)
    if params:  # [B, C, K - 1] is [B, K - 1, C] here
        past, final = past.swapaxes(1, 2), final.swapaxes(1, 2)
    else:  # once for each head of queries
        each = dict(cell.made.kwargs)["heads"] // begins[1]
        past, final = np.repeat(past, each, 1), np.repeat(final, each, 1)
    (came,), ys = jax.jit(jaxrnn.unroll, static_argnums=0)(cell, params, xs, (past,))
    assert error(np.asarray(ys), wanted) < 1e-6 and error(np.asarray(came), final) < 1e-6


def test_layers():
    """Each reads what the one before has given; without a state, all begin at zero."""
    cell = jaxrnn.stack(CELLS["convolution"], jaxrnn.gru(21), CELLS["delta"])
    params = jax.jit(cell.init, static_argnums=1)(jax.random.key(0), 3)
    model = jaxrnn.interop.to_onnx(cell, params)
    session = runtime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    xs = np.float32(np.random.default_rng(0).normal(size=(T, B, 3)))
    wanted = session.run(["ys"], {"xs": xs})[0]
    _, ys = jax.jit(jaxrnn.unroll, static_argnums=0)(cell, params, xs)
    assert error(np.asarray(ys), wanted) < 1e-6
    names = [value.name for value in model.graph.output]
    assert names == ["ys", "window_0", "h_1", "S_2"]


def test_every_cell_is_exported_or_refused():
    """By name, with a reason, before any parameter is looked at."""
    exported = set()
    for name in (*zoo.names(), "gated_delta_memory", "mlstm_memory", "project", "ssd"):
        cell = zoo.cell(name, 8)
        with pytest.raises(ValueError) as reason:
            jaxrnn.interop.to_onnx(cell, {"w": np.zeros((), np.float32)})
        told = "\n".join([str(reason.value), *getattr(reason.value, "__notes__", [])])
        assert f"{cell}" in told and "want" in told, told
        if "params" in told:
            params = jax.eval_shape(lambda cell=cell: cell.init(jax.random.key(0), 8))
            params = jax.tree.map(lambda a: np.zeros(a.shape, a.dtype), params)
            jaxrnn.interop.to_onnx(cell, params)
            exported.add(name)
        else:
            assert "ONNX" in told, told
    assert exported == {"elman", "gru", "irnn", "lstm"}


def node(op="LinearAttention", inputs=("q", "k", "v"), **options):
    """The import of a node, with the types of its inputs."""
    sizes = {"q": 6, "k": 6, "v": 4, "g": 2, "b": 2}
    kind = onnx.TensorProto.FLOAT
    types = [helper.make_tensor_value_info(n, kind, ["B", "T", s]) for n, s in sizes.items()]
    state = helper.make_tensor("past", kind, (1, 2, 3, 2), [1.0] * 12)
    graph = helper.make_graph(
        [helper.make_node(op, inputs, ["y", "S"], name="mine", **options)],
        "one",
        types,
        [],
        [state],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 27)])


def made(op, *inputs, **options):
    """A model of two nodes: the second begins with the state that the first makes."""
    model = node(inputs=("q", "k", "v", "mine"), update_rule="linear", **HEADS)
    model.graph.node.insert(0, helper.make_node(op, inputs, ["mine"], **options))
    return model


@pytest.mark.parametrize(
    "maker",
    (
        ("Identity", "started"),
        ("ConstantOfShape", "sizes"),
        ("Mul", "past", "zero"),
    ),
)
def test_a_state_that_is_zero_or_an_input(maker):
    model = made(*maker)
    zero = helper.make_tensor("zero", onnx.TensorProto.FLOAT, (), [0.0])
    model.graph.initializer.append(zero)
    cell, _ = READ(model)
    assert cell == READ(node(update_rule="linear", **HEADS))[0]


HEADS = {"q_num_heads": 2, "kv_num_heads": 2}
CONV = "CausalConvWithState"
READ, WRITE = jaxrnn.interop.from_onnx, jaxrnn.interop.to_onnx
BAD = {
    "a rule": (
        lambda: READ(node(update_rule="lms", **HEADS)),
        "rule: got 'lms', want one of",
        "in node LinearAttention 'mine'",
    ),
    "a decay that a rule has not": (
        lambda: READ(node(inputs=("q", "k", "v", "", "k"), update_rule="linear", **HEADS)),
        "decay: got one, want none: the rule 'linear' has no decay",
    ),
    "an input that a rule wants": (
        lambda: READ(node(update_rule="delta", **HEADS)),
        "beta: got none, want one: the rule 'delta' has it",
    ),
    "sizes that do not fit": (
        lambda: READ(node(inputs=("k", "q", "v", "", "v"), update_rule="gated", **HEADS)),
        "decay: got 4 features, want 6, of onnx_linear_attention",
    ),
    "an attribute": (
        lambda: READ(node(update_rule="linear", causal=0, **HEADS)),
        "attributes: got ['causal'], want none but",
        "'chunk_size'",
    ),
    "no heads": (lambda: READ(node(update_rule="linear")), "kv_num_heads", "must have"),
    "a state in the model": (
        lambda: READ(node(inputs=("q", "k", "v", "past"), update_rule="linear", **HEADS)),
        "past_state: 'past' is in the model, want an input",
    ),
    "a state that the model makes": (
        lambda: READ(made("Relu", "started")),
        "past_state: 'mine' is made as the model runs, want an input",
    ),
    "sizes that are not said": (
        lambda: READ(node(inputs=("q", "k", "z"), update_rule="linear", **HEADS)),
        "value: got no last size of 'z'",
    ),
    "no weight": (lambda: READ(node(CONV, ("q", "k"))), "weight: 'k' is no constant"),
    "two biases": (
        lambda: READ(node(update_rule="linear", **HEADS), double_bias=True),
        "double_bias: got True, want False",
    ),
    "a dilation": (
        lambda: WRITE(jaxrnn.conv1d(3, kernel=2, dilation=2, depthwise=True), {}),
        "dilation: got 2, want 1",
    ),
    "an activation": (
        lambda: WRITE(jaxrnn.conv1d(3, kernel=2, depthwise=True, activation="relu"), {}),
        "activation: got 'relu', want None or 'silu'",
    ),
    "lengths": (
        lambda: WRITE(CELLS["delta"], {}, lengths=True),
        "lengths: got True, want False",
    ),
    "heads": (
        lambda: onnx_linear_attention(8, heads=4, kv_heads=3),
        "kv_heads: got 3, want a divisor of heads=4",
    ),
    "a scale": (lambda: onnx_linear_attention(8, scale=0.0), "scale: got 0, want another"),
    "the size of an input": (
        lambda: CELLS["delta"].init(jax.random.key(0), 8),
        "in_size: got 8, want 21, of q 6 + k 6 + v 8 + b 1",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be(name):
    call, *wanted = BAD[name]
    with pytest.raises(ValueError) as caught:
        call()
    text = "\n".join([str(caught.value), *getattr(caught.value, "__notes__", [])])
    for part in wanted:
        assert part in text, text
