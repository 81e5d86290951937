"""The kernels for NVIDIA GPUs by CUDA's driver alone: JAX runs all else on the host's CPU.

So a check of them asks nothing of XLA for GPUs. Results begin as NaN, as the exchange does, so
what a kernel does not write is wrong. Machine code that is kept on disk is not compiled again.
"""

import contextlib
import ctypes
import functools
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from jaxrnn._src.ops.gpu import chips, cubins, launch, library
from jaxrnn._src.ops.gpu.chips import Chip

NAME = "driver"  # in place of an implementation's
KERNEL = "gpu"  # the implementation


class Failed(Exception):
    """What the driver says, or a kernel that gave up."""


class Args(ctypes.Structure):
    """What a kernel is given: see native/gpu/gpu.cc."""

    _fields_ = (
        ("array", ctypes.c_void_p * launch.MOST_ARRAYS),
        ("member", ctypes.c_longlong * launch.MOST_ARRAYS),
        ("host", ctypes.c_void_p),
        *((name, ctypes.c_int) for name in ("steps", "rows", "tiles", "groups", "first")),
    )


class Attribute(ctypes.Structure):
    """CUlaunchAttribute; its value is a union of 64 bytes."""

    _fields_ = (("id", ctypes.c_int), ("pad", ctypes.c_int), ("value", ctypes.c_uint * 16))


class Config(ctypes.Structure):
    """CUlaunchConfig."""

    _fields_ = (
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("shared", ctypes.c_uint),
        ("stream", ctypes.c_void_p),
        ("attributes", ctypes.POINTER(Attribute)),
        ("count", ctypes.c_uint),
    )


class Driver:
    """In place of ``launch.EMULATED``: what would run a kernel's source on a CPU, runs it."""

    def __init__(self, cuda: Any, chip: Chip):
        self.cuda, self.chip = cuda, chip
        self.context, self.word, self.given_up = (ctypes.c_void_p() for _ in range(3))
        self.functions: dict[bytes, Any] = {}
        device = ctypes.c_int()
        self._call("cuInit", 0)
        self._call("cuDeviceGet", ctypes.byref(device), 0)
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(self.context), device)
        self._call("cuCtxSetCurrent", self.context)
        portable_and_mapped = 3
        self._call("cuMemHostAlloc", ctypes.byref(self.word), _size(4), portable_and_mapped)
        ctypes.memset(self.word, 0, 4)  # no promise of the driver's
        self._call("cuMemHostGetDevicePointer_v2", ctypes.byref(self.given_up), self.word, 0)

    def __call__(self, text, shapes, args, *, numbers, members):
        code = cubins.machine_code(text, self.chip.architecture).tobytes()
        run = functools.partial(self._run, code, shapes, numbers, members)
        return jax.pure_callback(run, shapes, *args)

    def _run(self, code, shapes, numbers, members, *arrays):
        self._call("cuCtxSetCurrent", self.context)  # of this thread
        numbers = launch.Numbers(*numbers.tolist())
        function = self._loaded(code, numbers.shared)
        arrays = [np.ascontiguousarray(a) for a in arrays]
        results = [np.empty(s.shape, s.dtype) for s in shapes]
        given = Args(host=self.given_up, member=tuple(members.tolist()))
        for name in ("steps", "rows", "tiles", "groups"):
            setattr(given, name, getattr(numbers, name))
        places = []
        try:
            for array in (*arrays, *results):
                places.append(self._placed(array.nbytes))
            given.array = tuple(place.value for place in places)
            for place, array in zip(places, arrays):
                self._call("cuMemcpyHtoD_v2", place, _pointer(array), _size(array.nbytes))
            self._launch(function, numbers, given)
            for place, array in zip(places[len(arrays) :], results):
                self._call("cuMemcpyDtoH_v2", _pointer(array), place, _size(array.nbytes))
        finally:
            for place in places:  # after a failure it may fail too, and is not what is wrong
                self.cuda.cuMemFree_v2(place)
        if ctypes.cast(self.word, ctypes.POINTER(ctypes.c_uint))[0]:
            raise Failed("a block waited in vain for another one and gave up")
        return results

    def _launch(self, function, numbers, given):
        parameters = (ctypes.c_void_p * 1)(ctypes.addressof(given))
        launched = "cuLaunchCooperativeKernel" if numbers.together else "cuLaunchKernel"
        extra = () if numbers.together else (None,)
        for given.first in range(0, numbers.groups, numbers.at_once):
            groups = min(numbers.at_once, numbers.groups - given.first)
            grid, block = (groups * numbers.blocks, 1, 1), (numbers.threads, 1, 1)
            if numbers.cluster > 1:
                cooperative, dimension = 2, 4
                attributes = (Attribute * 2)(
                    Attribute(cooperative, 0, (1,)),
                    Attribute(dimension, 0, (numbers.cluster, 1, 1)),
                )
                config = Config(grid, block, numbers.shared, None, attributes, len(attributes))
                self._call("cuLaunchKernelEx", ctypes.byref(config), function, parameters, None)
                continue
            self._call(launched, function, *grid, *block, numbers.shared, None, parameters, *extra)
        self._call("cuCtxSynchronize")

    def _placed(self, size):
        """So many bytes of the GPU's, all ones: of every type NaN, and an empty exchange."""
        place = ctypes.c_void_p()
        self._call("cuMemAlloc_v2", ctypes.byref(place), _size(max(size, 1)))
        self._call("cuMemsetD8_v2", place, ctypes.c_ubyte(0xFF), _size(size))
        return place

    def _loaded(self, code, shared):
        if code not in self.functions:
            module, function = ctypes.c_void_p(), ctypes.c_void_p()
            self._call("cuModuleLoadData", ctypes.byref(module), code)
            self._call("cuModuleGetFunction", ctypes.byref(function), module, b"run")
            max_dynamic_shared = 8
            self._call("cuFuncSetAttribute", function, max_dynamic_shared, shared)
            self.functions[code] = function
        return self.functions[code]

    def _call(self, name, *arguments):
        status = getattr(self.cuda, name)(*arguments)
        if status:
            raise Failed(f"{name}: CUDA's driver gives {status}")


@functools.cache
def found() -> Driver:
    """That of the first GPU.

    Raises:
      Failed: there is none.
    """
    chip = library.missing() or chips.asked([0])
    if isinstance(chip, str):
        raise Failed(chip)
    return Driver(ctypes.CDLL("libcuda.so.1"), chip)


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Inside, implementation "gpu" runs by the driver, of programs for a CPU."""
    before, launch.EMULATED = launch.EMULATED, found()
    try:
        yield
    finally:
        launch.EMULATED = before


def _pointer(array):
    return ctypes.c_void_p(array.ctypes.data)


def _size(count):
    return ctypes.c_size_t(count)
