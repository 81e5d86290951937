"""Parameters in any mapping, and without empty dicts, as some checkpoints give them back."""

import collections
import dataclasses
import functools
import types
from collections.abc import Mapping

import cases
import jax
import jax.numpy as jnp
import pytest

import jaxrnn
import jaxrnn.interop
from jaxrnn import interop
from jaxrnn._src.core.checks import check_same_size

KEY = jax.random.key(0)
XS = jnp.ones((4, 2, 3))  # [T, B, I]


class Own(Mapping):
    """A mapping that JAX knows nothing of."""

    def __init__(self, items):
        self.items_ = items

    def __getitem__(self, name):
        return self.items_[name]

    def __iter__(self):
        return iter(self.items_)

    def __len__(self):
        return len(self.items_)


def made_of(kind, params):
    """Dicts of dicts as another kind of mapping."""
    if not isinstance(params, dict):
        return params
    return kind({name: made_of(kind, value) for name, value in params.items()})


def frozen(params):
    return pytest.importorskip("flax.core").freeze(params)


def without_empty(params):
    """What is left of parameters that were flattened to arrays by their paths."""
    left = {n: without_empty(p) if isinstance(p, dict) else p for n, p in params.items()}
    return {name: value for name, value in left.items() if not isinstance(value, dict) or value}


KINDS = {
    "OrderedDict": collections.OrderedDict,
    "FrozenDict": frozen,
    "MappingProxyType": types.MappingProxyType,
    "Own": Own,
}
DEEP = jaxrnn.stack(
    jaxrnn.learned_state(jaxrnn.highway(jaxrnn.int8(jaxrnn.gru(3)))),
    jaxrnn.dense(jaxrnn.weight_dropout(jaxrnn.lstm(4), 0.5)),
    jaxrnn.attentive(jaxrnn.zoneout(jaxrnn.gru(2, reset_after=False), 0.5), 5),
    jaxrnn.project(2),
)
BOTH = jaxrnn.bidirectional(jaxrnn.elman(2))


@functools.cache
def example(cell):
    """A cell's parameters, and a state."""
    params = jax.jit(cell.init, static_argnums=1)(KEY, 3)
    return params, cell.initial_state(params, (2,))


def program(function, *args):
    """What JAX makes of a call: the same for the same numbers in the same order."""
    return str(jax.make_jaxpr(function)(*args))


# Any mapping


@functools.cache
def programs(kind):
    """Of all that takes parameters, given as a kind of mapping; and what is said of them."""
    (params, state), (other, _) = example(DEEP), example(BOTH)
    p, q = made_of(kind, params), made_of(kind, other)
    calls = {
        "unroll": lambda xs: jaxrnn.unroll(DEEP, p, xs, state, key=KEY),
        "step": lambda xs: DEEP.step(p, state, xs[0], KEY),
        "initial_state": lambda xs: DEEP.initial_state(p, xs.shape[1:-1]),
        "trace": lambda xs: jaxrnn.trace(DEEP, p, xs),
        "gradient_norms": lambda xs: jaxrnn.inside.gradient_norms(DEEP, p, xs),
        "both": lambda xs: jaxrnn.unroll(BOTH, q, xs),
    }
    found = {name: program(call, XS) for name, call in calls.items()}
    return found | {"explain": jaxrnn.explain(DEEP, p, XS)}


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_any_mapping_is_as_good_as_a_dict(kind):
    wanted = programs(dict)
    for name, came in programs(kind).items():
        assert came == wanted[name], name


@pytest.mark.parametrize("kind", [collections.OrderedDict, frozen])
def test_gradients_have_the_structure_that_came(kind):
    cell = jaxrnn.stack(jaxrnn.gru(2), jaxrnn.dropout(0.5), jaxrnn.project(2))
    params = made_of(kind, example(cell)[0])
    loss = lambda p: (
        jaxrnn.unroll(cell, p, XS)[1].sum()
        + cell.step(p, cell.initial_state(p, (2,)), XS[0])[1].sum()
    )
    gradient = jax.eval_shape(jax.grad(loss), params)
    assert jax.tree.structure(gradient) == jax.tree.structure(params)
    assert type(gradient) is type(params) and type(gradient["0"]) is type(params["0"])


@pytest.mark.parametrize("name", cases.CELLS)
def test_every_cell(name):
    """One step and the state before it, of what JAX knows as no tree, with what is empty lost."""
    case = cases.CELLS[name]
    cell, inputs = case.make(6), case.inputs or 3
    params = jax.eval_shape(lambda key: cell.init(key, inputs), KEY)

    def run(params, x):
        given = made_of(types.MappingProxyType, without_empty(params))
        return cell.step(given, cell.initial_state(given, (2,)), x)

    wanted = lambda params, x: cell.step(params, cell.initial_state(params, (2,)), x)
    x = jax.ShapeDtypeStruct((2, inputs), XS.dtype)
    assert jax.eval_shape(run, params, x) == jax.eval_shape(wanted, params, x)


def test_a_dataclass_stays_what_it_is():
    """A cell of one's own may read the fields of its parameters, though they are a mapping too."""

    @functools.partial(jax.tree_util.register_dataclass, data_fields=["w"], meta_fields=[])
    @dataclasses.dataclass
    class Weights(Mapping):
        w: jax.Array
        __getitem__ = getattr
        __iter__ = lambda self: iter(["w"])
        __len__ = lambda self: 1

    cell = jaxrnn.cell(
        lambda key, in_size: Weights(jnp.ones(in_size)),
        lambda params, batch: jnp.zeros((*batch, params.w.size)),
        lambda params, state, x: (state + params.w * x, state),
    )
    cell = jaxrnn.stack(jaxrnn.dropout(0.5), cell)
    came = jax.eval_shape(lambda: jaxrnn.unroll(cell, cell.init(KEY, 3), XS[:, 0])[1])
    assert came.shape == (4, 3)


def bits(tree):
    return jax.tree.map(lambda a: (jnp.asarray(a).dtype.name, jnp.asarray(a).tolist()), tree)


GRU, LSTM = jaxrnn.gru(2), jaxrnn.lstm(2)
TO = {  # what it needs, a cell, and what is compared of what it gives
    "torch": ("torch", GRU, lambda m: {n: a.numpy() for n, a in m.state_dict().items()}),
    "keras": ("keras", GRU, lambda m: [w.value for w in m.weights]),
    "linen": ("flax", jaxrnn.bidirectional(GRU), lambda m: m[1]),
    "nnx": (
        "flax",
        LSTM,
        lambda m: [a[...] for a in (m.dense_i.kernel, m.dense_h.kernel, m.dense_h.bias)],
    ),
    "equinox": ("equinox", LSTM, lambda m: jax.tree.leaves(m)),
    "haiku": ("jax", LSTM, lambda m: m),
    "onnx": (
        "onnx",
        jaxrnn.stack(GRU, LSTM),
        lambda m: [list(a.raw_data) for a in m.graph.initializer],
    ),
}


@pytest.mark.parametrize("library", TO)
@pytest.mark.usefixtures("plain_jax")
def test_other_libraries_get_the_same(library):
    needed, cell, of = TO[library]
    pytest.importorskip(needed)
    params = example(cell)[0]
    convert = getattr(interop, f"to_{library}")
    came = convert(cell, made_of(types.MappingProxyType, params))
    assert bits(of(came)) == bits(of(convert(cell, params)))


def test_what_changes_parameters_takes_any_mapping(tmp_path):
    params = example(GRU)[0]
    given = made_of(types.MappingProxyType, params)
    assert bits(jaxrnn.quantize(GRU, given)[1]) == bits(jaxrnn.quantize(GRU, params)[1])
    own = dataclasses.replace(GRU, init=lambda key, n: types.MappingProxyType(GRU.init(key, n)))
    assert jaxrnn.initialized(own, b="ones").init(KEY, 3)["b"].all()
    decoder = jaxrnn.attentive(GRU, 3)
    params = example(decoder)[0]
    came = jaxrnn.remember(made_of(types.MappingProxyType, params), XS)
    assert bits(came) == bits(jaxrnn.remember(params, XS)) and type(came) is dict


def test_files_take_any_mapping(tmp_path):
    files = pytest.importorskip("jaxrnn.files")
    params = example(DEEP)[0]
    for name, one in (("dict", params), ("other", made_of(types.MappingProxyType, params))):
        files.save(tmp_path / name, DEEP, one)
    assert (tmp_path / "dict").read_bytes() == (tmp_path / "other").read_bytes()


def test_modules_take_any_mapping():
    flax = pytest.importorskip("flax")
    import jaxrnn.linen
    import jaxrnn.nnx

    rnn = jaxrnn.linen.RNN(jaxrnn.stack(LSTM, jaxrnn.dropout(0.5)), dtype=jnp.bfloat16)
    variables = jax.eval_shape(rnn.init, KEY, XS)
    wanted = jax.eval_shape(rnn.apply, variables, XS)
    assert jax.eval_shape(rnn.apply, frozen(variables), XS) == wanted
    own = dataclasses.replace(GRU, init=lambda key, n: types.MappingProxyType(GRU.init(key, n)))
    module = flax.nnx.eval_shape(lambda: jaxrnn.nnx.RNN(own, 3, rngs=flax.nnx.Rngs(0)))
    assert sorted(module.params) == ["b", "r", "rb", "w"]


# Without what is empty

NOTHING = jaxrnn.dropout(0.5)
SPARSE = {
    "stack": jaxrnn.stack(NOTHING, jaxrnn.stack(NOTHING, jaxrnn.stack(NOTHING)), GRU, NOTHING),
    "one": jaxrnn.stack(NOTHING),
    "parallel": jaxrnn.parallel(GRU, NOTHING),
    "dense": jaxrnn.dense(GRU),
    "bidirectional": jaxrnn.bidirectional(GRU, NOTHING),
    "highway": jaxrnn.highway(NOTHING),
    "residual": jaxrnn.residual(NOTHING),
    "learned": jaxrnn.learned_state(NOTHING),
    "learned of no state": jaxrnn.learned_state(jaxrnn.project(2)),
    "general": jaxrnn.attentive(NOTHING, 4, score="general", size=2),
    "any size": jaxrnn.stack(
        jaxrnn.stateless(
            lambda key, n: {} if n == 3 else check_same_size(n, 3),
            lambda params, x: 2 * x,
        ),
        GRU,
    ),
}


@pytest.mark.parametrize("name", SPARSE)
def test_what_is_empty_may_be_missing(name):
    cell = SPARSE[name]
    params = cell.init(KEY, 3)
    left = without_empty(params)
    assert left != params or name == "residual"
    calls = [lambda p: lambda xs: jaxrnn.unroll(cell, p, xs, key=KEY)]
    calls += [lambda p: lambda xs: jaxrnn.trace(cell, p, xs)]
    calls += [lambda p: lambda xs: cell.initial_state(p, xs.shape[1:-1])]
    if name != "bidirectional":
        state = cell.initial_state(params, (2,))
        calls += [lambda p: lambda xs: cell.step(p, state, xs[0], KEY)]
    for call in calls:
        assert program(call(left), XS) == program(call(params), XS)
    found, wanted = (jax.eval_shape(lambda: jaxrnn.trace(cell, p, XS)) for p in (left, params))  # noqa: B023
    assert jax.tree.structure(found) == jax.tree.structure(wanted)


def test_a_file_without_what_is_empty(tmp_path):
    files = pytest.importorskip("jaxrnn.files")
    cell = SPARSE["stack"]
    left = without_empty(cell.init(KEY, 3))
    files.save(tmp_path / "it", cell, left)
    again, came = files.load(tmp_path / "it")
    assert again == cell and bits(came) == bits(left)


@pytest.mark.parametrize("library", ["torch", "keras", "onnx"])
@pytest.mark.usefixtures("plain_jax")
def test_other_libraries_without_what_is_empty(library):
    pytest.importorskip(library)
    cell = jaxrnn.stack(GRU, NOTHING, jaxrnn.gru(2))
    params = cell.init(KEY, 3)
    convert = getattr(interop, f"to_{library}")
    of = TO[library][2]
    assert bits(of(convert(cell, without_empty(params)))) == bits(of(convert(cell, params)))


def test_a_module_without_parameters():
    linen = pytest.importorskip("jaxrnn.linen")
    rnn = linen.RNN(jaxrnn.stack(NOTHING, NOTHING))
    variables = rnn.init(KEY, XS)
    assert variables == {"params": {"cell": {"0": {}, "1": {}}}}
    for left in ({}, {"params": {}}, {"params": {"cell": {}}}):
        assert (rnn.apply(left, XS) == XS).all()
    with pytest.raises(Exception, match="cell"):
        linen.RNN(GRU).apply({"params": {}}, XS)


MISSING = {
    "a layer": (jaxrnn.stack(GRU, NOTHING, LSTM), "2", "params: got ['0'], want a dict of ['0', "),
    "one side": (jaxrnn.bidirectional(NOTHING, GRU), "backward", "want a dict of ['backward']"),
    "what is around": (jaxrnn.highway(GRU), "cell", "got ['b', 'w'], want a dict of ['b', 'cell'"),
    "a state": (jaxrnn.learned_state(GRU), "state", "got ['cell'], want a dict of ['cell', 's"),
    "a query": (jaxrnn.attentive(GRU, 4), "query", "['cell', 'key', 'v'], want a dict of"),
}


@pytest.mark.parametrize("name", MISSING)
def test_what_has_parameters_may_not_be_missing(name):
    cell, part, text = MISSING[name]
    params = without_empty(example(cell)[0])
    del params[part]
    for call in (
        lambda: jaxrnn.unroll(cell, params, XS),
        lambda: cell.initial_state(params, (2,)),
    ):
        with pytest.raises(ValueError) as caught:
            call()
        assert text in str(caught.value)


def test_a_layer_that_only_its_own_size_tells_of_is_missed():
    cell = jaxrnn.stack(NOTHING, jaxrnn.rg_lru(3))
    with pytest.raises(ValueError) as caught:
        jaxrnn.unroll(cell, {}, XS)
    assert str(caught.value) == "params: got [], want a dict of ['b', 'l', 'w']"
    assert caught.value.__notes__ == ["in layer 1 of a stack, rg_lru(hidden=3)"]
