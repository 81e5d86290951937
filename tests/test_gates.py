"""What is peculiar to a gated cell, beside the laws of all."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import truth
from case import NO_KERNEL
from cases import error
from families import para_rnn as families

import jaxrnn

KEY = jax.random.key(0)
begun = lambda cell: jax.tree.map(np.asarray, _begun(cell, KEY))
_begun = jax.jit(lambda cell, key: cell.init(key, 3), static_argnums=0)
SLSTMS = pytest.mark.parametrize("forget", ("sigmoid", "exp"))


@SLSTMS
@pytest.mark.usefixtures("x64")
def test_slstm_is_what_it_stabilises(forget):
    """The paper's first equations, with neither m nor a sum of logarithms."""
    cell = jaxrnn.slstm(4, forget=forget, heads=1)
    params, xs = begun(cell), np.random.default_rng(0).normal(size=(9, 3))
    h, c, n, wanted = np.zeros(4), 0.0, 0.0, []
    for x in xs:
        i, f, z, o = (
            np.einsum("i,igh->gh", x, params["w"])
            + params["b"]
            + np.einsum("d,dgh->gh", h, params["r"])
        )
        f = truth.sigmoid(f) if forget == "sigmoid" else np.exp(f)
        c, n = f * c + np.exp(i) * np.tanh(z), f * n + np.exp(i)
        h = truth.sigmoid(o) * c / n
        wanted.append(h)
    assert error(jaxrnn.unroll(cell, params, xs)[1], np.stack(wanted)) < 1e-13


@SLSTMS
@pytest.mark.parametrize("implementation", ("reference", "xla", "cpu"))
def test_slstm_is_finite_for_any_gate(forget, implementation):
    if implementation == "cpu" and NO_KERNEL:
        pytest.skip(NO_KERNEL)
    cell = jaxrnn.slstm(64, forget=forget)
    rng = np.random.default_rng(0)
    xs = rng.normal(size=(20, 8, 3)).astype(np.float32)
    starts = rng.random(xs.shape[:-1]) < 0.3

    @jax.jit
    @functools.partial(jax.grad, argnums=(0, 1), has_aux=True)
    def both(params, xs):
        state, ys = jaxrnn.unroll(cell, params, xs, starts=starts, implementation=implementation)
        return (ys**2).sum(), (state, ys)

    for scale in (1e3, 1e6):
        grads, out = both({n: p * np.float32(scale) for n, p in begun(cell).items()}, xs)
        assert all(np.isfinite(a).all() for a in jax.tree.leaves((grads, out)))
        assert abs(np.asarray(out[1])).max() <= 1


def test_an_episode_of_one_row_begins_by_itself():
    """A stabiliser of one row, or one unit, says nothing of another."""
    cell = jaxrnn.slstm(2, heads=1)
    params = cell.init(KEY, 1)
    state = tuple(np.float32([[0.0, 0.0], [a, a]]) for a in (0.1, 0.1, 1.0, 90.0))
    step = jax.jit(lambda *given: cell.step(params, *given)[1])
    y = np.asarray(step(state, np.full((2, 1), -80, np.float32)))
    alone = np.asarray(step(cell.initial_state(params, (1,)), np.full((1, 1), -80, np.float32)))
    assert (y[0] == alone[0]).all() and (alone != 0).all()


def test_what_parameters_begin_as():
    rows, wide, janet, peephole, plain = jax.jit(
        lambda key: (
            jaxrnn.irnn(6, heads=2).init(key, 3)["r"],
            jaxrnn.irnn(64).init(key, 64)["w"],
            jaxrnn.janet(1000, longest=50).init(key, 3)["b"],
            *(jaxrnn.lstm(4, peepholes=p).init(key, 3) for p in (True, False)),
        )
    )(KEY)
    rows, wide, (forget, candidate) = (np.asarray(a) for a in (rows, wide, janet))
    assert (rows[:, :, 0] == np.eye(3)).all() and len(rows) == 2
    assert wide.std() < 0.0011
    assert 0 <= forget.min() < 0.5 and 3.7 < forget.max() < np.log(49) and (candidate == 0).all()
    assert (peephole["pi"] == 0).all() and set(peephole) - set(plain) == {"pi", "pf", "po"}


BAD = {
    "cell_clip": (lambda: jaxrnn.lstm(4, cell_clip=0), "cell_clip: got 0, want .* above 0"),
    "cell_clip text": (lambda: jaxrnn.lstm(4, cell_clip="1"), "cell_clip: got '1', want a number"),
    "gate_activation": (lambda: jaxrnn.lstm(4, gate_activation="a"), "gate_activation: got 'a'"),
    "gru's activation": (lambda: jaxrnn.gru(4, activation="a"), "activation: got 'a'"),
    "gru's gate_activation": (
        lambda: jaxrnn.gru(4, gate_activation=1),
        "gate_activation: got 1, want a function",
    ),
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


def para_lstm_update(state, x, r, af, ao, ag, pf, po):
    """Danieli et al. 2025: no unit sees another."""
    (h, c), (xf, xo, xg), () = state, x, r
    f = jax.nn.sigmoid(xf + af * h + pf * c)
    c = f * c + (1 - f) * jnp.tanh(xg + ag * h)
    return jax.nn.sigmoid(xo + ao * h + po * c) * jnp.tanh(c), c


@pytest.mark.usefixtures("x64")
def test_no_gate_is_recurrent():
    """The paper's numbers and gradients, also by Newton's method and forward in time.

    No unit sees another, so what e-prop takes into account is all there is.
    """
    units = dict.fromkeys(("af", "ao", "ag", "pf", "po"), jax.nn.initializers.zeros)
    make = jaxrnn.gated(
        para_lstm_update, gates=("f", "o", "g"), states=("h", "c"), unit=units, recurrent=()
    )
    cell, other = make(4), jaxrnn.para_lstm(4)
    given, xs = begun(other), np.random.default_rng(0).normal(size=(7, 2, 3))

    def params(given):
        rows = zip(units, (*given["a"], *given["p"]), strict=True)
        return {"w": given["w"], "b": given["b"], **dict(rows)}

    assert jax.tree.map(np.shape, params(given)) == jax.tree.map(np.shape, begun(cell))

    def loss(given, cell, name):
        own = given if cell is other else params(given)
        ys = jaxrnn.unroll(cell, own, xs, implementation=name)[1]
        return (jnp.tanh(ys) * np.random.default_rng(1).normal(size=ys.shape)).sum(), ys

    @jax.jit
    def every(given):
        rules = [(jaxrnn.online(cell, rule), None) for rule in ("rtrl", "eprop")]
        runs = (other, None), (cell, None), (cell, "newton"), *rules
        both = jax.value_and_grad(loss, has_aux=True)
        return [both(given, *run) for run in runs]

    wanted, *found = every(given)
    state, rows = (np.zeros((2, 4)),) * 2, []
    for x in xs:
        state, y = zip(*[families.para_lstm(given, s, a) for s, a in zip(zip(*state), x)])
        state = tuple(map(np.stack, zip(*state)))
        rows.append(np.stack(y))
    assert error(wanted[0][1], np.stack(rows)) < 1e-12
    for came in found:
        assert error(came, wanted) < 1e-12
    how = jaxrnn.explain(cell, params(given), xs, implementation="newton").choices[0].how
    assert how.startswith("diagonal Jacobian, 4 blocks 2 x 2")
    (choice,) = jaxrnn.explain(cell, params(given), xs).choices
    assert (choice.gates, choice.states) == (("f", "o", "g"), ("h", "c"))
    shown = jax.jit(functools.partial(jaxrnn.trace, cell))(params(given), xs)
    assert sorted(shown) == ["a_f", "a_g", "a_o", "c", "h", "y"]
    gates = np.einsum("tbi,igh->gtbh", xs, given["w"]) + given["b"][:, None, None]
    for name, gate in zip(("a_f", "a_o", "a_g"), gates, strict=True):
        assert error(shown[name], gate) < 1e-12
    with pytest.raises(TypeError, match="want a cell with recurrent gates"):
        jaxrnn.variational_dropout(cell, 0.5)
    near = jaxrnn.online(cell, "snap1")
    jax.eval_shape(near.step, params(given), near.initial_state(params(given), (2,)), xs[0])
    for argument, value in (("heads", 2), ("residuals", "chunks")):
        with pytest.raises(ValueError, match=f"{argument}: got {value!r}, want"):
            make(4, **{argument: value})
    with pytest.raises(ValueError, match=r"inputs: got \('dt',\), want none"):
        jaxrnn.gated(para_lstm_update, gates=3, states=2, recurrent=(), inputs=("dt",))
