"""What is peculiar to a gated cell, beside the laws of all."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from case import NO_KERNEL
from cases import error

import jaxrnn

KEY = jax.random.key(0)
SLSTMS = pytest.mark.parametrize("forget", ("sigmoid", "exp"))


@SLSTMS
@pytest.mark.usefixtures("x64")
def test_slstm_is_what_it_stabilises(forget):
    """The paper's first equations, with neither m nor a sum of logarithms."""
    cell = jaxrnn.slstm(4, forget=forget)
    params, xs = cell.init(KEY, 3), jax.random.normal(KEY, (9, 3))
    h, c, n, wanted = jnp.zeros(4), 0.0, 0.0, []
    for x in xs:
        i, f, z, o = (
            jnp.einsum("i,igh->gh", x, params["w"])
            + params["b"]
            + jnp.einsum("d,dgh->gh", h, params["r"])
        )
        f = jax.nn.sigmoid(f) if forget == "sigmoid" else jnp.exp(f)
        c, n = f * c + jnp.exp(i) * jnp.tanh(z), f * n + jnp.exp(i)
        h = jax.nn.sigmoid(o) * c / n
        wanted.append(h)
    assert error(jaxrnn.unroll(cell, params, xs)[1], jnp.stack(wanted)) < 1e-13


@SLSTMS
@pytest.mark.parametrize("implementation", ("reference", "xla", "cpu"))
def test_slstm_is_finite_for_any_gate(forget, implementation):
    if implementation == "cpu" and NO_KERNEL:
        pytest.skip(NO_KERNEL)
    cell = jaxrnn.slstm(64, forget=forget)
    xs = jax.random.normal(KEY, (20, 8, 3))
    starts = jax.random.bernoulli(KEY, 0.3, xs.shape[:-1])

    def loss(params, xs):
        state, ys = jaxrnn.unroll(cell, params, xs, starts=starts, implementation=implementation)
        return (ys**2).sum(), (state, ys)

    for scale in (1e3, 1e6):
        params = jax.tree.map(lambda p: p * scale, cell.init(KEY, 3))  # noqa: B023
        grads, out = jax.grad(loss, (0, 1), has_aux=True)(params, xs)
        assert all(np.isfinite(a).all() for a in jax.tree.leaves((grads, out)))
        assert abs(out[1]).max() <= 1


def test_an_episode_of_one_row_begins_by_itself():
    """A stabiliser of one row, or one unit, says nothing of another."""
    cell = jaxrnn.slstm(2)
    params = cell.init(KEY, 1)
    state = tuple(jnp.array([[0.0, 0.0], [a, a]]) for a in (0.1, 0.1, 1.0, 90.0))
    _, y = cell.step(params, state, jnp.full((2, 1), -80.0))
    _, alone = cell.step(params, cell.initial_state(params, (1,)), jnp.full((1, 1), -80.0))
    assert (y[0] == alone[0]).all() and (alone != 0).all()


def test_what_parameters_begin_as():
    r = jaxrnn.irnn(6, heads=2).init(KEY, 3)["r"]
    assert (r[:, :, 0] == jnp.stack([jnp.eye(3)] * 2)).all()
    assert jnp.std(jaxrnn.irnn(64).init(KEY, 64)["w"]) < 0.0011
    forget, candidate = jaxrnn.janet(1000, longest=50).init(KEY, 3)["b"]
    assert 0 <= forget.min() < 0.5 and 3.7 < forget.max() < np.log(49) and (candidate == 0).all()
    peephole, plain = (jaxrnn.lstm(4, peepholes=p).init(KEY, 3) for p in (True, False))
    assert (peephole["pi"] == 0).all() and set(peephole) - set(plain) == {"pi", "pf", "po"}


BAD = {
    "cell_clip": (lambda: jaxrnn.lstm(4, cell_clip=0), "cell_clip: got 0, want .* above 0"),
    "cell_clip text": (lambda: jaxrnn.lstm(4, cell_clip="1"), "cell_clip: got '1', want a number"),
    "gate_activation": (lambda: jaxrnn.lstm(4, gate_activation="a"), "gate_activation: got 'a'"),
    "alpha": (lambda: jaxrnn.leaky(4, alpha=1.5), "alpha: got 1.5, want .* above 0 and up to 1"),
    "signs": (
        lambda: jaxrnn.leaky(2, alpha=1, signs=(1, 0)),
        r"signs: got \(1, 0\), want .* 1 or",
    ),
    "signs of less": (lambda: jaxrnn.leaky(2, alpha=1, signs=(1,)), "each of 2 units"),
    "variant": (lambda: jaxrnn.mgu(4, variant=4), r"variant: got 4, want one of \(0, 1, 2, 3\)"),
    "reset": (lambda: jaxrnn.mgu(4, reset_after=False, heads=2), "reset_after=False: got heads"),
    "longest": (lambda: jaxrnn.janet(4, longest=2), "longest: got 2, want more than 2 steps"),
    "forget": (lambda: jaxrnn.slstm(4, forget="tanh"), "forget: got 'tanh', want one of"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_refused(name):
    call, text = BAD[name]
    with pytest.raises((ValueError, TypeError), match=text):
        call()


def test_parameters_of_another_cell_are_refused():
    """Not filled up as if they were its own."""
    full, light = jaxrnn.mgu(4), jaxrnn.mgu(4, variant=3)
    dale = jaxrnn.leaky(4, alpha=0.5, signs=(1, 1, 1, -1))
    for cell, params in ((full, light.init(KEY, 3)), (light, full.init(KEY, 3))):
        with pytest.raises(ValueError, match=r"params\['w'\]: got shape"):
            jaxrnn.unroll(cell, params, jnp.ones((2, 3)))
    with pytest.raises(ValueError, match="params: got .* want a dict of"):
        jaxrnn.unroll(dale, {"w": jnp.ones((3, 1, 4))}, jnp.ones((2, 3)))
