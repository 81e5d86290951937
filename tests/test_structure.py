"""Cells made of other cells: what they draw, and what they leave alone."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn

pytestmark = pytest.mark.usefixtures("x64")
KEY = jax.random.key(3)
XS = np.random.default_rng(1).normal(size=(6, 4, 3))
STARTS = np.zeros((6, 4), bool)
STARTS[3, 1] = True


_unroll = jax.jit(jaxrnn.unroll, static_argnames=("cell", "reverse"))
_begun = jax.jit(lambda cell, *given: cell.init(*given), static_argnums=(0, 2))
_stepped = jax.jit(lambda cell, *given: cell.step(*given), static_argnums=0)


@functools.cache
def begun(cell):
    """Parameters, NumPy's."""
    return jax.tree.map(np.asarray, _begun(cell, jax.random.key(0), XS.shape[-1]))


def run(cell, key=None, xs=XS, params=None, **options):
    """What ``unroll`` gives, NumPy's."""
    params = begun(cell) if params is None else params
    return jax.tree.map(np.asarray, _unroll(cell, params, xs, key=key, **options))


def step(cell, params, state, x, key=None):
    return jax.tree.map(np.asarray, _stepped(cell, params, state, x, key))


RANDOM = {  # rate -> a cell, and the one it is without
    "weight_dropout": (lambda rate: jaxrnn.weight_dropout(jaxrnn.lstm(5), rate), jaxrnn.lstm(5)),
    "zoneout": (lambda rate: jaxrnn.zoneout(jaxrnn.lstm(5), rate), jaxrnn.lstm(5)),
    "recurrent_dropout": (
        lambda rate: jaxrnn.recurrent_dropout(jaxrnn.gru(5), rate),
        jaxrnn.gru(5),
    ),
    "variational_dropout": (
        lambda rate: jaxrnn.variational_dropout(jaxrnn.lstm(5), rate),
        jaxrnn.lstm(5),
    ),
}
every_one = pytest.mark.parametrize("name", RANDOM)


def checked(value_and_grads, *args):
    """Gradients, a list of one for each argument, which are those of finite differences."""
    rng = np.random.default_rng(3)
    along = jax.tree.map(lambda a: rng.normal(size=a.shape), args)
    moved = lambda h: jax.tree.map(lambda a, d: np.asarray(a) + h * d, args, along)
    up, down = (float(value_and_grads(*moved(h))[0]) for h in (1e-5, -1e-5))
    grads = jax.tree.map(np.asarray, value_and_grads(*args)[1])
    came = sum((g * d).sum() for g, d in zip(jax.tree.leaves(grads), jax.tree.leaves(along)))
    np.testing.assert_allclose(came, (up - down) / 2e-5, rtol=1e-6)
    return grads


@functools.partial(jax.jit, static_argnames=("cell", "reverse"))
def of_sines(cell, params, xs, key=None, **options):
    """The sum of the outputs' sines, and its gradients."""
    loss = lambda params, xs: jnp.sin(jaxrnn.unroll(cell, params, xs, key=key, **options)[1]).sum()
    return jax.value_and_grad(loss, (0, 1))(params, xs)


@every_one
def test_a_rate_of_zero_changes_no_bit(name):
    make, bare = RANDOM[name]
    wanted = run(bare)[1]
    for key in (None, KEY):
        np.testing.assert_array_equal(run(make(0.0), key)[1], wanted)


@every_one
def test_the_key_says_what_is_drawn(name):
    cell = RANDOM[name][0](0.5)
    one = lambda key: run(cell, key)
    chex.assert_trees_all_equal(one(KEY), one(KEY))
    assert (one(KEY)[1] != one(jax.random.key(4))[1]).any()
    assert (one(KEY)[1] != run(cell)[1]).any(), "no key is evaluation"


@every_one
def test_forward_and_backward_draw_the_same(name):
    """Gradients are those of finite differences of the same draw."""
    cell = RANDOM[name][0](0.5)
    checked(functools.partial(of_sines, cell, key=KEY, starts=STARTS), begun(cell), XS)


@pytest.mark.parametrize("inner", (jaxrnn.lstm(200), jaxrnn.gru(200, reset_after=False)))
def test_zoneout_keeps_units(inner):
    """Each unit's new value is the old one or the cell's; about as many are kept as asked for."""
    cell = jaxrnn.zoneout(inner, 0.25)
    params = begun(cell)
    before = run(cell, params=params)[0]
    (after, count), y = step(cell, params, before, XS[0], KEY)
    new, _ = step(inner, params, before[0], XS[0])
    assert (count == 7).all() and (y == after[0]).all()
    masks = []
    for old, now, fresh in zip(before[0], after, new):
        kept = np.array(now == old)
        assert (kept | (now == fresh)).all() and abs(kept.mean() - 0.25) < 0.05
        masks.append(kept)
    assert len({mask.tobytes() for mask in masks}) == len(masks), "each array draws apart"
    assert len({row.tobytes() for row in masks[0]}) == 4, "rows draw apart"
    later = step(cell, params, (before[0], before[1] + 1), XS[0], KEY)[0][0][0]
    assert ((later == before[0][0]) != masks[0]).any(), "steps draw apart"


def test_zoneout_of_one_array_leaves_the_others():
    cell = jaxrnn.zoneout(jaxrnn.lstm(20), (0.0, 0.5))
    params = begun(cell)
    before = run(cell, params=params)[0]
    (h, c), _ = step(cell, params, before, XS[0], KEY)[0]
    new = step(jaxrnn.lstm(20), params, before[0], XS[0])[0]
    np.testing.assert_array_equal(h, new[0])
    assert 0.3 < (c == new[1]).mean() < 0.7


@pytest.mark.parametrize("per", ("step", "sequence"))
def test_recurrent_dropout_drops_what_is_added(per):
    """Where g is dropped, c = f c: by a cell that forgets nothing, c stays."""
    cell = jaxrnn.recurrent_dropout(jaxrnn.lstm(200, forget_bias=1e3), 0.25, per=per)
    params = begun(cell)
    dropped, before, old = [], cell.initial_state(params, (4,)), 0
    for x in XS:
        before, _ = step(cell, params, before, x, KEY)
        c = np.array(before[0][1])
        dropped.append(c == old)
        old = c
    assert abs(np.mean(dropped) - 0.25) < 0.03
    assert np.array_equal(dropped[0], dropped[1]) == (per == "sequence")
    assert len({row.tobytes() for row in dropped[0]}) == 4, "rows draw apart"


CANDIDATES = (
    jaxrnn.lstm(5),
    jaxrnn.lstm(5, peepholes=True, coupled=True),
    jaxrnn.gru(5),
    jaxrnn.ugrnn(5),
    jaxrnn.janet(5),
    jaxrnn.ligru(5),
)


@pytest.mark.parametrize("inner", CANDIDATES, ids=str)
def test_what_is_added_to_nothing_is_dropped_or_scaled(inner):
    cell = jaxrnn.recurrent_dropout(inner, 0.25)
    params = begun(cell)
    bare = step(inner, params, inner.initial_state(params, (4,)), XS[0])[0][-1]
    came = np.array(step(cell, params, cell.initial_state(params, (4,)), XS[0], KEY)[0][0][-1])
    assert 0 < (came == 0).sum() < came.size
    np.testing.assert_allclose(came, np.where(came == 0, 0, bare / 0.75), rtol=1e-12)


@pytest.mark.parametrize("inner", CANDIDATES, ids=str)
def test_where_all_is_dropped_zero_stays_zero(inner):
    cell = jaxrnn.recurrent_dropout(inner, 1.0)
    (state, _), ys = run(cell, KEY)
    assert not any(a.any() for a in (*state, ys)) and run(cell)[1].any()


def test_variational_dropout_is_one_mask_of_h():
    """The same at every step: as with rows of the recurrent weights zeroed, row by row."""
    cell, bare = jaxrnn.variational_dropout(jaxrnn.gru(4), 0.5), jaxrnn.gru(4)
    params = begun(cell)
    ys = run(cell, KEY, params=params, starts=STARTS)[1]
    found = 0
    for bits in range(16):
        mask = np.array([bits >> i & 1 for i in range(4)]) * 2.0
        one = params | {"r": params["r"] * mask[:, None, None]}
        same = np.isclose(run(bare, params=one, starts=STARTS)[1], ys, rtol=1e-9, atol=0)
        found += same.all((0, 2)).sum()
    assert found == 4, "each row is the cell with one of the masks"


def test_weight_dropout_is_a_mask_of_the_weights():
    """The same for all rows and steps; other parameters stay, and so does the kernel."""
    seen = []
    spy = jaxrnn.with_params(jaxrnn.lstm(40), lambda params, key: seen.append(params) or params)
    cell = jaxrnn.weight_dropout(spy, 0.25)
    params = begun(cell)
    jaxrnn.unroll(cell, params, XS, key=KEY)  # not traced: what is seen are numbers
    given = seen[-1]
    ratio = np.array(given["r"] / params["r"])
    assert set(np.unique(ratio.round(9))) == {0.0, np.round(1 / 0.75, 9)}
    assert abs((ratio == 0).mean() - 0.25) < 0.02
    chex.assert_trees_all_equal(given | {"r": 0}, params | {"r": 0})
    everything = jaxrnn.weight_dropout(jaxrnn.stack(spy, jaxrnn.gru(2)), 0.5, names=("r", "w"))
    _, ys = jaxrnn.unroll(everything, begun(everything), XS, key=KEY)
    assert ys.shape == (6, 4, 2) and (seen[-1]["w"] == 0).any()
    assert jaxrnn.explain(cell, params, XS, key=KEY).choices == (
        jaxrnn.explain(jaxrnn.lstm(40), params, XS).choices
    )


@pytest.mark.parametrize("inner", ("fused", "lifted", "stack"))
def test_learned_state(inner):
    """Where it begins, and again at every start; kernels keep running where they can."""
    inner = {
        "fused": jaxrnn.lstm(5),
        "lifted": jaxrnn.gru(5, reset_after=False),
        "stack": jaxrnn.stack(jaxrnn.elman(5), jaxrnn.dropout(0.5)),
    }[inner]
    cell = jaxrnn.learned_state(inner)
    params = begun(cell)
    bare = params["cell"]
    np.testing.assert_array_equal(run(cell, params=params)[1], run(inner, params=bare)[1])
    params = params | {"state": {n: a + 0.5 for n, a in params["state"].items()}}
    first = cell.initial_state(params, (4,))
    starts = np.zeros((6, 4), bool)
    starts[3] = True
    ys = run(cell, params=params, starts=starts)[1]
    halves = [run(inner, params=bare, xs=xs, state=first)[1] for xs in (XS[:3], XS[3:])]
    np.testing.assert_allclose(ys, np.concatenate(halves), rtol=1e-12)
    for starts, reverse in ((np.zeros_like(STARTS), False), (STARTS, False), (STARTS, True)):
        both = functools.partial(of_sines, cell, starts=starts, reverse=reverse)
        grads, _ = checked(both, params, XS)
        assert all(g.any() for g in jax.tree.leaves(grads["state"]))
    if inner == jaxrnn.lstm(5):
        explained = jaxrnn.explain(cell, params, XS, starts=STARTS)
        assert explained.choices == jaxrnn.explain(inner, bare, XS, starts=STARTS).choices


def test_a_nest_is_as_deep_as_it_is():
    """Making one makes each cell in it once; a run is traced at most once for each level."""
    counts, levels = {"init": 0, "step": 0}, 12

    def init(key, in_size):
        counts["init"] += 1
        return {"w": jax.random.normal(key, (in_size, 3))}

    def step(params, state, x):
        counts["step"] += 1
        return state, x @ params["w"]

    around = (
        lambda cell: jaxrnn.stack(cell, jaxrnn.project(3)),
        lambda cell: jaxrnn.residual(jaxrnn.stack(jaxrnn.project(3), jaxrnn.parallel(cell))),
        lambda cell: jaxrnn.highway(jaxrnn.stack(jaxrnn.project(3), jaxrnn.learned_state(cell))),
        lambda cell: jaxrnn.attentive(jaxrnn.stack(jaxrnn.project(3), cell), 3, score="dot"),
    )
    cell = jaxrnn.cell(init, lambda params, batch: jnp.zeros((*batch, 1)), step)
    for level in range(levels):
        cell = around[level % len(around)](cell)
    jax.eval_shape(lambda key: cell.init(key, 3), KEY)
    assert counts["init"] == 1 and 0 < counts["step"] <= levels


def test_a_nest_of_decoders():
    """What is fed with its own output asks for its size first: at each level for one size more."""
    counts, levels = [], 8
    elman = jaxrnn.elman(3)
    cell = dataclasses.replace(elman, init=lambda *a: counts.append(a) or elman.init(*a))
    for _ in range(levels):
        cell = jaxrnn.attentive(cell, 3, score="general")
    params = jax.eval_shape(lambda key: cell.init(key, 3), KEY)
    assert params["combine"].shape == (6, 3)
    assert len(counts) <= 1 + levels * (levels + 1) / 2


def test_layers_draw_apart():
    """Two layers that drop a half leave a quarter."""
    cell = jaxrnn.stack(jaxrnn.dropout(0.5), jaxrnn.dropout(0.5))
    xs = jnp.ones((50, 4, 100))
    ys = np.asarray(jaxrnn.unroll(cell, cell.init(KEY, 100), xs, key=KEY)[1])
    assert abs((ys != 0).mean() - 0.25) < 0.02
