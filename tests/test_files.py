"""A file alone gives back the cell and its parameters, bit by bit; any other file is an error."""

import json
import os
import pathlib
import random
import subprocess
import sys
import tempfile

import cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn.interop.onnx
from jaxrnn._src.core.cell import Cell, constructor
from jaxrnn._src.core.param_spec import whole as whole_array
from jaxrnn.interop import onnx

safetensors = pytest.importorskip("safetensors.numpy")
files = pytest.importorskip("jaxrnn.files")
hypothesis = pytest.importorskip("hypothesis")
st = hypothesis.strategies

MODULES = (jaxrnn, jaxrnn.interop, jaxrnn.interop.onnx)
CONSTRUCTORS = {v for m in MODULES for v in vars(m).values() if isinstance(v, constructor)}
LEAKY = onnx.activations.Activation("LeakyRelu", 0.02)
double = jaxrnn.stateless(lambda key, in_size: {}, lambda params, x: 2 * x)
CELLS = {name: case.make(6) for name, case in cases.CELLS.items()} | {
    "embedding": jaxrnn.stack(jaxrnn.embedding(5, 4), jaxrnn.gru(3)),
    "bidirectional": jaxrnn.bidirectional(jaxrnn.lstm(4), jaxrnn.gru(4), merge="sum"),
    "initialized": jaxrnn.initialized(jaxrnn.lstm(4), "torch", b=jaxrnn.chrono(9), r="ones"),
    "initialized_each": jaxrnn.initialized(jaxrnn.lstm(4), b=("ones", "zeros", "ones", "zeros")),
    "layer_norm": jaxrnn.stack(jaxrnn.layer_norm(epsilon=1e-3), jaxrnn.gru(4)),
    "stateless": jaxrnn.stack(double, jaxrnn.gru(4)),
    "double_bias": jaxrnn.interop.double_bias(jaxrnn.gru(4)),
    "without_bias": jaxrnn.stack(jaxrnn.interop.without_bias(jaxrnn.lstm(4))),
    "onnx_lstm": onnx.backward(onnx.onnx_lstm(4, activations=("relu", LEAKY, "tanh"))),
    "gru": jaxrnn.gru(4, reset_after=False, activation=LEAKY),
    "int8": jaxrnn.int8(jaxrnn.lstm(4, projection=2)),
    "numpy": jaxrnn.lstm(np.int64(4), cell_clip=np.float32(0.1), peepholes=np.True_),
    "infinite": jaxrnn.layer_norm(epsilon=float("inf")),
    "rms_norm": jaxrnn.rms_norm(groups=3),
    "soft_cap": jaxrnn.soft_cap(30.0),
    "mlstm_memory": jaxrnn.stack(jaxrnn.project(16), jaxrnn.mlstm_memory(4, heads=2)),
    "delta_memory": jaxrnn.stack(jaxrnn.project(16), jaxrnn.gated_delta_memory(4, heads=2)),
    "onnx_memory": jaxrnn.stack(
        jaxrnn.project(12), onnx.onnx_linear_attention(4, rule="linear", heads=2)
    ),
    "wavefront": jaxrnn.wavefront(jaxrnn.stack(jaxrnn.gru(4)), axis="depth", chunk=2),
}
CELLS["online"] = jaxrnn.online(jaxrnn.indrnn(4), "rtrl")


def parts(value):
    """Everything a cell is made of: its cells, and all that is no cell."""
    yield value
    if isinstance(value, Cell):
        made = value.made
        value = (made.constructor, *made.args, *(one for _, one in made.kwargs))
    if type(value) is tuple:
        for one in value:
            yield from parts(one)


def named(cell):
    """What a file cannot say of a cell, by a name each."""
    own = [part for part in parts(cell) if callable(part) and files._call(part) is None]
    own = [part for part in own if files._name(part, {}) is None]
    return {f"own {i}": part for i, part in enumerate(own)}


def random_params(cell, in_size, seed=0):
    """Any bits, in the shapes of a cell's parameters: nothing is compiled."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(lambda key: cell.init(key, in_size), jax.random.key(0))
    return jax.tree.map(lambda like: some(rng, like), shapes)


def some(rng, like):
    size = like.size * like.dtype.itemsize
    return jnp.array(np.frombuffer(rng.bytes(size), like.dtype).reshape(like.shape))


def bits(tree):
    return jax.tree.map(lambda a: (str(a.dtype), a.shape, np.asarray(a).tobytes()), tree)


@pytest.mark.parametrize("name", CELLS)
def test_every_cell_comes_back(name, tmp_path):
    cell, path = CELLS[name], tmp_path / "it.safetensors"
    size = None if name == "embedding" else getattr(cases.CELLS.get(name), "inputs", None) or 3
    params = random_params(cell, size)
    files.save(path, cell, params, names=named(cell))
    came, again = files.load(path, names=named(cell))
    assert came == cell and hash(came) == hash(cell)
    assert repr(came) == repr(cell) or name == "numpy"  # whose numbers are Python's now
    assert bits(again) == bits(params)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(again))


def test_every_constructor_is_tried():
    whole = [part for cell in CELLS.values() for part in parts(cell) if isinstance(part, Cell)]
    assert {cell.made.constructor for cell in whole} >= CONSTRUCTORS
    assert all(files.own(f"{made.__module__}.{made.__name__}") is made for made in CONSTRUCTORS)
    assert all(files.own(path).__name__ in path for path in files.RECORDS)


def test_parameters_of_what_reads_tokens_have_to_fit(tmp_path):
    cell = CELLS["embedding"]
    params = random_params(cell, None)
    with pytest.raises(ValueError, match="params.*table.*got shape .5, 3., want .5, 4."):
        files.save(tmp_path / "it", cell, params | {"0": {"table": jnp.ones((5, 3))}})


TREE = {
    "scalar": np.float32(-0.0) + np.zeros(()),
    "none": {},
    "empty": np.zeros((0, 3), np.int8),
    "by columns": np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3)),
    "several": ([np.array([True, False])], (np.full(2, np.nan, np.float16),), ()),
    "steps": np.arange(12, dtype=np.uint16)[::-2],
    "of another machine": np.arange(3, dtype=">f4"),
    "ü": np.arange(3, dtype=np.complex64),
    "brain": jnp.arange(5, dtype=jnp.bfloat16) / 3,
}


def test_every_tree_and_type_comes_back(tmp_path):
    path, cell = tmp_path / "it", jaxrnn.dropout(0.5)
    tree = {**TREE, "scalar": np.array(-0.0, np.float32)}
    files.save(path, cell, tree)
    came = files.load(path)[1]
    assert jax.tree.structure(came) == jax.tree.structure(tree)
    native = jax.tree.map(lambda a: np.asarray(a, a.dtype.name), tree)
    assert bits(came) == bits(native)


def test_double_precision_is_kept_or_refused(tmp_path):
    path, cell = tmp_path / "it", jaxrnn.gru(2)
    with jax.enable_x64(True):
        params = random_params(cell, 3)
        files.save(path, cell, params)
        assert bits(files.load(path)[1]) == bits(params)
    with pytest.raises(ValueError, match="it: b is float64, want jax_enable_x64"):
        files.load(path)


def test_others_can_read_it(tmp_path):
    path, cell = tmp_path / "it", CELLS["stack"]
    params = random_params(cell, 3)
    files.save(path, cell, params)
    arrays = safetensors.load_file(path)
    assert sorted(arrays) == sorted(f"{i}.{n}" for i, layer in params.items() for n in layer)
    assert arrays["2.r"].tobytes() == np.asarray(params["2"]["r"]).tobytes()
    before = path.read_bytes()
    files.save(path, cell, params)
    assert path.read_bytes() == before


ELMAN = jaxrnn.elman(2)
PARAMS = random_params(ELMAN, 3)


@pytest.fixture
def saved(tmp_path):
    """A small file."""
    path = tmp_path / "saved.safetensors"
    files.save(path, ELMAN, PARAMS)
    return path


def check_refused(path, data):
    """Another file is an error that names it, or says what the true one says."""
    path.write_bytes(data)
    try:
        came = files.load(path)
    except ValueError as error:
        assert str(error).startswith(f"{path}: ")
    else:
        assert came[0] == ELMAN and bits(came[1]) == bits(PARAMS)
        return True


def test_every_truncation(saved):
    data = saved.read_bytes()
    assert not any(check_refused(saved, data[:size]) for size in range(len(data)))
    assert not check_refused(saved, data + b"\0")


def test_every_byte_changed(saved):
    data, rng = saved.read_bytes(), random.Random(0)
    for i in range(len(data)):
        changed = bytearray(data)
        changed[i] ^= 1 << rng.randrange(8)
        assert not check_refused(saved, bytes(changed)), i


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The bytes of a file, and a path for others."""
    path = tmp_path_factory.mktemp("whole") / "it"
    files.save(path, ELMAN, PARAMS)
    return path.read_bytes(), path


@hypothesis.settings(max_examples=100, deadline=None, derandomize=True, database=None)
@hypothesis.given(data=st.data())
def test_pieces_replaced(whole, data):
    true, path = whole
    first, last = sorted(data.draw(st.tuples(*[st.integers(0, len(true))] * 2)))
    piece = data.draw(st.one_of(st.binary(max_size=20), st.just(true[last : 2 * last - first])))
    changed = true[:first] + piece + true[last:]
    assert check_refused(path, changed) in (None, changed == true)


@pytest.mark.parametrize("data", (b"", b"\x93NUMPY", b"{}", b"\xff" * 64, bytes(64)))
def test_a_foreign_file(saved, data):
    saved.write_bytes(data)
    with pytest.raises(ValueError, match="saved.safetensors: not a whole safetensors file"):
        files.load(saved)


@pytest.mark.parametrize(
    "metadata", (None, {"format": "pt"}, {"jaxrnn": "lstm"}, {"jaxrnn": "{}"}, {"jaxrnn": "[1]"})
)
def test_a_file_of_others(saved, metadata):
    safetensors.save_file({"w": np.ones(3)}, saved, metadata)
    with pytest.raises(ValueError, match="saved.safetensors: it describes no cell"):
        files.load(saved)
    with pytest.raises(FileNotFoundError):
        files.load(saved.with_name("nothing"))


def written(path, cell, params="w", arrays=None):
    """A file that says anything, with a true digest."""
    arrays = {"w": np.ones(3, np.float32)} if arrays is None else arrays
    contents = {"cell": cell, "params": params}
    contents["sha256"] = files._digest(contents, arrays)
    safetensors.save_file(arrays, path, {"jaxrnn": json.dumps(contents)})


def call(name, *args, **kwargs):
    return {"call": name, "args": args, "kwargs": kwargs}


DEEP = "w"
for _ in range(90):
    DEEP = [DEEP]
HAND_MADE = {
    "code": (call("os.system", "true"), "'os.system', want jaxrnn's own or one of names=[]"),
    "no constructor": (call("jaxrnn.unroll"), "'jaxrnn.unroll'"),
    "no name": ({"name": "cube"}, "'cube'"),
    "no cell": (3, "describes 3, want a Cell"),
    "an initializer": (call("jaxrnn.chrono", 9), "want a Cell"),
    "an unknown option": (call("jaxrnn.lstm", 4, depth=2), "jaxrnn.lstm cannot be made", "depth"),
    "a bad value": (call("jaxrnn.lstm", -1), "hidden: got -1"),
    "text": (call("jaxrnn.lstm", "4"), "want an int"),
    "an odd thing": ({"eval": "1"}, "describes no cell: {'eval'"),
    "odd arguments": ({"call": "jaxrnn.lstm", "args": 4, "kwargs": {}}, "describes no cell"),
    "a great number": (call("jaxrnn.layer_norm", epsilon={"name": []}), "describes no cell"),
    "nests": (DEEP, "want a Cell"),
}


@pytest.mark.parametrize("name", HAND_MADE)
def test_a_file_made_by_hand(name, tmp_path):
    described, *texts = HAND_MADE[name]
    written(tmp_path / "it", described)
    with pytest.raises(ValueError) as caught:
        files.load(tmp_path / "it")
    assert all(text in str(caught.value) for text in [f"{tmp_path / 'it'}: ", *texts])


def test_parameters_of_another_cell(tmp_path):
    """As they may be for a cell of another version."""
    written(tmp_path / "it", call("jaxrnn.project", 4), {"w": "w", "b": "w"})
    with pytest.raises(ValueError, match=r"it: params\['b'\]: got shape \(3,\), want \(4,\)"):
        files.load(tmp_path / "it")


@pytest.mark.parametrize("params", ("v", None, ["set", "w"], [], 3, {"w": 1}))
def test_parameters_made_by_hand(params, tmp_path):
    written(tmp_path / "it", call("jaxrnn.dropout", 0.5), params)
    with pytest.raises(ValueError, match="it describes no parameters"):
        files.load(tmp_path / "it")


def test_an_unknown_type(tmp_path):
    written(
        tmp_path / "it", call("jaxrnn.dropout", 0.5), arrays={"w": np.ones(3, jnp.float8_e5m2)}
    )
    with pytest.raises(ValueError, match="it: w is F8_E5M2, want one of"):
        files.load(tmp_path / "it")


def cube(x):
    return x**3


@jaxrnn.constructor
def mine(hidden):
    return jaxrnn.gru(hidden)


class Parameter:
    """As of a module: it has a type and a shape, but is no array."""

    def __init__(self, value):
        self.dtype, self.shape = value.dtype, value.shape


W = jnp.ones(3)
V, T = ValueError, TypeError
REFUSED = {
    "function": (
        jaxrnn.elman(2, activation=cube),
        PARAMS,
        T,
        "cell: got cube in elman(hidden=2,",
        "give it a name, here and to load: names={'...': cube}",
    ),
    "constructor": (jaxrnn.stack(mine(2)), {}, T, "cell: got mine in stack(mine(hidden=2))"),
    "gated": (cases.mgu(2), {}, T, "cell: got mgu in mgu(hidden=2)"),
    "no cell": (jaxrnn.lstm, {}, T, "cell: got lstm, want a Cell"),
    "made by hand": (Cell(*[None] * 4), {}, T, "cell: got Cell(init=None", "constructor"),
    "flags": (ELMAN, PARAMS | {"b": True}, T, "params['b']: got bool, want an array"),
    "key": (ELMAN, PARAMS | {"b": jax.random.key(0)}, T, "params['b']: got key<fry>"),
    "text": (ELMAN, PARAMS | {"b": np.array("b")}, T, "params['b']: got <U1"),
    "no tuple of Python's": (
        jaxrnn.initialized(ELMAN, r=whole_array(cube)),
        PARAMS,
        T,
        "got whole(init=",
        "tuples",
    ),
    "module's": (ELMAN, {"w": Parameter(W)}, T, "params['w']: ", "Parameter, want an array"),
    "None": (ELMAN, PARAMS | {"b": None}, T, "params['b']: got NoneType"),
    "numbered": (ELMAN, {0: W}, T, "params: got dict"),
    "an array": (ELMAN, W, V, "params: its name in a file, '', is taken"),
    "two of a name": (ELMAN, {"a.b": W, "a": {"b": W}}, V, "params['a']['b']: its name", "'a.b'"),
    "the file's own": (ELMAN, {"__metadata__": W}, V, "'__metadata__', is taken"),
    "missing": (ELMAN, {"w": W, "r": W}, V, "params['b']: got none, want that of elman(hidden=2)"),
    "of another size": (
        jaxrnn.elman(3),
        PARAMS,
        V,
        "params['b']: got shape (1, 2), want (1, 3): elman(hidden=3)",
    ),
    "of another cell": (jaxrnn.gru(2), PARAMS, V, "params['b']: got shape (1, 2), want (3, 2)"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name, saved):
    cell, params, kind, *texts = REFUSED[name]
    before = saved.read_bytes()
    with pytest.raises(kind) as caught:
        files.save(saved, cell, params)
    assert caught.type is kind and all(text in str(caught.value) for text in texts), caught.value
    assert saved.read_bytes() == before and os.listdir(saved.parent) == [saved.name]


def test_names(tmp_path):
    """They stand for what they are given for, and jaxrnn's own cannot be taken."""
    path, cell = tmp_path / "it", jaxrnn.stack(mine(2), jaxrnn.elman(2, activation=cube))
    params = random_params(cell, 3)
    files.save(path, cell, params, names={"mine": mine, "cube": cube})
    assert files.load(path, names={"mine": mine, "cube": cube})[0] == cell
    other = files.load(path, names={"mine": jaxrnn.gru, "cube": cube})[0]
    assert other.made.args[0] == jaxrnn.gru(2)
    with pytest.raises(ValueError, match="made of 'cube', want .* one of names=\\['mine'\\]"):
        files.load(path, names={"mine": mine})
    with pytest.raises(TypeError, match="got mine in mine"):
        files.save(path, mine(2), {}, names={"jaxrnn.gru": mine})


@pytest.mark.parametrize("fails", ("fsync", "replace"))
@pytest.mark.parametrize("error", (OSError, KeyboardInterrupt))
def test_a_failed_write_leaves_the_old_file(saved, monkeypatch, fails, error):
    before = saved.read_bytes()

    def failing(*args):
        raise error("no space left")

    monkeypatch.setattr(os, fails, failing)
    with pytest.raises(error, match="no space left"):
        files.save(saved, jaxrnn.elman(3), random_params(jaxrnn.elman(3), 3))
    assert saved.read_bytes() == before and os.listdir(saved.parent) == [saved.name]


def test_a_new_file_takes_the_place_of_the_old(saved):
    """Whoever reads the old one goes on reading it, links stay, and it may be read as any file."""
    link = saved.with_name("link")
    link.symlink_to(saved)
    with saved.open("rb") as old:
        before, size = old.read(10), os.fstat(old.fileno()).st_size
        files.save(link, jaxrnn.elman(3), random_params(jaxrnn.elman(3), 3))
        assert len(before + old.read()) == size
    assert link.is_symlink() and files.load(saved)[0] == files.load(link)[0] == jaxrnn.elman(3)
    (saved.parent / "any").touch()
    assert saved.stat().st_mode == (saved.parent / "any").stat().st_mode
    assert sorted(os.listdir(saved.parent)) == ["any", "link", saved.name]


def test_a_file_of_a_later_format(tmp_path, monkeypatch):
    path = tmp_path / "it"
    with monkeypatch.context() as later:
        later.setattr(files, "FORMAT", 2)
        files.save(path, ELMAN, PARAMS)
    with pytest.raises(ValueError, match="it: a newer jaxrnn wrote it, in format 2"):
        files.load(path)


def test_what_a_file_needs_is_loaded_alone():
    """Neither ONNX nor another library, for a cell that has nothing of them."""
    program = """import sys
import jaxrnn, jaxrnn.files
saved = sys.argv[1]
cell = jaxrnn.gru(2)
jaxrnn.files.save(saved, cell, cell.init(__import__("jax").random.key(0), 3))
print(jaxrnn.files.load(saved)[0], "jaxrnn.interop" in sys.modules)"""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-c", program, f"{folder}/it"]
        done = subprocess.run(command, capture_output=True, text=True)
    assert done.stdout == "gru(hidden=2) False\n", done.stderr


def test_a_file_of_an_earlier_version():
    """Version 0.1.0 wrote it, when modules lay elsewhere; what the cell gave stands beside it."""
    saved = pathlib.Path(__file__).parent / "saved"
    cell, params = files.load(saved / "0.1.0.safetensors")
    given = np.load(saved / "0.1.0.npz")
    _, ys = jaxrnn.unroll(cell, params, jnp.asarray(given["xs"]))
    np.testing.assert_allclose(ys, given["ys"], rtol=1e-5, atol=1e-6)


def test_a_byte_changed_in_a_larger_file(tmp_path):
    """An array is known by all of its bytes, not by the first of them."""
    path, cell = tmp_path / "saved.safetensors", jaxrnn.elman(8)
    files.save(path, cell, random_params(cell, 3))
    data = path.read_bytes()
    for i in range(len(data) - 1, 0, -7):
        path.write_bytes(data[:i] + bytes([data[i] ^ 1]) + data[i + 1 :])
        with pytest.raises(ValueError, match="saved.safetensors: "):
            files.load(path)
