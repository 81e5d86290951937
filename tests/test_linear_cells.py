"""Linear recurrences beyond the law of every cell: how they begin, and how they are in float32."""

import contextlib

import cases
import jax
import jax.numpy as jnp
import laws
import numpy as np
import pytest
from cases import NO_KERNEL, error
from instead import instead

import jaxrnn


def test_s5_begins_at_hippo_n(x64):
    """The normal part of HiPPO-LegS has the eigenvalues of each block and their conjugates."""
    size, blocks = 6, 2
    n = np.arange(2 * size // blocks)
    legs = -np.sqrt(np.outer(2 * n + 1, 2 * n + 1))
    legs = np.tril(legs, -1) - np.diag(n + 1)
    low_rank = np.sqrt(n + 0.5)
    wanted = np.linalg.eigvals(legs + np.outer(low_rank, low_rank))
    params = jaxrnn.s5(4, state=size, blocks=blocks).init(jax.random.key(0), 4)
    came = np.array(jax.lax.complex(params["lambda_re"], params["lambda_im"]))
    assert (came[: size // blocks] == came[size // blocks :]).all()
    came = np.concatenate([came[: size // blocks], came[: size // blocks].conj()])
    order = lambda a: a[np.argsort(a.imag)]
    assert error(order(came), order(wanted)) < 1e-12


def test_s5_begins_with_a_real_b(x64):
    """Seen from the eigenvectors, it is what a real matrix is: twice a pair's real part."""
    params = jaxrnn.s5(3, state=4).init(jax.random.key(0), 3)
    n = np.arange(8)
    half = np.sqrt(np.outer(2 * n + 1, 2 * n + 1)) / 2
    _, vectors = np.linalg.eigh(-1j * (np.triu(half, 1) - np.tril(half, -1)))
    b = np.array(params["b"])
    b = b[:, 0] + 1j * b[:, 1]
    real = 2 * (b @ vectors[:, :4].T).real
    assert error(real @ vectors[:, :4].conj(), b) < 1e-12


def test_s5_does_not_grow():
    cell = jaxrnn.s5(2, state=4, clip_eigs=True)
    params = cell.init(jax.random.key(0), 2)
    params["lambda_re"] = jnp.ones(4)
    xs = jnp.zeros((50, 2)).at[0].set(1.0)
    h = jaxrnn.unroll(cell, params, xs)[0][0]
    first = jaxrnn.unroll(cell, params, xs[:1])[0][0]
    assert (jnp.abs(h) < jnp.abs(first)).all()


def test_lru_begins_on_its_ring():
    params = jaxrnn.lru(2, state=4096, r_min=0.4, r_max=0.9, max_phase=1.0).init(
        jax.random.key(0), 2
    )
    radius, phase = jnp.exp(-jnp.exp(params["nu"])), jnp.exp(params["theta"])
    assert 0.4 < radius.min() < 0.41 and 0.89 < radius.max() < 0.9
    assert 0 < phase.min() < 0.01 and 0.99 < phase.max() < 1
    assert abs((radius**2).mean() - (0.4**2 + 0.9**2) / 2) < 0.01, "even over the area"
    np.testing.assert_allclose(jnp.exp(2 * params["gamma"]), 1 - radius**2, rtol=1e-5)


def test_rg_lru_begins_on_its_ring():
    params = jaxrnn.rg_lru(4096, heads=1024).init(jax.random.key(0), 4096)
    a = jnp.exp(-jax.nn.softplus(params["l"]))
    assert 0.9 < a.min() < 0.905 and 0.995 < a.max() < 0.9991


def test_mlstm_begins_as_its_authors_have_it():
    for cell, features, least in (
        (jaxrnn.mlstm(8, heads=4), 3, 0),
        (jaxrnn.mlstm_memory(8, heads=4), 3 * 8 + 2 * 4, -10),
    ):
        i, f = cell.init(jax.random.key(0), features)["c"]
        assert (i == least).all() and jnp.allclose(f, np.array([3.0, 4.0, 5.0, 6.0]))


def test_gated_delta_net_begins_as_its_authors_have_it():
    for cell, features in (
        (jaxrnn.gated_delta_net(512, heads=256), 3),
        (jaxrnn.gated_delta_memory(512, heads=256), 3 * 512 + 2 * 256),
    ):
        params = cell.init(jax.random.key(0), features)
        step, rate = jax.nn.softplus(params["c"]), jnp.exp(params["l"])
        assert 9e-4 < step.min() < 2e-3 and 0.05 < step.max() < 0.11
        assert 7e-3 < jnp.median(step) < 0.014  # evenly in the logarithm
        assert 0.9 < rate.min() < 2 and 15 < rate.max() < 17 and 7 < jnp.median(rate) < 10


def test_mamba3_turns_as_its_step_does():
    """In float32 over 4,096 steps, which make some thousand turns: no angle is a long sum."""
    cell = jaxrnn.mamba3(4, heads=2, state=8)
    params = cell.init(jax.random.key(0), 3)
    params["c"] += 3
    xs = jax.random.normal(jax.random.key(1), (4096, 1, 3)) + 1

    @jax.jit
    def both(params, xs):
        state = cell.initial_state(params, (1,))
        stepped = jax.lax.scan(lambda state, x: cell.step(params, state, x), state, xs)
        names = ("xla",) if NO_KERNEL else ("cpu", "xla")
        return stepped, [jaxrnn.unroll(cell, params, xs, implementation=n) for n in names]

    (wanted, ys), found = both(params, xs)
    for state, came in found:
        assert error(came, ys) < 1e-5
        turns = [np.exp(1j * np.array(s[3])) for s in (state, wanted)]
        assert error((state[:3], turns[0]), (wanted[:3], turns[1])) < 1e-4


def _at_once(*given, cpu, default):
    """What runs on an accelerator."""
    del cpu
    return default(*given)


def test_rwkv4_in_stretches_is_the_scan_of_its_step(x64):
    e = cases.example(cases.CELLS["rwkv4"], cases.Shape(11, (5,), 3, 4))
    moving, given = (e.params, e.xs, e.state), laws.options(e, reverse=True)
    weights = laws.weights_of(e.cell, moving)
    with instead((jax.lax, "platform_dependent", _at_once)):
        came = laws.value_and_grads(e.cell, moving, weights, **given)
    assert error(came, laws.literally_with_grads(e.cell, moving, weights, **given)) < 1e-12


@pytest.mark.parametrize("at_once", (False, True))
def test_rwkv4_of_keys_whose_exponential_is_infinite(at_once):
    """The greatest key decides; and where all are small, they are means of what there is."""
    cell, keys = jaxrnn.rwkv4(2), np.zeros((9, 2, 2), np.float32)
    keys[3], keys[:, 1] = 1e4, -1e4
    params = cell.init(jax.random.key(0), 2)
    params["0"]["0"]["0"]["mix"] += 0.5  # x alone
    params["0"]["0"]["1"]["w"] = jnp.eye(2)

    def run(params, xs):
        state, ys = jaxrnn.unroll(cell, params, xs)
        return (ys**2).sum() + sum((a**2).sum() for a in state[1][:2]), (state, ys)

    with contextlib.ExitStack() as stack:
        if at_once:
            stack.enter_context(instead((jax.lax, "platform_dependent", _at_once)))
        gradient, (state, ys) = jax.jit(jax.grad(run, (0, 1), has_aux=True))(params, keys)
    a, b, m = state[1]
    assert all(jnp.isfinite(x).all() for x in jax.tree.leaves((gradient, ys)))
    fell = 5 * np.exp(np.array(params["1"]["w"]))
    np.testing.assert_allclose(m, np.stack([1e4 - fell, np.full(2, -1e4)]), rtol=1e-6)
    assert b[0] == pytest.approx(1) and (b[1] >= 1).all() and jnp.isfinite(a).all()


def test_rg_lru_where_nothing_is_forgotten():
    """sqrt(1 - a^2) has an infinite derivative at a = 1; its gradient has not."""
    cell = jaxrnn.rg_lru(3)
    params = cell.init(jax.random.key(0), 3)
    params["l"] = jnp.full(3, -200.0)  # softplus is zero
    loss = lambda params: jaxrnn.unroll(cell, params, jnp.ones((4, 3)))[1].sum()
    assert all(jnp.isfinite(g).all() for g in jax.tree.leaves(jax.grad(loss)(params)))


@pytest.mark.parametrize(
    ("make", "words"),
    (
        (lambda: jaxrnn.gilr(2, lower_bound=1), "lower_bound: got 1, want a number from 0"),
        (lambda: jaxrnn.lru(2, state=4, r_min=1.0), "want 0 <= r_min < r_max <= 1"),
        (lambda: jaxrnn.lru(2, state=4, max_phase=0), "max_phase: got 0, want a positive"),
        (lambda: jaxrnn.s5(2, state=4, blocks=3), "blocks: got 3, want a divisor of state=4"),
        (lambda: jaxrnn.s5(2, state=4, discretization="euler"), "got 'euler', want one of"),
        (lambda: jaxrnn.s5(2, state=4, dt_min=0), "want 0 < dt_min <= dt_max"),
        (lambda: jaxrnn.rg_lru(4, heads=3), "heads: got 3, want a divisor of hidden=4"),
        (lambda: jaxrnn.ssd(4, heads=2, groups=4), "groups: got 4, want a divisor of heads=2"),
        (lambda: jaxrnn.mamba_block(4, width=0), "width: got 0"),
        (lambda: jaxrnn.gated_delta_block(4, heads=3), "heads: got 3, want a divisor of width=4"),
        (
            lambda: jaxrnn.gated_delta_memory(4, heads=4, key_heads=3),
            "key_heads: got 3, want a divisor of heads=4",
        ),
        (
            lambda: jaxrnn.gated_delta_memory(4).init(jax.random.key(0), 4),
            "in_size: got 4, want 2 M D + H + 2 N = 20",
        ),
        (
            lambda: jaxrnn.grouped_attention(4, heads=2, kv_heads=3),
            "kv_heads: got 3, want a divisor of heads=2",
        ),
        (lambda: jaxrnn.grouped_attention(4, heads=3), "heads: got 3, want a divisor of hidden=4"),
        (
            lambda: jaxrnn.grouped_attention(8, heads=2, rotary=3),
            "rotary: got 3, want an even number up to D = 4",
        ),
        (lambda: jaxrnn.mlstm_block(4, heads=3), "heads: got 3, want a divisor of width=4"),
        (lambda: jaxrnn.mlstm_memory(4, cap=0), "cap: got 0, want a number above 0"),
        (lambda: jaxrnn.soft_cap(np.inf), "cap: got inf, want a number above 0 and up to 3.4"),
        (
            lambda: jaxrnn.mlstm_memory(4).init(jax.random.key(0), 4),
            "in_size: got 4, want 2 N D + H + 2 N = 20",
        ),
        (
            lambda: jaxrnn.layer_norm(groups=3).init(None, 4),
            "groups: got 3, want a divisor of I=4",
        ),
        (lambda: jaxrnn.mamba2_block(4, heads=3), "heads: got 3, want a divisor of width=8"),
        (
            lambda: jaxrnn.ssd(4, heads=2, state=3).init(jax.random.key(0), 4),
            "in_size: got 4, want H + 2 G D + N = 12",
        ),
        (lambda: jaxrnn.rg_lru(4).init(jax.random.key(0), 3), "in_size: got 3, want hidden=4"),
        (lambda: jaxrnn.sru(4).init(jax.random.key(0), 3), "in_size: got 3, want hidden=4"),
    ),
)
def test_errors(make, words):
    with pytest.raises(ValueError) as error:
        make()
    assert words in str(error.value)


def test_rwkv4_of_an_infinite_decay():
    """Each step forgets all before it, and a stretch without a real step nothing."""
    cell = jaxrnn.rwkv4(2)
    params = cell.init(jax.random.key(0), 2)
    params["1"]["w"] = jnp.array([100.0, 0.0])  # its exponential is infinite
    xs = np.random.default_rng(0).normal(size=(9, 2, 2)).astype("float32")
    mask = np.ones((9, 2), bool)
    mask[3:6, 0] = False
    run = lambda: jax.jit(lambda p, x: jaxrnn.unroll(cell, p, x, mask=mask))(params, xs)
    wanted = run()
    with instead((jax.lax, "platform_dependent", _at_once)):
        came = run()
    assert all(jnp.isfinite(x).all() for x in jax.tree.leaves(wanted[1]))
    assert error(came[1], wanted[1]) < 1e-6
