"""``gpu.so``: hands kernels to CUDA's driver, and asks it about GPUs."""

import ctypes
import functools
from typing import NamedTuple

import jax

from jaxrnn._src.ops import native
from jaxrnn._src.ops.gpu import compiler

FILE = "JAXRNN_GPU_LIBRARY"  # environment: another library than the installed one


class Facts(NamedTuple):
    """What the driver says of a GPU.

    Attributes:
      cuda: the newest version of CUDA that the driver knows, 1000 * major + 10 * minor.
      capability: compute capability, 10 * major + minor.
      multiprocessors: those that this process may use.
      shared: bytes of shared memory that a block may ask for.
      cooperative: whether all blocks of a launch can be made to run at once.
    """

    cuda: int
    capability: int
    multiprocessors: int
    shared: int
    cooperative: int


def missing() -> str | None:
    """Why no kernel can be made here, or None."""
    loaded = _loaded()
    return loaded if isinstance(loaded, str) else None


@functools.cache
def facts(ordinal: int) -> Facts | str:
    """Of the GPU with this number of CUDA's; why nothing is known of it."""
    found = (ctypes.c_int32 * len(Facts._fields))()
    lib = _loaded()
    if isinstance(lib, str):
        return lib
    ask = lib.jaxrnn_gpu_facts
    ask.restype = ctypes.c_char_p
    why = ask(ordinal, found)
    return why.decode() if why else Facts(*found)


@functools.cache
def clusters(ordinal: int, size: int) -> int | str:
    """How many clusters of ``size`` blocks that GPU runs at once; why nothing is known of it.

    Each block has all the shared memory of a multiprocessor.
    """
    found = ctypes.c_int32()
    lib = _loaded()
    if isinstance(lib, str):
        return lib
    ask = lib.jaxrnn_gpu_clusters
    ask.restype = ctypes.c_char_p
    why = ask(ordinal, size, ctypes.byref(found))
    return why.decode() if why else found.value


@functools.cache
def _loaded() -> ctypes.CDLL | str:
    """Loads the library once and tells XLA of its function; why not."""
    if compiler.library() is None:
        return "there is no NVRTC (nvidia-cuda-nvrtc), which comes with jax[cuda12] or jax[cuda13]"
    found = native.file("gpu.so", FILE)
    if found is None:
        return native.why_none("gpu.so")
    try:
        lib = ctypes.CDLL(str(found))
    except OSError as error:
        return f"its library cannot be loaded: {error}"
    for name in ("jaxrnn_gpu_facts", "jaxrnn_gpu_clusters"):
        if not hasattr(lib, name):
            return f"{found} was built for another jaxrnn: it has no {name}"
    handler = jax.ffi.pycapsule(lib.jaxrnn_gpu)
    jax.ffi.register_ffi_target("jaxrnn_gpu", handler, platform="CUDA")
    return lib
