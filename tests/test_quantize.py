"""Int8 weights: what they are rounded to, and how far that moves the outputs."""

import pickle

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn

pytestmark = pytest.mark.usefixtures("x64")
RNG = np.random.default_rng(0)
XS = RNG.normal(size=(6, 2, 3))
LENGTHS = np.array([6, 4], np.int32)
CELLS = {
    "elman": jaxrnn.elman(5),
    "lstm": jaxrnn.lstm(6, heads=2),
    "lstm projection": jaxrnn.lstm(6, projection=4),
    "gru": jaxrnn.gru(5),
    "made of others": jaxrnn.stack(
        jaxrnn.bidirectional(jaxrnn.lstm(4)),
        jaxrnn.learned_state(jaxrnn.gru(3)),
        jaxrnn.project(2),
    ),
}


unroll = jax.jit(jaxrnn.unroll, static_argnums=0)
quantize = jax.jit(lambda cell, params: jaxrnn.quantize(cell, params)[1], static_argnums=0)


def example(cell, dtype=float):
    shapes = jax.eval_shape(lambda key: cell.init(key, 3), jax.random.key(0))
    return jax.tree.map(lambda p: jnp.asarray(RNG.normal(size=p.shape) / 2, dtype), shapes)


def widened(params):
    """The floats that int8 weights stand for, in NumPy."""
    out = {}
    for name, value in params.items():
        if isinstance(value, dict):
            out[name] = widened(value)
        elif f"{name}_scale" in params:
            out[name] = np.asarray(value, float) * np.asarray(params[f"{name}_scale"], float)
        elif not name.endswith("_scale"):
            out[name] = np.asarray(value, float)
    return out


@pytest.mark.parametrize("name", CELLS)
def test_no_weight_moves_by_more_than_half_a_step(name):
    params = example(CELLS[name])
    rounded = quantize(CELLS[name], params)
    came, moved = jax.tree.leaves_with_path(widened(rounded)), 0
    for (path, value), wanted in zip(came, jax.tree.leaves(params), strict=True):
        if path[-1].key in ("w", "r", "p"):
            inputs = -min(value.ndim, 3)
            wanted = np.asarray(wanted)
            step = abs(wanted).max(inputs, keepdims=True) / 127
            assert (abs(value - wanted) <= 0.5000001 * step).all()
            np.testing.assert_allclose(abs(value).max(inputs), abs(wanted).max(inputs), rtol=1e-12)
            moved += 1
        else:
            np.testing.assert_array_equal(value, wanted)
    assert moved >= 2


@pytest.mark.parametrize("name", CELLS)
def test_it_is_the_cell_with_the_rounded_weights(name):
    cell, params = CELLS[name], example(CELLS[name])
    small, rounded = jaxrnn.int8(cell), quantize(cell, params)
    run = lambda cell, params: unroll(cell, params, XS, lengths=LENGTHS)
    came, wanted = run(small, rounded), run(cell, widened(rounded))
    chex.assert_trees_all_close(came, wanted, rtol=1e-12, atol=1e-14)
    assert abs(np.asarray(came[1]) - run(cell, params)[1]).max() > 1e-5


def test_step_is_unroll():
    small, params = jaxrnn.quantize(CELLS["gru"], example(CELLS["gru"]))
    step = jax.jit(lambda *given: jax.lax.scan(lambda *now: small.step(params, *now), *given))
    stepped = step(small.initial_state(params, (2,)), XS)
    chex.assert_trees_all_close(stepped, unroll(small, params, XS))


def test_outputs_stay_within_what_the_steps_allow():
    """tanh moves by no more than what enters it: a bound for each unit, carried through time."""
    cell, params = jaxrnn.elman(32), jaxrnn.elman(32).init(jax.random.key(0), 16)
    params = jax.tree.map(lambda p: p.astype(float), params)
    xs = RNG.normal(size=(20, 4, 16))
    small, rounded = jaxrnn.quantize(cell, params)
    hs, came = (np.asarray(unroll(c, p, xs)[1]) for c, p in ((cell, params), (small, rounded)))
    w_half, r_half = (np.asarray(rounded[f"{n}_scale"])[0, 0] / 2 for n in ("w", "r"))
    r = abs(widened(rounded)["r"][:, 0])
    bound, before = np.zeros((4, 32)), np.zeros((4, 32))
    for x, h, other in zip(xs, hs, came):
        enters = abs(x).sum(-1)[:, None] * w_half + abs(before).sum(-1)[:, None] * r_half
        bound, before = enters + bound @ r, h
        assert (abs(other - h) <= bound).all()
    first = abs(came[0] - hs[0]) / (abs(xs[0]).sum(-1)[:, None] * w_half)
    assert 0.05 < first.max() < 1  # the bound is of the size of what happens


def test_weights_that_are_whole_steps_lose_nothing():
    whole = RNG.integers(-127, 128, (3, 4, 5)), RNG.integers(-127, 128, (5, 4, 5))
    w, r = (np.concatenate([np.full((1, 4, 5), 127), a[1:]]) / 64 for a in whole)
    params = {"w": jnp.array(w), "r": jnp.array(r), "b": jnp.array(RNG.normal(size=(4, 5)))}
    small, rounded = jaxrnn.quantize(jaxrnn.lstm(5), params)
    wanted = unroll(jaxrnn.lstm(5), params, XS)
    jax.tree.map(np.testing.assert_array_equal, unroll(small, rounded, XS), wanted)


def test_zeros_stay_zeros_and_nan_stays_nan():
    params = example(jaxrnn.elman(4))
    params["w"], params["r"] = params["w"] * 0, params["r"].at[1, 0, 2].set(jnp.nan)
    _, rounded = jaxrnn.quantize(jaxrnn.elman(4), params)
    floats = widened(rounded)
    assert (floats["w"] == 0).all()
    assert np.isnan(floats["r"][:, 0, 2]).all() and np.isnan(floats["r"]).sum() == 4


@pytest.mark.parametrize("dtype", ("float32", "bfloat16"))
def test_types(dtype):
    cell = jaxrnn.lstm(5)
    small, rounded = jaxrnn.quantize(cell, example(cell, dtype))
    assert {n: a.dtype.name for n, a in rounded.items()} == {
        "w": "int8",
        "w_scale": dtype,
        "r": "int8",
        "r_scale": dtype,
        "b": dtype,
    }
    state, ys = unroll(small, rounded, XS.astype(dtype))
    assert ys.dtype == dtype and {s.dtype.name for s in state} == {"float32"}


def test_a_quarter_of_the_bytes():
    cell = jaxrnn.gru(64)
    shapes = jax.eval_shape(lambda key: cell.init(key, 64), jax.random.key(0))
    params = jax.tree.map(lambda p: np.ones(p.shape, "float32"), shapes)
    before, after = (
        sum(a.nbytes for a in jax.tree.leaves(p))
        for p in (params, jaxrnn.quantize(cell, params)[1])
    )
    assert 0.25 < after / before < 0.28


def test_the_cell_is_a_call_of_its_own():
    small, params = jaxrnn.quantize(jaxrnn.gru(4), example(jaxrnn.gru(4)))
    assert repr(small) == "int8(cell=gru(hidden=4))" and small == jaxrnn.int8(jaxrnn.gru(4))
    assert pickle.loads(pickle.dumps(small)) == small
    chex.assert_trees_all_equal_shapes_and_dtypes(small.init(jax.random.key(0), 3), params)


def test_every_implementation_keeps_running():
    small = jaxrnn.int8(jaxrnn.lstm(8))
    params = jax.eval_shape(lambda: small.init(jax.random.key(0), 3))
    xs = jax.ShapeDtypeStruct((5, 2, 3), "float32")
    assert jaxrnn.explain(small, params, xs, platform="tpu").choices[0].runs == "xla"  # float64
    with jax.enable_x64(False):
        params = jax.eval_shape(lambda: small.init(jax.random.key(0), 3))
        assert jaxrnn.explain(small, params, xs, platform="tpu").choices[0].runs == "tpu"


def test_errors():
    cell = jaxrnn.gru(4)
    params = cell.init(jax.random.key(0), 3)
    small, rounded = jaxrnn.quantize(cell, params)
    with pytest.raises(TypeError, match=r"params\['w'\]: got int8, want a floating type"):
        jaxrnn.quantize(small, rounded)
    with pytest.raises(TypeError, match=r"int8: got gru, want a Cell"):
        jaxrnn.quantize(jaxrnn.gru, params)
    with pytest.raises(ValueError, match=r"params: got \['bias', 'scale'\], want any of \('w', "):
        jaxrnn.quantize(jaxrnn.layer_norm(), jaxrnn.layer_norm().init(jax.random.key(0), 3))
    with pytest.raises(TypeError, match=r"params\['w'\]: got float64, want int8, as jaxrnn.quant"):
        jaxrnn.unroll(small, params, XS)
    with pytest.raises(ValueError, match=r"params: got \['b', .*want r_scale beside r"):
        jaxrnn.unroll(small, {n: a for n, a in rounded.items() if n != "r_scale"}, XS)
    with pytest.raises(TypeError, match="int8"):  # of JAX: no gradient of integers
        jax.grad(lambda p: jaxrnn.unroll(small, p, XS)[1].sum())(rounded)
