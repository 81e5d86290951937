"""Randomness: a mask is a function of the key, the row and the count, whatever draws the bits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn

XS = np.ones((6, 3, 4), np.float32)
CELL = jaxrnn.parallel(  # everything that draws: one program for all of them
    jaxrnn.dropout(0.5),
    jaxrnn.dropout(0.5, per="sequence"),
    jaxrnn.zoneout(jaxrnn.gru(4), 0.5),
    jaxrnn.recurrent_dropout(jaxrnn.lstm(4), 0.5),
    jaxrnn.variational_dropout(jaxrnn.gru(4), 0.5),
    jaxrnn.weight_dropout(jaxrnn.gru(4), 0.5),
    jaxrnn.stack(jaxrnn.dropout(0.5), jaxrnn.elman(4), jaxrnn.dropout(0.5)),
)
IMPLS = ("threefry2x32", "rbg", "unsafe_rbg")


@pytest.fixture(scope="module")
def params():
    return jax.jit(lambda key: CELL.init(key, 4))(jax.random.key(0))


@jax.jit
def unroll(params, key, state, xs, mask):
    return jaxrnn.unroll(CELL, params, xs, state, mask=mask, key=key)


step = jax.jit(CELL.step)


def same(came, wanted):
    np.testing.assert_allclose(came, wanted, rtol=1e-6, atol=1e-6)


def test_steps_pieces_and_padded_rows_draw_what_the_whole_does(params):
    """With keys of four words, which those of "unsafe_rbg" are too; the laws' have two."""
    key, real = jax.random.key(7, impl="rbg"), np.ones((6, 3), bool)
    initial = CELL.initial_state(params, (3,))
    _, whole = unroll(params, key, initial, XS, real)
    apart = np.array(whole[:, 0] != whole[:, 1]).reshape(-1, len(CELL.made.args), 4)
    assert apart.any((0, 2)).tolist() == [True] * 5 + [False, True], "weights are for all rows"
    state, ys = initial, []
    for x in XS:
        state, y = step(params, state, x, key)
        ys.append(y)
    same(jnp.stack(ys), whole)
    state, first = unroll(params, key, initial, XS[:3], real[:3])
    second = unroll(params, key, state, XS[3:], real[3:])[1]
    same(jnp.concatenate([first, second]), whole)
    real[0, 1] = False
    padded = unroll(params, key, initial, XS, real)[1]
    same(padded[1:, 1], whole[:-1, 1])
    same(padded[:, 0], whole[:, 0])


@pytest.mark.parametrize("impl", IMPLS)
def test_keys_under_vmap(impl):
    """Each draws what it draws alone."""
    cell = jaxrnn.stack(
        jaxrnn.dropout(0.5), jaxrnn.weight_dropout(jaxrnn.project(9), 0.5, names=("w",))
    )
    params = cell.init(jax.random.key(0), 4)
    run = lambda key: jaxrnn.unroll(cell, params, XS, key=key)[1]
    keys = jax.random.split(jax.random.key(3, impl=impl), 3)
    together, alone = jax.jit(jax.vmap(run))(keys), jax.jit(run)
    for key, came in zip(keys, together):
        same(came, alone(key))
    assert (together[0] != together[1]).any()


@pytest.mark.parametrize("impl", IMPLS)
def test_every_word_of_a_key_matters(impl):
    words = jax.random.key_data(jax.random.key(3, impl=impl))
    draw = lambda words: jaxrnn.dropout(0.5).step(
        {}, jnp.zeros(3, jnp.int32), jnp.ones((3, 64)), jax.random.wrap_key_data(words, impl=impl)
    )[1]
    several = [words] + [words.at[i].add(1) for i in range(words.size)]
    drawn = np.array(jax.jit(jax.vmap(draw))(jnp.stack(several)))
    assert len({mask.tobytes() for mask in drawn}) == len(several)
    assert len({mask[0].tobytes() for mask in drawn}) == len(several)


@pytest.mark.parametrize("impl", IMPLS)
def test_keys_of_the_old_kind(impl):
    """They draw what typed ones do, whatever JAX's default generator is."""
    draw = lambda key: jaxrnn.dropout(0.5).step(
        {}, jnp.zeros(3, jnp.int32), jnp.ones((3, 8)), key
    )[1]
    with jax.default_prng_impl(impl):
        came = draw(jax.random.PRNGKey(7))
    np.testing.assert_array_equal(came, draw(jax.random.key(7, impl=impl)))


def test_a_mask_by_hand():
    """That of a threefry key, as it has always been; at counts beyond 2^31 too."""
    key, counts = jax.random.key(7), np.array([0, 5, -(2**31), -1], np.int32)
    _, ys = jaxrnn.dropout(0.25).step({}, counts, jnp.ones((4, 8)), key)
    for row, count in enumerate(counts):
        own = jax.random.fold_in(jax.random.fold_in(key, row), np.uint32(int(count) % 2**32))
        wanted = jax.random.bernoulli(own, 0.75, (8,))
        np.testing.assert_allclose(ys[row], np.where(wanted, 1 / 0.75, 0), rtol=1e-6)


ALL = {  # the rate at which nothing is kept, and next to nothing in float16
    "dropout": jaxrnn.dropout,
    "dropout per sequence": lambda rate: jaxrnn.dropout(rate, per="sequence"),
    "weight_dropout": lambda rate: jaxrnn.weight_dropout(jaxrnn.lstm(4), rate),
    "recurrent_dropout": lambda rate: jaxrnn.recurrent_dropout(jaxrnn.lstm(4), rate),
    "variational_dropout": lambda rate: jaxrnn.variational_dropout(jaxrnn.gru(4), rate),
}


@pytest.mark.parametrize(
    ("rate", "dtype"),
    [(1.0, "float32"), (1.0, "bfloat16"), (1.0, "float16"), (1 - 1e-9, "float16")],
)
def test_where_all_is_dropped(rate, dtype):
    """Zeros, and gradients of zeros."""
    key, xs = jax.random.key(1), np.ones((4, 2, 3), dtype)
    cells = {name: make(rate) for name, make in ALL.items()}
    shapes = jax.eval_shape(
        lambda key: {name: cell.init(key, 3) for name, cell in cells.items()}, key
    )
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda a: rng.normal(size=a.shape).astype(dtype), shapes)

    def loss(params, xs):
        ys = {n: jaxrnn.unroll(c, params[n], xs[n], key=key)[1] for n, c in cells.items()}
        return sum((y.astype(jnp.float32) + 1).sum() for y in ys.values()), ys

    grads, ys = jax.jit(jax.grad(loss, (0, 1), has_aux=True))(params, dict.fromkeys(cells, xs))
    assert all(np.isfinite(g.astype(np.float32)).all() for g in jax.tree.leaves((grads, ys)))
    for name in ("dropout", "dropout per sequence", "recurrent_dropout"):
        assert not any(a.any() for a in (ys[name], grads[1][name])), name
    assert not grads[0]["weight_dropout"]["r"].any()
    assert not grads[0]["variational_dropout"]["r"].any()


def test_what_is_kept_is_scaled_in_full_precision():
    """1 - rate in bfloat16 would be off by a part in 400, at every feature alike."""
    x = jnp.linspace(1, 2, 64).astype(jnp.bfloat16)
    ys = jaxrnn.dropout(0.7).step({}, jnp.int32(0), x, jax.random.key(0))[1]
    wanted = (np.asarray(x, float) / (1 - 0.7)).astype(ys.dtype)
    assert 5 < (ys != 0).sum() < 59
    np.testing.assert_array_equal(ys, np.where(ys == 0, 0, wanted))
