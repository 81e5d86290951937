"""A batch over eight devices stays there: no gather, one reduction for weights' gradients."""

import cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxrnn

DEVICES = 8
CELLS = {
    "lstm": jaxrnn.lstm(6),
    "gru": jaxrnn.gru(6, residuals="states"),
    "gru_reset_before": jaxrnn.gru(6, reset_after=False),
    "attention": jaxrnn.attention(6, heads=2, context=16),
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
