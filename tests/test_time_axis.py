"""Time divided over eight devices: the numbers of one device, and nothing gathered."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxrnn
from benchmarks.shared import collectives

DEVICES, T, B, D = 8, 32, 6, 5
LAST = np.random.default_rng(2).normal(size=(B, D))
SHAPE = re.compile(r"\w+\[([\d,]*)\]")
pytestmark = [
    pytest.mark.usefixtures("x64"),
    pytest.mark.skipif(jax.device_count() < DEVICES, reason=f"wants {DEVICES} devices"),
]


def example(constant):
    """Rows with other flags each: at seams, over whole stretches of 4 steps, and none."""
    draw = np.random.default_rng(0)
    dtype = complex if constant else float
    normal = lambda *shape: (draw.normal(size=(*shape, 2)) @ [1, 1j if constant else 0]).astype(
        dtype if constant else complex
    )
    real = lambda a: a if constant else a.real
    a = real(normal(*(() if constant else (T, B)), D)) / 1.5
    b, h0 = real(normal(T, B, D)), real(normal(B, D))
    mask = draw.random((T, B)) < 0.7
    starts = draw.random((T, B)) < 0.15
    mask[:, 0], starts[:, 0] = True, False
    mask[:, 1], starts[:, 1] = True, np.arange(T) % 4 == 0
    mask[4:13, 2], starts[:, 2] = False, np.isin(np.arange(T), (12, 20))
    mask[:, 3], starts[:, 3] = np.arange(T) < 18, np.isin(np.arange(T), (3, 16, 20))
    mask[:, 4] = False
    b[~mask] = np.nan
    return {"a": a, "b": b, "h0": h0}, mask, starts


def loss(given, mask, starts, weights, reverse, **options):
    state, hs = jaxrnn.linear_scan(
        given["a"], given["b"], given["h0"], mask=mask, starts=starts, reverse=reverse, **options
    )
    total = (hs * weights).sum() + (state * LAST.astype(state.dtype)).sum()
    return total.real, (state, hs)


@functools.cache
def wanted(constant, reverse):
    return program(constant, reverse)(*arguments(constant))


def arguments(constant):
    draw = np.random.default_rng(1)
    return *example(constant), draw.normal(size=(T, B, D)).astype(complex if constant else float)


def program(constant, reverse, **options):
    run = functools.partial(loss, reverse=reverse, **options)
    return jax.jit(jax.value_and_grad(run, has_aux=True))


def check(came, want):
    for a, b in zip(jax.tree.leaves(came), jax.tree.leaves(want), strict=True):
        assert np.abs(np.asarray(a) - np.asarray(b)).max() <= 1e-12 * np.abs(b).max()


def lowered(kind, constant, reverse):
    given, mask, starts, weights = arguments(constant)
    mesh = jax.make_mesh((DEVICES,), ("time",), axis_types=(kind,))
    timed, whole = (NamedSharding(mesh, spec) for spec in (P("time"), P()))
    places = {"a": whole if constant else timed, "b": timed, "h0": whole}
    given = jax.device_put(given, places)
    given = given, *jax.device_put((mask, starts, weights), timed)
    with jax.set_mesh(mesh):
        return program(constant, reverse, time_axis="time").lower(*given), given, mesh


@pytest.mark.parametrize("constant", (False, True))
@pytest.mark.parametrize("reverse", (False, True))
def test_the_same_on_a_mesh(constant, reverse):
    kind = AxisType.Explicit if constant else AxisType.Auto
    program, given, mesh = lowered(kind, constant, reverse)
    compiled = program.compile()
    with jax.set_mesh(mesh):
        came = compiled(*given)
    check(came, wanted(constant, reverse))
    ((_, (_, hs)), gradient) = came
    timed = NamedSharding(mesh, P("time"))
    assert hs.sharding.is_equivalent_to(timed, 3), "the states left their devices"
    assert gradient["b"].sharding.is_equivalent_to(timed, 3), "the gradient left its devices"
    text = compiled.as_text()
    assert "all-gather" not in text and "all-to-all" not in text
    moved = re.findall(r"= (.*?) (?:collective-permute|all-reduce)(?:-start)?\(", text)
    assert moved, "nothing was exchanged"
    sizes = [
        list(map(int, filter(None, dims.split(",")))) for m in moved for dims in SHAPE.findall(m)
    ]
    assert all(np.prod(size, dtype=int) <= B * D for size in sizes), "more than states was moved"


@pytest.mark.parametrize("check_vma", (True, False))
def test_inside_of_shard_map(check_vma):
    mesh = jax.make_mesh((DEVICES,), ("time",), axis_types=(AxisType.Auto,))
    given, mask, starts, _ = arguments(False)

    def run(given, mask, starts):
        return jaxrnn.linear_scan(
            given["a"], given["b"], given["h0"], mask=mask, starts=starts, time_axis="time"
        )

    timed = P("time")
    places = {"a": timed, "b": timed, "h0": P()}
    sharded = jax.shard_map(
        run,
        mesh=mesh,
        in_specs=(places, timed, timed),
        out_specs=(P(), timed),
        check_vma=check_vma,
    )
    check(jax.jit(sharded)(given, mask, starts), wanted(False, False)[0][1])


def test_memory_falls_with_devices():
    def used(count):
        mesh = jax.make_mesh((count,), ("time",), axis_types=(AxisType.Auto,))
        shape = lambda *shape: jax.ShapeDtypeStruct(
            shape, float, sharding=NamedSharding(mesh, P("time"))
        )
        with jax.set_mesh(mesh):
            run = lambda a, b: (jaxrnn.linear_scan(a, b, time_axis="time")[1] ** 2).sum()
            plan = jax.jit(jax.grad(run, (0, 1))).lower(shape(4096, 2, 8), shape(4096, 2, 8))
            plan = plan.compile().memory_analysis()
        return plan.temp_size_in_bytes + plan.argument_size_in_bytes + plan.output_size_in_bytes

    assert used(8) < used(2) / 3.5


def test_what_cannot_be():
    run = lambda steps, axis: jaxrnn.linear_scan(
        jnp.ones((steps, 2)), jnp.ones((steps, 2)), time_axis=axis
    )
    with pytest.raises(ValueError, match="time_axis: got 'time', want an axis of the mesh"):
        run(8, "time")
    mesh = jax.make_mesh((DEVICES,), ("time",), axis_types=(AxisType.Auto,))
    words = "time_axis: got 9 steps, want a multiple of the 8"
    with jax.set_mesh(mesh), pytest.raises(ValueError, match=words):
        jax.eval_shape(lambda: run(9, "time"))


CELL = jaxrnn.stack(
    jaxrnn.project(4),
    jaxrnn.residual(jaxrnn.lru(4, state=3)),
    jaxrnn.bidirectional(jaxrnn.min_gru(3)),
    jaxrnn.layer_norm(),
    jaxrnn.s5(6, state=4),
)


# The convolution sees six steps back, which are in two stretches before its own.
MEMORIES = jaxrnn.stack(
    jaxrnn.conv1d(4, kernel=3, dilation=3),
    jaxrnn.bidirectional(jaxrnn.mlstm(2, heads=1), jaxrnn.delta_product(2, heads=1)),
    jaxrnn.bidirectional(jaxrnn.gla(2, heads=1), jaxrnn.retention(4, heads=2)),
)

# A memory whose summary is of two operations, and means with a stabiliser.
MEANS = jaxrnn.bidirectional(jaxrnn.rwkv4(3), jaxrnn.mamba3(3, heads=1, state=4))

ATTENTION = jaxrnn.bidirectional(
    jaxrnn.attention(4, heads=2, context=T), jaxrnn.attention(2, heads=1, window=6)
)


@pytest.mark.parametrize(
    "cell, kind",
    (
        (CELL, AxisType.Auto),
        (CELL, AxisType.Explicit),
        (MEMORIES, AxisType.Auto),
        (MEANS, AxisType.Auto),
        (ATTENTION, AxisType.Explicit),
    ),
    ids=("linear", "linear-explicit", "memories", "means", "attention"),
)
def test_a_cell_on_a_mesh(cell, kind):
    _, mask, starts = example(False)
    lengths = np.array([T, 3, 17, T, T, 25])
    params = cell.init(jax.random.key(0), 3)
    xs, weights = jax.random.normal(jax.random.key(1), (2, T, B, 6))
    xs = xs[..., :3]

    def loss(params, xs, mask, starts, lengths, weights, **options):
        state, ys = jaxrnn.unroll(
            cell, params, xs, mask=mask, starts=starts, lengths=lengths, **options
        )
        floats = [s for s in jax.tree.leaves(state) if jnp.issubdtype(s.dtype, jnp.inexact)]
        total = sum((jnp.abs(s) ** 2).sum() for s in floats)
        return (ys * weights).sum() + total, (state, ys)

    def run(**options):
        return jax.jit(
            jax.value_and_grad(functools.partial(loss, **options), (0, 1), has_aux=True)
        )

    given = params, xs, mask, starts, lengths, weights
    mesh = jax.make_mesh((DEVICES,), ("time",), axis_types=(kind,))
    timed = NamedSharding(mesh, P("time"))
    with jax.set_mesh(mesh):
        places = [
            timed if np.shape(a)[:1] == (T,) else NamedSharding(mesh, P()) for a in given[1:]
        ]
        placed = params, *map(jax.device_put, given[1:], places)
        compiled = run(time_axis="time").lower(*placed).compile()
        came = compiled(*placed)
    check(came, run()(*given))
    text = compiled.as_text()
    assert "all-gather" not in text and "all-to-all" not in text
    # Nothing in a loop, but for attention's ring.
    looped = {exchange.kind for exchange in collectives.found(text) if exchange.looped}
    assert looped <= {"collective-permute"} and (cell is ATTENTION or not looped)


@pytest.mark.parametrize("window", (14, None))
def test_what_a_ring_passes_on(window):
    """Blocks of keys, n - 1 times or as far as a window reaches; in reverse, and after a state."""
    more = {"window": window} if window else {"context": T}
    cell = jaxrnn.attention(4, heads=2, **more)
    params, xs = cell.init(jax.random.key(0), 3), jax.random.normal(jax.random.key(1), (T, B, 3))
    state, name = None, None
    if window:
        state, _ = jax.jit(functools.partial(jaxrnn.unroll, cell))(params, xs[:8])
        name = "xla"

    def loss(params, xs, state, **options):
        (k, v, _), ys = jaxrnn.unroll(cell, params, xs, state, reverse=window is None, **options)
        return (ys[..., :3] * xs).sum() + (k * v).sum(), ys

    def run(**options):
        run = functools.partial(loss, **options)
        return jax.jit(jax.value_and_grad(run, (0, 1, 2), has_aux=True, allow_int=True))

    mesh = jax.make_mesh((DEVICES,), ("time",), axis_types=(AxisType.Auto,))
    with jax.set_mesh(mesh):
        placed = params, jax.device_put(xs, NamedSharding(mesh, P("time"))), state
        compiled = run(time_axis="time", implementation=name).lower(*placed).compile()
        came = compiled(*placed)
    floats = lambda tree: [a for a in jax.tree.leaves(tree) if a.dtype == jnp.float64]
    check(floats(came), floats(run()(params, xs, state)))
    text, rounds, block = compiled.as_text(), 4 if window else 7, T // DEVICES * B * 4 * 8
    assert "all-gather" not in text and "all-to-all" not in text
    exchanges = [e for e in collectives.found(text) if e.kind == "collective-permute"]
    assert max(e.bytes for e in exchanges) == block, "more than a block was moved at once"
    turns = re.findall(r"known_trip_count\":{\"n\":\"(\d+)", text)
    assert turns.count(str(rounds - 1)) == 2, "all passes but one are in a loop"
    passes = sum(rounds - 1 if e.looped else 1 for e in exchanges if e.bytes == block)
    # k and v, and again with their gradients; but XLA finds that the first pass is the same.
    assert passes == rounds * (2 + 4) - 2
    # Halves go to where all devices have the same to do, and back: q k v, ys, and their gradients.
    assert sum(e.bytes == block // 2 for e in exchanges) == (0 if window else 16)
    if window:
        assert text.count("{7,0}}") == 2, "gradients alone go from the last stretch to the first"


def test_a_nan_stays_in_its_episode():
    """Also where the episode ends in a later stretch: next, two on, or in the same.

    So do gradients: of a loss that is NaN too, those of the next episode.
    """
    memories = jaxrnn.mlstm, jaxrnn.delta_net, jaxrnn.gla, jaxrnn.attention
    diagonal = jaxrnn.lru(3), jaxrnn.min_gru(2)
    means = jaxrnn.mamba3(2, heads=1, state=4), jaxrnn.rwkv4(3)
    cell = jaxrnn.parallel(*diagonal, *(memory(2, heads=1) for memory in memories), *means)
    params, xs = cell.init(jax.random.key(0), 3), jax.random.normal(jax.random.key(1), (T, 4, 3))
    for row, step in enumerate((1, 9, 13)):
        xs = xs.at[step, row].set(jnp.nan)
    starts = jnp.zeros((T, 4), bool).at[14].set(True)
    mesh = jax.make_mesh((DEVICES,), ("time",), axis_types=(AxisType.Auto,))

    def run(params, xs, **options):
        def loss(xs):
            state, ys = jaxrnn.unroll(cell, params, xs, starts=starts, **options)
            return jnp.sin(ys).sum(), (state, ys)

        return jax.grad(loss, has_aux=True)(xs)

    with jax.set_mesh(mesh):
        d_xs, (state, ys) = jax.jit(functools.partial(run, time_axis="time"))(params, xs)
    d_want, want = jax.jit(run)(params, xs)
    came = *jax.tree.leaves((state, ys)), d_xs[14:], d_xs[:, 3]
    alone = *jax.tree.leaves(want), d_want[14:], d_want[:, 3]
    for one, other in zip(came, alone, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-12)
    assert (
        np.isnan(ys[13, :3]).any(-1).all()
        and np.isfinite(ys[14:]).all()
        and np.isfinite(ys[:, 3]).all()
        and np.isfinite(d_xs[14:]).all()
    )


def test_a_cell_inside_of_shard_map():
    cell = jaxrnn.lru(4)
    params, xs = cell.init(jax.random.key(0), 4), jax.random.normal(jax.random.key(1), (T, 2, 4))
    lengths = jnp.array([13, T])
    # A segment that goes on in the next stretch, and over one that is padding.
    ids = np.stack([np.arange(T) // 3, np.where(np.arange(T) // 5 == 1, 0, 7)], 1)
    mesh = jax.make_mesh((DEVICES,), ("time",), axis_types=(AxisType.Auto,))
    sharded = jax.shard_map(
        lambda params, xs, lengths, ids: jaxrnn.unroll(
            cell, params, xs, lengths=lengths, segment_ids=ids, time_axis="time"
        ),
        mesh=mesh,
        in_specs=(P(), P("time"), P(), P("time")),
        out_specs=(P(), P("time")),
    )
    mask, starts = jaxrnn.from_segment_ids(ids)
    want = jaxrnn.unroll(cell, params, xs, lengths=lengths, mask=mask, starts=starts)
    check(jax.jit(sharded)(params, xs, lengths, ids), want)


@pytest.mark.parametrize(
    "cell",
    (
        jaxrnn.lstm(4),
        jaxrnn.gru(4, reset_after=False),
        jaxrnn.sru(4),
        jaxrnn.indrnn(4),
        jaxrnn.truncated(jaxrnn.lru(4), 2),
        jaxrnn.zoneout(jaxrnn.lstm(4), 0.1),
        jaxrnn.online(jaxrnn.lru(4)),
        jaxrnn.conv_lstm(4, shape=(2,)),
        jaxrnn.ttt_linear(4),
    ),
    ids=repr,
)
def test_other_cells_refuse(cell):
    params, xs = cell.init(jax.random.key(0), 4), jnp.ones((16, 2, 4))
    mesh = jax.make_mesh((DEVICES,), ("time",), axis_types=(AxisType.Auto,))
    run = lambda **options: jax.eval_shape(lambda: jaxrnn.unroll(cell, params, xs, **options))
    run()  # what is traced without an axis must not stand for what is traced with one
    words = "time_axis: got 'time', want None: a step of the cell is not linear in its state"
    with jax.set_mesh(mesh), pytest.raises(ValueError, match=words):
        run(time_axis="time")
