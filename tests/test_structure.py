"""Cells made of other cells: what they draw, and what they leave alone."""

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


def run(cell, key=None, xs=XS, params=None, **options):
    params = params or cell.init(jax.random.key(0), xs.shape[-1])
    return jaxrnn.unroll(cell, params, xs, key=key, **options)


def jit_run(cell, **options):
    return jax.jit(lambda key: run(cell, key, **options))


RANDOM = {  # rate -> a cell, and the one it is without
    "weight_dropout": (lambda rate: jaxrnn.weight_dropout(jaxrnn.lstm(5), rate), jaxrnn.lstm(5)),
}
every_one = pytest.mark.parametrize("name", RANDOM)


@every_one
def test_a_rate_of_zero_changes_no_bit(name):
    make, bare = RANDOM[name]
    wanted = run(bare)[1]
    for key in (None, KEY):
        np.testing.assert_array_equal(run(make(0.0), key)[1], wanted)


@every_one
def test_the_key_says_what_is_drawn(name):
    cell = RANDOM[name][0](0.5)
    one = jit_run(cell)
    chex.assert_trees_all_equal(one(KEY), one(KEY))
    assert (one(KEY)[1] != one(jax.random.key(4))[1]).any()
    assert (one(KEY)[1] != run(cell)[1]).any(), "no key is evaluation"


@every_one
def test_forward_and_backward_draw_the_same(name):
    """Gradients are those of finite differences of the same draw."""
    cell = RANDOM[name][0](0.5)
    params = cell.init(jax.random.key(0), 3)

    def loss(params, xs):
        state, ys = run(cell, KEY, xs, params, starts=STARTS)
        return jnp.sin(ys).sum()

    along = jax.tree.map(lambda a: jax.random.normal(KEY, a.shape), (params, XS))
    moved = lambda h: jax.tree.map(lambda a, d: a + h * d, (params, XS), along)
    slope = (loss(*moved(1e-5)) - loss(*moved(-1e-5))) / 2e-5
    grads = jax.jit(jax.grad(loss, (0, 1)))(params, XS)
    came = sum((g * d).sum() for g, d in zip(jax.tree.leaves(grads), jax.tree.leaves(along)))
    np.testing.assert_allclose(came, slope, rtol=1e-6)


def test_weight_dropout_is_a_mask_of_the_weights():
    """The same for all rows and steps; other parameters stay, and so does the kernel."""
    seen = []
    spy = jaxrnn.with_params(jaxrnn.lstm(40), lambda params, key: seen.append(params) or params)
    cell = jaxrnn.weight_dropout(spy, 0.25)
    params = cell.init(jax.random.key(0), 3)
    run(cell, KEY, params=params)
    given = seen[-1]
    ratio = np.array(given["r"] / params["r"])
    assert set(np.unique(ratio.round(9))) == {0.0, np.round(1 / 0.75, 9)}
    assert abs((ratio == 0).mean() - 0.25) < 0.02
    chex.assert_trees_all_equal(given | {"r": 0}, params | {"r": 0})
    everything = jaxrnn.weight_dropout(jaxrnn.stack(spy, jaxrnn.gru(2)), 0.5, names=("r", "w"))
    assert run(everything, KEY)[1].shape == (6, 4, 2) and (seen[-1]["w"] == 0).any()
    assert jaxrnn.explain(cell, params, XS, key=KEY).choices == (
        jaxrnn.explain(jaxrnn.lstm(40), params, XS).choices
    )
