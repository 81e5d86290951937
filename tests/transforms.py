"""JAX's transforms, of any function of several trees that gives one number; and their programs."""

import functools

import jax
import jax.numpy as jnp


def grads(f):
    """The gradients of all arguments."""
    return lambda *args: jax.grad(f, tuple(range(len(args))))(*args)


def jvp(f):
    """Along the arguments themselves."""
    return lambda *args: jax.jvp(f, args, args)[1]


def each(f):
    """Along each of the arguments alone."""

    def run(*args):
        def along(i):
            one = lambda arg: f(*args[:i], arg, *args[i + 1 :])
            return jax.jvp(one, args[i : i + 1], args[i : i + 1])

        return [along(i) for i in range(len(args))]

    return run


def tangents(f):
    """The derivative of ``jvp`` by each of its tangents alone, in which it is linear."""

    def run(*args):
        def along(i):
            one = lambda t: jax.jvp(f, args, (*args[:i], t, *args[i + 1 :]))[1]
            return jax.jvp(one, args[i : i + 1], args[i : i + 1])

        return [along(i) for i in range(len(args))]

    return run


def hvp(f):
    return jvp(grads(f))


def squares(f):
    """The sum of the squares of all that ``f`` gives."""
    return lambda *args: sum((a**2).sum() for a in jax.tree.leaves(f(*args)))


def scanned(f):
    """The sum of ``f`` over three rounds of a scan, each with another first argument."""

    def run(first, *others):
        def body(total, factor):
            return total + f(jax.tree.map(lambda a: factor * a, first), *others), None

        return jax.lax.scan(body, jnp.zeros(()), jnp.array([1.0, 0.5, 2.0]))[0]

    return run


def several(args, axes):
    """Three of each argument that has an axis, along it."""

    def stacked(axis, a):
        return jnp.stack([a, 2 * a, -a], axis)

    return tuple(
        arg if axis is None else jax.tree.map(functools.partial(stacked, axis), arg)
        for arg, axis in zip(args, axes, strict=True)
    )


def over(f, *levels):
    """``vmap`` over ``several`` of some arguments, at each level; the first is innermost."""

    def run(*args):
        mapped = f
        for axes in levels:
            mapped, args = jax.vmap(mapped, axes), several(args, axes)
        return mapped(*args)

    return run


TRANSFORMS = {
    "value": lambda f: f,
    "jit": lambda f: lambda *args: jax.jit(jax.value_and_grad(f, tuple(range(len(args)))))(*args),
    "grad": grads,
    "jvp": jvp,
    "jvp of each": each,
    "jvp of jvp": lambda f: jvp(jvp(f)),
    "jvp of jvp, one direction": lambda f: (
        lambda *args: jax.jvp(lambda *moved: jax.jvp(f, moved, args)[1], args, args)[1]
    ),
    "grad of jvp": lambda f: grads(jvp(f)),
    "jvp of a tangent": tangents,
    "grad of the tangent": lambda f: lambda *args: grads(lambda *t: jax.jvp(f, args, t)[1])(*args),
    "hessian-vector": hvp,
    "reverse over reverse": lambda f: grads(squares(grads(f))),
    "third": lambda f: jvp(hvp(f)),
    "hessian": lambda f: lambda *args: jax.hessian(f, tuple(range(len(args))))(*args),
    "jacfwd": lambda f: lambda *args: jax.jacfwd(f, tuple(range(len(args))))(*args),
    "jacrev": lambda f: (
        lambda *args: jax.jacrev(
            lambda *a: jnp.stack([f(*a), 2 * f(*a)]), tuple(range(len(args)))
        )(*args)
    ),
    "remat": lambda f: grads(jax.remat(f)),
    "linearize": lambda f: lambda *args: jax.linearize(f, *args)[1](*args),
    "checkpointed scan": lambda f: grads(scanned(jax.checkpoint(f))),
    "scan": lambda f: grads(scanned(f)),
}
# With ``vmap``: given the levels of ``over`` as well.
MAPPED = {
    "vmap": over,
    "vmap of grad": lambda f, *levels: over(grads(f), *levels),
    "grad of vmap": lambda f, *levels: grads(squares(over(f, *levels))),
    "jvp of vmap": lambda f, *levels: jvp(over(f, *levels)),
    "jvp of a tangent of vmap": lambda f, *levels: tangents(over(f, *levels)),
    "vmap of jvp": lambda f, *levels: over(jvp(f), *levels),
    "vmap of jvp of each": lambda f, *levels: over(each(f), *levels),
    "vmap of hessian-vector": lambda f, *levels: over(hvp(f), *levels),
}


def six(weights, data):
    """Those in which an operation's own functions can fail; the rest is ``Operation``'s.

    Args:
      weights, data: the axes of ``vmap`` over weights, and over rows.
    """
    return {
        "grad": grads,
        "hessian-vector": hvp,
        "remat": TRANSFORMS["remat"],
        "vmap of grad, weights": lambda f: over(grads(f), weights),
        "vmap of grad, data": lambda f: over(grads(f), data),
        "grad of both vmaps": lambda f: grads(squares(over(f, weights, data))),
    }


# What is in a program.


def equations(jaxpr):
    """Those of a jaxpr, at any depth."""
    for eqn in jaxpr.eqns:
        yield eqn
        for value in eqn.params.values():
            for inner in value if isinstance(value, (tuple, list)) else (value,):
                if hasattr(inner, "jaxpr") or hasattr(inner, "eqns"):
                    yield from equations(getattr(inner, "jaxpr", inner))


def ran(functions, *args):
    """What each of several named functions gives, all in one program, and its primitives."""
    parts = {name: jax.jit(function) for name, function in functions.items()}
    traced = jax.jit(lambda *args: [part(*args) for part in parts.values()]).trace(*args)
    calls = [eqn.params["jaxpr"].jaxpr for eqn in traced.jaxpr.jaxpr.eqns]
    names = [{eqn.primitive.name for eqn in equations(call)} for call in calls]
    out = traced.lower().compile()(*args)
    return dict(zip(parts, zip(out, names, strict=True), strict=True))
