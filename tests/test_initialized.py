"""What parameters begin as."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn

pytestmark = pytest.mark.usefixtures("x64")
KEY = jax.random.key(0)
I, H = 30, 50  # noqa: E741


def made(cell, key=KEY):
    return jax.tree.map(np.array, cell.init(key, I))


def uniform(a, bound):
    """Within the bound, nearly reaching it, and centred."""
    size = bound / np.sqrt(a.size)
    return 0.9 * bound < np.abs(a).max() <= bound and abs(a.mean()) < 4 * size


def test_torch():
    for cell in (jaxrnn.lstm(H), jaxrnn.gru(H)):
        for a in made(jaxrnn.initialized(cell, "torch")).values():
            assert uniform(a, 1 / np.sqrt(H)), a.shape


def test_keras(plain_jax):
    """All gates side by side, as Keras makes them."""
    params = made(jaxrnn.initialized(jaxrnn.lstm(H), "keras"))
    bound = np.sqrt(6 / (I + 4 * H))
    r = params["r"].reshape(H, -1)
    assert uniform(params["w"], bound)
    np.testing.assert_allclose(r @ r.T, np.eye(H), atol=1e-12)
    np.testing.assert_array_equal(params["b"], np.repeat([[0], [1], [0], [0]], H, 1))
    keras = pytest.importorskip("keras")
    layer = keras.layers.LSTM(H)
    layer.build((None, None, I))
    kernel, recurrent, bias = (np.asarray(weight.value) for weight in layer.weights)
    assert uniform(kernel, bound)
    np.testing.assert_allclose(recurrent @ recurrent.T, np.eye(H), atol=1e-5)
    np.testing.assert_array_equal(bias.reshape(4, H), params["b"])


def test_by_name_each_gate_by_itself():
    cell = jaxrnn.initialized(jaxrnn.gru(H), w="orthogonal", b=("zeros", "ones", "normal"))
    params, bare = made(cell), made(jaxrnn.gru(H))
    for k in range(3):
        np.testing.assert_allclose(params["w"][:, k] @ params["w"][:, k].T, np.eye(I), atol=1e-12)
    assert (params["b"][0] == 0).all() and (params["b"][1] == 1).all() and params["b"][2].std() > 0
    assert (params["w"][:, 0] != params["w"][:, 1]).any()
    assert {n: a.shape for n, a in params.items()} == {n: a.shape for n, a in bare.items()}
    heads = made(jaxrnn.initialized(jaxrnn.lstm(H, heads=2), r="orthogonal"))["r"]
    for block in np.moveaxis(heads, 2, 1).reshape(-1, H // 2, H // 2):
        np.testing.assert_allclose(block @ block.T, np.eye(H // 2), atol=1e-12)


def test_gates_may_begin_apart():
    gates = ("zeros", "orthogonal", "zeros", "glorot_uniform")
    r = made(jaxrnn.initialized(jaxrnn.lstm(H), r=gates))["r"]
    assert not r[:, [0, 2]].any() and uniform(r[:, 3], np.sqrt(6 / (2 * H)))
    np.testing.assert_allclose(r[:, 1] @ r[:, 1].T, np.eye(H), atol=1e-12)


def test_chrono():
    # Compiled without the rest, of which the orthogonal matrices would take half a minute.
    biases = lambda cell: np.array(jax.jit(lambda key: cell.init(key, I)["b"])(KEY))
    b = biases(jaxrnn.initialized(jaxrnn.lstm(1000), b=jaxrnn.chrono(50)))
    steps = np.exp(b[1])
    assert 1 <= steps.min() < 1.5 and 48 < steps.max() <= 49 and abs(steps.mean() - 25) < 2
    np.testing.assert_array_equal(b[0], -b[1])
    assert not b[2:].any()
    cell = jaxrnn.initialized(jaxrnn.gru(1000), b=jaxrnn.chrono(50, input=None))
    b = biases(cell)
    assert (b[1] > 0).all() and not b[[0, 2]].any()


def test_in_a_stack_and_everywhere_else_the_same():
    inner = jaxrnn.stack(jaxrnn.lstm(8), jaxrnn.project(4))
    cell = jaxrnn.initialized(inner, "torch", b="ones")
    params = made(cell)
    assert uniform(params["0"]["w"], 1 / np.sqrt(8)) and (params["0"]["b"] == 1).all()
    assert (params["1"]["b"] == 1).all() and np.abs(params["1"]["w"]).max() > 1 / np.sqrt(4) / 2
    xs = jnp.ones((3, 2, I))
    came, wanted = (jaxrnn.unroll(c, params, xs)[1] for c in (cell, inner))
    np.testing.assert_array_equal(came, wanted)


def test_it_is_the_call_that_made_it():
    import pickle

    make = lambda b: jaxrnn.initialized(jaxrnn.gru(4), r="orthogonal", b=b)
    cell, again = make(jaxrnn.chrono(9, input=None)), make(jaxrnn.chrono(9, input=None))
    assert cell == again and hash(cell) == hash(again) and cell != make(jaxrnn.chrono(8))
    assert cell == jaxrnn.initialized(
        jaxrnn.gru(4), b=jaxrnn.chrono(9, input=None), r="orthogonal"
    )
    assert pickle.loads(pickle.dumps(cell)) == cell
    assert repr(make("ones")) == "initialized(cell=gru(hidden=4), b='ones', r='orthogonal')"
