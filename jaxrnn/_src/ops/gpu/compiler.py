"""CUDA C++ to machine code, by NVRTC, which comes with JAX for CUDA and needs no GPU."""

import ctypes
import functools
import glob
import importlib.util
import os

import numpy as np

OPTIONS = ("--std=c++17", "--ptxas-options=-v", "--device-as-default-execution-space")


class Failed(Exception):
    """The compiler's own words."""


@functools.cache
def library():
    """NVRTC; None where it is not installed."""
    for name in _candidates():
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    return None


def _candidates():
    found = importlib.util.find_spec("nvidia")  # the wheels of JAX's plugin for CUDA
    for root in (found.submodule_search_locations or ()) if found else ():
        for pattern in ("cu1?/lib/libnvrtc.so.1?", "cuda_nvrtc/lib/libnvrtc.so.1?"):
            yield from sorted(glob.glob(os.path.join(root, pattern)), reverse=True)
    yield from ("libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so")


@functools.cache
def version() -> tuple[int, int]:
    """NVRTC's, which is that of its CUDA."""
    nvrtc, major, minor = library(), ctypes.c_int(), ctypes.c_int()
    assert nvrtc is not None
    nvrtc.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
    return major.value, minor.value


@functools.cache
def capabilities() -> tuple[int, ...]:
    """The compute capabilities for which it compiles, 10 * major + minor each."""
    nvrtc, count = library(), ctypes.c_int()
    assert nvrtc is not None
    nvrtc.nvrtcGetNumSupportedArchs(ctypes.byref(count))
    found = (ctypes.c_int * count.value)()
    nvrtc.nvrtcGetSupportedArchs(found)
    return tuple(found)


@functools.lru_cache(256)
def compiled(source: str, architecture: str) -> tuple[np.ndarray, str]:
    """Machine code, as numbers of 32 bits, and what the assembler says of it.

    Raises:
      Failed: the compiler does not take the source.
    """
    nvrtc, program = library(), ctypes.c_void_p()
    assert nvrtc is not None  # `library.missing` said so
    options = [f"--gpu-architecture={architecture}", *OPTIONS]
    nvrtc.nvrtcCreateProgram(ctypes.byref(program), source.encode(), b"kernel.cu", 0, None, None)
    try:
        flags = (ctypes.c_char_p * len(options))(*(o.encode() for o in options))
        failed = nvrtc.nvrtcCompileProgram(program, len(options), flags)
        log = _bytes(nvrtc.nvrtcGetProgramLogSize, nvrtc.nvrtcGetProgramLog, program)
        log = log.rstrip(b"\0").decode()
        if failed:
            raise Failed(log)
        code = _bytes(nvrtc.nvrtcGetCUBINSize, nvrtc.nvrtcGetCUBIN, program)
        return np.frombuffer(code + bytes(-len(code) % 4), np.int32), log
    finally:
        nvrtc.nvrtcDestroyProgram(ctypes.byref(program))


def _bytes(size, get, program):
    count = ctypes.c_size_t()
    size(program, ctypes.byref(count))
    text = ctypes.create_string_buffer(count.value)
    get(program, text)
    return text.raw
