"""The arrangement for a GPU, run on a CPU, gives the numbers of the reference."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import BASE, GATED, REFERENCE, TOLERANCE, cotangents, error, example
from instead import instead

import jaxrnn
from jaxrnn._src.ops.recurrence import loops, xla

CELLS = [name for name, case in GATED.items() if case.make(6).gated]
# What is kept for a gradient differs without flags, by cell and by `residuals`.
PLAIN = ("lstm", "lstm_states", "lstm_chunks", "lstm_heads", "gru", "gru_states", "peephole")


@pytest.fixture
def as_on_a_gpu():
    """Lowers for a CPU what is meant for a GPU; the list of what was lowered."""
    lowered = []

    def on_gpu(name):
        function = getattr(xla, name)

        def lower(*arguments):
            *given, target = arguments
            assert target.platform in ("cpu", None)  # None: the shapes alone are asked for
            lowered.append(name)
            return function(*given, target._replace(platform="cuda"))

        return xla, name, lower

    with instead(on_gpu("forward"), on_gpu("backward")):
        yield lowered


@pytest.mark.parametrize("reverse", (False, True))
def test_chunks_are_the_loop(reverse):
    """Less than a chunk of 8 steps, one, two and some steps over; what is read is written over."""

    def step(carry, x, y):
        carry = 0.5 * carry + x * y
        return carry, carry - y

    def literally(carry, xs, ys):
        ys = ys.copy()
        for t in reversed(range(len(xs))) if reverse else range(len(xs)):
            carry, ys[t] = step(carry, xs[t], ys[t])
        return carry, ys

    given = np.random.default_rng(0).normal(size=(2, 19, 3)).astype(np.float32)
    counts = (1, 7, 8, 9, 16, 19)
    two = lambda carry, x: step(carry, *x)

    @jax.jit
    def run(carry, xs, ys):
        return [
            (
                loops.in_chunks(step, carry, xs[:n], ys[:n], reverse=reverse),
                loops.scan_in_chunks(two, carry, (xs[:n], ys[:n]), reverse=reverse),
            )
            for n in counts
        ]

    wanted = [literally(np.ones(3, np.float32), *given[:, :n]) for n in counts]
    for came, true in zip(run(np.ones(3, np.float32), *given), wanted, strict=True):
        assert error(came, (true, true)) < 1e-6


@pytest.mark.parametrize(
    ("name", "steps", "reverse", "episodes"),
    [(name, 19, True, True) for name in CELLS]
    + [(name, 19, False, False) for name in PLAIN]
    + [("lstm", 1, False, True), ("gru", 8, True, True)],
)  # less than a chunk, one, two and some steps over
def test_the_numbers_are_the_references(x64, as_on_a_gpu, name, steps, reverse, episodes):
    given = example(GATED[name], BASE._replace(steps=steps))
    flags = {"mask": given.mask, "starts": given.starts} if episodes else {}

    @functools.partial(jax.jit, static_argnums=0)
    def results(implementation, *operands):
        def run(params, xs, state):
            return jaxrnn.unroll(
                given.cell,
                params,
                xs,
                state,
                reverse=reverse,
                implementation=implementation,
                **flags,
            )

        out, pull = jax.vjp(run, *operands)
        return out, pull(cotangents(out))

    operands = given.params, given.xs, given.state
    wanted = results(REFERENCE, *operands)
    assert not as_on_a_gpu
    assert error(results("xla", *operands), wanted) < TOLERANCE["float64"][1]
    assert set(as_on_a_gpu) == {"forward", "backward"}


@pytest.mark.parametrize("name", ["lstm", "gru"])
def test_the_numbers_in_bfloat16(as_on_a_gpu, name):
    given = example(GATED[name], BASE._replace(steps=11), dtype=jnp.bfloat16)
    truth = example(GATED[name], BASE._replace(steps=11), dtype=jnp.float32)

    def gradients(given, implementation):
        def loss(params, xs):
            ys = jaxrnn.unroll(
                given.cell, params, xs, mask=given.mask, implementation=implementation
            )[1]
            return (ys.astype(jnp.float32) * cotangents(ys).astype(jnp.float32)).sum()

        return jax.jit(jax.grad(loss, (0, 1)))(given.params, given.xs)

    assert error(gradients(given, "xla"), gradients(truth, REFERENCE)) < TOLERANCE["bfloat16"][1]
