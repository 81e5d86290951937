"""A batch over eight devices stays there: no gather, one reduction for weights' gradients."""

import cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxrnn
from jaxrnn.recurrence import xla

DEVICES = 8
CELLS = {
    "lstm": jaxrnn.lstm(6),
    "gru": jaxrnn.gru(6, residuals="states"),
    "gru_reset_before": jaxrnn.gru(6, reset_after=False),
    "attention": jaxrnn.attention(6, heads=2, context=16),
    "conv1d": jaxrnn.conv1d(6, kernel=3),
    "conv_lstm": jaxrnn.conv_lstm(6, shape=(3,)),
    "bidirectional": jaxrnn.bidirectional(jaxrnn.lstm(6)),
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
    e = cases.example(cases.Case(lambda hidden: cell), shape, dtype=jnp.float32)
    return e.params, e.xs, e.mask, e.starts


def placed(mesh, arrays, axis):
    params, *others = arrays
    put = [jax.device_put(a, NamedSharding(mesh, P(None, axis))) for a in others]
    return jax.device_put(params, NamedSharding(mesh, P())), *put


@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize("kind", (AxisType.Auto, AxisType.Explicit), ids=str)
def test_jit_on_a_mesh(name, kind):
    arrays = problem(CELLS[name])
    run = value_and_grad(CELLS[name])
    wanted = run(*arrays)
    mesh = jax.make_mesh((DEVICES,), ("batch",), axis_types=(kind,))
    with jax.set_mesh(mesh):
        given = placed(mesh, arrays, "batch")
        compiled = jax.jit(run).lower(*given).compile()
        came = compiled(*given)
    assert cases.error(came, wanted) < 1e-5
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
    wanted = run(*arrays)
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
        one, mesh=mesh, in_specs=(P(), rows, rows, rows), out_specs=(P(), (P(), rows)),
        check_vma=check,
    )  # fmt: skip
    assert cases.error(jax.jit(sharded)(*arrays), wanted) < 1e-5


def test_implementations_are_told_of_devices(monkeypatch):
    """How many divide the arrays: all under ``jit``, none inside of a ``shard_map``."""
    mesh = Mesh(np.array(jax.devices()[:DEVICES]), ("batch",))
    two = Mesh(np.array(jax.devices()[:DEVICES]).reshape(2, 4), ("batch", "other"))
    targets, forward = [], xla.forward

    def told(*given):
        targets.append(given[-1])
        return forward(*given)

    monkeypatch.setattr(xla, "forward", told)
    params, xs, *_ = problem(CELLS["lstm"])
    rows = P(None, "batch")

    def lowered(run, *arrays):
        targets.clear()
        jax.jit(run).lower(*arrays)
        return [(t.platform, t.chip, t.devices, t.exported) for t in targets if t.platform]

    def run(params, xs):
        return jaxrnn.unroll(CELLS["lstm"], params, xs, implementation="xla")[1]

    chip = jax.devices()[0].device_kind
    assert lowered(run, params, xs) == [("cpu", chip, 1, False)]
    placed_xs = jax.device_put(xs, NamedSharding(mesh, rows))
    assert lowered(run, params, placed_xs) == [("cpu", chip, DEVICES, False)]
    for where, names, left in ((mesh, {"batch"}, 1), (two, {"batch"}, 4), (two, None, 1)):
        mapped = jax.shard_map(
            run, mesh=where, in_specs=(P(), rows), out_specs=rows, check_vma=False,
            **({"axis_names": names} if names else {}),
        )  # fmt: skip
        assert lowered(mapped, params, xs) == [("cpu", chip, left, False)]
    shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), (params, xs))
    targets.clear()
    jax.export.export(jax.jit(run), platforms=("tpu",))(*shapes)
    assert targets[-1] == ("tpu", None, 1, True)  # the chip of this machine is another one


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
