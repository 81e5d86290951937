"""The matrix memory over more than one chunk, with gates of any size."""

import functools

import cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn

GATES = ("exp", "sigmoid")
every_gate = pytest.mark.parametrize("gate", GATES)


@functools.cache
def example(gate, steps):
    case = cases.Case(lambda h: jaxrnn.mlstm(h, heads=2, gate=gate))
    return cases.example(case, cases.Shape(steps, (3,), 3, 4))


@functools.partial(jax.jit, static_argnums=(0,), static_argnames=("reverse", "implementation"))
def run(cell, moving, **options):
    """Outputs, the final state, and the gradients of everything with random cotangents."""

    def unroll(params, xs, state):
        return jaxrnn.unroll(cell, params, xs, state, **options)

    out, pull = jax.vjp(unroll, *moving)
    return out, pull(cases.cotangents(out))


@pytest.mark.usefixtures("x64")
@every_gate
@pytest.mark.parametrize("steps", (63, 64, 65, 150))
@pytest.mark.parametrize("flags, reverse", ((False, False), (True, False), (True, True)))
def test_chunks_are_the_scan_of_the_step(gate, steps, flags, reverse):
    e = example(gate, steps)
    given = dict(mask=e.mask, starts=e.starts & (np.arange(steps) % 9 == 3)[:, None])
    given = (given if flags else {}) | {"reverse": reverse}
    moving = e.params, e.xs, e.state
    wanted = run(e.cell, moving, **given, implementation="reference")
    assert cases.error(run(e.cell, moving, **given), wanted) < 1e-12


@pytest.mark.usefixtures("x64")
@every_gate
@pytest.mark.parametrize("i", (-1e3, 0.0, 1e3))
@pytest.mark.parametrize("f", (-1e3, 0.0, 1e3))
def test_gates_of_any_size(gate, i, f):
    """All is finite in float32, also the gradients; in float64 it is still the step's."""
    e = example(gate, 70)
    bias = jnp.array([i, f])[:, None] * jnp.ones((2, 2)) / 2
    moving = e.params | {"c": bias, "u": 100 * e.params["u"]}, e.xs, e.state
    came, wanted = (run(e.cell, moving, implementation=name) for name in ("xla", "reference"))
    assert cases.error(came[0], wanted[0]) < 1e-9
    narrow = jax.tree.map(lambda a: a.astype("float32"), moving)
    for name in ("xla", "reference"):
        leaves = jax.tree.leaves(run(e.cell, narrow, implementation=name))
        assert all(bool(jnp.isfinite(a).all()) for a in leaves), name


@every_gate
def test_a_start_puts_back_what_is_not_finite(gate):
    cell = jaxrnn.mlstm(4, heads=2, gate=gate)
    params = cell.init(jax.random.key(0), 3)
    xs, starts = jnp.ones((3, 3)), jnp.array([False, True, False])
    bad = jax.tree.map(lambda a: jnp.full_like(a, jnp.nan), cell.initial_state(params, ()))
    _, wanted = jaxrnn.unroll(cell, params, xs[1:])
    for name in ("xla", "reference"):
        state, ys = jaxrnn.unroll(cell, params, xs, bad, starts=starts, implementation=name)
        assert cases.error(ys[1:], wanted) < 1e-6
        assert all(bool(jnp.isfinite(a).all()) for a in jax.tree.leaves(state))


def test_it_says_what_it_runs_on():
    cell = jaxrnn.mlstm(8, heads=2)
    params = cell.init(jax.random.key(0), 3)
    (choice,) = jaxrnn.explain(cell, params, jnp.ones((5, 2, 3)), platform="cpu").choices
    assert choice.operation == "matrix_memory T=5 B=(2,) N=2 D=4 E=5 float32"
    assert choice.runs == "xla" and set(choice.others) == {"reference"}
    with pytest.raises(ValueError, match="implementation: got 'tpu', but this operation has only"):
        jaxrnn.unroll(cell, params, jnp.ones((5, 2, 3)), implementation="tpu")


def test_an_unknown_gate():
    with pytest.raises(ValueError, match="gate: got 'relu', want 'exp' or 'sigmoid'"):
        jaxrnn.mlstm(8, gate="relu")
