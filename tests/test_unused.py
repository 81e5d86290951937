"""What nobody uses is not made: outputs of which only the last state is used, and gradients."""

import functools

import cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import CELLS, RECUR, REFERENCE
from emulated import emulated
from interpreted import interpreted
from jax import export
from jax.interpreters import partial_eval
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from test_transforms import equations

import jaxrnn

LONG, ROWS, WIDTH = 20_000, 8, 256
SHAPE = cases.Shape(11, (5,), 3, 6)
OUTPUTS = "11x5x6x"  # of SHAPE, in the text of a program

MEMORY = {
    "lstm": jaxrnn.lstm(WIDTH),
    "layer_norm_lstm": jaxrnn.layer_norm_lstm(WIDTH),
    "mlstm": jaxrnn.mlstm(WIDTH),
    "min_gru": jaxrnn.min_gru(WIDTH),
    "rg_lru_block": jaxrnn.rg_lru_block(WIDTH),
    "stack": jaxrnn.stack(jaxrnn.lstm(WIDTH), jaxrnn.lstm(WIDTH)),
}


@pytest.mark.parametrize("name", MEMORY)
def test_memory_of_the_last_state(name):
    """It does not grow with the number of steps: the outputs alone would be 164 MB."""
    cell = MEMORY[name]
    params = jax.eval_shape(lambda: cell.init(jax.random.key(0), 1))
    xs = jax.ShapeDtypeStruct((LONG, ROWS, 1), jnp.float32)
    run = lambda p, x: jaxrnn.unroll(cell, p, x)[0]
    used = jax.jit(run).lower(params, xs).compile().memory_analysis().temp_size_in_bytes
    assert used < 4 * LONG * ROWS * WIDTH / 6


def last(e, implementation=None, **options):
    """The final state as a function of (params, xs)."""
    return lambda p, x: jaxrnn.unroll(
        e.cell, p, x, e.state, implementation=implementation, **options
    )[0]


def made(function, *args):
    """What is left of each operation when dead code is gone: name, what is wanted, ``save``."""
    jaxpr = jax.make_jaxpr(function)(*args).jaxpr
    alive, _ = partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
    found = [eqn for eqn in equations(alive) if "wanted" in eqn.params]
    return [(eqn.primitive.name, eqn.params["wanted"], eqn.params.get("save")) for eqn in found]


ONE_OUTPUT = [("lstm", i, given) for i in RECUR for given in (False, True)]
ONE_OUTPUT += [("gru_heads", None, True), ("lstm_chunks", None, True)]
ONE_OUTPUT += [("gru_reset_before", "xla", False), ("min_gru", "xla", False)]
ONE_OUTPUT += [("min_gru", "xla", True)]


@pytest.mark.parametrize(("name", "implementation", "given"), ONE_OUTPUT)
def test_state_and_gradient(x64, name, implementation, given):
    """The state has the same bits with and without outputs; its gradient is the reference's."""
    e = cases.example(CELLS[name], SHAPE)
    options = {"mask": e.mask, "starts": e.starts, "reverse": True} if given else {}
    fast, slow = (last(e, i, **options) for i in (implementation, REFERENCE))
    whole = functools.partial(
        jaxrnn.unroll, e.cell, implementation=implementation, **options
    )  # fmt: skip
    with_outputs, _ = jax.jit(whole)(e.params, e.xs, e.state)
    weights = cases.cotangents(with_outputs)

    @functools.partial(jax.jit, static_argnums=0)
    def gradient(run, *moving):
        return jax.vjp(run, *moving)[1](weights)

    state = jax.jit(fast)(e.params, e.xs)
    for came, wanted in zip(state, with_outputs, strict=True):
        np.testing.assert_array_equal(came, wanted)
    came, wanted = (gradient(run, e.params, e.xs) for run in (fast, slow))
    assert cases.error(came, wanted) < 1e-11
    (_, (*states, ys), save), *_ = made(fast, e.params, e.xs)
    assert all(states) and not ys and not save
    # The backward reads outputs only where nothing is held or put back.
    forward = made(functools.partial(gradient, fast), e.params, e.xs)[:-1]
    assert forward[-1][1][-1] == (not given and name != "gru_reset_before")


CONTEXTS = {
    "jit": lambda f, p, x: jax.jit(jax.jit(f))(p, x),
    "scan": lambda f, p, x: jax.lax.scan(lambda _, k: (f(p, k * x), None), f(p, x), jnp.ones(2)),
    "remat": lambda f, p, x: jax.remat(f)(p, x),
    "cond": lambda f, p, x: jax.lax.cond(x.sum() > 0, f, f, p, x),
    "rows": lambda f, p, x: jax.vmap(lambda r: f(p, r), 1)(x[:, None]),
    "ensemble": lambda f, p, x: jax.vmap(f, (0, None))(jax.tree.map(lambda a: a[None], p), x),
    "shard_map": lambda f, p, x: jax.shard_map(
        f,
        mesh=Mesh(np.array(jax.devices()[:1]), "d"),
        in_specs=P(),
        out_specs=P(),
        check_vma=False,
    )(p, x),  # fmt: skip
}


@pytest.mark.parametrize("context", CONTEXTS)
def test_where_dead_code_is_found(context):
    e = cases.example(CELLS["lstm"], SHAPE, dtype=jnp.float32)
    run = functools.partial(CONTEXTS[context], last(e._replace(state=None)))
    found = made(run, e.params, e.xs)
    assert found and set(found) == {("recur", (True, True, False), False)}
    wanted = run(e.params, e.xs)
    assert cases.error(jax.jit(run)(e.params, e.xs), wanted) < 1e-6


def test_a_stack_makes_the_outputs_that_are_used():
    cell = jaxrnn.stack(jaxrnn.lstm(6), jaxrnn.gru(6), jaxrnn.project(2))
    e = cases.example(cases.Case(lambda hidden: cell), SHAPE, dtype=jnp.float32)
    first, second = made(last(e), e.params, e.xs)
    assert first[1] == (True, True, True) and second[1] == (True, False)
    # Nor is a layer that nobody looks at.
    assert made(lambda p, x: last(e)(p, x)[0], e.params, e.xs) == [
        ("recur", (True, True, False), False)
    ]


def test_gradients_that_nobody_uses():
    """As of weights that are frozen."""
    e = cases.example(CELLS["lstm"], SHAPE, dtype=jnp.float32)

    def gradient(p, x):
        return jax.grad(lambda p, x: last(e)(p, x)[0].sum(), (0, 1))(p, x)

    for pick in (lambda d: d[0]["b"], lambda d: d[1]):
        run = lambda p, x: pick(gradient(p, x))  # noqa: B023
        ((_, wanted, _),) = [m for m in made(run, e.params, e.xs) if m[0] == "recur_backward"]
        assert sum(wanted) == 1
        came, whole = jax.jit(run)(e.params, e.xs), pick(jax.jit(gradient)(e.params, e.xs))
        assert cases.error(came, whole) < 1e-6


def test_nothing_is_used():
    e = cases.example(CELLS["lstm"], SHAPE, dtype=jnp.float32)
    assert made(lambda p, x: (last(e)(p, x), x)[1], e.params, e.xs) == []


def test_forward_mode_after_dead_code():
    """What is left when outputs are gone is differentiated as all of it is."""
    e = cases.example(CELLS["gru"], SHAPE, dtype=jnp.float32)
    jaxpr = jax.make_jaxpr(last(e))(e.params, e.xs)
    alive, _ = partial_eval.dce_jaxpr(jaxpr.jaxpr, [True])
    run = lambda p, x: jax.core.eval_jaxpr(alive, jaxpr.consts, *jax.tree.leaves((p, x)))
    args = e.params, e.xs
    for transform in (
        lambda f: jax.jvp(f, args, args),
        lambda f: jax.vjp(f, *args)[1](f(*args)),
        lambda f: jax.vmap(f, (None, 2), 0)(e.params, jnp.stack([e.xs, 2 * e.xs], 2)),
        lambda f: jax.jvp(lambda *a: jax.vjp(f, *a)[1](f(*a)), args, args),
    ):
        wanted = transform(lambda p, x: list(last(e)(p, x)))
        assert cases.error(transform(run), wanted) < 1e-5


@pytest.mark.skipif(jax.device_count() < 8, reason="wants 8 devices")
def test_rows_stay_on_their_devices():
    e = cases.example(CELLS["lstm"], cases.Shape(11, (16,), 3, 6), dtype=jnp.float32)
    run = last(e._replace(state=None), mask=e.mask)
    wanted = run(e.params, e.xs)
    mesh = jax.make_mesh((8,), ("rows",), axis_types=(jax.sharding.AxisType.Auto,))
    xs = jax.device_put(e.xs, NamedSharding(mesh, P(None, "rows")))
    compiled = jax.jit(run).lower(e.params, xs).compile()
    assert cases.error(compiled(e.params, xs), wanted) < 1e-6
    text = compiled.as_text()
    assert "all-gather" not in text and "11,2,6" not in text


def test_export():
    pytest.importorskip("flatbuffers", reason="jax.export needs flatbuffers to write a module")
    e = cases.example(CELLS["lstm"], SHAPE, dtype=jnp.float32)
    run = jax.jit(last(e))
    exported = export.export(run, platforms=("cpu", "tpu", "cuda"))(e.params, e.xs)
    assert OUTPUTS not in exported.mlir_module()
    came = export.deserialize(exported.serialize()).call(e.params, e.xs)
    assert cases.error(came, run(e.params, e.xs)) < 1e-5


def test_the_kernel_for_tpus():
    e = cases.example(CELLS["lstm"], SHAPE, dtype=jnp.float32)
    with interpreted():
        lowered = jax.jit(last(e, "tpu", mask=e.mask, starts=e.starts)).lower(e.params, e.xs)
        came = lowered.compile()(e.params, e.xs)
    assert OUTPUTS not in lowered.as_text()
    assert (
        cases.error(came, last(e, REFERENCE, mask=e.mask, starts=e.starts)(e.params, e.xs)) < 1e-5
    )


def test_the_linear_kernel_for_tpus():
    e = cases.example(CELLS["min_gru"], SHAPE, dtype=jnp.float32)
    with interpreted():
        run = last(e, "tpu", mask=e.mask)
        assert made(run, e.params, e.xs) == [("linear_scan", (True, False), False)]
        came = jax.jit(run)(e.params, e.xs)
    assert cases.error(came, last(e, REFERENCE, mask=e.mask)(e.params, e.xs)) < 1e-5


def test_the_kernel_for_gpus():
    e = cases.example(CELLS["lstm"], SHAPE, dtype=jnp.float32)
    with emulated(), jax.default_matmul_precision("highest"):
        lowered = jax.jit(last(e, "gpu", mask=e.mask, starts=e.starts)).lower(e.params, e.xs)
        came = jax.block_until_ready(lowered.compile()(e.params, e.xs))
    assert OUTPUTS not in lowered.as_text()
    assert (
        cases.error(came, last(e, REFERENCE, mask=e.mask, starts=e.starts)(e.params, e.xs)) < 1e-5
    )
