"""Weights that are divided over devices, gathered once.

A nonlinear recurrence needs all its weights at every step. A loop that took them in parts would
exchange a state at every step instead, and a kernel cannot. T steps of B rows make that T B H
numbers, and T times the wait for an exchange; the weights are G H (I + H) numbers, once.
"""

import functools

import jax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jax.sharding import NamedSharding, PartitionSpec

from jaxrnn._src.core.sharding import automatic_mesh


def gathered(params):
    """The same parameters, each whole on every device that XLA divides arrays over.

    Members that ``jax.vmap`` maps over stay where they are. So it is with the gradients, which are
    divided only after they have been summed.
    """
    return jax.tree.map(lambda a: _gathered.bind(a, members=()), params)


_gathered = Primitive("gathered")


@_gathered.def_impl
def _now(a, *, members):
    sharding = getattr(a, "sharding", None)
    if sharding is None or sharding.is_fully_replicated:
        return a
    return _compiled(a, members)


@functools.partial(jax.jit, static_argnums=1)
def _compiled(a, members):
    return _gathered.bind(a, members=members)


def _batched(args, dims, *, members):
    (a,), (dim,) = args, dims
    members = (dim, *(m + (dim <= m) for m in members))
    return _gathered.bind(a, members=members), dim


def _lower(context, a, *, members):
    place = context.module_context.axis_context
    mesh, count = getattr(place, "abstract_mesh", None), getattr(place, "num_devices", 1)
    if mesh is None or count == 1:  # inside of jax.shard_map a device has what it was given
        return [a]
    (aval,) = context.avals_in
    free = PartitionSpec.UNCONSTRAINED
    spec = PartitionSpec(*(free if axis in members else None for axis in range(aval.ndim)))

    def place_whole(a):
        with automatic_mesh(mesh) as inside:
            return jax.lax.with_sharding_constraint(a, NamedSharding(inside, spec))

    return mlir.lower_fun(place_whole, multiple_results=False)(context, a)


_gathered.def_abstract_eval(lambda aval, **_: aval)
ad.deflinear2(_gathered, lambda d, _, **members: [_gathered.bind(d, **members)])
batching.primitive_batchers[_gathered] = _batched
mlir.register_lowering(_gathered, _lower)
