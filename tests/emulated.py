"""The kernels for GPUs, compiled for a CPU (``emulate.h``)."""

import contextlib
import ctypes
import functools
import hashlib
import pathlib
import subprocess
import tempfile
import threading

import jax
import numpy as np
import pytest

from jaxrnn.recurrence.gpu import division, launch
from jaxrnn.recurrence.gpu.division import Chip

HEADER = pathlib.Path(__file__).with_name("emulate.h")
_ONE_AT_A_TIME = threading.Lock()
_FOLDER = tempfile.TemporaryDirectory(prefix="jaxrnn-emulated-")

_ENTRY = """
extern "C" int entry(void** arrays, const long long* members, const long long* n) {
  Args args = {};
  for (int i = 0; i <= EXCHANGE; ++i) {
    args.array[i] = static_cast<char*>(arrays[i]);
    args.member[i] = members[i];
  }
  args.steps = n[4], args.rows = n[5], args.tiles = n[6], args.groups = n[7];
  for (args.first = 0; args.first < args.groups; args.first += n[1]) {
    const int groups = min(n[1], args.groups - args.first);
    const bool stuck = emulated::launch(groups * n[0], n[2], n[3], [&] { run(args); });
    if (stuck) return 1;
  }
  return 0;
}
"""


class Emulation:
    """In place of a GPU: as many blocks as ``chip`` has, each with as much shared memory."""

    def __init__(self, chip):
        self.chip = chip
        self.launched = []  # of each call: how many blocks, groups at once, and groups

    def __call__(self, text, shapes, args, *, numbers, members):
        def run(*args):
            args = [np.ascontiguousarray(a) for a in args]
            # What is not written is NaN, but for the exchange, which begins as empty.
            out = [np.frombuffer(b"\xff" * _bytes(s), s.dtype).reshape(s.shape) for s in shapes]
            out = [a.copy() for a in out]
            pointers = [a.ctypes.data for a in (*args, *out)]
            with _ONE_AT_A_TIME:  # several devices may call at once
                status = _compiled(text)(
                    (ctypes.c_void_p * len(pointers))(*pointers),
                    np.array(members).ctypes.data_as(ctypes.c_void_p),
                    np.array(numbers).ctypes.data_as(ctypes.c_void_p),
                )
            assert status == 0, "blocks wait for each other"
            self.launched.append((*numbers[:2].tolist(), int(numbers[7])))
            return out

        return jax.pure_callback(run, shapes, *args)


def _bytes(shape):
    return int(np.prod(shape.shape)) * shape.dtype.itemsize


@functools.cache
def _compiled(text):
    name = hashlib.sha256(text.encode()).hexdigest()[:16]
    source, library = (pathlib.Path(_FOLDER.name) / f"{name}{end}" for end in (".cc", ".so"))
    source.write_text(f'#define EMULATED "{HEADER}"\n{text}\n{_ENTRY}')
    command = ["g++", "-std=gnu++20", "-O1", "-w", "-fPIC", "-shared", source, "-o", library]
    subprocess.run(list(map(str, command)), check=True)
    return ctypes.CDLL(str(library)).entry


@contextlib.contextmanager
def emulated(blocks=8, shared=227 << 10, warps=2):
    """Inside, implementation "gpu" runs on a CPU; on fewer warps, as all threads take turns."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(division, "WARPS", warps)
        emulation = Emulation(Chip(blocks, shared))
        patch.setattr(launch, "EMULATED", emulation)
        jax.clear_caches()
        yield emulation
    jax.clear_caches()
