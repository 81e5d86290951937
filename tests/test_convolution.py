"""Convolutions over time and places: what the laws and the papers do not say."""

import functools

import cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from laws import literally

import jaxrnn

KEY = jax.random.key(0)
CONV = jaxrnn.conv1d(4, kernel=3, dilation=2)
CELLS = {
    "conv1d": (CONV, 3),
    "qrnn": (jaxrnn.qrnn(4, kernel=4), 3),
    "conv_lstm": (jaxrnn.conv_lstm(2, shape=(4, 3), stride=2), 24),
    "conv_gru": (jaxrnn.conv_gru(2, shape=(3,)), 6),
}
every_cell = pytest.mark.parametrize(("cell", "inputs"), CELLS.values(), ids=CELLS)


@every_cell
@pytest.mark.parametrize("flags", [False, True])
@pytest.mark.parametrize("steps, batch", [(0, (2,)), (1, ()), (3, (0,)), (3, (2, 1, 2))])
@pytest.mark.usefixtures("x64")
def test_few_steps_and_rows(cell, inputs, steps, batch, flags):
    """Fewer steps than the kernel sees, or none: the scan of the step, and gradients."""
    rng, params = np.random.default_rng(0), cell.init(KEY, inputs)
    xs = jnp.array(rng.normal(size=(steps, *batch, inputs)))
    state = cell.initial_state(params, batch)
    state = jax.tree.map(lambda a: jnp.array(rng.normal(size=a.shape)), state)
    some = jnp.array(rng.random(xs.shape[:-1]) < 0.6) if flags else None
    for reverse in (False, True):
        given = dict(mask=some, starts=some, reverse=reverse)
        run = jax.jit(functools.partial(jaxrnn.unroll, cell, **given))
        came = run(params, xs, state)
        if steps:
            assert cases.error(came, literally(cell, params, xs, state, **given, key=None)) < 1e-12
        loss = lambda *a: sum(y.sum() for y in jax.tree.leaves(run(*a)))  # noqa: B023
        grads = jax.jit(jax.grad(loss, (0, 1, 2)))(params, xs, state)
        assert all(jnp.isfinite(g).all() for g in jax.tree.leaves(grads))


@every_cell
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_narrow_weights(cell, inputs, dtype):
    """The sums and the states are in float32, and gradients in the types of what they are of."""
    params = jax.tree.map(lambda p: p.astype(dtype), cell.init(KEY, inputs))
    xs = jax.random.normal(KEY, (7, 3, inputs), dtype)
    loss = lambda *a: (jaxrnn.unroll(cell, *a)[1].astype(jnp.float32) ** 2).sum()
    wide = jax.tree.map(lambda a: a.astype(jnp.float32), (params, xs))
    (came, grads), (wanted, wanted_grads) = (
        jax.value_and_grad(loss, (0, 1))(*given) for given in ((params, xs), wide)
    )
    assert {g.dtype.name for g in jax.tree.leaves(grads)} == {dtype}
    state, ys = jaxrnn.unroll(cell, params, xs)
    assert {s.dtype.name for s in state} == {"float32"} and ys.dtype == dtype
    assert cases.error((came, grads), (wanted, wanted_grads)) < cases.TOLERANCE[dtype][1]


@every_cell
def test_export(cell, inputs):
    """Any number of steps and rows, on every platform."""
    pytest.importorskip("flatbuffers", reason="jax.export needs flatbuffers to write a module")
    params, loss = (
        cell.init(KEY, inputs),
        lambda *a, **o: (jaxrnn.unroll(cell, *a, **o)[1] ** 2).sum(),
    )
    grads = lambda params, xs, lengths: jax.grad(loss)(params, xs, lengths=lengths)
    xs, lengths = jax.random.normal(KEY, (7, 3, inputs)), jnp.array([7, 0, 4])
    steps, rows = export.symbolic_shape("T, B")
    shapes = (
        jax.ShapeDtypeStruct((steps, rows, inputs), xs.dtype),
        jax.ShapeDtypeStruct((rows,), lengths.dtype),
    )
    exported = export.export(jax.jit(grads), platforms=("cpu", "tpu", "cuda"))(params, *shapes)
    came = export.deserialize(exported.serialize()).call(params, xs, lengths)
    assert cases.error(came, grads(params, xs, lengths)) < 1e-5


def test_gradients_of_the_weights_are_taken_after_the_loop():
    """Of the five convolutions of a gradient, a step has one in each direction."""
    cell, inputs = CELLS["conv_lstm"]
    params, xs = cell.init(KEY, inputs), jnp.ones((5, 2, inputs))
    grads = jax.jit(jax.grad(lambda p: jaxrnn.unroll(cell, p, xs)[1].sum()))
    text = grads.lower(params).compile().as_text().splitlines()
    lines = [line for line in text if " convolution(" in line]
    assert len(lines) == 5
    assert sum("while/body" in line for line in lines) == 2


@pytest.mark.parametrize(
    ("cell", "inputs", "fan"),
    [(jaxrnn.conv1d(400, kernel=5), 80, 400), (CELLS["qrnn"][0], 100, 208)],
)
def test_scale(cell, inputs, fan):
    """All taps together are one product."""
    w = cell.init(KEY, inputs)["w"]
    assert abs(w.std() * fan**0.5 - 1) < 0.03


def test_recurrent_convolution_is_orthogonal():
    r = CELLS["conv_lstm"][0].init(KEY, 24)["r"].reshape(-1, 4, 2)
    for gate in range(4):
        assert cases.error(r[:, gate].T @ r[:, gate], jnp.eye(2)) < 1e-6


SMALLEST = (
    jaxrnn.conv1d(1, kernel=1), jaxrnn.conv1d(1, kernel=1, dilation=3, depthwise=True),
    *(jaxrnn.qrnn(1, kernel=1, pooling=pooling) for pooling in ("f", "fo", "ifo")),
    jaxrnn.conv_lstm(1, shape=(1,), kernel=1), jaxrnn.conv_gru(1, shape=(1,), kernel=1, stride=2),
    jaxrnn.attention(1, heads=1, window=1), jaxrnn.attention(1, heads=1, context=1),
    jaxrnn.lstm(1, projection=1), jaxrnn.s5(1, state=1), jaxrnn.rhn(1, depth=1),
    jaxrnn.learned_state(jaxrnn.conv1d(1, kernel=1)), jaxrnn.zoneout(jaxrnn.elman(1), 1),
    *(case.make(case.heads) for case in cases.CELLS.values() if case.inputs in (None, 1)),
)  # fmt: skip


@pytest.mark.parametrize("cell", SMALLEST, ids=str)
def test_no_array_is_empty(cell):
    """Neither in a state nor among parameters: Orbax refuses to store one."""
    params = jax.eval_shape(lambda: cell.init(KEY, 1))
    state = jax.eval_shape(lambda p: cell.initial_state(p, (2,)), params)
    assert all(a.size for a in jax.tree.leaves((params, state)))


@pytest.mark.parametrize("make", [jaxrnn.conv1d, jaxrnn.qrnn])
def test_a_kernel_of_one_remembers_nothing(make):
    """It has no window, and is otherwise what it is as a convolution."""
    one, two = make(4, kernel=1), make(4, kernel=2)
    params = one.init(KEY, 3)
    padded = params | {"w": jnp.concatenate([params["w"], jnp.zeros_like(params["w"])])}
    xs = jax.random.normal(KEY, (5, 2, 3))
    given = dict(mask=jnp.ones((5, 2), bool).at[2, 1].set(False), reverse=True)
    state, ys = jaxrnn.unroll(one, params, xs, **given)
    (_, *rest), wanted = jaxrnn.unroll(two, padded, xs, **given)
    assert state == tuple(state) and len(state) == len(rest)
    assert cases.error((state, ys), (tuple(rest), wanted)) < 1e-6
    found = jaxrnn.trace(one, params, xs)
    assert sorted(found) == (["y"] if make is jaxrnn.conv1d else ["c", "y"])
    norms = jaxrnn.inside.gradient_norms(one, params, xs)
    radius = jaxrnn.inside.spectral_radius(one, params, xs, **given)
    assert norms.shape == radius.shape == (5, 2) and radius[2, 1] == 1
    assert norms.any() == radius[0].any() == (make is jaxrnn.qrnn)


def unroll(cell, inputs, features):
    return lambda: jaxrnn.unroll(cell, cell.init(KEY, inputs), jnp.ones((2, features)))


DEEP = jaxrnn.conv1d(4, kernel=2, depthwise=True)
PLACES = jaxrnn.conv_lstm(2, shape=(2, 3))
BAD = {
    "kernel": (lambda: jaxrnn.conv1d(4, kernel=0), "kernel: ", "got 0", "1 or more"),
    "dilation": (lambda: jaxrnn.conv1d(4, kernel=2, dilation=0), "dilation: ", "got 0"),
    "activation": (lambda: jaxrnn.conv1d(4, kernel=2, activation="a"), "activation: ", "'a'"),
    "depthwise": (lambda: DEEP.init(KEY, 3), "hidden: ", "got 4", "in_size = 3"),
    "features": (unroll(CONV, 3, 2), "xs: ", "I = 2", "want 3"),
    "window": (
        lambda: CONV.step(CONV.init(KEY, 3), (jnp.ones((3, 3)),), jnp.ones(3)),
        "state: ", "[3, 3]", "[4, 3]",
    ),
    "pooling": (lambda: jaxrnn.qrnn(4, pooling="o"), "pooling: ", "'o'", "'f', 'fo', 'ifo'"),
    "shape of one number": (lambda: jaxrnn.conv_gru(2, shape=4), "shape: ", "got 4", "a tuple"),
    "four axes": (lambda: jaxrnn.conv_lstm(2, shape=(1,) * 4), "shape: ", "1, 2 or 3"),
    "kernel for each axis": (
        lambda: jaxrnn.conv_lstm(2, shape=(4, 4), kernel=(3,)), "kernel: ", "(3,)", "2 axes",
    ),
    "stride": (lambda: jaxrnn.conv_lstm(2, shape=(4, 4), stride=(1, 0)), "stride: ", "got 0"),
    "places": (lambda: PLACES.init(KEY, 7), "in_size: ", "7", "multiple of 6", "shape=(2, 3)"),
    "places of xs": (unroll(PLACES, 12, 13), "xs: ", "13", "multiple of 6", "shape=(2, 3)"),
    "channels": (unroll(PLACES, 12, 18), "xs: ", "I = 18", "want 12"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_errors(name):
    call, *words = BAD[name]
    with pytest.raises(ValueError) as caught:
        call()
    assert all(word in str(caught.value) for word in words), caught.value
