"""A custom call whose rows are independent: sharded rows stay where they are, under ``jit`` too.

XLA knows nothing of what a custom call does, and would gather sharded arrays for it. Here it is
told which axes a device can have a part of: the rows of a batch, channels or heads that do not see
each other, and members of an ensemble. ``vmap`` adds a leading axis of members to all arrays; one
that all members share has a 1 there.

XLA for TPUs cannot be told (jax-ml/jax#38196). There the rows go over the mesh as ``divisible``
says, by ``jax.shard_map``: wherever they were, no device then does what another does too.
"""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.core
import jax.numpy as jnp
from jax.experimental.custom_partitioning import custom_partitioning
from jax.extend.core import Primitive
from jax.interpreters import batching, mlir
from jax.sharding import AbstractMesh, AxisType, NamedSharding, PartitionSpec

from jaxrnn._src.core.lowering_target import divided_over
from jaxrnn._src.core.sharding import automatic_mesh
from jaxrnn._src.core.typing import Array


class Argument(NamedTuple):
    """An array for a kernel, its axis of rows and its axis of independent channels, or heads.

    An axis is None where there is none: a weight has no rows.
    """

    array: Array
    rows: int | None
    channels: int | None = None


class Result(NamedTuple):
    """What a kernel gives; None among the sizes stands for the rows, over which it sums if there
    is none."""

    shape: tuple[int | None, ...]
    dtype: jnp.dtype
    channels: int | None = None


class Batch(NamedTuple):
    """The batch axes of an operation, which a kernel has as one axis of rows."""

    sizes: Sequence[int]

    @property
    def rows(self) -> int:
        return math.prod(self.sizes)

    def flat(self, a: Array, before: int, channels: int | None = None) -> Argument:
        """[..., *batch, ...] as [..., R, ...], with ``before`` axes before the batch's."""
        shape = (*a.shape[:before], self.rows, *a.shape[before + len(self.sizes) :])
        return Argument(a.reshape(shape), before, channels)

    def unflat(self, a: Array, before: int) -> Array:
        """The inverse."""
        return a.reshape(*a.shape[:before], *self.sizes, *a.shape[before + 1 :])


class _Axes(NamedTuple):
    """Of an array, without its members: where rows and channels are, and how many axes."""

    rows: int | None
    channels: int | None
    rank: int


def call(
    launch: Callable[..., Sequence[Array]], args: Sequence[Argument], out: Sequence[Result]
) -> list[Array]:
    """Calls a kernel, ``launch(shapes, args, members, rows) -> outputs``, by rows.

    Args:
      launch: of the shapes of what it gives, the arrays, how many members each axis of them has,
        and how many rows. An array that all members share has a 1 in place of their number.
      args: an ``Argument`` each; one of them has rows.
      out: a ``Result`` each.
    """
    return _bind(launch, args, out, mapped=False)


def call_mapped(
    function: Callable[..., Sequence[Array]], args: Sequence[Argument], out: Sequence[Result]
) -> list[Array]:
    """The same of a Pallas kernel for one member, ``function(*args) -> outputs``.

    Members are mapped by ``jax.vmap``, devices by ``jax.shard_map``.
    """

    def launch(shapes, args, members, rows):
        del shapes, rows
        return _over(function, len(members))(*args)

    return _bind(launch, args, out, mapped=True)


def _bind(launch, args, out, *, mapped):
    arrays = [a.array for a in args]
    axes = tuple(_Axes(a.rows, a.channels, a.array.ndim) for a in args)
    return _by_rows.bind(
        *arrays, launch=launch, axes=axes, out=tuple(out), levels=0, mapped=mapped
    )


def _over(function, levels):
    """``function`` mapped over so many leading axes; of an array that has a 1 there, once."""
    if not levels:
        return function
    inner = _over(function, levels - 1)

    def mapped(*args):
        shared = [a.shape[0] == 1 for a in args]
        args = [a[0] if same else a for a, same in zip(args, shared, strict=True)]
        if all(shared):
            return [a[None] for a in inner(*args)]
        return jax.vmap(inner, [None if same else 0 for same in shared])(*args)

    return mapped


_by_rows = Primitive("by_rows")
_by_rows.multiple_results = True


def _sizes(args, axes, levels):
    """How many members each level has, how many rows there are, and how many channels."""
    members = tuple(max(a.shape[i] for a in args) for i in range(levels))

    def size(kind):
        found = (
            a.shape[levels + of[kind]]
            for a, of in zip(args, axes, strict=True)
            if of[kind] is not None
        )
        return next(found, 0)

    return members, size(0), size(1)


def _results(args, axes, out, levels):
    members, rows, channels = _sizes(args, axes, levels)
    for result in out:
        sizes = [rows if n is None else n for n in result.shape]
        if result.channels is not None:
            sizes[result.channels] = channels
        yield jax.ShapeDtypeStruct((*members, *sizes), result.dtype)


@_by_rows.def_abstract_eval
def _shapes(*avals, launch, axes, out, levels, mapped):
    del launch, mapped
    return [jax.core.ShapedArray(s.shape, s.dtype) for s in _results(avals, axes, out, levels)]


def _batched(args, dims, *, levels, **parameters):
    args = [a[None] if d is None else jnp.moveaxis(a, d, 0) for a, d in zip(args, dims)]
    out = _by_rows.bind(*args, levels=levels + 1, **parameters)
    return out, [0] * len(out)


def _lower(context, *args, launch, axes, out, levels, mapped):
    def function(*args):
        members, rows, _ = _sizes(args, axes, levels)
        return launch(list(_results(args, axes, out, levels)), args, members, rows)

    place = context.module_context.axis_context
    inside = getattr(place, "mesh", None) is not None  # of a shard_map
    one = divided_over(place) == 1 if inside else getattr(place, "num_devices", None) == 1
    unknown = getattr(place, "device_assignment", ()) is None
    if mapped and not one and getattr(place, "abstract_mesh", None) is not None:
        function = _mapped(function, place.abstract_mesh, context.avals_in, axes, out, levels)
    elif not mapped and not one and not unknown:
        function = _partitioned(function, context.avals_in, axes, out, levels)
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


def _names(avals, axes, out, levels):
    """Of each argument and each result, what its axes are.

    ``m0`` and so on are members, ``b`` rows, ``c`` channels or heads, None what is whole on every
    device.
    """
    members, *_ = _sizes(avals, axes, levels)

    def named(of, sizes):
        names = [f"m{i}" if n == members[i] else None for i, n in enumerate(sizes[:levels])]
        rest = [None] * of.rank
        for name, axis in (("b", of.rows), ("c", of.channels)):
            if axis is not None:
                rest[axis] = name
        return names + rest

    rows = (r.shape.index(None) if None in r.shape else None for r in out)
    made = [_Axes(row, r.channels, len(r.shape)) for row, r in zip(rows, out)]
    given = [named(of, a.shape) for a, of in zip(avals, axes, strict=True)]
    return given, [named(of, members) for of in made]


def _partitioned(function, avals, axes, out, levels):
    """``function`` with a rule for XLA: of which axes a device can have a part."""
    given, made = _names(avals, axes, out, levels)
    fresh = (f"k{number}" for number in itertools.count())
    whole = []

    def factors(names):
        names = [(name, name or next(fresh)) for name in names]
        whole.extend(factor for name, factor in names if name is None)
        return " ".join(factor for _, factor in names)

    def partition(mesh, args, results):
        del results
        place = {}
        for name in (*(f"m{i}" for i in range(levels)), "b", "c"):
            for arg, names in zip(args, given, strict=True):
                spec = getattr(arg.sharding, "spec", ())
                for axis, of in zip(spec, names, strict=False):
                    over = (axis,) if isinstance(axis, str) else tuple(axis or ())
                    used = {axis for others in place.values() for axis in others}
                    if of == name and over and used.isdisjoint(over):
                        place.setdefault(name, over)
        manual = AbstractMesh(
            mesh.axis_sizes, mesh.axis_names, axis_types=(AxisType.Manual,) * len(mesh.axis_names)
        )  # here each device runs on its own, whatever the axes are outside
        total = lambda *sums: _sum.bind(*sums, names=place["b"], mesh=manual)
        local = _summed(function, made, total if "b" in place else None)
        specs = ([NamedSharding(mesh, s) for s in _specs(place, kind)] for kind in (made, given))
        return mesh, local, *map(tuple, specs)

    rule = ", ".join(map(factors, given)) + " -> " + ", ".join(map(factors, made))
    wrapped = custom_partitioning(lambda *args: tuple(function(*args)))
    wrapped.def_partition(
        partition=partition, sharding_rule=rule, need_replication_factors=tuple(whole)
    )
    return wrapped


def _mapped(function, mesh, avals, axes, out, levels):
    """``function`` under ``jax.shard_map``: rows over the mesh, members over what is left."""
    given, made = _names(avals, axes, out, levels)
    members, rows, _ = _sizes(avals, axes, levels)
    place, free = {}, dict(zip(mesh.axis_names, mesh.axis_sizes))
    for name, size in (("b", rows), *((f"m{i}", n) for i, n in enumerate(members))):
        place[name] = divisible(size or 0, free)
        free = {axis: n for axis, n in free.items() if axis not in place[name]}
    total = lambda *sums: jax.lax.psum(sums, place["b"])
    local = _summed(function, made, total if place["b"] else None)

    def on_mesh(*args):
        with automatic_mesh(mesh) as inside:
            specs = _specs(place, given), _specs(place, made)
            return jax.shard_map(
                local, mesh=inside, in_specs=specs[0], out_specs=specs[1], check_vma=False
            )(*args)

    return on_mesh


def divisible(size: int, mesh: Mapping[str, int]) -> tuple[str, ...]:
    """The first axes of a mesh over which so many can be divided evenly."""
    found, count = [], 1
    for axis, devices in mesh.items():
        if size and size % (count * devices) == 0:
            found, count = [*found, axis], count * devices
    return tuple(found)


def _specs(place, named):
    return tuple(PartitionSpec(*(place.get(name) or None for name in names)) for names in named)


def _summed(function, made, total):
    """``function`` whose results without rows are summed over devices that have other rows."""
    which = [i for i, names in enumerate(made) if "b" not in names]

    def local(*args):
        parts = list(function(*args))
        if total is not None and which:
            for i, part in zip(which, total(*(parts[i] for i in which)), strict=True):
                parts[i] = part
        return tuple(parts)

    return local
