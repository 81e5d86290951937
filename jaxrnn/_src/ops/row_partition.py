"""A custom call whose rows are independent: sharded rows stay where they are, under ``jit`` too.

XLA knows nothing of what a custom call does, and would gather a sharded batch for it. Here it is
told. ``vmap`` adds a leading axis of members to all arrays; one that all members share has a 1
there.
"""

import itertools
from typing import NamedTuple

import jax
import jax.core
import jax.numpy as jnp
from jax.experimental.custom_partitioning import custom_partitioning
from jax.extend.core import Primitive
from jax.interpreters import batching, mlir
from jax.sharding import AbstractMesh, AxisType, NamedSharding, PartitionSpec

from jaxrnn._src.core.lowering_target import divided_over


def by_rows(function, ranks, out_ranks):
    """``function`` of arrays, each [...members, (T,) B, K] or without rows, giving such arrays.

    Args:
      function: ``(*args) -> outputs``, for any number of members and rows.
      ranks: for each argument, where its axis of rows is, None if it has none, and its rank;
        members not counted.
      out_ranks: the same of each output. One without rows is a sum over them.
    """
    parameters = dict(function=function, ranks=tuple(ranks), out_ranks=tuple(out_ranks))
    return lambda *args: _by_rows.bind(*args, levels=0, **parameters)


class Argument(NamedTuple):
    """An array for a kernel, and its axis of rows, None for a weight."""

    array: jax.Array
    rows: int | None


class Result(NamedTuple):
    """What a kernel gives; None among the sizes stands for the rows, over which it sums if there
    is none."""

    shape: tuple[int | None, ...]
    dtype: jnp.dtype


def call(launch, args, out):
    """Calls a kernel, ``launch(shapes, args, members, rows) -> outputs``, by rows.

    Args:
      launch: of the shapes of what it gives, the arrays, how many members each axis of them has,
        and how many rows. An array that all members share has a 1 in place of their number.
      args: an ``Argument`` each; one of them has rows.
      out: a ``Result`` each.
    """
    args, ranks = zip(*[(a.array, (a.rows, a.array.ndim)) for a in args])
    first = next(i for i, (rows, _) in enumerate(ranks) if rows is not None)

    def run(*args):
        axis, rank = ranks[first]
        levels = args[first].ndim - rank
        members = tuple(max(a.shape[i] for a in args) for i in range(levels))
        rows = args[first].shape[levels + axis]
        shapes = [
            jax.ShapeDtypeStruct((*members, *(rows if n is None else n for n in shape)), dtype)
            for shape, dtype in out
        ]
        return launch(shapes, args, members, rows)

    out_ranks = [(s.index(None) if None in s else None, len(s)) for s, _ in out]
    return by_rows(run, ranks, out_ranks)(*args)


_by_rows = Primitive("by_rows")
_by_rows.multiple_results = True


@_by_rows.def_abstract_eval
def _shapes(*avals, function, **_):
    return jax.make_jaxpr(function)(*avals).out_avals


def _batched(args, dims, *, levels, **parameters):
    args = [a[None] if d is None else jnp.moveaxis(a, d, 0) for a, d in zip(args, dims)]
    out = _by_rows.bind(*args, levels=levels + 1, **parameters)
    return out, [0] * len(out)


def _lower(context, *args, function, **parameters):
    place = context.module_context.axis_context
    inside = getattr(place, "mesh", None) is not None  # of a shard_map
    one = divided_over(place) == 1 if inside else getattr(place, "num_devices", None) == 1
    unknown = getattr(place, "device_assignment", ()) is None
    if not one and not unknown:
        function = _partitioned(function, **parameters)
    return mlir.lower_fun(function, multiple_results=True)(context, *args)


batching.primitive_batchers[_by_rows] = _batched
mlir.register_lowering(_by_rows, _lower)


_sum = Primitive("sum_over_devices")  # lax.psum, lowered as if the mesh were of manual axes
_sum.multiple_results = True
_sum.def_abstract_eval(lambda *avals, **_: list(avals))


def _lower_sum(context, *args, names, mesh):
    # Else JAX 0.12 shards the numbers that are added, on a mesh of explicit axes, and XLA refuses.
    with jax.sharding.use_abstract_mesh(mesh):
        plain = [jax.core.ShapedArray(a.shape, a.dtype) for a in context.avals_in]
        context = context.replace(avals_in=plain)
        return mlir.lower_fun(lambda *a: jax.lax.psum(a, names), multiple_results=True)(
            context, *args
        )


mlir.register_lowering(_sum, _lower_sum)


def _partitioned(function, ranks, out_ranks, levels):
    fresh = (f"k{number}" for number in itertools.count())
    members = [next(fresh) for _ in range(levels)]
    whole = list(members)

    def factors(rows, rank):
        names = [next(fresh) for _ in range(rank)]
        if rows is not None:
            names[rows] = "b"
        whole.extend(name for name in names if name != "b")
        return " ".join([*members, *names])

    def spec(mesh, axis, rows, rank):
        axes = [None] * (levels + rank)
        if rows is not None:
            axes[levels + rows] = axis
        return NamedSharding(mesh, PartitionSpec(*axes))

    def partition(mesh, args, results):
        del results
        axis = None
        for arg, (rows, _) in zip(args, ranks):
            given = getattr(arg.sharding, "spec", ()) if rows is not None else ()
            if len(given) > levels + (rows or 0):
                axis = axis or given[levels + rows]
        names = (axis,) if isinstance(axis, str) else tuple(axis or ())
        manual = AbstractMesh(
            mesh.axis_sizes, mesh.axis_names, axis_types=(AxisType.Manual,) * len(mesh.axis_names)
        )  # here each device runs on its own, whatever the axes are outside

        def local(*args):
            out = function(*args)
            sums = [a for a, (rows, _) in zip(out, out_ranks) if rows is None]
            sums = iter(_sum.bind(*sums, names=names, mesh=manual) if names else sums)
            return tuple(next(sums) if r is None else a for a, (r, _) in zip(out, out_ranks))

        return (
            mesh,
            local,
            tuple(spec(mesh, axis, *rank) for rank in out_ranks),
            tuple(spec(mesh, axis, *rank) for rank in ranks),
        )

    wrapped = custom_partitioning(lambda *args: tuple(function(*args)))
    rule = ", ".join(factors(*rank) for rank in ranks)
    rule += " -> " + ", ".join(factors(*rank) for rank in out_ranks)
    wrapped.def_partition(
        partition=partition, sharding_rule=rule, need_replication_factors=tuple(whole)
    )
    return wrapped
