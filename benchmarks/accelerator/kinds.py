"""What ``accelerator`` checks: the cells, the sizes, the options and the transforms."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import jaxrnn
from benchmarks.accelerator import attention, linear
from benchmarks.shared.shapes import Shape


def user_update(state, x, r, p):
    """A cell of a user's: the minimal gated unit with a weight of its own for each unit."""
    (h,), (xf, xn), (rf, rn) = state, x, r
    f = jax.nn.sigmoid(xf + rf + p * h)
    return (h + f * (jnp.tanh(xn + f * rn) - h),)


MEMORY = "mlstm"
CELLS = {
    "lstm": jaxrnn.lstm,
    "gru": jaxrnn.gru,
    "user": jaxrnn.gated(user_update, gates=2, unit={"p": jax.random.normal}),
    attention.NAME: attention.attention,
    linear.NAME: linear.linear_scan,
    "elman": jaxrnn.elman,
    **linear.CELLS,
    **attention.CELLS,
    MEMORY: functools.partial(jaxrnn.mlstm, heads=2, gate="sigmoid"),
}
COMMON = ("lstm", "gru")

# Kernels divide a layer by its units, its rows and its steps: each has its corners. Those that are
# not "base" are for the common cells, and "steps" for the matrix memory too; "chunks" is for the
# linear recurrence and "blocks" for attention.
SHAPES = {
    shape.name: shape
    for shape in (
        Shape("base", 5, 11, 40, 128),
        Shape("h1024", 17, 6, 64, 1024),
        Shape("odd", 3, 7, 5, 33),
        Shape("h512", 16, 9, 64, 512),
        Shape("rows", 300, 3, 16, 64),
        Shape("steps", 2, 130, 8, 64),
        attention.BLOCKS,
        linear.CHUNKS,
        Shape("h2048", 9, 4, 64, 2048),
    )
}
REPEATED = Shape("repeated", 5, 2000, 64, 512)  # for runs that must not differ
SHAPES[REPEATED.name] = REPEATED
TINY = Shape("base", 3, 4, 3, 6)  # to try this file itself


# What is computed: functions of ``run(params, xs, state) -> (state, ys)``, of its three arguments
# and of random cotangents; they give a tree.


def results(run, moving, cotangents):
    """Outputs, the same where a gradient will be wanted, and the gradients."""
    kept, pull = jax.vjp(run, *moving)
    return {
        "outputs": dict(zip(("state", "ys"), run(*moving))),
        "outputs kept": dict(zip(("state", "ys"), kept)),
        "gradients": dict(zip(("params", "xs", "state"), pull(cotangents))),
    }


def jvp(run, moving, cotangents):
    state, ys = jax.jvp(run, moving, moving)[1]
    return {"tangents": {"state": state, "ys": ys}}


def of_gradient(transform):
    """A kind of gradient of a loss, ``transform(loss, (params, xs))``."""

    def compute(run, moving, cotangents):
        *args, state = moving

        def loss(params, xs):
            total = jnp.result_type(float)
            out = jax.tree.leaves(run(params, xs, state))
            pairs = zip(jax.tree.leaves(cotangents), out, strict=True)
            return sum((d.astype(total) * jnp.sin(a.astype(total))).sum() for d, a in pairs)

        gradients = transform(loss, tuple(args))
        return {"gradients": dict(zip(("params", "xs"), gradients))}

    return compute


def gradient(f):
    return jax.grad(f, (0, 1))


def mapped(f, which):
    return jax.vmap(f, tuple(0 if i == which else None for i in (0, 1)))


def three(args, which):
    """Three of one of the arguments."""
    several = lambda a: jnp.stack([a, 0.5 * a, -a])
    return tuple(jax.tree.map(several, a) if i == which else a for i, a in enumerate(args))


def scanned(f):
    """The sum of ``f`` over the rounds of a scan, each with other inputs."""

    def run(params, xs):
        def body(total, factor):
            return total + f(params, factor.astype(xs.dtype) * xs), None

        return jax.lax.scan(body, jnp.zeros(()), jnp.array([1.0, 0.5, 2.0]))[0]

    return run


FULL = "highest"


class Kind(NamedTuple):
    """What is checked.

    Attributes:
      flags: the options of ``unroll`` that are given.
      layer: options of the cell.
      weights: the parameters' type, where it is not the inputs'.
      compute: see above.
      precision: of products of float32.
      runs: if it is more than one, they are compared with each other, and not with the truth.
    """

    flags: tuple = ()
    layer: dict = {}
    weights: str | None = None
    compute: Any = results
    precision: str = FULL
    runs: int = 1


ALL = ("lengths", "mask", "starts", "reverse")
SOME = ("mask", "starts")
KINDS = {
    "plain": Kind(),
    "all flags": Kind(ALL),
    "repeated": Kind(ALL, runs=20),
    "rounded": Kind(SOME, precision="tensorfloat32"),
    "heads": Kind(ALL, {"heads": 2}),
    "vmap": Kind(SOME, compute=of_gradient(lambda f, a: mapped(gradient(f), 1)(*three(a, 1)))),
    "vmap of weights": Kind(
        SOME, compute=of_gradient(lambda f, a: mapped(gradient(f), 0)(*three(a, 0)))
    ),
    "float32 weights": Kind(ALL, weights="float32"),
    "lengths": Kind(("lengths",)),
    "starts, reverse": Kind(("starts", "reverse")),
    "second derivative": Kind(
        SOME, compute=of_gradient(lambda f, a: jax.jvp(gradient(f), a, a)[1])
    ),
    "grad of vmap": Kind(
        SOME,
        compute=of_gradient(
            lambda f, a: gradient(lambda *b: (mapped(f, 1)(*b) ** 2).sum())(*three(a, 1))
        ),
    ),
    "states kept": Kind(ALL, {"residuals": "states"}),
    "scan of the layer": Kind(SOME, compute=of_gradient(lambda f, a: gradient(scanned(f))(*a))),
    "remat": Kind(SOME, compute=of_gradient(lambda f, a: gradient(jax.remat(f))(*a))),
    "jvp": Kind(SOME, compute=jvp),
}
ALWAYS = ("plain", "all flags")  # also of the rarer cells, in float16 and at other sizes
