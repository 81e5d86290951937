"""A long sequence a piece at a time gives what it gives at once."""

import cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import CELLS, REFERENCE

import jaxrnn
from jaxrnn._src.core import streaming
from jaxrnn._src.core.lowering_target import Target
from jaxrnn._src.ops.recurrence import xla

SHAPE = cases.Shape(11, (2,), 4, 4)
MADE = {
    "lifted": cases.Case(lambda h: jaxrnn.layer_norm_lstm(h)),
    "counted": cases.Case(lambda h: jaxrnn.rg_lru(h)),
    "complex": cases.Case(lambda h: jaxrnn.lru(h, state=3)),
    "matrix_memory": cases.Case(lambda h: jaxrnn.mlstm(h, heads=2)),
    "convolved": cases.Case(lambda h: jaxrnn.qrnn(h, kernel=3)),
    "stack": cases.Case(
        lambda h: jaxrnn.stack(
            jaxrnn.dropout(0.5),
            jaxrnn.residual(jaxrnn.gru(h)),
            jaxrnn.conv1d(3, kernel=2),
            jaxrnn.parallel(jaxrnn.lstm(h), jaxrnn.project(2)),
        )
    ),
}


@pytest.fixture(scope="module", autouse=True)
def four_steps():
    """Every sequence of eight steps or more goes four at a time, and what is left over."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(streaming, "_MOST", 0)
        patch.setattr(streaming, "_PIECE", 0)
        patch.setattr(streaming, "_STEPS", 4)
        jax.clear_caches()  # of what was traced with other sizes
        yield
    jax.clear_caches()


@pytest.fixture
def sizes(monkeypatch):
    """Of the pieces that were run."""
    found, run = [], streaming.run

    def told(some, state, timed, size, *, reverse):
        found.append(size)
        return run(some, state, timed, size, reverse=reverse)

    monkeypatch.setattr(streaming, "run", told)
    return found


def run(e, implementation=None, *, state=None, **options):
    return lambda p, x: jaxrnn.unroll(
        e.cell, p, x, state, implementation=implementation, **options
    )


@pytest.mark.parametrize(
    ("name", "reverse"), [*((name, True) for name in MADE), ("lifted", False)]
)
def test_every_option(x64, sizes, name, reverse):
    e = cases.example(MADE[name], SHAPE)
    key = jax.random.key(3) if name == "stack" else None
    options = {"mask": e.mask, "starts": e.starts, "reverse": reverse, "key": key}
    wanted = _at_once(run(e, state=e.state, **options), e, sizes)
    came = jax.jit(run(e, state=e.state, **options))(e.params, e.xs)
    assert sizes == [4]
    assert cases.error(cases.floating(came), cases.floating(wanted)) < 1e-12
    assert jax.tree.all(jax.tree.map(lambda a, b: a.dtype == b.dtype, came, wanted))


@pytest.mark.parametrize("name", ("counted", "lifted", "stack"))
def test_transforms(x64, sizes, name):
    """Gradients see no pieces, rows and members of an ensemble do; twelve steps are three."""
    e = cases.example(MADE[name], SHAPE._replace(steps=12))
    args, plain = (e.params, e.xs), lambda p, x: cases.floating(run(e)(p, x))
    weights = cases.cotangents(jax.eval_shape(plain, *args))
    sizes.clear()

    def both(f):
        moved = jax.jvp(f, args, args)
        pulled = jax.vjp(f, *args)[1](weights)
        return moved, pulled, jax.vmap(f, (None, 1))(e.params, e.xs)

    wanted = _at_once(lambda p, x: both(plain), e, sizes)
    came = jax.jit(lambda p, x: both(plain))(*args)
    assert set(sizes) == {4} and cases.error(came, wanted) < 1e-12


def _at_once(function, e, sizes):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(streaming, "_MOST", 1 << 40)
        out = jax.jit(lambda *args: function(*args))(e.params, e.xs)
    assert not sizes
    return out


def test_starts_alone_in_reverse(x64, sizes):
    """A start at the seam of two pieces is met by neither of them."""
    e = cases.example(MADE["lifted"], SHAPE._replace(steps=12))
    starts = np.zeros((12, 2), bool)
    starts[[4, 5], [0, 1]] = True
    runs = [run(e, i, starts=starts, reverse=True) for i in (None, REFERENCE)]
    *runs, step_by_step = jax.jit(
        lambda p, x: (*(one(p, x) for one in runs), _scanned(e.cell, p, x, starts))
    )(e.params, e.xs)
    assert sizes == [4, 4]
    for came in runs:
        assert cases.error(came, step_by_step) < 1e-12


def _scanned(cell, params, xs, starts):
    """In reverse: a start cuts between its step and the one before."""
    initial = cell.initial_state(params, xs.shape[1:-1])
    cuts = jnp.concatenate([starts[1:], jnp.zeros_like(starts[:1])])

    def step(state, inputs):
        x, cut = inputs
        state = jax.tree.map(lambda a, b: jnp.where(cut[:, None], a, b), initial, state)
        return cell.step(params, state, x)

    return jax.lax.scan(step, initial, (xs, cuts), reverse=True)


def test_a_call_outside_of_jit_compiles_once(sizes):
    e = cases.example(MADE["lifted"], SHAPE, dtype=jnp.float32)
    first, second = (run(e)(e.params, e.xs) for _ in range(2))
    assert sizes == [4] and cases.error(first, second) == 0


def test_who_has_to_see_the_whole_sequence(sizes):
    for cell in (
        jaxrnn.stack(jaxrnn.project(4), jaxrnn.attention(4, heads=2)),
        jaxrnn.stack(jaxrnn.bidirectional(jaxrnn.gru(4)), jaxrnn.project(4)),
        jaxrnn.lstm(4),
    ):
        params = jax.eval_shape(lambda key: cell.init(key, 4), jax.random.key(0))  # noqa: B023
        unroll = lambda params, xs: jaxrnn.unroll(cell, params, xs)  # noqa: B023
        jax.eval_shape(unroll, params, jax.ShapeDtypeStruct((11, 2, 4), jnp.float32))
    assert not sizes


def test_what_is_explained_is_the_whole():
    cell = jaxrnn.stack(jaxrnn.layer_norm_lstm(4), jaxrnn.gru(4))
    params = jax.eval_shape(lambda key: cell.init(key, 4), jax.random.key(0))
    xs = jax.ShapeDtypeStruct((11, 2, 4), jnp.float32)
    choices = jaxrnn.explain(cell, params, xs).choices
    assert len(choices) == 2 and all("T=11" in c.operation for c in choices)


def test_a_symbolic_number_of_steps(sizes):
    pytest.importorskip("flatbuffers", reason="jax.export needs flatbuffers to write a module")
    e = cases.example(MADE["lifted"], SHAPE, dtype=jnp.float32)
    (steps,) = jax.export.symbolic_shape("T")
    xs = jax.ShapeDtypeStruct((steps, *e.xs.shape[1:]), e.xs.dtype)
    exported = jax.export.export(jax.jit(run(e)))(e.params, xs)
    assert not sizes
    wanted = jax.jit(run(e))(e.params, e.xs)
    assert cases.error(jax.jit(exported.call)(e.params, e.xs), wanted) < 1e-5


@pytest.mark.parametrize("name", ("lstm", "gru_heads"))
def test_the_inputs_part_of_gates(x64, sizes, monkeypatch, name):
    """Where XLA takes the input's product before the loop, as on a GPU: unless a gradient is
    taken, a piece at a time."""
    forward = xla.forward

    def on_a_gpu(*given):
        *given, target = given
        return forward(*given, Target("cuda") if target.platform else target)

    monkeypatch.setattr(xla, "forward", on_a_gpu)
    e = cases.example(CELLS[name], SHAPE)
    for options in ({"mask": e.mask, "starts": e.starts, "reverse": True}, {}):
        one = run(e, "xla", state=e.state, **options)
        wanted = jax.jit(run(e, REFERENCE, state=e.state, **options))(e.params, e.xs)
        sizes.clear()
        assert cases.error(jax.jit(one)(e.params, e.xs), wanted) < 1e-12
        assert sizes == [4]
        gradient = lambda p, x: jax.grad(lambda p: one(p, x)[1].sum())(p)  # noqa: B023
        jax.jit(gradient).lower(e.params, e.xs)
        assert sizes == [4]


def test_a_traced_array_that_a_cell_closes_over(x64, sizes):
    """It is differentiated; so what sees it runs at once."""
    e = cases.example(MADE["lifted"], SHAPE)

    def loss(scale, implementation):
        scaled = jaxrnn.stateless(lambda key, n: {}, lambda params, x: scale * x)
        cell = jaxrnn.stack(scaled, jaxrnn.gru(4))
        options = {"implementation": implementation}
        return jaxrnn.unroll(cell, {"0": {}, "1": params}, e.xs, **options)[1].sum()

    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda key: jaxrnn.gru(4).init(key, 4), jax.random.key(0))
    params = jax.tree.map(lambda a: rng.normal(size=a.shape), shapes)
    came, wanted = jax.jit(lambda scale: [jax.grad(loss)(scale, i) for i in (None, REFERENCE)])(
        2.0
    )
    assert not sizes and abs(came) > 1e-3 and abs(came - wanted) < 1e-12
