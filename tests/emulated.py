"""The kernels for GPUs, compiled for a CPU (``emulate.cc``)."""

import contextlib
import ctypes
import functools
import hashlib
import pathlib
import subprocess
import tempfile
import threading

import jax
import jax.numpy as jnp
import numpy as np
from instead import instead

from jaxrnn._src.ops.gpu import chips, launch
from jaxrnn._src.ops.gpu.chips import Chip
from jaxrnn._src.ops.recurrence.gpu import exchange, tiling

HEADER = pathlib.Path(__file__).with_name("emulate.h")
_ONE_AT_A_TIME = threading.Lock()
_FOLDER = tempfile.TemporaryDirectory(prefix="jaxrnn-emulated-")

_ENTRY = """
extern "C" const char* entry(int count, void** arrays, const long long* members,
                             const long long* n, unsigned* host, long lost) {
  Args args = {};
  for (int i = 0; i < count; ++i) {
    args.array[i] = static_cast<char*>(arrays[i]);
    args.member[i] = members[i];
  }
  args.host = reinterpret_cast<char*>(host);
  emulated::lost = lost;
  args.steps = n[4], args.rows = n[5], args.tiles = n[6], args.groups = n[7];
  for (args.first = 0; args.first < args.groups; args.first += n[1]) {
    const int groups = min(n[1], args.groups - args.first);
    auto run_it = [](void* args) { run(*static_cast<Args*>(args)); };
    const char* wrong = emulated::launch(groups * n[0], n[9], n[2], n[3], run_it, &args);
    if (wrong) return wrong;
  }
  return nullptr;
}
"""


class Emulation:
    """In place of a GPU: as many blocks as ``chip`` has, each with as much shared memory."""

    def __init__(self, chip):
        self.chip = chip
        self.launched = []  # of each call: how many blocks, groups at once, and groups
        self.lost = ()  # of each call: see `emulated`
        self.gave_up = []  # of each call, whether a block did
        self.results = []  # of each call

    def __call__(self, text, shapes, args, *, numbers, members):
        def run(*args):
            args = [np.ascontiguousarray(a) for a in args]
            lost = (*self.lost, *[0] * (len(self.launched) + 1))[len(self.launched)]
            # What is not written is NaN, or 0 where NaN is wanted; the exchange begins as empty.
            together = int(numbers[8])
            fill = [b"\0" if lost else b"\xff"] * (len(shapes) - together) + [b"\xff"] * together
            out = [
                np.frombuffer(byte * _bytes(s), s.dtype).reshape(s.shape).copy()
                for byte, s in zip(fill, shapes, strict=True)
            ]
            pointers = [a.ctypes.data for a in (*args, *out)]
            wrong, gave_up = run_text(text, pointers, members, numbers, lost)
            assert wrong is None, wrong
            self.gave_up.append(gave_up)
            self.results.append(out[: len(out) - together])
            self.launched.append((*numbers[:2].tolist(), int(numbers[7])))
            return out

        return jax.pure_callback(run, shapes, *args)


def run_text(text, pointers, members, numbers, lost=0):
    """Runs a kernel's source on arrays at ``pointers``.

    Gives what is wrong, None if nothing is, and whether a block gave up.
    """
    host = ctypes.c_uint(0)
    with _ONE_AT_A_TIME:  # several devices may call at once
        wrong = compiled(text).entry(
            len(pointers),
            (ctypes.c_void_p * len(pointers))(*pointers),
            np.array(members).ctypes.data_as(ctypes.c_void_p),
            np.array(numbers).ctypes.data_as(ctypes.c_void_p),
            ctypes.byref(host),
            ctypes.c_long(lost),
        )
    return wrong and wrong.decode(), host.value == 1


def _bytes(shape):
    return int(np.prod(shape.shape)) * shape.dtype.itemsize


@functools.cache
def compiled(text):
    name = hashlib.sha256(text.encode()).hexdigest()[:16]
    source, library = (pathlib.Path(_FOLDER.name) / f"{name}{end}" for end in (".cc", ".so"))
    source.write_text(f'#define EMULATED "{HEADER}"\n{text}\n{_ENTRY}')
    _compile("-shared", source, _machine(), "-o", library)
    loaded = ctypes.CDLL(str(library))
    loaded.entry.restype = ctypes.c_char_p
    return loaded


@functools.cache
def _machine():
    """What runs kernels, compiled once for all of them."""
    library = pathlib.Path(_FOLDER.name) / "emulate.o"
    _compile("-c", HEADER.with_suffix(".cc"), "-o", library)
    return library


def _compile(*arguments):
    subprocess.run(["g++", "-std=gnu++20", "-O1", "-w", "-fPIC", *map(str, arguments)], check=True)


@functools.cache
def _emulation(chip, *constants):
    """One for each of what a kernel depends on: compiled programs go on calling it."""
    del constants
    return Emulation(chip)


@contextlib.contextmanager
def emulated(
    blocks=8,
    shared=227 << 10,
    warps=2,
    held=tiling.MOST_HELD,
    polls=exchange.MOST_POLLS,
    lost=(),
    alone=False,
    ring=0,
    clusters=0,
):
    """Inside, implementation "gpu" runs on a CPU; on fewer warps, as all threads take turns.

    Args:
      blocks, shared: of the chip.
      warps, held, polls: ``tiling.WARPS``, ``tiling.MOST_HELD`` and ``exchange.MOST_POLLS``.
      lost: of each call, a publish that never arrives, counted from 1; below 0, what is sent in
        a cluster; 0 is none.
      alone: whether a block has all units where it can; else blocks always exchange.
      ring: places of the exchange; 0 for as many as there are steps.
      clusters: of the chip; if there are some, all blocks are in clusters.
    """
    chip = Chip(0 if clusters else blocks, shared, clusters=clusters)
    emulation = _emulation(chip, warps, held, polls, alone, ring)
    for kept in (emulation.launched, emulation.gave_up, emulation.results):
        kept.clear()
    emulation.lost = lost
    sizes = [(tiling, "WARPS", warps), (tiling, "MOST_HELD", held), (tiling, "ALONE", alone)]
    sizes += [(exchange, "MOST_POLLS", polls), (exchange, "RING", ring or 1 << 30)]
    sizes += [(exchange, "MOST_EXCHANGE", 0)]
    with instead((launch, "EMULATED", emulation), *sizes):
        yield emulation


class Made:
    """In place of a GPU, kernels are made and not run."""

    def __init__(self, chip):
        self.chip, self.texts, self.numbers = chip, [], []

    def __call__(self, text, shapes, args, numbers, **attributes):
        self.texts.append(text)
        self.numbers.append(launch.Numbers(*numbers.tolist()))
        used = sum(a.astype(jnp.complex64).sum().real for a in args)  # nothing is left out
        return [jnp.zeros(s.shape, s.dtype) + used.astype(s.dtype) for s in shapes]


@contextlib.contextmanager
def made(chip=chips.CHIPS["NVIDIA H200"]):
    """Inside, implementation "gpu" is lowered on a CPU, as for a chip: what is made for it."""
    found = Made(chip)
    with instead((launch, "EMULATED", found)):
        yield found
