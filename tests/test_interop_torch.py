"""Weights from and to PyTorch: the same numbers, gradients, bits and training, or an error."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cases import error

import jaxrnn
from jaxrnn.interop import double_bias, from_torch, to_torch, without_bias

torch = pytest.importorskip("torch")
nn = torch.nn
pytestmark = pytest.mark.usefixtures("x64")

T, B = 5, 3


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Several would wait for each other: far longer than such small arrays take."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


MODULES = {  # a module, whether its two biases stay apart
    "tanh": (nn.RNN, (3, 4), {}, True),
    "relu": (nn.RNN, (3, 5), {"nonlinearity": "relu", "num_layers": 2}, False),
    "lstm": (nn.LSTM, (3, 4), {}, False),
    "lstm both, three layers": (nn.LSTM, (2, 3), {"num_layers": 3, "bidirectional": True}, True),
    "lstm projected": (
        nn.LSTM,
        (3, 5),
        {"num_layers": 2, "bidirectional": True, "proj_size": 2},
        True,
    ),
    "lstm projected, no bias": (nn.LSTM, (1, 7), {"proj_size": 1, "bias": False}, False),
    "gru": (nn.GRU, (1, 1), {}, False),
    "gru both, two layers": (nn.GRU, (3, 7), {"num_layers": 2, "bidirectional": True}, True),
    "gru no bias": (nn.GRU, (3, 4), {"num_layers": 2, "bias": False}, True),
}
each_module = pytest.mark.parametrize("name", MODULES)


def make(name, **more):
    """A module, and whether its biases stay apart."""
    kind, sizes, options, double = MODULES[name]
    torch.manual_seed(0)
    return kind(*sizes, **{"dtype": torch.float64, **options, **more}), double


def array(tensor):
    return jnp.array(tensor.detach().numpy())


def arrays(module):
    return {name: value.numpy() for name, value in module.state_dict().items()}


def our_state(cell, params, state):
    """PyTorch's h, or (h, c), each [L * D, B, H], as our state."""
    leaves = [array(a[i]) for i in range(len(state[0])) for a in state]
    return jax.tree.structure(cell.initial_state(params, (B,))).unflatten(leaves)


@each_module
def test_same_numbers_and_gradients(name):
    module, double = make(name)
    cell, params = from_torch(module, double_bias=double)
    xs = torch.randn(T, B, module.input_size, dtype=torch.float64, requires_grad=True)
    count = module.num_layers * (1 + module.bidirectional)
    sizes = [module.proj_size or module.hidden_size, module.hidden_size]
    state = [
        torch.randn(count, B, size, dtype=torch.float64, requires_grad=True)
        for size in sizes[: 1 + isinstance(module, nn.LSTM)]
    ]
    ys, final = module(xs, tuple(state) if len(state) == 2 else state[0])
    final = final if len(state) == 2 else [final]
    cotangents = [torch.randn_like(a) for a in (ys, *final)]
    torch.autograd.backward([ys, *final], cotangents)

    @jax.jit
    def run(params, xs, state, cotangents):
        ours = lambda *given: jaxrnn.unroll(cell, given[0], *given[1:])
        came, pull = jax.vjp(ours, params, xs, state)
        return came, pull(cotangents)

    as_ours = lambda state: our_state(cell, params, state)
    given = params, array(xs), as_ours(state), (as_ours(cotangents[1:]), array(cotangents[0]))
    came, (weights, *gradients) = run(*given)
    assert error(came, (as_ours(final), array(ys))) < 1e-12
    assert error(gradients, [array(xs.grad), as_ours([a.grad for a in state])]) < 1e-12
    # Gradients lie as the weights do; one bias has the gradient of each of PyTorch's two.
    back = arrays(to_torch(cell, weights))
    wanted = {name: p.grad.numpy() for name, p in module.named_parameters()}
    assert set(back) == set(wanted)
    for weight in wanted:
        if double or "bias_hh" not in weight:
            assert error(back[weight], wanted[weight]) < 1e-12, weight
        elif isinstance(module, nn.GRU):
            hidden = module.hidden_size
            assert error(back[weight][-hidden:], wanted[weight][-hidden:]) < 1e-12, weight


SAID = ("mode", "input_size", "hidden_size", "num_layers", "bias", "bidirectional", "proj_size")


@each_module
def test_there_and_back(name):
    """The same bits if both biases are kept, the same function in any case."""
    module, _ = make(name)
    same = to_torch(*from_torch(module, double_bias=True))
    assert all(getattr(same, said) == getattr(module, said) for said in SAID)
    assert type(same) is type(module) and same.dropout == 0 and not same.batch_first
    assert list(same.state_dict()) == list(module.state_dict())
    for weight, value in module.state_dict().items():
        assert torch.equal(same.state_dict()[weight], value), weight
    cell, params = from_torch(module)
    xs = torch.randn(T, B, module.input_size, dtype=torch.float64)
    assert error(array(to_torch(cell, params)(xs)[0]), array(module(xs)[0])) < 1e-12
    again, bits = from_torch(to_torch(cell, params))
    assert again == cell and all(map(np.array_equal, *map(jax.tree.leaves, (bits, params))))


@each_module
def test_a_state_dict_is_its_module(name):
    module, double = make(name)
    nonlinearity = getattr(module, "nonlinearity", None)
    for source in (module.state_dict(), arrays(module)):
        cell, params = from_torch(source, double_bias=double, nonlinearity=nonlinearity)
        wanted, bits = from_torch(module, double_bias=double)
        assert cell == wanted and jax.tree.all(jax.tree.map(np.array_equal, params, bits))


def test_what_comes():
    """The cell that a user would have written."""
    module = nn.LSTM(3, 4, num_layers=2, dropout=0.25, batch_first=True)
    layers = jaxrnn.lstm(4), jaxrnn.dropout(0.25), jaxrnn.lstm(4)
    assert from_torch(module)[0] == jaxrnn.stack(*layers)
    assert from_torch(module.state_dict(), dropout=0.25)[0] == jaxrnn.stack(*layers)
    assert from_torch(module.state_dict())[0] == jaxrnn.stack(*layers[::2])
    both = nn.GRU(3, 4, bidirectional=True, bias=False)
    assert from_torch(both)[0] == jaxrnn.bidirectional(without_bias(jaxrnn.gru(4)))
    both = nn.RNN(3, 4, nonlinearity="relu")
    relu = jaxrnn.elman(4, activation="relu")
    assert from_torch(both, double_bias=True)[0] == double_bias(relu)
    assert to_torch(*from_torch(module)).dropout == 0.25


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_types(dtype):
    module, _ = make("gru both, two layers", dtype=getattr(torch, dtype))
    cell, params = from_torch(module, double_bias=True)
    assert {str(a.dtype) for a in jax.tree.leaves(params)} == {dtype}
    for weight, value in to_torch(cell, params).state_dict().items():
        wanted = module.state_dict()[weight]
        assert torch.equal(value, wanted) and value.dtype == wanted.dtype


def test_copies():
    """Training on one side changes nothing on the other."""
    module, _ = make("tanh")
    before = arrays(to_torch(*from_torch(module, double_bias=True)))
    cell, params = from_torch(module, double_bias=True)
    with torch.no_grad():
        for weight in module.parameters():
            weight.zero_()
    assert all(map(np.array_equal, arrays(to_torch(cell, params)).values(), before.values()))


@pytest.mark.parametrize("kind", [nn.RNNCell, nn.LSTMCell, nn.GRUCell])
def test_a_cell_is_one_step(kind):
    torch.manual_seed(0)
    theirs = kind(3, 4, dtype=torch.float64)
    x, *state = torch.randn(3, B, 4, dtype=torch.float64)
    count = 1 + (kind is nn.LSTMCell)
    wanted = theirs(x[:, :3], tuple(state) if count == 2 else state[0])
    cell, params = from_torch(theirs)
    came, y = cell.step(params, tuple(map(array, state[:count])), array(x[:, :3]))
    wanted = wanted if count == 2 else (wanted,)
    assert error((came, y), (tuple(map(array, wanted)), array(wanted[0]))) < 1e-12


@pytest.mark.parametrize("name", ["relu", "lstm both, three layers", "gru both, two layers"])
def test_same_training(name):
    """Fifty steps of gradient descent, from the same weights on the same batches."""
    module, _ = make(name)
    width = module.hidden_size * (1 + module.bidirectional)
    batches = torch.randn(4, T, B, module.input_size + width, dtype=torch.float64)
    batches = [torch.split(batch, [module.input_size, width], -1) for batch in batches]
    made = {double: from_torch(module, double_bias=double) for double in (True, False)}
    theirs, truths = torch.optim.SGD(module.parameters(), lr=0.5), []
    for i in range(50):
        xs, target = batches[i % 4]
        theirs.zero_grad()
        loss = ((module(xs)[0] - target) ** 2).mean()
        loss.backward()
        theirs.step()
        truths.append(loss.item())

    def train(cell, params):
        ours, losses = optax.sgd(0.5), []

        @jax.jit
        def step(params, state, xs, target):
            loss = lambda params: ((jaxrnn.unroll(cell, params, xs)[1] - target) ** 2).mean()
            value, gradient = jax.value_and_grad(loss)(params)
            updates, state = ours.update(gradient, state)
            return optax.apply_updates(params, updates), state, value

        state = ours.init(params)
        for i in range(50):
            params, state, loss = step(params, state, *map(array, batches[i % 4]))
            losses.append(float(loss))
        return losses, params

    losses, params = train(*made[True])
    assert truths[48] < 0.97 * truths[0]  # both of the first batch
    np.testing.assert_allclose(losses, truths, rtol=1e-10)
    assert error(arrays(to_torch(made[True][0], params)), arrays(module)) < 1e-10
    if name == "relu":  # one bias for two takes another path: what double_bias is for
        assert abs(train(*made[False])[0][-1] - truths[-1]) > 1e-4


STATE_DICT = {
    "weight_ih_l0": np.ones((8, 3)),
    "weight_hh_l0": np.ones((8, 2)),
    "bias_ih_l0": np.ones(8),
    "bias_hh_l0": np.ones(8),
}
RNN = {name: a[:2] for name, a in STATE_DICT.items()}
LSTM, GRU = jaxrnn.lstm(4), jaxrnn.gru(4)


class Other(nn.LSTM):
    def forward(self, x):
        return 2 * super().forward(x)[0]


def source(**options):
    """Of a state_dict with some arrays replaced, left out (None) or added."""
    keywords = {k: options.pop(k) for k in ("nonlinearity", "dropout") if k in options}
    given = {name: a for name, a in (STATE_DICT | options).items() if a is not None}
    return lambda: from_torch(given, **keywords)


def ones(cell):
    """Parameters, of which nothing is compiled."""
    shapes = jax.eval_shape(lambda key: cell.init(key, 3), jax.random.key(0))
    return jax.tree.map(lambda a: jnp.asarray(np.ones(a.shape, a.dtype)), shapes)


def back(cell, params=None):
    return lambda: to_torch(cell, ones(cell) if params is None else params)


def whole():
    """A model with several recurrent modules, one of them under weight_norm."""
    made = nn.Module()
    made.encoder, made.head = nn.LSTM(3, 2, num_layers=2), nn.Linear(2, 4)
    made.decoder = nn.Sequential(nn.GRU(2, 2), nn.Linear(2, 2))
    made.normed = nn.LSTM(3, 2)
    return made.double()


WHOLE = whole()


def test_modules_of_a_model():
    """By their prefixes, also where DataParallel and torch.compile put theirs before all names."""
    for before in ("", "module.", "_orig_mod.module."):
        state_dict = {f"{before}{name}": a for name, a in WHOLE.state_dict().items()}
        for prefix, module in (("encoder", WHOLE.encoder), ("decoder.0.", WHOLE.decoder[0])):
            cell, params = from_torch(state_dict, prefix=prefix)
            wanted = from_torch(module)
            if "encoder" in prefix:
                wanted = from_torch(module.state_dict())
            assert cell == wanted[0]
            assert jax.tree.all(jax.tree.map(np.array_equal, params, wanted[1]))
        again = from_torch(state_dict, prefix=f"{before}encoder")
        assert again[0] == from_torch(state_dict, prefix="encoder")[0]
    alone = {f"module.{name}": a for name, a in WHOLE.encoder.state_dict().items()}
    assert from_torch(alone)[0] == jaxrnn.stack(jaxrnn.lstm(2), jaxrnn.lstm(2))


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize("dim", [0, 1])
@pytest.mark.parametrize("kind", ["old", "new"])
def test_weight_norm(kind, dim):
    """The same numbers as PyTorch's own module, of both its ways to name the two parts."""
    module = nn.LSTM(3, 2).double()
    names = "weight_hh_l0", "weight_ih_l0"
    of = nn.utils.weight_norm if kind == "old" else nn.utils.parametrizations.weight_norm
    for name in names:
        module = of(module, name, dim=dim)
    rng = np.random.default_rng(0)
    with torch.no_grad():
        for value in module.parameters():
            value.copy_(torch.tensor(rng.normal(size=tuple(value.shape))))
        theirs = module(torch.tensor(rng.normal(size=(5, 2, 3))))[0].numpy()
    rng = np.random.default_rng(0)
    for value in module.parameters():
        rng.normal(size=tuple(value.shape))
    xs = jnp.asarray(rng.normal(size=(5, 2, 3)))
    for source in (module, {f"rnn.{name}": a for name, a in module.state_dict().items()}):
        cell, params = from_torch(source, prefix="" if source is module else "rnn")
        assert error(jaxrnn.unroll(cell, params, xs)[1], theirs) < 1e-12


V, TYPE = ValueError, TypeError
BAD = {  # the call, the error, and what its text has
    "no source": (lambda: from_torch(None), TYPE, "source: got NoneType", "a state_dict"),
    "another module": (lambda: from_torch(nn.Linear(2, 3)), TYPE, "source: got Linear", "'LSTM'"),
    "a forward of its own": (lambda: from_torch(Other(2, 3)), TYPE, "got Other", "own forward"),
    "empty": (lambda: from_torch({}), V, "source: got []", "from l0 on"),
    "prefix": (
        lambda: from_torch({f"lstm.{k}": v for k, v in STATE_DICT.items()}),
        V,
        "prefix: got ''",
        "want one of ['lstm']",
    ),
    "another prefix": (
        lambda: from_torch(WHOLE.state_dict(), prefix="rnn"),
        V,
        "prefix: got 'rnn', want one of ['decoder.0', 'encoder', 'normed']",
    ),
    "no prefix": (lambda: from_torch(WHOLE.state_dict()), V, "prefix: got ''", "'encoder'"),
    "prefix of a module": (
        lambda: from_torch(nn.GRU(2, 3), prefix="rnn"),
        V,
        "prefix: got 'rnn' and a module",
    ),
    "prefix type": (lambda: from_torch({}, prefix=0), TYPE, "prefix: got 0, want a string"),
    "half of weight_norm": (source(weight_hh_l0_v=np.ones(2)), V, "got 'weight_hh_l0_v' alone"),
    "another parametrisation": (
        lambda: from_torch({"parametrizations.weight_ih_l0.original": np.ones((8, 3))}),
        V,
        "got 'parametrizations.weight_ih_l0.original'",
        "remove_parametrizations",
    ),
    "one bias": (source(bias_hh_l0=None), V, "'bias_ih_l0'", "both biases or none"),
    "no weight": (source(weight_hh_l0=None), V, "source: got ['bias_hh_l0'", "weight_hh"),
    "no layer 0": (
        lambda: from_torch({k.replace("l0", "l1"): a for k, a in STATE_DICT.items()}),
        V,
        "weight_ih_l1",
        "from l0 on",
    ),
    "one layer reversed": (
        source(**{k.replace("l0", "l1_reverse"): a for k, a in STATE_DICT.items()}),
        V,
        "weight_ih_l1_reverse",
        "the same directions",
    ),
    "twice": (source(weight_ih=np.ones((8, 3))), V, "'weight_ih'", "all layers from l0"),
    "axes": (source(weight_ih_l0=np.ones(8)), V, "source['weight_ih_l0']: got shape (8,)", "2"),
    "gates": (source(weight_hh_l0=np.ones((8, 4))), V, "(8, 4)", "G = 1 of an RNN, 3 of a GRU"),
    "bias": (source(bias_hh_l0=np.ones(4)), V, "'bias_hh': (4,)", "[G * H, ...]"),
    "projection": (source(weight_hr_l0=np.ones((2, 4))), V, "'weight_hr': (2, 4)"),
    "layers' sizes": (
        source(**{k.replace("l0", "l1"): a for k, a in STATE_DICT.items()}),
        V,
        "xs: got I = 2 features, want 3",
        "in layer 1 of a stack",
    ),
    "ints": (
        source(bias_hh_l0=np.ones(8, int)),
        TYPE,
        "source['bias_hh_l0']: got int64",
        "floating",
    ),
    "types": (
        source(weight_hh_l0=np.ones((8, 2), "float32")),
        V,
        "source: got the types",
        "want one",
    ),
    "nonlinearity missing": (
        lambda: from_torch(RNN),
        V,
        "nonlinearity: got None",
        "('tanh', 'relu')",
        "does not say",
    ),
    "nonlinearity unknown": (
        lambda: from_torch(RNN, nonlinearity="elu"),
        V,
        "nonlinearity: got 'elu'",
        "'relu'",
    ),
    "nonlinearity of an LSTM": (
        source(nonlinearity="tanh"),
        V,
        "nonlinearity: got 'tanh'",
        "want None",
        "one of LSTM",
    ),
    "nonlinearity of a module": (
        lambda: from_torch(nn.RNN(2, 3), nonlinearity="relu"),
        V,
        "got 'relu' and a module",
    ),
    "dropout of a module": (
        lambda: from_torch(nn.LSTM(2, 3), dropout=0.5),
        V,
        "dropout: got 0.5 and a module",
    ),
    "rate": (source(dropout=2), V, "dropout: got 2", "from 0 to 1"),
    # to PyTorch
    "another cell": (back(jaxrnn.mgu(4)), V, "cell: got mgu", "PyTorch has no other"),
    "not a cell": (lambda: to_torch(jaxrnn.lstm, {}), TYPE, "cell: ", "want a Cell"),
    "peepholes": (back(jaxrnn.lstm(4, peepholes=True)), V, "peepholes=True", "peepholes=False"),
    "coupled": (back(jaxrnn.lstm(4, coupled=True)), V, "want coupled=False"),
    "cell_clip": (back(jaxrnn.lstm(4, cell_clip=1.0)), V, "want cell_clip=None"),
    "activation": (back(jaxrnn.lstm(4, activation="relu")), V, "want activation='tanh'"),
    "gates' activation": (
        back(jaxrnn.lstm(4, gate_activation="hard_sigmoid")),
        V,
        "want gate_activation='sigmoid'",
    ),
    "wide projection": (back(jaxrnn.lstm(4, projection=4)), V, "want projection < hidden"),
    "heads": (back(jaxrnn.gru(4, heads=2)), V, "want heads=1", "PyTorch has no other"),
    "reset before": (back(jaxrnn.gru(4, reset_after=False)), V, "want reset_after=True"),
    "elman's activation": (back(jaxrnn.elman(4, activation="elu")), V, "want an activation of"),
    "merge": (back(jaxrnn.bidirectional(GRU, merge="sum")), V, "want merge='concat'"),
    "kinds": (back(jaxrnn.stack(LSTM, GRU)), V, "layers that are alike"),
    "sizes": (back(jaxrnn.stack(LSTM, jaxrnn.lstm(5))), V, "layers that are alike"),
    "biases": (back(jaxrnn.stack(LSTM, double_bias(LSTM))), V, "layers that are alike"),
    "directions": (back(jaxrnn.stack(LSTM, jaxrnn.bidirectional(LSTM))), V, "that are alike"),
    "two directions": (back(jaxrnn.bidirectional(LSTM, jaxrnn.lstm(5))), V, "that are alike"),
    "dropout at the end": (back(jaxrnn.stack(LSTM, jaxrnn.dropout(0.5))), V, "between all layers"),
    "dropout somewhere": (
        back(jaxrnn.stack(LSTM, jaxrnn.dropout(0.5), LSTM, LSTM)),
        V,
        "between all layers",
    ),
    "dropouts": (
        back(jaxrnn.stack(LSTM, jaxrnn.dropout(0.5), LSTM, jaxrnn.dropout(0.1), LSTM)),
        V,
        "of one rate",
    ),
    "dropout a sequence": (
        back(jaxrnn.stack(LSTM, jaxrnn.dropout(0.5, per="sequence"), LSTM)),
        V,
        "for each step",
    ),
    "inside dropout": (back(jaxrnn.recurrent_dropout(LSTM, 0.5)), V, "got recurrent_dropout("),
    "params": (back(LSTM, {"w": jnp.ones((3, 4, 4))}), V, "params: got ['w']"),
    "params' shape": (
        back(GRU, ones(GRU) | {"rb": jnp.ones(3)}),
        V,
        "params['rb']: got",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_the_error_says_what_is_wrong(name):
    call, kind, *texts = BAD[name]
    with pytest.raises(kind) as caught:
        call()
    said = "\n".join([str(caught.value), *getattr(caught.value, "__notes__", ())])
    assert caught.type is kind and all(text in said for text in texts), said


def test_cells_that_only_begin_otherwise():
    cell = jaxrnn.initialized(jaxrnn.stack(LSTM, jaxrnn.initialized(LSTM, b="ones")), "torch")
    module = to_torch(cell, cell.init(jax.random.key(0), 3))
    assert from_torch(module)[0] == jaxrnn.stack(LSTM, LSTM)
    named, given = jaxrnn.elman(4, activation=jax.nn.relu), jaxrnn.elman(4, activation="relu")
    assert from_torch(to_torch(named, named.init(jax.random.key(0), 3)))[0] == given
