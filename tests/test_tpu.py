"""The kernel for TPUs beyond the laws (`test_laws`): its tiles, its lanes, what it cannot run."""

import functools
import re

import cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import GATED, REFERENCE, TOLERANCE
from instead import instead
from interpreted import interpreted, interpreted_as_jax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxrnn
from jaxrnn._src.core import dispatch
from jaxrnn._src.core.lowering_target import Target
from jaxrnn._src.ops.recurrence import tpu
from jaxrnn._src.ops.recurrence.tpu import lanes, layout, tiles

OTHERS = {  # which way they are run, and which of their states are wanted after each step
    "peephole": (False, (1,)),
    "candidate_first": (True, (0,)),
    "lstm_heads": (True, (0, 1)),
    "gru_heads": (False, ()),
    "gru_states": (True, (0,)),
}
every_direction = pytest.mark.parametrize("reverse", (False, True))


@functools.partial(jax.jit, static_argnums=(0, 1), static_argnames=("reverse", "after"))
def results(cell, implementation, moving, *, reverse=False, after=(), **flags):
    """Outputs, ``after`` of the states after each step, and gradients of everything."""

    def unroll(*moving):
        given = flags | {"implementation": implementation, "return_states": bool(after)}
        state, ys = jaxrnn.unroll(cell, *moving, reverse=reverse, **given)
        return state, (ys[0], [ys[1][k] for k in after]) if after else ys

    out, pull = jax.vjp(unroll, *moving)
    return out, pull(cases.cotangents(out))


def check(e, *, flags=True, reverse=False, after=()):
    """Results and gradients of everything are the reference's, with ``flags`` or without."""
    moving, real = (e.params, e.xs, e.state), jnp.ones_like(e.mask)
    given = {"mask": e.mask, "starts": e.starts} if flags else {}
    arrays = given or {"mask": real, "starts": ~real}  # of one program, the truth of both
    static = {"reverse": reverse, "after": after}
    wanted = results(e.cell, REFERENCE, moving, **static, **arrays)
    with interpreted():
        came = results(e.cell, "tpu", moving, **static, **given)
    assert cases.error(came, wanted) < TOLERANCE["float64"][1]


@pytest.mark.parametrize("name", OTHERS)
def test_other_cells(x64, name):
    reverse, after = OTHERS[name]
    check(cases.example(GATED[name]), reverse=reverse, after=after)


@pytest.fixture
def small_tiles():
    few = ("MOST_ROWS", 16), ("MOST_STEPS", 4), ("PRODUCT_ROWS", 32)
    with instead(*((tiles, *one) for one in few)):
        yield


@pytest.fixture
def small_blocks(small_tiles):
    with instead((lanes, "MOST", 1)):
        yield


@every_direction
@pytest.mark.parametrize(
    ("batch", "names"),
    [((5,), ("lstm", "gru")), ((16,), ("gru", "lstm")), ((3, 7), ("lstm", "gru"))],
)
def test_chunks_and_tiles(x64, small_tiles, batch, names, reverse):
    """Several chunks, the last one shorter; several tiles, the last one with fewer rows."""
    e = cases.example(GATED[names[reverse]], cases.Shape(11, batch, 3, 5))
    check(e, reverse=reverse)
    if batch == (16,):
        check(e, reverse=reverse, flags=False)


def test_tiles_are_what_the_test_says(small_tiles):
    for rows, projects, tile in ((5, False, 5), (16, True, 16), (21, True, 16)):
        found = layout.Layout(*_given(jaxrnn.lstm(5), (11, rows, 3)), Target("cpu"))
        assert (found.projects, found.forward.rows, found.forward.steps) == (projects, tile, 4)


def reciprocal_update(state, x, r):
    """Infinite where nothing comes in, as in an empty lane."""
    (xh,), (rh,) = x, r
    return (1 / (xh + rh),)


def test_empty_lanes_do_not_reach_a_weight(x64):
    cell = jaxrnn.gated(reciprocal_update, gates=1, bias=(3.0,))(5)
    e = cases.example(cases.Case(lambda hidden: cell))
    check(e, flags=False)


def test_empty_lanes_of_a_block_do_not_reach_a_weight(x64, small_blocks):
    cell = jaxrnn.gated(reciprocal_update, gates=1, bias=(30.0,))(130)
    e = cases.example(cases.Case(lambda hidden: cell), cases.Shape(3, (2,), 3, 130))
    check(e, flags=False)


@pytest.mark.parametrize(
    ("hidden", "heads", "wanted"),
    [
        (100, 1, (1, 100, 128)),
        (128, 1, (1, 128, 128)),
        (512, 8, (4, 128, 128)),  # two heads of 64 in one register
        (96, 3, (1, 96, 128)),
        (80, 2, (1, 80, 128)),
        (400, 2, (2, 200, 256)),
        (7 * 33, 7, (7, 33, 128)),  # 7 has no divisor to join by
        (12 * 30, 12, (3, 120, 128)),
    ],
)
def test_lanes(hidden, heads, wanted):
    found = lanes.lanes(hidden, 2, heads)
    assert found[:3] == wanted and found.width % lanes.LANES == 0 and found.blocks == 1
    a = np.random.default_rng(0).normal(size=(2, 3 * hidden)).astype(np.float32)
    assert (found.gather(found.spread(a)) == a).all()
    gates, width = 2, hidden // heads
    r = jax.random.normal(jax.random.key(0), (heads, width, gates, width))
    laid = found.recurrent(r if heads > 1 else r[0])
    h = a[:, :hidden]
    parts = np.split(np.asarray(found.spread(h)), found.heads, -1)
    came = [part @ np.asarray(one) for part, one in zip(parts, laid)]
    came = np.stack([c.reshape(2, gates, found.width) for c in came], 2)
    came = found.gather(jnp.asarray(came.reshape(2, -1)))
    wanted = np.einsum("bnd,ndge->bgne", h.reshape(2, heads, width), r).reshape(2, -1)
    np.testing.assert_allclose(came, wanted, atol=1e-4)


@pytest.mark.parametrize(
    ("hidden", "gates", "heads", "wanted"),
    [
        (1408, 4, 1, (1408, 1408, 1)),
        (2048, 2, 1, (2048, 2048, 1)),
        (2048, 4, 1, (2048, 1024, 2)),
        (2048, 3, 1, (2048, 1024, 2)),
        (1500, 4, 1, (1536, 768, 2)),
        (2176, 4, 1, (2304, 1152, 2)),  # 17 registers have no divisor
        (4096, 4, 2, (2048, 1024, 4)),
        (8192, 4, 16, (512, 8192, 1)),  # of heads that are not wide
        (300, 100, 1, (384, 128, 3)),
    ],
)
def test_blocks(hidden, gates, heads, wanted):
    found = lanes.lanes(hidden, gates, heads)
    assert (found.width, found.block, found.blocks) == wanted


@pytest.mark.parametrize(
    ("name", "reverse", "after"),
    [
        ("lstm", False, (1,)),
        ("gru", True, (0,)),
        ("peephole", False, ()),
        ("lstm_heads", True, (0, 1)),
    ],
)
def test_blocks_of_units(x64, small_blocks, name, reverse, after):
    """Several blocks, the last one with empty lanes; each sees the state as it was before."""
    heads = GATED[name].heads
    e = cases.example(GATED[name], cases.Shape(5, (2,), 3, 130 * heads))
    problem, operands = _given(e.cell, e.xs.shape)
    assert layout.Layout(problem, operands, Target("cpu")).lanes.blocks == 2 * heads
    check(e, reverse=reverse, after=after)
    if name in ("lstm", "gru"):
        check(e, reverse=reverse, flags=False)


@pytest.mark.parametrize(("fixture", "hidden"), [("small_tiles", 5), ("small_blocks", 130)])
def test_the_initial_states_gradient(request, x64, fixture, hidden):
    """What starts put back is learned: over several chunks, and in blocks of units."""
    request.getfixturevalue(fixture)
    case = cases.Case(lambda h: jaxrnn.learned_state(jaxrnn.lstm(h)))
    check(cases.example(case, cases.Shape(5, (3,), 3, hidden)))


def test_blocks_of_units_where_the_input_is_projected(x64, small_blocks):
    e = cases.example(GATED["lstm"], cases.Shape(5, (16,), 3, 130))
    check(e, flags=False)


def test_blocks_leave_room_for_rows():
    given = _given(jaxrnn.lstm(2048), (32, 256, 2048), jnp.bfloat16)
    found = layout.Layout(*given, Target("tpu", "TPU v6 lite"))
    assert found.forward[:2] == found.backward[:2] == (128, 2)


def test_an_ensemble(x64):
    e = cases.example(GATED["gru"])
    params = jax.tree.map(lambda a: jnp.stack([a, -a, 2 * a]), e.params)

    def loss(params, implementation):
        run = functools.partial(jaxrnn.unroll, e.cell, implementation=implementation)
        (state,), ys = jax.vmap(run, (0, None, None))(params, e.xs, e.state)
        return (ys**2).sum() + jnp.sin(state).sum()

    with interpreted_as_jax():
        came = jax.jit(jax.value_and_grad(lambda p: loss(p, "tpu")))(params)
    assert cases.error(came, jax.value_and_grad(lambda p: loss(p, REFERENCE))(params)) < 1e-12


# What it cannot run, and what it says.


def _given(cell, shape, dtype=jnp.float32):
    """The problem and the operands of a cell's recurrence, of which only shapes matter."""
    params = jax.eval_shape(lambda: cell.init(jax.random.key(0), shape[-1]))
    found = []
    xs = jax.ShapeDtypeStruct(shape, dtype)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dispatch, "record", lambda name, table, *given: found.append(given))
        jax.eval_shape(lambda p, x: jaxrnn.unroll(cell, p, x), params, xs)
    return found[0]


def runs(cell, shape, chip=None, dtype=jnp.float32, **target):
    return tpu.unsupported(*_given(cell, shape, dtype), Target("tpu", chip, **target))


@pytest.mark.parametrize("name", ("elman", "lstm", "gru", "mgu", "peephole", "lstm_heads"))
def test_it_is_the_default_on_a_tpu(name):
    case = GATED[name]
    cell = case.make(128)
    params = jax.eval_shape(lambda: cell.init(jax.random.key(0), 64))
    xs = jax.ShapeDtypeStruct((32, 16, 64), jnp.bfloat16)
    given = {"platform": "tpu", "return_states": name in ("lstm", "gru")}
    assert jaxrnn.explain(cell, params, xs, **given).choices[0].runs == "tpu"


def test_it_is_lowered_with_the_states_after_each_step():
    """By Pallas, which refuses what a TPU has not; units that fill no register."""
    e = cases.example(GATED["lstm"], cases.Shape(5, (3,), 3, 130), dtype=jnp.float32)
    given = {"mask": e.mask, "starts": e.starts, "after": (0, 1)}
    traced = results.trace(e.cell, None, (e.params, e.xs, e.state), **given)
    text = traced.lower(lowering_platforms=("tpu",)).as_text()
    assert text.count("tpu_custom_call") == 2


def test_from_what_size_on_which_chip():
    shape = (32, 16, 64)
    for hidden, chips in {512: 5, 1024: 5, 2048: 4, 3072: 2, 4096: 0}.items():
        fits = [c for c in tiles.VMEM if runs(jaxrnn.lstm(hidden), shape, c) is None]
        assert len(fits) == chips, (hidden, fits)
    why = runs(jaxrnn.lstm(2048), shape)  # no chip is named: it has to fit on every one
    assert "recurrent weights of 32 MiB" in why and "12 MiB of VMEM" in why
    assert "they fit on: TPU v5, TPU v5 lite, TPU v6 lite, TPU7x" in why
    assert runs(jaxrnn.lstm(2048), shape, "TPU v6 lite") is None
    assert "they fit on: none" in runs(jaxrnn.lstm(8192), shape, "TPU v6 lite")
    with jax.default_matmul_precision("highest"):  # factors of four bytes
        assert runs(jaxrnn.lstm(3072), shape, "TPU v6 lite") is not None


def test_explain_names_the_chip():
    cell = jaxrnn.lstm(2048)
    params = jax.eval_shape(lambda: cell.init(jax.random.key(0), 64))
    xs = jax.ShapeDtypeStruct((32, 16, 64), jnp.bfloat16)

    class Chip:
        platform, device_kind = "tpu", "TPU v4"

    found = jaxrnn.explain(cell, params, xs, platform=Chip())
    assert str(found).startswith("lstm(hidden=2048) on TPU v4\n")
    assert found.choices[0].runs == "xla" and "VMEM" in found.choices[0].others["tpu"]


def gamma_update(state, x, r):
    """Pallas has nothing for the gamma function."""
    return (jax.lax.lgamma(x[0] + r[0]),)


def test_why_not():
    shape = (32, 16, 64)
    assert "jax.shard_map" in runs(jaxrnn.lstm(8), shape, devices=4)
    assert "float16" in runs(jaxrnn.lstm(8), shape, dtype=jnp.float16)
    why = runs(jaxrnn.gated(gamma_update, gates=1)(8), shape)
    assert "Pallas cannot lower the update" in why and "lgamma" in why
    xs = jnp.ones(shape)
    cell = jaxrnn.lstm(8)
    params = cell.init(jax.random.key(0), 64)
    with pytest.raises(ValueError, match="'tpu' cannot run this on cpu: it is for TPUs"):
        jaxrnn.unroll(cell, params, xs, implementation="tpu")


def test_a_shard_map_runs_it(x64):
    e = cases.example(GATED["lstm"], cases.Shape(4, (8,), 3, 5))
    mesh = Mesh(np.array(jax.devices()[:1]), "batch")
    rows = P(None, "batch")

    def run(implementation, params, xs):
        return jaxrnn.unroll(e.cell, params, xs, implementation=implementation)[1]

    with interpreted():
        sharded = jax.shard_map(
            functools.partial(run, "tpu"),
            mesh=mesh,
            in_specs=(P(), rows),
            out_specs=rows,
            check_vma=False,
        )
        came = jax.jit(sharded)(e.params, e.xs)
    assert cases.error(came, run(REFERENCE, e.params, e.xs)) < 1e-12


def test_it_is_divided_over_a_mesh(x64):
    """Under plain jit: rows over one axis and members over the other, the numbers of one device.

    Lowered for eight TPUs, it is one kernel forward and one backward, and no loop.
    """
    cell = jaxrnn.stack(jaxrnn.lstm(5), jaxrnn.min_gru(4))
    members = jax.vmap(lambda key: cell.init(key, 3))(jax.random.split(jax.random.key(0), 2))
    xs = jax.random.normal(jax.random.key(1), (7, 4, 3))  # nothing but time is 7
    mask = jnp.arange(7)[:, None] < jnp.array([[4, 2, 3, 0]])

    def loss(implementation, params, xs, mask):
        run = lambda params: jaxrnn.unroll(
            cell, params, xs, mask=mask, implementation=implementation
        )
        state, ys = jax.vmap(run)(params)
        return (ys**2).sum() + sum(jnp.sin(s).sum() for s in jax.tree.leaves(state))

    def program(name):
        return jax.jit(jax.value_and_grad(functools.partial(loss, name), (0, 1)))

    mesh = jax.make_mesh((4, 2), ("batch", "model"), axis_types=(AxisType.Auto,) * 2)
    place = lambda tree, *axes: jax.device_put(tree, NamedSharding(mesh, P(*axes)))
    given = place(members, "model"), place(xs, None, "batch"), place(mask, None, "batch")
    with interpreted_as_jax():
        compiled = program("tpu").lower(*given).compile()
        came = compiled(*given)
    assert cases.error(came, program(REFERENCE)(members, xs, mask)) < 1e-12
    moved = re.findall(r"= \w+\[([\d,]*)\].* all-gather", compiled.as_text())
    assert not any("7" in sizes.split(",") for sizes in moved)
    given = jax.tree.map(lambda a: a.astype(a.dtype if a.dtype == bool else "float32"), given)
    with jax.enable_x64(False):
        text = program(None).trace(*given).lower(lowering_platforms=("tpu",)).as_text()
    assert text.count("@tpu_custom_call") == 4 and "stablehlo.while" not in text


def test_weights_of_bfloat16():
    """Products of bfloat16, everything else in float32."""
    e = cases.example(GATED["lstm"], cases.Shape(5, (16,), 4, 8), dtype=jnp.bfloat16)
    truth = cases.example(GATED["lstm"], cases.Shape(5, (16,), 4, 8), dtype=jnp.float32)

    def results(e, implementation):
        def run(params, xs):
            return jaxrnn.unroll(e.cell, params, xs, implementation=implementation)

        out, pull = jax.vjp(run, e.params, e.xs)
        return out, pull(cases.cotangents(out))

    with interpreted():
        (came, grads) = jax.jit(lambda: results(e, "tpu"))()
    wanted, wanted_grads = results(truth, REFERENCE)
    assert cases.error(came, wanted) < TOLERANCE["bfloat16"][0]
    assert cases.error(grads, wanted_grads) < TOLERANCE["bfloat16"][1]
    assert came[1].dtype == jnp.bfloat16 and came[0][0].dtype == jnp.float32
