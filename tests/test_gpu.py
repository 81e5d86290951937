"""The arrangement for a GPU, run on a CPU, gives the numbers of the reference."""

import functools

import jax
import jax.numpy as jnp
import pytest
from cases import BASE, GATED, REFERENCE, TOLERANCE, cotangents, error, example

import jaxrnn
from jaxrnn.recurrence import xla


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    """Lowers for a CPU what is meant for a GPU; the list of what was lowered."""
    lowered = []

    def on_gpu(name):
        function = getattr(xla, name)

        def lower(*arguments):
            *given, target = arguments
            assert target.platform in ("cpu", None)  # None: the shapes alone are asked for
            lowered.append(name)
            return function(*given, target._replace(platform="cuda"))

        monkeypatch.setattr(xla, name, lower)

    on_gpu("forward")
    on_gpu("backward")
    jax.clear_caches()
    yield lowered
    jax.clear_caches()


@pytest.mark.parametrize(
    ("steps", "reverse", "episodes"),
    [(1, False, True), (8, True, True), (19, False, False), (19, True, True)],
)  # less than a chunk, one, two and some steps over
@pytest.mark.parametrize("name", [name for name, case in GATED.items() if case.make(6).gated])
def test_the_numbers_are_the_references(x64, as_on_a_gpu, name, steps, reverse, episodes):
    given = example(GATED[name], BASE._replace(steps=steps))
    flags = {"mask": given.mask, "starts": given.starts} if episodes else {}

    @functools.partial(jax.jit, static_argnums=0)
    def results(implementation, *operands):
        def run(params, xs, state):
            return jaxrnn.unroll(
                given.cell, params, xs, state, reverse=reverse, implementation=implementation,
                **flags,
            )  # fmt: skip

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

        return jax.grad(loss, (0, 1))(given.params, given.xs)

    assert error(gradients(given, "xla"), gradients(truth, REFERENCE)) < TOLERANCE["bfloat16"][1]
