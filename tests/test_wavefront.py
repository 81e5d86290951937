"""Layers on devices, a chunk apart: the numbers of the stack, and no more is passed on."""

import dataclasses
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

T, B, CHUNK = 13, 4, 4
pytestmark = [
    pytest.mark.usefixtures("x64"),
    pytest.mark.skipif(jax.device_count() < 4, reason="wants 4 devices"),
]
stack = jaxrnn.stack
DEEP = stack(
    jaxrnn.lstm(5), stack(jaxrnn.dropout(0.3), jaxrnn.lru(5)), jaxrnn.gru(4), jaxrnn.project(2)
)
WIDE = stack(stack(jaxrnn.embedding(11, 4), jaxrnn.learned_state(jaxrnn.lstm(3))), jaxrnn.gru(3))


def flags():
    """Rows that begin, end and start anew in chunks and at their seams, and one of padding."""
    mask, starts = np.random.default_rng(0).random((2, T, B)) < [[[0.8]], [[0.2]]]
    mask[4:8, 0], starts[8, 1], starts[4, 2] = False, True, True
    return {"mask": mask, "starts": starts, "lengths": np.array([T, 9, T, 0])}


def in_shard_map(cell, mesh):
    """A cell that divides its batch, in a ``shard_map`` over both axes of a mesh."""

    def unroll(params, state, xs, options):
        timed, rows = P(None, "data"), P("data")
        given = options.replace(mask=timed, starts=timed, key=P())
        specs = (P(), rows, timed, given), (rows, timed)
        run = jax.shard_map(cell.unroll, in_specs=specs[0], out_specs=specs[1])
        return run(params, state, xs, options)

    return dataclasses.replace(cell, unroll=unroll)


@pytest.mark.parametrize(
    "cell, depth, kind, reverse",
    ((DEEP, 4, AxisType.Explicit, True), (WIDE, 2, AxisType.Auto, False)),
    ids=("four layers, in reverse", "tokens, the batch divided too"),
)
def test_the_numbers_of_the_stack(cell, depth, kind, reverse):
    params = cell.init(jax.random.key(0), 3 if cell is DEEP else None)
    xs = jax.random.normal(jax.random.key(1), (T, B, 3))
    if cell is WIDE:
        xs = jax.random.randint(jax.random.key(1), (T, B), 0, 11)
    state = cell.initial_state(params, (B,))
    state = jax.tree.map(lambda a: a + jnp.ones_like(a), state)

    def loss(params, xs, state, flags, cell):
        key = jax.random.key(2)
        state, ys = jaxrnn.unroll(cell, params, xs, state, **flags, reverse=reverse, key=key)
        parts = [a for a in jax.tree.leaves((state, ys)) if jnp.issubdtype(a.dtype, jnp.inexact)]
        weights = np.random.default_rng(3)
        total = sum((abs(a) ** 2 * weights.normal(size=a.shape)).sum() for a in parts)
        return total, (state, ys)

    def run(cell):
        run = functools.partial(loss, cell=cell)
        return jax.jit(jax.value_and_grad(run, (0, 1, 2), has_aux=True, allow_int=True))

    given = params, xs, state, flags()
    want = run(cell)(*given)
    deep = jaxrnn.wavefront(cell, axis="depth", chunk=CHUNK)
    mesh = jax.make_mesh((4 // depth, depth), ("data", "depth"), axis_types=(kind, kind))
    if depth < 4:
        deep = in_shard_map(deep, mesh)
    with jax.set_mesh(mesh):
        compiled = run(deep).lower(*given).compile()
        came = compiled(*given)
    for a, b in zip(jax.tree.leaves(came), jax.tree.leaves(want), strict=True):
        if jnp.issubdtype(a.dtype, jnp.number):
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-12 * max(1, np.abs(b).max()))
    text = compiled.as_text()
    assert "all-gather" not in text and "all-to-all" not in text
    moved = re.findall(r"= \w+\[([\d,]+)\]\S* collective-permute(?:-start)?\(", text)
    sizes = {np.prod(list(map(int, dims.split(",")))) for dims in moved}
    assert sizes == {CHUNK * B // (4 // depth) * (5 if cell is DEEP else 3)}, "a chunk's outputs"


@pytest.mark.parametrize("steps, rows", ((T, 0), (1, 2)), ids=("no rows", "one step"))
def test_little_to_do(steps, rows):
    cell = stack(jaxrnn.gru(3), jaxrnn.lstm(4))
    params, xs = cell.init(jax.random.key(0), 3), jnp.ones((steps, rows, 3))

    def run(cell):
        loss = lambda params: (jaxrnn.unroll(cell, params, xs)[1] ** 2).sum()
        return jax.jit(lambda params: (jaxrnn.unroll(cell, params, xs), jax.grad(loss)(params)))

    mesh = jax.make_mesh((2,), ("depth",), axis_types=(AxisType.Auto,))
    with jax.set_mesh(mesh):
        came = run(jaxrnn.wavefront(cell, axis="depth", chunk=CHUNK))(params)
    close = functools.partial(np.testing.assert_allclose, rtol=0, atol=1e-12)
    jax.tree.map(close, came, run(cell)(params))


def test_parameters_are_on_the_device_of_their_layer():
    """Of equal layers, stored as parts of each: one exchange forward and one of the gradient."""
    cell = stack(jaxrnn.gru(4), jaxrnn.gru(4))
    params, xs = cell.init(jax.random.key(0), 4), jax.random.normal(jax.random.key(1), (6, 3, 4))

    def run(cell):
        loss = lambda params: (jaxrnn.unroll(cell, params, xs)[1] ** 2).sum()
        return jax.jit(jax.value_and_grad(loss))

    mesh = jax.make_mesh((2,), ("depth",), axis_types=(AxisType.Auto,))
    place = lambda a: NamedSharding(mesh, P(*[None] * (a.ndim - 1), "depth"))
    with jax.set_mesh(mesh):
        given = jax.device_put(params, jax.tree.map(place, params))
        deep = run(jaxrnn.wavefront(cell, axis="depth", chunk=CHUNK))
        compiled = deep.lower(given).compile()
        came = compiled(given)
    close = functools.partial(np.testing.assert_allclose, rtol=0, atol=1e-12)
    jax.tree.map(close, came, run(cell)(params))
    for a in jax.tree.leaves(came[1]):
        assert a.sharding.is_equivalent_to(place(a), a.ndim)
    found = collectives.found(compiled.as_text())
    assert {e.kind for e in found} == {"all-to-all", "all-reduce", "collective-permute"}
    swapped = sum(e.bytes for e in found if e.kind == "all-to-all")
    assert swapped == sum(a.nbytes for a in jax.tree.leaves(params))  # a half each, and back


@pytest.mark.parametrize(
    "make, error, words",
    (
        (lambda: jaxrnn.gru(3), TypeError, "want a jaxrnn.stack"),
        (lambda: stack(jaxrnn.gru(3), jaxrnn.bidirectional(jaxrnn.gru(3))), ValueError, "no step"),
        (lambda: stack(jaxrnn.gru(3), jaxrnn.attention(4, context=5)), ValueError, "context=5"),
        (
            lambda: stack(jaxrnn.gru(3), jaxrnn.residual(jaxrnn.truncated(jaxrnn.gru(3), 2))),
            ValueError,
            "jaxrnn.truncated around it",
        ),
        (lambda: stack(*(3 * (jaxrnn.gru(3),))), ValueError, "3 layers, want a multiple of the 2"),
    ),
    ids=("no stack", "no step", "context", "truncated", "three"),
)
def test_what_it_refuses(make, error, words):
    mesh = jax.make_mesh((2,), ("depth",), axis_types=(AxisType.Auto,))
    with pytest.raises(error, match=words), jax.set_mesh(mesh):
        cell = jaxrnn.wavefront(make(), axis="depth", chunk=CHUNK)
        params = jax.eval_shape(lambda: cell.init(jax.random.key(0), 3))
        jax.eval_shape(lambda p: jaxrnn.unroll(cell, p, jnp.ones((T, B, 3))), params)


def test_another_mesh():
    cell = jaxrnn.wavefront(stack(jaxrnn.gru(2), jaxrnn.gru(2)), axis="depth", chunk=CHUNK)
    params = cell.init(jax.random.key(0), 3)
    run = lambda: jax.eval_shape(lambda: jaxrnn.unroll(cell, params, jnp.ones((T, B, 3))))
    with pytest.raises(ValueError, match=r"axis: got 'depth', want an axis of the mesh"):
        run()
    mesh = jax.make_mesh((2, 2), ("data", "depth"), axis_types=(AxisType.Auto,) * 2)
    with pytest.raises(ValueError, match=r"axes \['data'\] too"), jax.set_mesh(mesh):
        run()
