"""Every JAX transform of the fused path gives what it gives of the reference."""

import functools

import cases
import jax
import jax.flatten_util
import jax.numpy as jnp
import pytest
from cases import CELLS, REFERENCE
from interpreted import interpreted_as_jax

import jaxrnn

pytestmark = pytest.mark.usefixtures("x64")

SHAPE = cases.Shape(3, (2,), 2, 3)
PRIMITIVE = {  # the cells whose transforms are tried, and the operation they run on
    "lstm": "recur",
    "gru_states": "recur",
    "gru_heads": "recur",
    "attention_window": "attend",
}


def names_in(function, *args):
    """The primitives in the jaxpr of a function, at any depth."""
    return {eqn.primitive.name for eqn in equations(jax.make_jaxpr(function)(*args).jaxpr)}


def ran(function, *args):
    """What a function gives under ``jit``, and the primitives in its jaxpr, traced once."""
    traced = jax.jit(function).trace(*args)
    names = {eqn.primitive.name for eqn in equations(traced.jaxpr.jaxpr)}
    return traced.lower().compile()(*args), names


def equations(jaxpr):
    for eqn in jaxpr.eqns:
        yield eqn
        for value in eqn.params.values():
            for inner in value if isinstance(value, (tuple, list)) else (value,):
                if hasattr(inner, "jaxpr") or hasattr(inner, "eqns"):
                    yield from equations(getattr(inner, "jaxpr", inner))


def loss_of(e, weights, implementation):
    """A number made of ys and the final state, as a function of (params, xs, state)."""

    def loss(params, xs, state):
        state, ys = jaxrnn.unroll(
            e.cell, params, xs, state, mask=e.mask, starts=e.starts,
            implementation=implementation,
        )  # fmt: skip
        pairs = zip(jax.tree.leaves(weights), jax.tree.leaves(cases.floating((state, ys))))
        return sum(((d * jnp.sin(a)).sum() for d, a in pairs), jnp.zeros(()))

    return loss


def vector(function, e):
    """``function`` of (params, xs, state) as one of (flat params, flat xs)."""
    p, of_params = jax.flatten_util.ravel_pytree(e.params)
    x, of_xs = jax.flatten_util.ravel_pytree(e.xs)
    return (lambda p, x: function(of_params(p), of_xs(x), e.state)), (p, x)


def several(args, argnum):
    """Three of one argument."""
    arg = args[argnum]
    moved = jnp.stack([arg, 0.5 * arg, -arg])
    return tuple(moved if i == argnum else a for i, a in enumerate(args))


def over(function, argnum):
    """``vmap`` over one of two arguments: 0 the weights, 1 the inputs."""
    return jax.vmap(function, tuple(0 if i == argnum else None for i in (0, 1)))


def hvp(f, args):
    return jax.jvp(jax.grad(f, (0, 1)), args, args)[1]


TRANSFORMS = {
    "value": lambda f, args: f(*args),
    "grad": lambda f, args: jax.grad(f, (0, 1))(*args),
    "jvp": lambda f, args: jax.jvp(f, args, args)[1],
    "jvp of weights": lambda f, args: jax.jvp(lambda p: f(p, args[1]), args[:1], args[:1])[1],
    "jvp of jvp": lambda f, args: jax.jvp(lambda *a: jax.jvp(f, a, args)[1], args, args)[1],
    "grad of jvp": lambda f, args: jax.grad(lambda *a: jax.jvp(f, a, args)[1], (0, 1))(*args),
    "hessian-vector": hvp,
    "reverse over reverse": lambda f, args: jax.grad(
        lambda *a: sum((g**2).sum() for g in jax.grad(f, (0, 1))(*a)), (0, 1)
    )(*args),
    "hessian": lambda f, args: jax.hessian(f, 1)(*args),
    "jacfwd": lambda f, args: jax.jacfwd(f, 1)(*args),
    "jacrev": lambda f, args: jax.jacrev(lambda *a: jnp.stack([f(*a), 2 * f(*a)]), (0, 1))(*args),
    "remat": lambda f, args: jax.grad(jax.remat(f), (0, 1))(*args),
    "linearize": lambda f, args: jax.linearize(f, *args)[1](*args),
    "checkpointed scan": lambda f, args: jax.grad(_scanned(jax.checkpoint(f)), (0, 1))(*args),
    "outer scan": lambda f, args: jax.grad(_scanned(f), (0, 1))(*args),
    "jit": lambda f, args: jax.jit(jax.value_and_grad(f, (0, 1)))(*args),
}
for which, name in enumerate(("weights", "inputs")):
    TRANSFORMS |= {
        f"vmap of {name}": lambda f, args, i=which: over(f, i)(*several(args, i)),
        f"vmap of grad, {name}": lambda f, args, i=which: over(jax.grad(f, (0, 1)), i)(
            *several(args, i)
        ),
        f"grad of vmap, {name}": lambda f, args, i=which: jax.grad(
            lambda *a: (over(f, i)(*a) ** 2).sum(), (0, 1)
        )(*several(args, i)),
        f"jvp of vmap, {name}": lambda f, args, i=which: jax.jvp(
            over(f, i), several(args, i), several(args, i)
        )[1],
        f"vmap of jvp, {name}": lambda f, args, i=which: over(lambda *a: jax.jvp(f, a, a)[1], i)(
            *several(args, i)
        ),
        f"vmap of hessian-vector, {name}": lambda f, args, i=which: over(lambda *a: hvp(f, a), i)(
            *several(args, i)
        ),
    }
TRANSFORMS |= {
    "vmap of weights of vmap of inputs": lambda f, args: over(over(f, 1), 0)(
        several(args, 0)[0], several(args, 1)[1]
    ),
    "grad of both vmaps": lambda f, args: jax.grad(
        lambda *a: (over(over(f, 0), 1)(*a) ** 2).sum(), (0, 1)
    )(several(args, 0)[0], several(args, 1)[1]),
    "vmap of both vmapped grads": lambda f, args: over(over(jax.grad(f, (0, 1)), 1), 0)(
        several(args, 0)[0], several(args, 1)[1]
    ),
}


def _scanned(f):
    """The sum of f over three rounds of a scan, each with other inputs."""

    def run(p, x):
        def body(total, factor):
            return total + f(p, factor * x), None

        return jax.lax.scan(body, jnp.zeros(()), jnp.array([1.0, 0.5, 2.0]))[0]

    return run


FUSED = (*((name, None) for name in PRIMITIVE), ("lstm", "tpu"), ("gru_states", "tpu"))


@interpreted_as_jax()
@pytest.mark.parametrize(("name", "implementation"), FUSED)
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_transform(name, implementation, transform):
    e, weights = _example(name)
    fused, args = vector(loss_of(e, weights, implementation), e)
    wanted = _plain(name, transform)
    came, names = ran(lambda *a: TRANSFORMS[transform](fused, a), *args)
    assert cases.error(came, wanted) < 1e-11
    assert any(n.startswith(PRIMITIVE[name]) for n in names), "the fused path did not run"


@functools.cache
def _plain(name, transform):
    """What it gives of the reference."""
    e, weights = _example(name)
    plain, args = vector(loss_of(e, weights, REFERENCE), e)
    came, names = ran(lambda *a: TRANSFORMS[transform](plain, a), *args)
    assert not any(n.startswith(PRIMITIVE[name]) for n in names)
    return came


@functools.cache
def _example(name):
    with jax.enable_x64(True):
        e = cases.example(CELLS[name], SHAPE)
        return e, cases.cotangents(jaxrnn.unroll(e.cell, e.params, e.xs, e.state))


@pytest.mark.parametrize("name", PRIMITIVE)
def test_gradients_are_fused(name):
    """Reverse mode runs the fused backward, and nothing of the reference's derivative."""
    e, weights = _example(name)
    loss, args = vector(loss_of(e, weights, None), e)
    grad = jax.grad(loss, (0, 1))
    runs = ((grad, args), *((over(grad, i), several(args, i)) for i in (0, 1)))
    for function, given in runs:
        names = names_in(function, *given)
        assert f"{PRIMITIVE[name]}_backward" in names
        assert f"{PRIMITIVE[name]}_tangent" not in names


@pytest.mark.parametrize("name", ("lstm", "gru", "attention"))
def test_vmap_over_data_is_one_batch(name):
    """Rows mapped over data run as one batch: no level of ``maps``, the same program."""
    e = cases.example(CELLS[name], cases.Shape(3, (), 2, 6))
    batch = jnp.stack([e.xs, 2 * e.xs])
    program = jax.make_jaxpr(jax.vmap(lambda x: jaxrnn.unroll(e.cell, e.params, x)[1]))(batch)
    operation = "attend" if name == "attention" else "recur"
    found = [eqn for eqn in equations(program.jaxpr) if eqn.primitive.name == operation]
    assert len(found) == 1 and found[0].params["maps"] == ()
