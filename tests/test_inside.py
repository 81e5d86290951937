"""What is found inside a cell is what its equations say, and what it does with its inputs."""

import re

import cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import truth
from jax.ad_checkpoint import checkpoint_name

import jaxrnn
from jaxrnn import inside

KEY = jax.random.key(0)
SHAPE = cases.Shape(4, (2,), 3, 3)
ONCE = tuple(n for n in cases.CELLS if not re.search("_(states|chunks|heads|relu|identity)$", n))
# Not on the left of an equation, not of one step, or the same at every step, as LRU's a is.
NOT_SHOWN = {
    "attention": {"y_t"},
    "attention_grouped": {"y_t"},
    "conv1d": {"y_t"},
    "qrnn": {"z", "f", "o", "i", "h"},
    "lru": {"a"},
    "s5": {"L", "D_t", "a", "s"},
    "min_lstm": {"f", "i"},
    "zoneout": {"new", "state"},
    "linear_attention": {"n"},
    "linoss": {"a", "dt", "z", "o"},  # it runs as one complex h
    "mamba3": {"v"},  # a product of x alone
    "mlstm": {"p"},  # the m before
    "mlstm_sigmoid": {"n", "m", "p"},
    "layer_norm_lstm": {"a"},  # a_i and so on
    "mamba2_block": {"v", "B", "C"},  # at its parts, by their paths
}


def flat(found, prefix=""):
    """The arrays by their paths, as "0/h"."""
    arrays = {}
    for name, a in found.items():
        arrays |= flat(a, f"{prefix}{name}/") if isinstance(a, dict) else {prefix + name: a}
    return arrays


def left_sides(cell):
    """The names on the left of the equations in the docstring of a cell."""
    told = (cell.made.constructor.__doc__ or "").split("Args:")[0]
    equations = re.findall(r"^ {8}(\S.*)$", told, re.MULTILINE)
    parts = [part for line in equations for part in re.split(" {2,}", line)]
    found = [re.match(r"([A-Za-z_]\w*(?:, \w+)*) = ", part) for part in parts]
    return {name for match in found if match for name in match[1].split(", ")}


@pytest.mark.parametrize("name", ONCE)
def test_every_cell_shows_what_its_equations_name(name):
    case = cases.CELLS[name]
    cell = case.make(6)
    params = jax.eval_shape(lambda key: cell.init(key, case.inputs or 6), KEY)
    xs = jax.ShapeDtypeStruct((3, 2, case.inputs or 6), jnp.float32)
    found = flat(jax.eval_shape(lambda p, x: jaxrnn.trace(cell, p, x), params, xs))
    assert "y" in found and all(a.shape[:2] == (3, 2) for a in found.values())
    named = NOT_SHOWN.get(name) or NOT_SHOWN.get(cell.made.constructor.__name__, set())
    assert left_sides(cell) - named <= set(found)


def loop(step, params, xs, states):
    """[T, ...] of every name, by ``step(params, x, *states) -> dict`` in NumPy."""
    found, state = [], tuple(np.zeros((*xs.shape[1:-1], params["b"].shape[-1])) for _ in states)
    for x in xs:
        found.append(step(params, x, *state))
        state = tuple(found[-1][name] for name in states)
    return {name: np.stack([f[name] for f in found]) for name in found[0]}


def enter(params, x, h):
    parts = np.einsum("bi,igh->gbh", x, params["w"]) + params["b"][:, None]
    return parts, np.einsum("bh,hgk->gbk", h, params["r"])


def lstm(params, x, h, c):
    a = dict(zip(("a_i", "a_f", "a_g", "a_o"), sum(enter(params, x, h))))
    i, f, o = (truth.sigmoid(a[f"a_{k}"]) for k in "ifo")
    g = np.tanh(a["a_g"])
    c = f * c + i * g
    h = o * np.tanh(c)
    return a | {"i": i, "f": f, "g": g, "o": o, "c": c, "h": h, "y": h}


def gru(params, x, h):
    (xr, xz, xn), (rr, rz, rn) = enter(params, x, h)
    r, z = truth.sigmoid(xr + rr), truth.sigmoid(xz + rz)
    n = np.tanh(xn + r * (rn + params["rb"]))
    h = (1 - z) * n + z * h
    entering = {"a_r": xr + rr, "a_z": xz + rz, "xn": xn, "rn": rn}
    return entering | {"r": r, "z": z, "n": n, "h": h, "y": h}


def gru_reset_before(params, x, h):
    (xr, xz, xn), (rr, rz, _) = enter(params, x, h)
    r, z = truth.sigmoid(xr + rr), truth.sigmoid(xz + rz)
    a_n = xn + (r * h) @ params["r"][:, 2]
    n = np.tanh(a_n)
    h = (1 - z) * n + z * h
    entering = {"a_r": xr + rr, "a_z": xz + rz, "a_n": a_n}
    return entering | {"r": r, "z": z, "n": n, "h": h, "y": h}


def elman(params, x, h):
    (a,) = sum(enter(params, x, h))
    return {"a_h": a, "h": np.tanh(a), "y": np.tanh(a)}


BY_HAND = {
    "elman": (elman, "h"),
    "lstm": (lstm, "hc"),
    "gru": (gru, "h"),
    "gru_reset_before": (gru_reset_before, "h"),
}


@pytest.mark.parametrize("name", BY_HAND)
@pytest.mark.usefixtures("x64")
def test_values_are_those_of_the_equations(name):
    step, states = BY_HAND[name]
    given = cases.example(cases.CELLS[name], SHAPE)
    found = jax.jit(lambda p, x: jaxrnn.trace(given.cell, p, x))(given.params, given.xs)
    params = {n: np.asarray(a) for n, a in given.params.items()}
    wanted = loop(step, params, np.asarray(given.xs), states)
    assert set(found) == set(wanted)
    for n, a in wanted.items():
        assert cases.error(found[n], a) < 1e-12, n


@pytest.mark.parametrize("reverse", (False, True))
@pytest.mark.usefixtures("x64")
def test_states_are_held_where_a_step_is_not_real(reverse):
    given = cases.example(cases.CELLS["lstm"], SHAPE)
    mask = jnp.array([[0, 0], [1, 1], [0, 1], [0, 0]]) == 1
    starts = jnp.array([[0, 0], [0, 0], [0, 1], [0, 0]]) == 1
    options = {"mask": mask, "starts": starts, "reverse": reverse}
    arrays = given.params, given.xs, given.state
    found, (state, ys) = jax.jit(
        lambda *a: [f(given.cell, *a, **options) for f in (jaxrnn.trace, jaxrnn.unroll)]
    )(*arrays)
    assert cases.error(found["y"], ys) < 1e-12
    last = 0 if reverse else -1
    assert cases.error((found["h"][last], found["c"][last]), state) < 1e-12
    assert not jnp.where(mask[..., None], 0, found["f"]).any()
    order = slice(None, None, -1 if reverse else 1)
    c = jnp.concatenate([given.state[1][None], found["c"][order]])
    assert ((c[1:] == c[:-1]).all(-1) == ~mask[order]).all()


MADE = {
    "stack": jaxrnn.stack(jaxrnn.lstm(3), jaxrnn.dropout(0.5), jaxrnn.residual(jaxrnn.gru(3))),
    "bidirectional": jaxrnn.stack(jaxrnn.bidirectional(jaxrnn.gru(2)), jaxrnn.elman(3)),
    "zoneout": jaxrnn.zoneout(jaxrnn.lstm(3), (0.25, 0.5)),
    "recurrent_dropout": jaxrnn.recurrent_dropout(jaxrnn.gru(3), 0.5),
    "variational_dropout": jaxrnn.variational_dropout(jaxrnn.ugrnn(3), 0.5),
    "weight_dropout": jaxrnn.weight_dropout(jaxrnn.stack(jaxrnn.gru(3)), 0.5),
    "initialized": jaxrnn.initialized(jaxrnn.stack(jaxrnn.elman(3)), "torch"),
    "learned_state": jaxrnn.learned_state(jaxrnn.lstm(3)),
    "highway": jaxrnn.highway(jaxrnn.bidirectional(jaxrnn.elman(3), merge="sum")),
    "attentive": jaxrnn.attentive(jaxrnn.gru(3), 2),
    "dense": jaxrnn.dense(jaxrnn.lstm(3, projection=2)),
}
SHOWN = {
    "stack": ["0/c", "0/f", "1/y", "2/z", "2/h"],
    "bidirectional": ["0/forward/z", "0/backward/z", "1/a_h"],
    "zoneout": ["i", "h", "c"],
    "recurrent_dropout": ["a_z", "z", "n", "h"],
    "variational_dropout": ["a_g", "g", "c", "h"],
    "weight_dropout": ["0/r", "0/h"],
    "initialized": ["0/a_h", "0/h"],
    "learned_state": ["cell/f", "cell/c", "cell/h"],
    "highway": ["cell/forward/h", "cell/backward/h"],
    "attentive": ["cell/z", "cell/h", "context"],
    "dense": ["0/y", "1/f", "1/c", "1/h"],
}


@pytest.mark.parametrize("name", MADE)
def test_the_trace_of_cells_made_of_cells_follows_their_parameters(name):
    cell = MADE[name]
    xs = np.random.default_rng(0).normal(size=(4, 2, 3)).astype("float32")
    options = {"lengths": np.array([4, 2], np.int32), "key": jax.random.key(1)}

    @jax.jit
    def both(key, xs):
        params = cell.init(key, 3)
        if name == "attentive":
            params = jaxrnn.remember(params, xs[..., :2])
        given = cell, params, xs
        return jaxrnn.trace(*given, **options), jaxrnn.unroll(*given, **options)

    found, (state, ys) = both(KEY, xs)
    assert cases.error(found["y"], ys) < 5e-6
    arrays = flat(found)
    assert set(SHOWN[name]) <= set(arrays)
    finals = [np.asarray(a) for a in jax.tree.leaves(cases.floating(state))]
    ends = [a[k] for a in map(np.asarray, arrays.values()) for k in (0, -1)]
    for final in finals:  # every state is there, held to the end
        assert any(a.shape == final.shape and np.abs(a - final).max() < 5e-6 for a in ends)


def user_update(state, x, r):
    (h,), (xf, xn), (rf, rn) = state, x, r
    f = checkpoint_name(jax.nn.sigmoid(xf + rf), "f")
    kept = checkpoint_name(f * h, "user.kept")
    return (kept + (1 - f) * jnp.tanh(xn + rn),)


def test_a_cell_of_yours():
    cell = jaxrnn.gated(user_update, gates=("f", "n"), states=("level",))(3)
    xs = np.random.default_rng(0).normal(size=(4, 2)).astype("float32")
    found = jax.jit(lambda: jaxrnn.trace(cell, cell.init(KEY, 2), xs))()
    assert sorted(found) == ["a_f", "a_n", "f", "kept", "level", "y"]
    assert (found["level"] == found["y"]).all() and found["f"].shape == (4, 3)
    assert cases.error(found["f"], truth.sigmoid(np.asarray(found["a_f"]))) < 1e-6
    assert cases.error(found["kept"][1:], found["f"][1:] * found["level"][:-1]) < 1e-6
    numbered = jaxrnn.gated(user_update, gates=2)(3)
    found = jax.eval_shape(lambda: jaxrnn.trace(numbered, numbered.init(KEY, 2), xs))
    assert sorted(found) == ["a_0", "a_1", "f", "h", "kept", "y"]

    def step(params, state, x):
        level, count = state
        rate = checkpoint_name(jax.nn.sigmoid(x), "rate")
        old = jax.jit(lambda a: checkpoint_name((1 - rate) * a, "old"))(level)  # a call is opened
        weight = checkpoint_name(params["weight"], "weight")  # not shown: it has no rows
        level = checkpoint_name(old + rate * jnp.broadcast_to(weight, x.shape), "level")
        inner = jax.vmap(lambda a: checkpoint_name(2 * a, "twice"))(rate)
        return (level, count + 1), level + 0 * inner

    initial = lambda params, batch: (jnp.zeros((*batch, 2)), jnp.zeros(batch))
    given = {"weight": jnp.ones((3, 2))[0]}, jnp.ones((4, 3, 2))
    for states in ((), ("new", "count")):
        smooth = jaxrnn.cell(lambda key, n: {}, initial, step, states=states)
        found = jax.eval_shape(lambda *given, c=smooth: jaxrnn.trace(c, *given), *given)
        names = {"rate", "old", "level", "twice", "y", *(states or ["state_1"])}
        assert set(found) == names


def test_under_transforms(x64):
    given = cases.example(cases.CELLS["lstm"], SHAPE)
    run = lambda params, xs: jaxrnn.trace(given.cell, params, xs)
    plain = run(given.params, given.xs)
    jitted = jax.jit(run)
    assert cases.error(jitted(given.params, given.xs), plain) < 1e-12
    rows = jax.jit(jax.vmap(run, (None, 1), 1))(given.params, given.xs)
    assert cases.error(rows, plain) < 1e-12
    first = lambda xs: jitted(given.params, xs)["f"][-1].sum()
    gradient = jax.jit(jax.grad(first))(given.xs)
    nudge = 1e-6 * cases.cotangents(given.xs)
    moved = (first(given.xs + nudge) - first(given.xs - nudge)) / 2
    assert abs(moved - (gradient * nudge).sum()) < 1e-7 * abs(moved)


def test_only_what_is_used_is_computed():
    cell = jaxrnn.lstm(3)
    params, xs = cell.init(KEY, 2), jnp.ones((5, 2))

    def kept(pick):  # arrays of all steps that the loop writes
        run = jax.jit(lambda p, x: pick(jaxrnn.trace(cell, p, x)))
        text = run.lower(params, xs).compile().as_text()
        return max(line.count("[5,3]") for line in text.splitlines() if " while(" in line)

    assert kept(lambda found: found["f"][-1]) == 1
    assert kept(lambda found: found) > 9


def test_no_steps():
    cell = jaxrnn.stack(jaxrnn.gru(2), jaxrnn.lru(2))
    found = jax.jit(lambda: jaxrnn.trace(cell, cell.init(KEY, 2), jnp.ones((0, 5, 2))))()
    assert {a.shape for a in flat(found).values()} == {(0, 5, 2)}


traced = jax.jit(jaxrnn.trace, static_argnums=0)


@pytest.mark.usefixtures("x64")
def test_gradient_norms_are_products_of_jacobians():
    given = cases.example(cases.CELLS["elman"], SHAPE)
    r = np.asarray(given.params["r"][:, 0])
    h = np.asarray(traced(given.cell, given.params, given.xs)["h"])
    wanted, d = [], np.ones_like(h[0])
    for now in h[::-1]:
        d = (d * (1 - now**2)) @ r.T
        wanted.append(np.linalg.norm(d, axis=-1))
    run = lambda **options: jax.jit(
        lambda p, x: inside.gradient_norms(given.cell, p, x, **options)
    )(given.params, given.xs)
    norms = run()
    assert cases.error(norms, np.stack(wanted[::-1])) < 1e-12
    twice = run(loss=lambda ys: 2 * ys[-1].sum())
    assert cases.error(twice, 2 * norms) < 1e-12
    starts = jnp.zeros((4, 2), bool).at[2, 1].set(True)
    cut = run(starts=starts)
    assert (cut[:3, 1] == 0).all() and (cut[:, 0] > 0).all() and cut[3, 1] > 0


@pytest.mark.usefixtures("x64")
def test_spectral_radius():
    given = cases.example(cases.CELLS["elman"], SHAPE)
    r = np.asarray(given.params["r"][:, 0])
    h = np.asarray(traced(given.cell, given.params, given.xs)["h"])
    each = [[np.abs(np.linalg.eigvals(np.diag(1 - b**2) @ r.T)).max() for b in t] for t in h]
    run = lambda **options: jax.jit(
        lambda p, x: inside.spectral_radius(given.cell, p, x, **options)
    )(given.params, given.xs)
    radius = run()
    assert cases.error(radius, np.array(each)) < 1e-10
    mask = jnp.ones((4, 2), bool).at[1, 0].set(False)
    starts = jnp.zeros((4, 2), bool).at[2, 1].set(True)
    radius = run(mask=mask, starts=starts)
    assert radius[1, 0] == 1 and radius[2, 1] == 0


def test_spectral_radius_of_complex_states_and_counters():
    cell = jaxrnn.zoneout(jaxrnn.stack(jaxrnn.lru(3)), 0.0)
    params = cell.init(KEY, 3)
    run = jax.jit(lambda p, x: inside.spectral_radius(cell, p, x))
    radius = run(params, jnp.ones((2, 3)))
    a = jnp.exp(-jnp.exp(params["0"]["nu"]))
    assert jnp.allclose(radius, a.max(), rtol=1e-5)


def test_saturation_of_the_steps_that_are_real():
    gate = jnp.array([[[0.05, 0.95]], [[0.5, 0.95]], [[0.05, 0.05]]])
    low, high = inside.saturation(gate, mask=jnp.array([[True], [True], [False]]))
    assert (low == jnp.array([0.5, 0])).all() and (high == jnp.array([0, 1.0])).all()


@pytest.mark.usefixtures("x64")
def test_integrated_gradients_are_complete():
    given = cases.example(cases.CELLS["lstm"], SHAPE)
    function = lambda xs: jaxrnn.unroll(given.cell, given.params, xs)[1][-1].sum(-1)
    baseline = 0.5 * cases.cotangents(given.xs)
    found = jax.jit(lambda xs: inside.integrated_gradients(function, xs, baseline))(given.xs)
    wanted = function(given.xs) - function(baseline)  # of each row
    assert cases.error(found.sum((0, 2)), wanted) < 1e-10
    weight = cases.cotangents(given.xs, 2)
    linear = inside.integrated_gradients(lambda xs: (weight * xs).sum(), given.xs, points=1)
    assert cases.error(linear, weight * given.xs) < 1e-12


BOTH = jaxrnn.bidirectional(jaxrnn.gru(2))
XS = jnp.ones((4, 2, 3))
GRU = jaxrnn.gru(2)
BAD = {
    "cell": (lambda: jaxrnn.trace(jaxrnn.gru, {}, XS), TypeError, "trace: got gru, want a Cell"),
    "xs": (
        lambda: jaxrnn.trace(GRU, GRU.init(KEY, 2), XS),
        ValueError,
        "xs: got I = 3 features",
    ),
    "no step": (
        lambda: inside.gradient_norms(BOTH, BOTH.init(KEY, 3), XS),
        ValueError,
        "has no step",
    ),
    "gate": (lambda: inside.saturation([0.5]), TypeError, "gate: got list, want an array"),
    "mask": (
        lambda: inside.saturation(XS, mask=jnp.ones(4, bool)),
        ValueError,
        r"mask: got shape \(4,",
    ),
    "baseline": (
        lambda: inside.integrated_gradients(jnp.sum, XS, XS[0]),
        ValueError,
        "baseline: got float",
    ),
    "points": (
        lambda: inside.integrated_gradients(jnp.sum, XS, points=0),
        ValueError,
        "points: got 0",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_the_error_says_what_is_wrong(name):
    call, kind, text = BAD[name]
    with pytest.raises(kind, match=text):
        call()
