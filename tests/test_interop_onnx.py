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
from jaxrnn._src.core import checks
from jaxrnn.interop.onnx import backward, onnx_lstm
from jaxrnn.interop.onnx.activations import Activation

onnx = pytest.importorskip("onnx")
runtime = pytest.importorskip("onnxruntime")
helper = onnx.helper

T, B, H, I = 4, 3, 3, 2  # noqa: E741
INPUTS = ("X", "W", "R", "B", "sequence_lens", "initial_h", "initial_c", "P")
GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}
ACTIVATIONS = {"RNN": 1, "GRU": 2, "LSTM": 3}
NUMBERS = {  # how many numbers each activation takes
    "Relu": 0,
    "Tanh": 0,
    "Sigmoid": 0,
    "Affine": 2,
    "LeakyRelu": 1,
    "ThresholdedRelu": 1,
    "ScaledTanh": 2,
    "HardSigmoid": 2,
    "Elu": 1,
    "Softsign": 0,
    "Softplus": 0,
}


unroll = jax.jit(jaxrnn.unroll, static_argnums=0)


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
    xs = turned(given["X"])
    count = given["W"].shape[0]
    names = [f"initial_{s}" for s in ("hc" if node.op_type == "LSTM" else "h")]
    state = None
    if any(name in given for name in names):
        shape = count, xs.shape[1], given["R"].shape[-1]
        zeros = np.zeros(shape, xs.dtype)
        initial = [turned(given[n]) if n in given else zeros for n in names]
        state = tuple(tuple(a[d] for a in initial) for d in range(count))
        state = state if count == 2 else state[0]
    lengths = given.get("sequence_lens")
    state, ys = jax.tree.map(np.asarray, unroll(cell, params, xs, state, lengths=lengths))
    y = ys.reshape(*ys.shape[:2], count, -1)  # [T, B, D, H]
    final = np.stack(jax.tree.leaves(state))
    final = final.reshape(count, len(names), *final.shape[1:]).swapaxes(0, 1)
    if batch_first:
        y, final = y.swapaxes(0, 1), final.swapaxes(1, 2)
    else:
        y = y.swapaxes(1, 2)
    return dict(zip(("Y", "Y_h", "Y_c"), (y, *final))), cell


def own_tests():
    from onnx.backend.test.case import node

    for name in ("rnn", "gru", "lstm"):
        # They compute as they are imported, and BLAS may raise a flag for lanes that nobody reads.
        with np.errstate(all="ignore"):
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
        "X": 4 * normal(T, B, I),
        "W": normal(count, gates * H, I),
        "R": normal(count, gates * H, H),
        "B": normal(count, 2 * gates * H),
        "sequence_lens": np.array([4, 1, 3], np.int32),
        "initial_h": normal(count, B, H),
        "initial_c": normal(count, B, H),
        "P": normal(count, 3 * H),
    }
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


@pytest.mark.parametrize("name", NUMBERS)
def test_each_activation(name):
    """ONNX Runtime's, clipped, through the second direction of an RNN that does nothing else."""
    xs = np.linspace(-3, 3, 41, dtype="float32")  # not on a threshold
    arrays = {"X": xs[:, None, None], "W": np.ones((2, 1, 1), "float32")}
    arrays["R"] = np.zeros((2, 1, 1), "float32")
    numbers = [0.4, 0.7][: NUMBERS[name]]
    options = {"activations": ["Tanh", name], "direction": "bidirectional", "clip": 2.5}
    options |= {f"activation_{k}": [n] for k, n in zip(("alpha", "beta"), numbers)}
    node = helper.make_node("RNN", [*arrays], ["Y"], hidden_size=1, **options)
    ys = session(model_of(node, arrays)).run(None, arrays)[0][:, 1, 0, 0]
    ours = Activation(name, **dict(zip(("alpha", "beta"), numbers)), clip=2.5)(jnp.asarray(xs))
    np.testing.assert_allclose(ours, ys, rtol=1e-5, atol=1e-6)
    cell, _ = jaxrnn.interop.from_onnx(node, {n: arrays[n] for n in ("W", "R")})
    both = dict(cell.made.kwargs)
    one = dict((both["backward"] or both["forward"]).made.kwargs)["cell"]  # without_bias's
    read = checks.activation(dict(one.made.kwargs)["activation"])
    assert error(read(jnp.asarray(xs)), ours) < 1e-6


def evaluated(node, arrays):
    """What onnx's own evaluator makes of a node."""
    return onnx.reference.ReferenceEvaluator(model_of(node, arrays)).run(None, arrays)


@pytest.mark.parametrize("op", GATES)
def test_batch_first(op):
    """layout=1, which ONNX Runtime has not, by onnx's own evaluator."""
    arrays = drawn_all(op, 2)
    names = [n if n in arrays else "" for n in INPUTS][: None if op == "LSTM" else 6]
    outputs = ("Y", "Y_h", "Y_c")[: 3 if op == "LSTM" else 2]
    options = {"hidden_size": H, "direction": "bidirectional", "layout": 1}
    node = helper.make_node(op, names, outputs, **options)
    came, _ = unrolled(node, arrays)
    for place, truth in zip(outputs, evaluated(node, arrays)):
        np.testing.assert_allclose(came[place], truth, rtol=1e-5, atol=1e-5)


def drawn_all(op, count):
    """Every input but sequence_lens, batch first."""
    rng, gates = np.random.default_rng(0), GATES[op]
    shapes = {
        "X": (B, T, I),
        "W": (count, gates * H, I),
        "R": (count, gates * H, H),
        "B": (count, 2 * gates * H),
        "initial_h": (B, count, H),
    }
    if op == "LSTM":
        shapes |= {"initial_c": (B, count, H), "P": (count, 3 * H)}
    return {name: rng.normal(size=shape).astype("float32") for name, shape in shapes.items()}


# Where the operators' text says one thing and ONNX Runtime does another, or it says nothing.


def lstm_node(outputs=("Y",), **options):
    arrays = {n: np.ones(s, "float32") for n, s in (("X", (T, 1, 1)), ("W", (1, 4, 1)))}
    arrays["R"] = np.zeros((1, 4, 1), "float32")
    arrays["W"] *= 9  # all gates are wide open
    return helper.make_node("LSTM", [*arrays], outputs, hidden_size=1, **options), arrays


def test_clip_leaves_the_cell_alone():
    """By the text clip is "applied to the input of activations"; ONNX Runtime does not clip that
    of h(c), and nor do we. onnx's own evaluator has no clip at all."""
    options = {
        "activations": ["Sigmoid", "Tanh", "Affine"],
        "activation_alpha": [1.0],
        "activation_beta": [0.0],
    }
    node, arrays = lstm_node(clip=2.0, **options)
    (truth,) = session(model_of(node, arrays)).run(None, arrays)
    assert truth.max() > 2.2  # it could not be, if c were clipped
    np.testing.assert_allclose(unrolled(node, arrays)[0]["Y"], truth, rtol=1e-5)
    (clipped,), (free,) = (evaluated(*lstm_node(**o)) for o in ({"clip": 0.1}, {}))
    np.testing.assert_array_equal(clipped, free)


def test_the_forget_gate_is_made_of_the_input_gate():
    """The text says they are coupled, not how; onnx's own evaluator does not couple them."""
    node, arrays = lstm_node(input_forget=1)
    (truth,) = session(model_of(node, arrays)).run(None, arrays)
    assert truth.max() < np.tanh(1)  # f = 1 - i: i is 1 here, so c is g. With i = 1 - f, c is 0.
    assert truth.min() > 0.7
    np.testing.assert_allclose(unrolled(node, arrays)[0]["Y"], truth, rtol=1e-5)
    (free,) = evaluated(node, arrays)
    assert free.max() > 0.9


def test_alpha_of_a_thresholded_relu():
    """By the text the default is that of the operator ThresholdedRelu, 1; in ONNX Runtime 0."""
    schema = onnx.defs.get_schema("ThresholdedRelu")
    assert schema.attributes["alpha"].default_value.f == 1
    xs = np.array([-0.5, 0.5, 1.5], "float32")
    arrays = {"X": xs[:, None, None], "W": np.ones((1, 1, 1), "float32")}
    arrays["R"] = np.zeros((1, 1, 1), "float32")
    make = lambda **options: helper.make_node(  # noqa: E731
        "RNN", [*arrays], ["Y"], hidden_size=1, activations=["ThresholdedRelu"], **options
    )
    (theirs,) = session(model_of(make(), arrays)).run(None, arrays)
    assert theirs.ravel().tolist() == [0, 0.5, 1.5]
    assert unrolled(make(), arrays)[0]["Y"].ravel().tolist() == [0, 0, 1.5]
    (theirs,) = session(model_of(make(activation_alpha=[1.0]), arrays)).run(None, arrays)
    assert theirs.ravel().tolist() == [0, 0, 1.5]


def test_the_operators_defaults():
    """LSTM has no P, and no input_forget, unless a model says so."""
    params = onnx_lstm(4).init(jax.random.key(0), 3)
    assert {name: a.shape for name, a in params.items()} == {
        "w": (3, 4, 4),
        "r": (4, 4, 4),
        "b": (4, 4),
    }


def test_a_length_of_zero():
    """ONNX Runtime gives zeros for the final state of an empty row; by the text it is the last
    output, of which there is none. We give back the initial state."""
    node = helper.make_node("LSTM", INPUTS[:7], ["Y", "Y_h"], hidden_size=H)
    arrays = drawn_all("LSTM", 1)
    del arrays["P"]
    for name in ("X", "initial_h", "initial_c"):
        arrays[name] = arrays[name].swapaxes(0, 1)
    arrays["sequence_lens"] = np.array([0, 2, T], np.int32)
    y, last = session(model_of(node, arrays)).run(None, arrays)
    came, _ = unrolled(node, arrays)
    np.testing.assert_allclose(came["Y"], y, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(came["Y_h"][:, 1:], last[:, 1:], rtol=1e-5, atol=1e-5)
    assert not last[:, 0].any()
    np.testing.assert_array_equal(came["Y_h"][:, 0], arrays["initial_h"][:, 0])


# Export.

HARD = Activation("HardSigmoid", 0.25, 0.5)
CLIPPED = [Activation(name, clip=0.5) for name in ("Sigmoid", "Tanh")]
OF_ONNX = onnx_lstm(4, activations=(*CLIPPED, "tanh"), peepholes=True)
SAME = [  # cells that come back as they are
    jaxrnn.elman(4),
    jaxrnn.elman(4, activation="relu"),
    jaxrnn.elman(4, activation=Activation("LeakyRelu", 0.25, clip=0.75)),
    jaxrnn.lstm(4),
    jaxrnn.lstm(4, peepholes=True),
    jaxrnn.lstm(4, coupled=True),
    jaxrnn.lstm(4, coupled=True, peepholes=True, activation="softplus"),
    jaxrnn.lstm(4, activation="soft_sign", gate_activation=HARD),
    OF_ONNX,
    onnx_lstm(4, activations=(HARD, "tanh", "relu"), input_forget=True, peepholes=True),
    jaxrnn.gru(4),
    jaxrnn.gru(4, reset_after=False),
    jaxrnn.gru(4, gate_activation=CLIPPED[0], activation=CLIPPED[1]),
    jaxrnn.gru(4, activation="relu", reset_after=False),
    backward(jaxrnn.gru(4)),
    jaxrnn.interop.without_bias(jaxrnn.gru(4)),
    jaxrnn.bidirectional(jaxrnn.interop.without_bias(jaxrnn.lstm(4, coupled=True))),
    jaxrnn.bidirectional(jaxrnn.lstm(4, peepholes=True)),
    jaxrnn.bidirectional(jaxrnn.elman(4), jaxrnn.elman(4, activation="relu")),
    jaxrnn.stack(jaxrnn.lstm(4), backward(jaxrnn.elman(2)), jaxrnn.gru(3)),
    jaxrnn.stack(jaxrnn.bidirectional(jaxrnn.gru(2)), jaxrnn.bidirectional(jaxrnn.lstm(4))),
]
OTHER = {  # cells that come back as others, with the same numbers
    jaxrnn.irnn(4): jaxrnn.elman(4, activation="relu"),
    jaxrnn.initialized(jaxrnn.gru(4), b=jax.nn.initializers.ones): jaxrnn.gru(4),
    jaxrnn.lstm(4, heads=2, residuals="states"): jaxrnn.lstm(4),
    jaxrnn.gru(4, heads=4): jaxrnn.gru(4),
    jaxrnn.lstm(4, activation=jnp.tanh): jaxrnn.lstm(4),
    jaxrnn.elman(4, activation="hard_sigmoid"): jaxrnn.elman(
        4, activation=Activation("HardSigmoid", float(np.float32(1 / 6)), 0.5)
    ),
    jaxrnn.stack(jaxrnn.stack(jaxrnn.gru(2), jaxrnn.dropout(0.5)), jaxrnn.lstm(2)): jaxrnn.stack(
        jaxrnn.gru(2), jaxrnn.lstm(2)
    ),
}


def params_of(cell, inputs=3):
    """Parameters of which none is zero."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda key: cell.init(key, inputs), jax.random.key(0))
    return jax.tree.map(lambda a: jnp.asarray(0.5 * rng.normal(size=a.shape), a.dtype), shapes)


def exported(cell, params, **options):
    model = jaxrnn.interop.to_onnx(cell, params, **options)
    onnx.checker.check_model(model, full_check=True)
    return model


@pytest.mark.parametrize("cell, wanted", [*((c, c) for c in SAME), *OTHER.items()], ids=repr)
def test_round_trip(cell, wanted):
    params = params_of(cell)
    model = exported(cell, params, lengths=True, state=True)
    again, same = jaxrnn.interop.from_onnx(model)
    assert again == wanted
    second = exported(again, same, lengths=True, state=True)
    assert second.SerializeToString() == model.SerializeToString()
    if cell == wanted:
        jax.tree.map(np.testing.assert_array_equal, same, params)

    rng = np.random.default_rng(0)
    feeds = {"xs": rng.normal(size=(5, 3, 3)), "lengths": np.array([5, 1, 3])}
    for info in model.graph.input[2:]:
        sizes = [d.dim_value or 3 for d in info.type.tensor_type.shape.dim]
        feeds[info.name] = rng.normal(size=sizes)
    feeds = {n: a.astype("int32" if n == "lengths" else "float32") for n, a in feeds.items()}
    ys, *final = session(model).run(None, feeds)

    begins = [feeds[name][d] for name, d in states(model.graph.input[2:])]
    tree = jax.tree.structure(jax.eval_shape(lambda: again.initial_state(same, (3,))))
    came, ours = unroll(again, same, feeds["xs"], tree.unflatten(begins), lengths=feeds["lengths"])
    np.testing.assert_allclose(ours, ys, rtol=1e-5, atol=1e-5)
    outputs = dict(zip((info.name for info in model.graph.output[1:]), final))
    for mine, (name, d) in zip(jax.tree.leaves(came), states(model.graph.output[1:])):
        np.testing.assert_allclose(mine, outputs[name][d], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("cell", [SAME[0], SAME[4], SAME[6], SAME[10], SAME[11]], ids=repr)
def test_two_biases(cell):
    """They come back as they went, bit by bit; the model computes the same as with their sum."""
    cell = jaxrnn.interop.double_bias(cell)
    params = params_of(cell)
    model = exported(cell, params)
    again, same = jaxrnn.interop.from_onnx(model, double_bias=True)
    assert again == cell
    jax.tree.map(np.testing.assert_array_equal, same, params)
    xs = np.random.default_rng(0).normal(size=(5, 3, 3)).astype("float32")
    ys, *_ = session(model).run(None, {"xs": xs})
    for one in ((cell, params), jaxrnn.interop.from_onnx(model)):
        ours = unroll(*one, xs)[1]
        np.testing.assert_allclose(ours, ys, rtol=1e-5, atol=1e-5)


def states(infos):
    """Names and directions of the states [D, B, H], in the order of our tree's leaves."""
    layers = {}
    for info in infos:
        layers.setdefault(info.name.rpartition("_")[2], []).append(info)
    for _, infos in sorted(layers.items()):
        for d in range(infos[0].type.tensor_type.shape.dim[0].dim_value):
            yield from ((info.name, d) for info in infos)


def test_a_cell_itself_runs_as_its_model():
    """The cell that was exported, heads and dropout in it, with neither lengths nor states, and
    two shapes in one session."""
    cell = jaxrnn.stack(jaxrnn.lstm(4, heads=2), jaxrnn.dropout(0.5), jaxrnn.irnn(3))
    params = params_of(cell)
    one = session(exported(cell, params))
    for shape in ((5, 2, 3), (1, 4, 3)):
        xs = np.random.default_rng(0).normal(size=shape).astype("float32")
        ys, *_ = one.run(None, {"xs": xs})
        ours = unroll(cell, params, xs)[1]
        np.testing.assert_allclose(ours, ys, rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("cell", [SAME[4], SAME[10], SAME[11], SAME[-1]], ids=repr)
def test_float64(cell):
    """By onnx's own evaluator: ONNX Runtime has no kernels for it."""
    params = params_of(cell)
    model = exported(cell, params)
    xs = np.random.default_rng(0).normal(size=(5, 3, 3))
    ys, *_ = onnx.reference.ReferenceEvaluator(model).run(None, {"xs": xs})
    assert ys.dtype == np.float64
    assert error(unroll(cell, params, xs)[1], ys) < 1e-12
    again, same = jaxrnn.interop.from_onnx(model)
    assert again == cell
    jax.tree.map(np.testing.assert_array_equal, same, params)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision(dtype):
    cell = SAME[-1]
    params = jax.tree.map(lambda a: a.astype(dtype), params_of(cell))
    again, same = jaxrnn.interop.from_onnx(exported(cell, params))
    assert again == cell and {a.dtype.name for a in jax.tree.leaves(same)} == {dtype}
    jax.tree.map(np.testing.assert_array_equal, same, params)


# Models of several nodes.


def test_a_file(tmp_path):
    cell = jaxrnn.gru(4)
    params = params_of(cell)
    onnx.save(exported(cell, params), tmp_path / "gru.onnx")
    assert jaxrnn.interop.from_onnx(tmp_path / "gru.onnx")[0] == cell
    assert jaxrnn.interop.from_onnx(str(tmp_path / "gru.onnx"))[0] == cell


@pytest.mark.parametrize("both", [False, True], ids=["forward", "both"])
@pytest.mark.parametrize("kind", ["RNN", "LSTM", "GRU"])
def test_what_pytorch_exports(kind, both, tmp_path):
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    make = getattr(torch.nn, kind)
    module = make(3, 4, num_layers=2, bidirectional=both, batch_first=both, dropout=0.5).eval()
    xs, path = torch.randn(2, 5, 3), tmp_path / "torch.onnx"
    free = {"dynamic_axes": {"xs": {0: "rows", 1: "steps"}}} if both else {}
    with warnings.catch_warnings():  # of its own ways, and that this exporter is the older one
        warnings.simplefilter("ignore")
        torch.onnx.export(module, (xs,), path, dynamo=False, input_names=["xs"], **free)
    cell, params = jaxrnn.interop.from_onnx(path)
    layer = {"RNN": jaxrnn.elman, "LSTM": jaxrnn.lstm, "GRU": jaxrnn.gru}[kind](4)
    assert cell == jaxrnn.stack(*[jaxrnn.bidirectional(layer) if both else layer] * 2)
    turned = (lambda a: a.swapaxes(0, 1)) if both else (lambda a: a)
    ys = unroll(cell, params, turned(xs.numpy()))[1]
    truth = module(xs)[0].detach().numpy()
    np.testing.assert_allclose(turned(ys), truth, rtol=1e-5, atol=1e-5)


def two(cell=None, **options):
    """A model of two nodes."""
    cell = cell or jaxrnn.stack(jaxrnn.lstm(4), jaxrnn.gru(2))
    return exported(cell, params_of(cell), **options)


def test_one_node_of_a_model():
    model = two()
    whole, params = jaxrnn.interop.from_onnx(model)
    for i, names in enumerate((("layer_0", "Y_0", "c_0"), ("layer_1", "h_1"))):
        for name in names:
            cell, own = jaxrnn.interop.from_onnx(model, node=name)
            assert cell == whole.made.args[i]
            jax.tree.map(np.testing.assert_array_equal, own, params[str(i)])


def test_an_initial_state_in_the_model():
    cell = jaxrnn.bidirectional(jaxrnn.lstm(4))
    model = exported(cell, params_of(cell), state=True)
    begins = np.random.default_rng(0).normal(size=(2, 2, 1, 4)).astype("float32")
    for name, value in zip(("initial_h_0", "initial_c_0"), begins):
        value = np.broadcast_to(value, (2, 3, 4))
        model.graph.initializer.append(onnx.numpy_helper.from_array(value, name))
    del model.graph.input[1:]
    again, params = jaxrnn.interop.from_onnx(model)
    assert again == jaxrnn.bidirectional(jaxrnn.learned_state(jaxrnn.lstm(4)))
    xs = np.random.default_rng(1).normal(size=(5, 3, 3)).astype("float32")
    ys = session(model).run(["ys"], {"xs": xs})[0]
    ours = unroll(again, params, xs)[1]
    np.testing.assert_allclose(ours, ys, rtol=1e-5, atol=1e-5)


# The cells that are ONNX's.


@pytest.mark.parametrize(
    "cell", [c for c in SAME if "onnx" in repr(c) or "Act" in repr(c)], ids=repr
)
def test_a_cell_like_any_other(cell):
    params = params_of(cell)
    assert pickle.loads(pickle.dumps(cell)) == cell and hash(copy.copy(cell)) == hash(cell)
    xs = np.random.default_rng(2).normal(size=(3, 2, 3)).astype("float32")

    @jax.jit
    def found(params):
        def loss(params, implementation):
            out = jaxrnn.unroll(cell, params, xs, implementation=implementation)
            return (out[1] ** 2).sum(), out

        grads = jax.value_and_grad(loss, has_aux=True)
        step = lambda state, x: cell.step(params, state, x)  # noqa: E731
        stepped = jax.lax.scan(step, cell.initial_state(params, (2,)), xs)
        return grads(params, "xla"), grads(params, "reference"), stepped

    xla, wanted, stepped = found(params)
    assert error(xla, wanted) < 1e-5
    assert error(stepped, xla[0][1]) < 1e-6


# What cannot be.


def node_of(op="LSTM", **options):
    names = ("X", "W", "R")
    return helper.make_node(op, names, ["Y"], name="mine", **{"hidden_size": 3} | options)


def import_of(op="LSTM", w=None, r=None, **options):
    """The import of a node, of wrong attributes or weights."""
    gates = GATES.get(op, 1)
    w = np.ones((1, gates * 3, 2), "float32") if w is None else w
    r = np.ones((1, gates * 3, 3), "float32") if r is None else r
    return lambda: jaxrnn.interop.from_onnx(node_of(op, **options), {"W": w, "R": r})


def changed(change, **options):
    """The import of two nodes, something changed in the model."""

    def run():
        model = two(**options)
        change(model.graph)
        return jaxrnn.interop.from_onnx(model)

    return run


def relu_between(graph):
    graph.node[1].output[0] = "raw"
    graph.node.insert(2, helper.make_node("Relu", ["raw"], ["ys_0"]))


def residual(graph):
    graph.node[1].output[0] = "raw"
    graph.node.insert(2, helper.make_node("Concat", ["raw", "xs"], ["ys_0"], axis=-1))


def other_rows(graph):
    graph.node[1].output[0] = "raw"
    graph.node.insert(2, helper.make_node("Transpose", ["raw"], ["ys_0"], perm=[1, 0, 2]))


def lengths_of_one(graph):
    graph.node[2].input[4] = ""


def constant_lengths(graph):
    value = np.array([1, 2], np.int32)
    graph.initializer.append(onnx.numpy_helper.from_array(value, "fixed"))
    graph.node[0].input.append("fixed")


def state_of_the_other(graph):
    graph.node[2].input.extend(["", "h_0"])


def computed_state(graph):
    graph.node.insert(0, helper.make_node("Relu", ["begins"], ["positive"]))
    graph.node[1].input.extend(["", "positive", ""])


def rows_of_their_own(graph):
    value = np.arange(8, dtype="float32").reshape(1, 2, 4)
    graph.initializer.append(onnx.numpy_helper.from_array(value, "begins"))
    graph.node[0].input.extend(["", "begins", ""])


def sent(cell, **options):
    return lambda: jaxrnn.interop.to_onnx(cell, params_of(cell), **options)


V, E = ValueError, TypeError
LONG = np.ones((1, 16, 2), "float32")
BAD = {  # the call, the error, and what its text or its notes have
    "model": (lambda: jaxrnn.interop.from_onnx(3), E, "model: ", "got int", "onnx.NodeProto"),
    "operator": (import_of("Conv"), V, "model: ", "'Conv'", "RNN, GRU, LSTM"),
    "no weights": (
        lambda: jaxrnn.interop.from_onnx(node_of()),
        V,
        "W: ",
        "'W'",
        "weights=",
        "LSTM 'mine'",
    ),
    "unknown weights": (
        lambda: jaxrnn.interop.from_onnx(node_of(), {"w": LONG}),
        V,
        "weights: ",
        "['w']",
        "'W'",
    ),
    "node": (
        lambda: jaxrnn.interop.from_onnx(two(), node="lstm"),
        V,
        "node: ",
        "'lstm'",
        "layer_0",
    ),
    "shape": (import_of(w=LONG), V, "(1, 16, 2)", "(1, 12, 2)", "hidden_size=3", "LSTM 'mine'"),
    "directions": (import_of(direction="bidirectional"), V, "W: ", "(1, 12, 2)", "(2, 12, 2)"),
    "direction": (import_of(direction="up"), V, "direction: ", "'up'", "'reverse'"),
    "type": (import_of(r=np.ones((1, 12, 3))), E, "R: ", "float64", "float32"),
    "int": (import_of(w=np.ones((1, 12, 2), int)), E, "W: ", "int64", "floating"),
    "attribute": (import_of(output_sequence=1), V, "attributes: ", "'output_sequence'", "'clip'"),
    "clip": (import_of(clip=-1.0), V, "clip: ", "-1", "above 0"),
    "activations": (import_of(activations=["Tanh"]), V, "activations: ", "('Tanh',)", "3 of them"),
    "activation": (import_of("RNN", activations=["Gelu"]), V, "activations: ", "'Gelu'", "'Relu'"),
    "no alpha": (
        import_of("RNN", activations=["Affine"]),
        V,
        "activation_alpha: ",
        "Affine",
        "no default",
    ),
    "no beta": (
        import_of("RNN", activations=["ScaledTanh"], activation_alpha=[1.0]),
        V,
        "activation_beta: ",
        "ScaledTanh",
        "no default",
    ),
    "alpha for nobody": (
        import_of("RNN", activations=["Tanh"], activation_alpha=[1.0]),
        V,
        "activation_alpha: ",
        "1 more",
        "('Tanh',)",
    ),
    "no two biases": (
        lambda: jaxrnn.interop.from_onnx(
            node_of(), {"W": LONG[:, :12], "R": np.ones((1, 12, 3), "float32")}, double_bias=True
        ),
        V,
        "double_bias: ",
        "no biases",
        "LSTM 'mine'",
    ),
    "two biases of another": (
        lambda: jaxrnn.interop.from_onnx(two(OF_ONNX), double_bias=True),
        V,
        "double_bias: ",
        "onnx_lstm",
        "an elman, lstm or gru",
        "LSTM 'layer_0'",
    ),
    "relu between": (changed(relu_between), V, "GRU 'layer_1'", "LSTM 'layer_0'", "node="),
    "other features": (changed(residual), V, "GRU 'layer_1'", "LSTM 'layer_0'", "node="),
    "rows for steps": (changed(other_rows), V, "GRU 'layer_1'", "LSTM 'layer_0'", "node="),
    "lengths": (
        changed(lengths_of_one, lengths=True),
        V,
        "sequence_lens: ",
        "'lengths' for LSTM 'layer_0'",
        "'' for GRU 'layer_1'",
    ),
    "constant lengths": (
        changed(constant_lengths),
        V,
        "sequence_lens: ",
        "'fixed'",
        "`lengths`",
        "LSTM 'layer_0'",
    ),
    "state": (changed(state_of_the_other), V, "initial state: ", "LSTM 'layer_0'", "node="),
    "computed state": (
        changed(computed_state),
        V,
        "initial state: ",
        "'positive'",
        "an input",
    ),
    "rows": (changed(rows_of_their_own), V, "initial state: ", "'begins'", "`state`"),
    "cell": (sent(jaxrnn.mgu(4)), V, "cell: ", "mgu(hidden=4)", "elman, gru"),
    "lifted": (sent(jaxrnn.residual(jaxrnn.gru(3))), V, "cell: ", "residual", "elman, gru"),
    "no cell": (lambda: jaxrnn.interop.to_onnx(jaxrnn.lstm, {}), E, "cell: ", "lstm", "a Cell"),
    "layer": (
        sent(jaxrnn.stack(jaxrnn.gru(3), jaxrnn.project(2))),
        V,
        "project",
        "in layer 1",
    ),
    "nothing": (sent(jaxrnn.stack(jaxrnn.dropout(0.5))), V, "cell: ", "a recurrent layer"),
    "cell clip": (sent(jaxrnn.lstm(4, cell_clip=1.0)), V, "cell_clip: ", "1.0", "None"),
    "coupled": (
        sent(jaxrnn.lstm(4, coupled=True, gate_activation=HARD)),
        V,
        "gate_activation: ",
        "HardSigmoid",
        "'sigmoid'",
    ),
    "projection": (sent(jaxrnn.lstm(4, projection=2)), V, "projection: ", "2", "None"),
    "our activation": (
        sent(jaxrnn.elman(4, activation="gelu")),
        V,
        "activation: ",
        "'gelu'",
        "'tanh'",
    ),
    "a function": (
        sent(jaxrnn.elman(4, activation=jnp.cos)),
        V,
        "activation: ",
        "'cos'",
        "'tanh'",
    ),
    "two clips": (
        sent(jaxrnn.lstm(4, gate_activation=CLIPPED[0])),
        V,
        "clip: ",
        "[0.5, None, None]",
        "[0.5, 0.5, None]",
    ),
    "merge": (
        sent(jaxrnn.bidirectional(jaxrnn.gru(4), merge="sum")),
        V,
        "merge: ",
        "'sum'",
        "concat",
    ),
    "two operators": (
        sent(jaxrnn.bidirectional(jaxrnn.gru(4), jaxrnn.lstm(4))),
        V,
        "gru",
        "lstm",
        "one operator",
    ),
    "types": (
        lambda: jaxrnn.interop.to_onnx(
            jaxrnn.elman(2), {"w": jnp.ones((1, 1, 2), "float16"), "r": jnp.ones((2, 1, 2))}
        ),
        V,
        "params: ",
        "['float16', 'float32']",
        "one floating type",
    ),
    "params": (
        lambda: jaxrnn.interop.to_onnx(SAME[0], {"w": jnp.ones((1, 1, 4))}),
        V,
        "params: ",
        "['w']",
        "['b', 'r', 'w']",
    ),
    "no params": (
        lambda: jaxrnn.interop.to_onnx(SAME[0], jnp.ones(3)),
        V,
        "params: ",
        "['b', 'r', 'w']",
    ),
    "layers": (
        lambda: jaxrnn.interop.to_onnx(SAME[-1], params_of(SAME[0])),
        V,
        "params: ",
        "['0', '1']",
    ),
    "features": (
        lambda: jaxrnn.interop.to_onnx(
            SAME[19], params_of(SAME[19]) | {"1": params_of(backward(jaxrnn.elman(2)))}
        ),
        V,
        "params: ",
        "for 3 features",
        "want 4",
        "in layer 1",
    ),
    "step": (
        lambda: backward(SAME[0]).step(params_of(SAME[0]), None, jnp.ones((1, 3))),
        V,
        "backward",
        "whole sequence",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be(name):
    call, kind, *wanted = BAD[name]
    with pytest.raises(kind) as caught:
        call()
    text = "\n".join([str(caught.value), *getattr(caught.value, "__notes__", [])])
    for part in wanted:
        assert part in text, text


def test_a_written_size_between_two_directions_and_the_next_layer():
    """A model may say how many features both directions give, in place of -1."""
    cell = jaxrnn.stack(jaxrnn.bidirectional(jaxrnn.gru(4)), jaxrnn.gru(5))
    model = jaxrnn.interop.to_onnx(cell, cell.init(jax.random.key(0), 3))
    (shape,) = (one for one in model.graph.initializer if one.name == "shape_0")
    assert onnx.numpy_helper.to_array(shape).tolist() == [0, 0, -1]
    shape.CopyFrom(onnx.numpy_helper.from_array(np.array([0, 0, 8]), "shape_0"))
    assert jaxrnn.interop.from_onnx(model)[0] == cell
    shape.CopyFrom(onnx.numpy_helper.from_array(np.array([0, 0, 12]), "shape_0"))
    with pytest.raises(ValueError):
        jaxrnn.interop.from_onnx(model)


def test_a_module_that_pytorch_wrote_as_matmuls():
    """As its exporter writes ``nn.RNN`` by default since 2.9, with a note of what it was."""
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    graph = helper.make_graph([node], "main_graph", [], [])
    with pytest.raises(
        ValueError,
        match=r"got nodes \['MatMul'\], want one of RNN, .*State among them$",
    ):
        jaxrnn.interop.from_onnx(helper.make_model(graph))
    graph.node[0].metadata_props.add(key="pkg.torch.onnx.class_hierarchy")
    older = "export with dynamo=False, or "  # which writes cells as matmuls too
    for name, advice in (("RNN", older), ("LSTMCell", "")):
        note = f"['torch.nn.modules.rnn.{name}', 'aten.linear.default']"
        graph.node[0].metadata_props[0].value = note
        want = f"has written {name} as a matmul for each step; {advice}convert the module by "
        with pytest.raises(ValueError, match=want):
            jaxrnn.interop.from_onnx(helper.make_model(graph))
