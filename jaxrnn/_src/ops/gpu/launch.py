"""A kernel's call: code and numbers for ``native/gpu/gpu.cc``, which hands them to the driver.

A call is a primitive, so a kernel is compiled when it is lowered. To know the shapes of results,
as for arrays before they are divided over devices, compiles nothing.
"""

import hashlib
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Primitive
from jax.interpreters import mlir

from jaxrnn._src.core.lowering_target import MIXED, Target
from jaxrnn._src.ops.gpu import chips, cubins, library
from jaxrnn._src.ops.gpu.chips import Chip

MOST_ARRAYS = 48  # of a kernel: see native/gpu/gpu.cc
EMULATED: Any = None  # in tests and benchmarks: has a kernel's source in place of a GPU


def why_not(target: Target) -> str | None:
    """Why no kernel can be made for a target or launched there, or None."""
    return (None if EMULATED else _not_there(target)) or (MIXED if target.mixed else None)


def _not_there(target):
    if target.platform not in ("cuda", "gpu"):
        return f"it is for NVIDIA GPUs, not for {target.platform}"
    # For no GPU in particular, all is there.
    missing = None if target.chip is None else library.missing()
    found = missing or chips.find(target)
    return found if isinstance(found, str) else None


def chip(target: Target) -> Chip:
    """What a kernel may take on a target, for which there is no ``why_not``."""
    found = EMULATED.chip if EMULATED else chips.find(target)
    assert isinstance(found, Chip)
    return found


class Numbers(NamedTuple):
    """What ``native/gpu/gpu.cc`` is told beside arrays, in its order.

    Attributes:
      blocks: of a group.
      at_once: groups of a launch; the others follow in launches of their own.
      threads, shared: of a block; bytes of shared memory.
      steps, rows, tiles, groups: what the kernel is told; a tile is a part of the rows, or of
        their channels too, and a group runs one tile of a head or a member.
      together: whether all blocks of a launch are on the chip at once, and have an exchange.
      cluster: how many blocks are close together; 1 if none need to be.
    """

    blocks: int
    at_once: int
    threads: int
    shared: int
    steps: int
    rows: int
    tiles: int
    groups: int
    together: bool
    cluster: int = 1


def run(text, architecture, numbers, shapes, args, members, exchange=0):
    """Runs a kernel's source on arrays [...members, ...]; gives arrays like ``shapes``.

    ``exchange`` is how many bytes of it the kernel gets, as its last array, if it wants any.
    """
    levels = len(members)

    def stride(a):
        """Bytes from one member to the next."""
        return math.prod(a.shape[levels:]) * a.dtype.itemsize * (math.prod(a.shape[:levels]) > 1)

    # Of several levels of members an array may have some; the kernel counts all members in one.
    args = [
        a
        if math.prod(a.shape[:levels]) in (1, math.prod(members))
        else jnp.broadcast_to(a, (*members, *a.shape[levels:]))
        for a in args
    ]
    more = [jax.ShapeDtypeStruct((exchange // 4,), jnp.uint32)] if exchange else []
    out = _kernel.bind(
        *args,
        text=text,
        architecture=architecture,
        shapes=(*shapes, *more),
        members=(*map(stride, (*args, *shapes)), *[0] * len(more)),
        numbers=tuple(map(int, numbers)),
    )
    return out[: len(shapes)]


_kernel = Primitive("jaxrnn_gpu")
_kernel.multiple_results = True


@_kernel.def_abstract_eval
def _shapes(*avals, shapes, **_):
    return jax.make_jaxpr(jax.ffi.ffi_call("jaxrnn_gpu", shapes))(*avals).out_avals


def _lower(context, *args, text, architecture, shapes, members, numbers):
    members, numbers = np.array(members, np.int64), np.array(numbers, np.int64)

    def run(*args):
        if EMULATED:
            return EMULATED(text, shapes, args, numbers=numbers, members=members)
        code = cubins.machine_code(text, architecture)
        hashed = np.frombuffer(hashlib.sha256(code.tobytes()).digest()[:16], np.int64)
        return jax.ffi.ffi_call("jaxrnn_gpu", shapes)(
            *args, code=code, members=members, numbers=np.concatenate([numbers, hashed])
        )

    return mlir.lower_fun(run, multiple_results=True)(context, *args)


mlir.register_lowering(_kernel, _lower)
