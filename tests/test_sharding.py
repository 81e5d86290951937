"""A batch over eight devices stays there: no gather, one reduction for weights' gradients."""

import functools

import cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from test_once import compilations

import jaxrnn
from benchmarks.shared import collectives

DEVICES = 8
CELLS = {  # one of each operation and kernel, several in one program
    "recur": jaxrnn.stack(
        jaxrnn.conv1d(6, kernel=3),
        jaxrnn.bidirectional(jaxrnn.lstm(6)),
        jaxrnn.gru(6, residuals="states"),
    ),
    "loop": jaxrnn.gru(6, reset_after=False),
    "conv_lstm": jaxrnn.conv_lstm(6, shape=(3,)),
    "attention": jaxrnn.attention(6, heads=2, context=16),
}
pytestmark = pytest.mark.skipif(
    jax.device_count() < DEVICES, reason=f"{jax.device_count()} devices, wants {DEVICES}"
)


def value_and_grad(cell):
    def loss(params, xs, mask, starts):
        state, ys = jaxrnn.unroll(cell, params, xs, mask=mask, starts=starts)
        return (ys**2).sum() + sum((s**2).sum() for s in jax.tree.leaves(cases.floating(state)))

    return jax.value_and_grad(loss, (0, 1))


def problem(cell):
    shape = cases.Shape(5, (16,), 3, 6)
    e = cases.example(cases.Case(lambda hidden: cell, whole=True), shape, dtype=jnp.float32)
    return e.params, e.xs, e.mask, e.starts


@functools.cache
def wanted(name):
    return jax.jit(value_and_grad(CELLS[name]))(*problem(CELLS[name]))


def placed(mesh, arrays, axis):
    params, *others = arrays
    put = [jax.device_put(a, NamedSharding(mesh, P(None, axis))) for a in others]
    return jax.device_put(params, NamedSharding(mesh, P())), *put


@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize("kind", (AxisType.Auto, AxisType.Explicit), ids=str)
def test_jit_on_a_mesh(name, kind):
    arrays = problem(CELLS[name])
    run = value_and_grad(CELLS[name])
    mesh = jax.make_mesh((DEVICES,), ("batch",), axis_types=(kind,))
    with jax.set_mesh(mesh):
        given = placed(mesh, arrays, "batch")
        compiled = jax.jit(run).lower(*given).compile()
        came = compiled(*given)
    assert cases.error(came, wanted(name)) < 1e-5
    rows = NamedSharding(mesh, P(None, "batch"))
    assert came[1][1].sharding.is_equivalent_to(rows, 3), "the gradient of xs left its devices"
    text = compiled.as_text()
    assert "all-gather" not in text and "all-to-all" not in text
    assert text.count(" all-reduce(") + text.count(" all-reduce-start(") <= 2  # loss, gradients


@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize("check", (True, False))
def test_shard_map(name, check):
    arrays = problem(CELLS[name])
    run = value_and_grad(CELLS[name])
    mesh = Mesh(np.array(jax.devices()[:DEVICES]), ("batch",))

    def one(*arrays):
        params, *others = arrays
        # Weights that vary by device give each device's own gradient, to be summed.
        params = jax.lax.pcast(params, ("batch",), to="varying") if check else params
        (loss, (d_params, d_xs)) = run(params, *others)
        loss, d_params = jax.lax.psum((loss, d_params), "batch")
        return loss, (d_params, d_xs)

    rows = P(None, "batch")
    sharded = jax.shard_map(
        one,
        mesh=mesh,
        in_specs=(P(), rows, rows, rows),
        out_specs=(P(), (P(), rows)),
        check_vma=check,
    )
    assert cases.error(jax.jit(sharded)(*arrays), wanted(name)) < 1e-5


def test_members_of_an_ensemble_stay():
    """Members over one axis of a mesh and rows over the other: only gradients meet, of each."""
    cell = jaxrnn.lstm(6)
    members = jax.vmap(lambda key: cell.init(key, 3))(jax.random.split(jax.random.key(0), 4))
    xs = jax.random.normal(jax.random.key(1), (5, 4, 3))

    def loss(params, xs):
        return (jaxrnn.unroll(cell, params, xs)[1] ** 2).sum()

    run = jax.value_and_grad(lambda *given: jax.vmap(loss, (0, None))(*given).sum(), (0, 1))
    mesh = jax.make_mesh((4, 2), ("member", "batch"), axis_types=(AxisType.Auto,) * 2)
    member, rows = NamedSharding(mesh, P("member")), NamedSharding(mesh, P(None, "batch"))
    given = jax.device_put(members, member), jax.device_put(xs, rows)
    compiled = jax.jit(run).lower(*given).compile()
    came = compiled(*given)
    assert cases.error(came, run(members, xs)) < 1e-5
    for gradient in jax.tree.leaves(came[1][0]):
        assert gradient.sharding.is_equivalent_to(member, gradient.ndim)
    text = compiled.as_text()
    assert "all-gather" not in text and "all-to-all" not in text


HEADS = {  # where each parameter has its heads, or their units
    jaxrnn.mlstm(8, heads=4): dict(w=P(None, None, "model"), b=P(None, "model"))
    | dict(u=P(None, None, "model"), c=P(None, "model")),
    jaxrnn.attention(8, heads=4, context=8): dict(qkv=P(None, None, "model"), out=P("model")),
}


@pytest.mark.parametrize("cell", HEADS, ids=repr)
def test_heads_stay(cell):
    """Heads over one axis of a mesh and rows over the other: only sums over them meet."""
    params, xs = cell.init(jax.random.key(0), 3), jax.random.normal(jax.random.key(1), (5, 4, 3))
    mask = np.random.default_rng(0).random((5, 4)) < 0.7

    def loss(params, xs, mask):
        state, ys = jaxrnn.unroll(cell, params, xs, mask=mask)
        states = sum((s**2).sum() for s in jax.tree.leaves(cases.floating(state)))
        return jnp.sin(ys).sum() + states, state[0]

    run = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))
    mesh = jax.make_mesh((2, 4), ("batch", "model"), axis_types=(AxisType.Auto,) * 2)
    on = lambda spec: lambda a: jax.device_put(a, NamedSharding(mesh, spec))
    placed = {name: on(spec)(params[name]) for name, spec in HEADS[cell].items()}
    compiled = run.lower(placed, *map(on(P(None, "batch")), (xs, mask))).compile()
    came = compiled(placed, *map(on(P(None, "batch")), (xs, mask)))
    assert cases.error(came, run(params, xs, mask)) < 1e-5
    for name, gradient in came[1][0].items():
        assert gradient.sharding.is_equivalent_to(placed[name].sharding, gradient.ndim)
    if cases.NO_KERNEL is None:
        assert compiled.as_text().count("jaxrnn_") > 1
    assert {e.kind for e in collectives.found(compiled.as_text())} == {"all-reduce"}


def over_units(mesh, params):
    """Parameters whose last axis, the units, is divided."""
    spec = lambda a: P(*[None] * (a.ndim - 1), "batch")
    return jax.tree.map(lambda a: jax.device_put(a, NamedSharding(mesh, spec(a))), params)


def test_weights_over_devices_are_gathered_once():
    """Not in a loop, whose steps would exchange a state each; gradients are summed before."""
    cell = jaxrnn.stack(jaxrnn.lstm(8), jaxrnn.gru(8, reset_after=False))
    params, xs = cell.init(jax.random.key(0), 3), jax.random.normal(jax.random.key(1), (5, 16, 3))

    def loss(params, xs):
        return (jaxrnn.unroll(cell, params, xs, implementation="xla")[1] ** 2).sum()

    run = jax.jit(jax.value_and_grad(loss))
    mesh = jax.make_mesh((DEVICES,), ("batch",), axis_types=(AxisType.Auto,))
    given = over_units(mesh, params), jax.device_put(xs, NamedSharding(mesh, P(None, "batch")))
    compiled = run.lower(*given).compile()
    assert cases.error(compiled(*given), run(params, xs)) < 1e-5
    found = collectives.found(compiled.as_text())
    assert {e.kind for e in found} == {"all-gather", "all-reduce"}
    assert not any(e.looped for e in found)
    # The candidate's part of a GRU's r is gathered apart from the gates'.
    gathered = sum(e.bytes for e in found if e.kind == "all-gather")
    assert gathered == sum(a.nbytes for a in jax.tree.leaves(params))


def test_weights_over_devices_outside_of_jit():
    """The same, and what has run once is not compiled again."""
    cell, xs = jaxrnn.lstm(8), jnp.ones((5, 2, 3))
    params = cell.init(jax.random.key(0), 3)
    mesh = jax.make_mesh((DEVICES,), ("batch",), axis_types=(AxisType.Auto,))
    given, run = over_units(mesh, params), lambda params: jaxrnn.unroll(cell, params, xs)
    assert cases.error(run(given), run(params)) < 1e-6
    with compilations() as second:
        run(given)
    assert not second


def test_a_step_leaves_units_where_they_are():
    cell = jaxrnn.lstm(8)
    params = cell.init(jax.random.key(0), 3)
    mesh = jax.make_mesh((DEVICES,), ("batch",), axis_types=(AxisType.Auto,))
    state, x = over_units(mesh, cell.initial_state(params, (4,))), jnp.ones((4, 3))
    given = over_units(mesh, params), state, x
    compiled = jax.jit(cell.step).lower(*given).compile()
    (state, y) = compiled(*given)
    assert cases.error(y, cell.step(params, cell.initial_state(params, (4,)), x)[1]) < 1e-6
    assert state[1].sharding.is_equivalent_to(NamedSharding(mesh, P(None, "batch")), 2)
    (found,) = collectives.found(compiled.as_text())
    assert found.bytes == y.nbytes  # of the state that recurs


@pytest.mark.skipif(cases.NO_KERNEL is not None, reason=str(cases.NO_KERNEL))
def test_an_update_first_seen_on_an_explicit_mesh_keeps_its_kernel():
    def fresh_update(state, x, r):
        return (jax.nn.sigmoid(x[0] + r[0]) * jnp.where(state[0] > 0, state[0], 1.0),)

    cell = jaxrnn.gated(fresh_update, gates=1)(6)
    params, xs = cell.init(jax.random.key(0), 3), jnp.ones((5, 16, 3))
    mesh = jax.make_mesh((DEVICES,), ("batch",), axis_types=(AxisType.Explicit,))
    with jax.set_mesh(mesh):
        params, xs = placed(mesh, (params, xs), "batch")
        (choice,) = jaxrnn.explain(cell, params, xs).choices
        run = jax.jit(jax.grad(lambda params: jaxrnn.unroll(cell, params, xs)[1].sum()))
        text = run.lower(params).compile().as_text()
    assert choice.runs == "cpu", choice.others
    assert "jaxrnn_backward" in text
