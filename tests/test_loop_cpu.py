"""The kernel for loops whose steps have products, sums and programs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import NO_KERNEL, cotangents, error

from jaxrnn._src.core.lowering_target import Target
from jaxrnn._src.ops.step_loop import cpu, loop
from jaxrnn._src.ops.step_loop.problem import Operands, Problem

pytestmark = pytest.mark.skipif(NO_KERNEL is not None, reason=str(NO_KERNEL))
T, B, H, P = 4, 5, 19, 6


def step(others, state, x, dot):
    """Two products, the second of two arrays; sums over one and two axes; numbers of a row."""
    (h, c, past), (x, scale) = state, x
    z = dot("r", h).reshape(*h.shape[:-1], 2, H)
    z = z - z.mean((-2, -1), keepdims=True)
    z = x.reshape(z.shape) + z * jax.lax.rsqrt((z * z).mean(-1, keepdims=True) + 0.1) * others["s"]
    f, g = jax.nn.sigmoid(z[..., 0, :]), jnp.tanh(z[..., 1, :])
    c = f * c + (1 - f) * g * jnp.broadcast_to(scale[..., None], g.shape) + others["k"]
    h, past = jnp.tanh(past + dot("p", jnp.concatenate([c, g], -1))), h
    return (h, c, past), jnp.concatenate([h, jnp.where(c > 0, c, 2 * c)], -1)


def drawn(batch=B, dtype="float64"):
    rng = np.random.default_rng(0)
    shapes = {
        "xs": ((T, batch, 2 * H), (T, batch)),
        "weights": {"r": (P, 2, H), "p": (2 * H, P)},
        "others": {"s": (2, H), "k": (H,)},
        "state": ((batch, P), (batch, H), (batch, P)),
        "initial": ((batch, P), (batch, H), (batch, P)),
    }
    is_shape = lambda a: isinstance(a, tuple) and isinstance(a[0], int)
    draw = lambda shape: rng.normal(size=shape, scale=0.5).astype(dtype)
    return jax.tree.map(draw, shapes, is_leaf=is_shape)


def results(moving, mask, starts, which, reverse=False, cotangents=cotangents):
    def run(moving):
        product = moving["state"][0].dtype
        given = dict(mask=mask, starts=starts, reverse=reverse, implementation=which)
        if starts is None:
            moving = moving | {"initial": None}
        return loop(step, product=product, **moving, **given)

    out, pull = jax.vjp(run, moving)
    return out, pull(cotangents(out))[0], run(moving)


@pytest.mark.parametrize(("flags", "reverse"), [(False, False), (True, False), (True, True)])
def test_a_step_of_many_parts(x64, flags, reverse):
    """Outputs and all gradients are the reference's, of two sets of weights at once too.

    One step is real in no row; another one is not either, but resets some.
    """
    rng = np.random.default_rng(1)
    mask, starts = (rng.random((2, T, B)) < [[[0.7]], [[0.4]]]) if flags else (None, None)
    if flags:
        mask[1:3] = starts[1::2] = mask[0, 0] = False
        starts[2] = np.arange(B) > 2
    moving = drawn()
    members = jax.tree.map(lambda a: np.stack([a, 0.5 * a]), moving["weights"])

    def both(which):
        one = lambda weights: results(moving | {"weights": weights}, mask, starts, which, reverse)
        return jax.vmap(one)(members)

    came, wanted = jax.jit(lambda: [both(which) for which in ("cpu", "reference")])()
    assert error(came, wanted) < 1e-12


def test_a_row_has_its_bits_alone_and_in_any_batch():
    """And in every run."""

    def run(rows):
        of_rows = lambda tree, axis: jax.tree.map(lambda a: a[:, rows] if axis else a[rows], tree)
        whole = drawn(dtype="float32")
        moving = whole | {n: of_rows(whole[n], 0) for n in ("state", "initial")}
        moving["xs"] = of_rows(whole["xs"], 1)
        state, ys = cotangents((whole["state"], np.zeros((T, B, P + H), np.float32)))
        given = of_rows(state, 0), of_rows(ys, 1)
        program = jax.jit(lambda m: results(m, None, None, "cpu", cotangents=lambda _: given))
        (state, ys), gradients, _ = program(moving)
        found = {"state": state, "d_state": gradients["state"]}
        first = of_first(found, 0) | of_first({"ys": ys, "d_xs": gradients["xs"]}, 1)
        return first, gradients["weights"]

    of_first = lambda tree, axis: jax.tree.map(lambda a: np.asarray(a).take(0, axis), tree)
    whole, again, alone = run(slice(B)), run(slice(B)), run(slice(1))
    jax.tree.map(np.testing.assert_array_equal, whole, again)
    jax.tree.map(np.testing.assert_array_equal, whole[0], alone[0])


REFUSED = {
    "rows": (lambda x, dot: x - x.mean(0, keepdims=True), "a sum over rows"),
    "moved rows": (lambda x, dot: x[::-1], "a row that sees another"),
    "a maximum": (lambda x, dot: x - x.max(-1, keepdims=True), "reduce_max"),
    "an order": (lambda x, dot: jnp.sort(x, -1), "sort"),
    "integers": (lambda x, dot: jnp.where(x.astype(int) > 2, x, 0), "int"),
}
"""A step, and what it has that parts have not."""


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    """What cannot be made of parts runs elsewhere; why is said, and found out once."""
    function, why = REFUSED[name]
    traced = []
    shape = lambda *sizes: jax.ShapeDtypeStruct(sizes, jnp.float32)

    def whole(others, state, x, dot):
        traced.append(x)
        return (function(x, dot),), x

    operands = Operands(shape(T, B, H), {}, {}, (shape(B, H),), None, None, None)
    problem = Problem(whole, jnp.dtype("float32"), None, False, None, 1, 1)
    for _ in range(2):
        assert why in cpu.unsupported(problem, operands, Target("cpu"))
    assert len(traced) == 1
