"""The linear recurrence's kernel for CPUs: instruction sets, threads, calls with one error."""

import functools

import cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_linear import Given, error, given, results, wide

import jaxrnn
from jaxrnn._src.ops import native

pytestmark = [
    pytest.mark.skipif(cases.NO_KERNEL is not None, reason=str(cases.NO_KERNEL)),
    pytest.mark.usefixtures("x64"),
]
SETS = native.library().instruction_sets
# Of two types as they are stored, and of one that is converted. Channels fill no vector. Narrow
# rows are run together, so many of them that a task ends within a row. Wide ones are run one by
# one: of 64 numbers or more, and a complex number is two.
KINDS = (
    ("float32", (61,), 37, 2e-6),
    ("complex64", (3,), 37, 2e-6),
    ("bfloat16", (3,), 69, 2e-2),
)


@functools.partial(jax.jit, static_argnames="isa")
def both(a, b, h0, mask, starts, weights, isa=""):
    """``(state, hs)``, and the gradients of a, b and h0."""
    del isa  # what is compiled anew for each

    def scan(a, b, h0):
        return jaxrnn.linear_scan(a, b, h0, mask=mask, starts=starts, implementation="cpu")

    out, pull = jax.vjp(scan, a, b, h0)
    return out, pull(weights)


def shares(a, b):
    """The same bits."""
    for came, wanted in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(np.asarray(came), np.asarray(wanted))


@pytest.mark.parametrize("isa", SETS)
@pytest.mark.parametrize(("dtype", "batch", "size", "tolerance"), KINDS)
def test_every_instruction_set(monkeypatch, isa, dtype, batch, size, tolerance):
    """Rows with flags of their own."""
    monkeypatch.setenv(native.ISA, isa)
    g = given(23, batch, size, dtype=dtype)
    if dtype == "bfloat16":
        g = g._replace(mask=None)  # the states before each step are then read from the outputs
    assert error(both(*g, isa=isa), results(wide(g))) < tolerance


@pytest.mark.parametrize(
    ("dtype", "size", "constant"),
    (("float32", 409, False), ("float32", 409, True), ("complex64", 13, False)),
)
def test_same_bits_alone_and_in_a_batch(dtype, size, constant):
    """Wide rows are cut into tasks, which threads share; narrow ones begin within a vector."""
    g = given(130, (11,), size, dtype=dtype, constant=constant)
    runs = [both(*g) for _ in range(2)]
    shares(*runs)
    (state, hs), (d_a, d_b, d_h0) = runs[0]
    for row in (0, 5, 10):
        one = slice(row, row + 1)
        alone = Given(
            g.a if constant else g.a[:, one],
            g.b[:, one],
            g.h0[one],
            g.mask[:, one],
            g.starts[:, one],
            (g.weights[0][one], g.weights[1][:, one]),
        )
        came = both(*alone)
        wanted = (state[one], hs[:, one]), (d_b[:, one], d_h0[one])
        shares((came[0], came[1][1:]), wanted)
        if not constant:  # that of a constant is a sum over rows
            shares(came[1][0], d_a[:, one])


def test_arrays_that_all_members_share():
    """``vmap`` over each array alone: an axis of members that the others have not."""
    g = given(9, (2,), 5, dtype="float32", constant=True)
    for name in ("a", "b", "h0"):
        many = g._replace(**{name: jnp.stack([getattr(g, name), 2 * getattr(g, name)])})
        axes = Given(None, None, None, None, None, None)._replace(**{name: 0})
        came = jax.jit(jax.vmap(lambda *g: both(*g), tuple(axes)))(*many)
        for member in (0, 1):
            alone = g._replace(**{name: getattr(many, name)[member]})
            assert error(jax.tree.map(lambda x, m=member: x[m], came), results(alone)) < 1e-5


def test_the_gradient_of_constant_factors_over_many_steps():
    """Summed in one go, in float32, it would be 1e-4 off."""
    steps = 60_000
    a, b = jnp.full(1, 0.5, jnp.float32), jnp.full((steps, 1, 1), 0.1, jnp.float32)
    g = Given(a, b, 0 * b[0], None, None, (0 * b[0], jnp.ones_like(b)))
    assert error(both(*g)[1][0], results(wide(g))[1][0]) < 1e-5


def call(*args, results=((2, 4), (4, 2, 4)), dtype=jnp.float32, name="forward", **changed):
    flags = ("constant", "reverse", "mask", "starts", "before", "d_final", "d_hs", "d_a", "d_b")
    attributes = dict.fromkeys(flags, False) | dict(steps=np.int64(4), hs=True, isa="") | changed
    shapes = [jax.ShapeDtypeStruct(shape, dtype) for shape in results]
    run = jax.ffi.ffi_call(f"jaxrnn_linear_scan_{name}", shapes)
    return jax.jit(lambda *args: run(*args, **attributes))(*args)


def test_threads(monkeypatch):
    """The environment says how many threads a call has at most; a wrong number is an error."""
    monkeypatch.setenv("JAXRNN_CPU_THREADS", "none")
    x, h = (jnp.ones(shape, jnp.float32) for shape in ((4, 2, 4), (2, 4)))
    with pytest.raises(Exception, match="JAXRNN_CPU_THREADS: want how many threads"):
        call(x, x, h)


def test_a_call_that_nobody_should_make():
    """Of XLA's program the kernel believes nothing."""
    x, h = (jnp.ones(shape, jnp.float32) for shape in ((4, 2, 4), (2, 4)))
    call(x, x, h)
    flags = jnp.ones((4, 2), bool)
    wrong = (
        ((x, x), {}),  # no state
        ((x, x, h, h), {}),
        ((x, x, x), {}),
        ((x[1:], x, h), {}),
        ((h[0], x, h), {}),  # factors that are constant, and are not said to be
        ((x, x, h), dict(constant=True)),
        ((x, x[..., :2].astype(jnp.complex64), h), {}),  # as many numbers
        ((x, x, flags[:2, :1]), {}),
        ((x, x, h), dict(mask=True)),
        ((x, x, h, flags.T), dict(mask=True)),
        ((x, x, h, x), dict(starts=True)),
        ((x, x, h), dict(steps=np.int64(5))),
        ((x, x, h), dict(steps=np.int64(-1))),
        ((x, x, h), dict(isa="none")),
        ((x, h), dict(name="backward", hs=False, d_a=True, d_final=True)),  # no states
    )
    for args, changed in wrong:
        with pytest.raises(Exception, match="jaxrnn: "):
            call(*args, **changed)
