"""Convolutions over time and places: what the laws and the papers do not say."""

import functools

import cases
import dicts
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


_begun = jax.jit(lambda cell, *given: cell.init(*given), static_argnums=(0, 2))
begun = lambda cell, inputs: _begun(cell, KEY, inputs)
unrolled = jax.jit(jaxrnn.unroll, static_argnames=("cell", "reverse"))


def given(cell, inputs, dtype):
    """Parameters and a sequence, NumPy's arrays of a type."""
    xs = np.random.default_rng(0).normal(size=(7, 3, inputs))
    return jax.tree.map(lambda a: np.asarray(a).astype(dtype), (begun(cell, inputs), xs))


@functools.partial(jax.jit, static_argnums=0)
def both_ways(cell, params, xs, state, some):
    """What ``unroll`` gives forward and in reverse, and the gradients of its sum."""

    def run(reverse, *given):
        out = jaxrnn.unroll(cell, *given, mask=some, starts=some, reverse=reverse)
        return sum(y.sum() for y in jax.tree.leaves(out)), out

    grads = jax.value_and_grad(run, (1, 2, 3), has_aux=True)
    return [(out, grad) for (_, out), grad in (grads(r, params, xs, state) for r in (False, True))]


@every_cell
@pytest.mark.parametrize("steps, batch", [(0, (2,)), (1, ()), (3, (0,)), (3, (2, 1, 2))])
@pytest.mark.usefixtures("x64")
def test_few_steps_and_rows(cell, inputs, steps, batch):
    """Fewer steps than the kernel sees, or none: the scan of the step, and gradients."""
    rng, params = np.random.default_rng(0), begun(cell, inputs)
    xs = rng.normal(size=(steps, *batch, inputs))
    state = jax.eval_shape(lambda p: cell.initial_state(p, batch), params)
    state = jax.tree.map(lambda a: rng.normal(size=a.shape), state)
    some = rng.random(xs.shape[:-1]) < 0.6
    for flags in (some, None) if len(batch) > 1 else (some,):
        for reverse, (came, grads) in enumerate(both_ways(cell, params, xs, state, flags)):
            options = dict(mask=flags, starts=flags, reverse=bool(reverse), key=None)
            if steps:
                wanted = literally(cell, params, xs, state, **options)
                assert cases.error(came, wanted) < 1e-12
            assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))


@functools.partial(jax.jit, static_argnums=0)
def squares(cell, params, xs, lengths=None):
    """The results of ``unroll``, the sum of squares of its outputs, and its gradients."""

    def loss(params, xs):
        state, ys = jaxrnn.unroll(cell, params, xs, lengths=lengths)
        return (ys.astype(jnp.float32) ** 2).sum(), (state, ys)

    return jax.value_and_grad(loss, (0, 1), has_aux=True)(params, xs)


@every_cell
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_narrow_weights(cell, inputs, dtype):
    """The sums and the states are in float32, and gradients in the types of what they are of."""
    narrow = given(cell, inputs, dtype)
    wide = jax.tree.map(lambda a: a.astype(np.float32), narrow)
    ((came, out), grads), ((wanted, _), wanted_grads) = (
        squares(cell, *arrays) for arrays in (narrow, wide)
    )
    assert {g.dtype.name for g in jax.tree.leaves(grads)} == {dtype}
    state, ys = out
    assert {s.dtype.name for s in state} == {"float32"} and ys.dtype == dtype
    assert cases.error((came, grads), (wanted, wanted_grads)) < cases.TOLERANCE[dtype][1]


@every_cell
def test_export(cell, inputs):
    """Any number of steps and rows, on every platform."""
    pytest.importorskip("flatbuffers", reason="jax.export needs flatbuffers to write a module")
    grads = jax.jit(lambda *a: squares(cell, *a)[1])
    (params, xs), lengths = given(cell, inputs, "float32"), np.array([7, 0, 4], np.int32)
    steps, rows = export.symbolic_shape("T, B")
    shapes = (
        jax.ShapeDtypeStruct((steps, rows, inputs), xs.dtype),
        jax.ShapeDtypeStruct((rows,), lengths.dtype),
    )
    exported = export.export(grads, platforms=("cpu", "tpu", "cuda"))(params, *shapes)
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
    jaxrnn.conv1d(1, kernel=1),
    jaxrnn.conv1d(1, kernel=1, dilation=3, depthwise=True),
    *(jaxrnn.qrnn(1, kernel=1, pooling=pooling) for pooling in ("f", "fo", "ifo")),
    jaxrnn.conv_lstm(1, shape=(1,), kernel=1),
    jaxrnn.conv_gru(1, shape=(1,), kernel=1, stride=2),
    jaxrnn.attention(1, heads=1, window=1),
    jaxrnn.attention(1, heads=1, context=1),
    jaxrnn.lstm(1, projection=1),
    jaxrnn.s5(1, state=1),
    jaxrnn.rhn(1, depth=1),
    jaxrnn.learned_state(jaxrnn.conv1d(1, kernel=1)),
    jaxrnn.zoneout(jaxrnn.elman(1), 1),
    *(case.make(case.heads) for case in cases.CELLS.values() if case.inputs in (None, 1)),
)


@pytest.mark.parametrize("cell", SMALLEST, ids=str)
def test_no_array_is_empty(cell):
    """Neither in a state nor among parameters: Orbax refuses to store one."""
    # One that reads a dict has the time between steps among its features.
    inputs = 2 if cell.made.constructor is dicts.of_dict else 1
    params = jax.eval_shape(lambda: cell.init(KEY, inputs))
    state = jax.eval_shape(lambda p: cell.initial_state(p, (2,)), params)
    assert all(a.size for a in jax.tree.leaves((params, state)))


@pytest.mark.parametrize("make", [jaxrnn.conv1d, jaxrnn.qrnn])
def test_a_kernel_of_one_remembers_nothing(make):
    """It has no window, and is otherwise what it is as a convolution."""
    one, two = make(4, kernel=1), make(4, kernel=2)
    params = jax.tree.map(np.asarray, begun(one, 3))
    padded = params | {"w": np.concatenate([params["w"], 0 * params["w"]])}
    xs = np.random.default_rng(0).normal(size=(5, 2, 3)).astype(np.float32)
    mask = np.ones((5, 2), bool)
    mask[2, 1] = False
    state, ys = unrolled(one, params, xs, mask=mask, reverse=True)
    (_, *rest), wanted = unrolled(two, padded, xs, mask=mask, reverse=True)
    assert state == tuple(state) and len(state) == len(rest)
    assert cases.error((state, ys), (tuple(rest), wanted)) < 1e-6
    found, norms, radius = jax.jit(
        lambda: (
            jaxrnn.trace(one, params, xs),
            jaxrnn.inside.gradient_norms(one, params, xs),
            jaxrnn.inside.spectral_radius(one, params, xs, mask=mask, reverse=True),
        )
    )()
    assert sorted(found) == (["y"] if make is jaxrnn.conv1d else ["c", "y"])
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
        "state: ",
        "[3, 3]",
        "[4, 3]",
    ),
    "pooling": (lambda: jaxrnn.qrnn(4, pooling="o"), "pooling: ", "'o'", "'f', 'fo', 'ifo'"),
    "shape of one number": (lambda: jaxrnn.conv_gru(2, shape=4), "shape: ", "got 4", "a tuple"),
    "four axes": (lambda: jaxrnn.conv_lstm(2, shape=(1,) * 4), "shape: ", "1, 2 or 3"),
    "kernel for each axis": (
        lambda: jaxrnn.conv_lstm(2, shape=(4, 4), kernel=(3,)),
        "kernel: ",
        "(3,)",
        "2 axes",
    ),
    "stride": (lambda: jaxrnn.conv_lstm(2, shape=(4, 4), stride=(1, 0)), "stride: ", "got 0"),
    "places": (lambda: PLACES.init(KEY, 7), "in_size: ", "7", "multiple of 6", "shape=(2, 3)"),
    "places of xs": (unroll(PLACES, 12, 13), "xs: ", "13", "multiple of 6", "shape=(2, 3)"),
    "channels": (unroll(PLACES, 12, 18), "xs: ", "I = 18", "want 12"),
}


@pytest.mark.parametrize("name", BAD)
def test_errors(name):
    call, *words = BAD[name]
    with pytest.raises(ValueError) as caught:
        call()
    assert all(word in str(caught.value) for word in words), caught.value
