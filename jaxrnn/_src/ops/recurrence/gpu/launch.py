"""A kernel's call: code and numbers for ``native/gpu/gpu.cc``, which hands them to the driver."""

import ctypes
import functools
import hashlib
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrnn._src.core.lowering_target import Target
from jaxrnn._src.ops import native
from jaxrnn._src.ops.recurrence.gpu import compiler, tiling
from jaxrnn._src.ops.recurrence.gpu.tiling import CHIPS

MOST_ARRAYS = 48  # of a kernel: see native/gpu/gpu.cc
FLAG = 128  # bytes before the exchange: see kernel.cu
# How often a thread polls in vain before it gives up; some ten seconds, far more than anything
# that comes takes.
MOST_POLLS = 1 << 24
RING = 64  # places of a ring, whose words are emptied half of it ahead: see exchange.cu
MOST_EXCHANGE = 16 << 20  # bytes of an exchange without a ring: they stay in the L2 cache
FILE = "JAXRNN_GPU_LIBRARY"  # environment: another library than the installed one
EMULATED: Any = None  # in tests: runs a kernel's source on a CPU


def missing(target: Target) -> str | None:
    """Why no kernel can be made here, or None. For no GPU in particular, all is there."""
    return None if EMULATED or target.chip is None else _loaded()


@functools.cache
def _loaded():
    """Loads the library once and tells XLA of its function; why not, or None."""
    if compiler.library() is None:
        return "there is no NVRTC (nvidia-cuda-nvrtc), which comes with jax[cuda12] or jax[cuda13]"
    found = native.file("gpu.so", FILE)
    if found is None:
        return native.why_none("gpu.so")
    try:
        lib = ctypes.CDLL(str(found))
    except OSError as error:
        return f"its library cannot be loaded: {error}"
    handler = jax.ffi.pycapsule(lib.jaxrnn_gpu)
    jax.ffi.register_ffi_target("jaxrnn_gpu", handler, platform="CUDA")
    return None


def chip(target: Target) -> tiling.Chip | None:
    """What the kernel knows of where it will run; None if nothing."""
    if EMULATED:
        return EMULATED.chip
    if target.platform == "gpu" and target.chip is None:
        return min(CHIPS.values())  # of a GPU in general: the least of those it knows
    return None if target.chip is None else CHIPS.get(target.chip)


def ring(plan: tiling.Plan, steps: int) -> int:
    """How many steps' places the exchange has, if they are used again; 0 if each has its own."""
    return RING if steps > RING and steps * plan.exchange > MOST_EXCHANGE else 0


def call(text, plan, layer, shapes, args, members, steps):
    """Runs a kernel's source on arrays [...members, ...]; gives arrays like ``shapes``."""
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

    slots = ring(plan, steps) or steps
    exchange = jax.ShapeDtypeStruct(((FLAG + slots * plan.exchange) // 4,), jnp.uint32)
    numbers = dict(
        blocks=plan.blocks, at_once=plan.at_once, threads=32 * plan.warps, shared=plan.shared,
        steps=steps, rows=layer.rows, tiles=plan.tiles, groups=layer.groups * plan.tiles,
    )  # fmt: skip
    numbers = np.array(list(numbers.values()), np.int64)
    members = np.array([*map(stride, (*args, *shapes)), 0], np.int64)
    if EMULATED:
        return EMULATED(text, [*shapes, exchange], args, numbers=numbers, members=members)[:-1]
    code, _ = compiler.compiled(text)
    hashed = np.frombuffer(hashlib.sha256(code).digest()[:16], np.int64)  # what loaded code has
    out = jax.ffi.ffi_call("jaxrnn_gpu", [*shapes, exchange])(
        *args, code=code, members=members, numbers=np.concatenate([numbers, hashed])
    )
    return out[:-1]
