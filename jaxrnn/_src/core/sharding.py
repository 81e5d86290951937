"""Arrays that meet in one scan, and the devices they are on.

JAX puts an array's place into its type in two cases, and then a scan's state has to begin with the
type it will have after a step. Under ``jax.shard_map`` a type says over which mesh axes the value
varies; with explicit mesh axes it says how the array is sharded. Elsewhere nothing happens here.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.custom_partitioning import custom_partitioning
from jax.sharding import AbstractMesh, AxisType, NamedSharding, PartitionSpec


def varying(tree):
    """The arrays of ``tree``, each varying over all the mesh axes any of them varies over."""
    axes = set().union(*map(_axes, jax.tree.leaves(tree)))
    if not axes:
        return tree

    def cast(a):
        missing = tuple(axes - _axes(a))
        return lax.pcast(a, missing, to="varying") if missing else a

    return jax.tree.map(cast, tree)


def varies(a):
    """Whether an array differs between the devices of a ``jax.shard_map``."""
    return bool(_axes(a))


def _axes(a):
    """The mesh axes ``a`` varies over."""
    return jax.typeof(a).manual_axis_type.varying


def automatic(run: Callable[..., Any], xs: jax.Array, features: int = 1) -> Callable[..., Any]:
    """``run``, which returns ``(state, ys)``, with the sharding of all inside left to XLA.

    Explicit mesh axes become automatic ones inside; outside, the results are sharded as ``xs``
    [T, ...batch, I] is, but for its last ``features`` axes, which are not theirs.
    """
    sharding = jax.typeof(xs).sharding
    if sharding.mesh.empty or AxisType.Explicit not in sharding.mesh.axis_types:
        return run
    time, *batch = sharding.spec[: xs.ndim - features]

    def on_mesh(*axes):
        return NamedSharding(sharding.mesh, PartitionSpec(*axes))

    out = (on_mesh(*batch), on_mesh(time, *batch))
    return jax.sharding.auto_axes(run, out_sharding=out)


@contextlib.contextmanager
def automatic_mesh(mesh: AbstractMesh) -> Iterator[AbstractMesh]:
    """The same mesh with automatic axes, and a context in which it is the mesh."""
    types = (AxisType.Auto,) * len(mesh.axis_names)
    inside = AbstractMesh(mesh.axis_sizes, mesh.axis_names, axis_types=types)
    with jax.sharding.use_abstract_mesh(inside):
        yield inside


def nowhere():
    """A context in which arrays have no place: what is traced there holds on every mesh."""
    return jax.sharding.use_abstract_mesh(AbstractMesh((), ()))


@functools.cache
def wants_devices():
    """A jaxpr to be among a primitive's parameters, for its lowering to know the devices.

    JAX tells a lowering of the devices only where the program has ``custom_partitioning`` in it,
    and it looks for that before the lowering, in jaxprs. A primitive that comes to it only while
    it is lowered, as cuDNN's attention and ``row_partition.call`` do, would fail.
    """
    alone = custom_partitioning(lambda a: a)
    alone.def_partition(None, sharding_rule="i -> i")  # it never runs
    return jax.make_jaxpr(alone)(jax.ShapeDtypeStruct((1,), jnp.float32))
