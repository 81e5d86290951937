"""The compiled part of the ``cpu`` implementation: is it here, and what can it do?"""

import ctypes
import functools
import importlib.metadata
import logging
import os
import pathlib
import sys
from collections.abc import Mapping
from typing import NamedTuple

import jax

from jaxrnn._src.core import dispatch
from jaxrnn._src.core.lowering_target import MIXED
from jaxrnn._src.ops import row_partition

# Environment variables.
ISA = "JAXRNN_CPU_ISA"  # chooses an instruction set
FILE = "JAXRNN_CPU_LIBRARY"  # another library than the installed one: for tests and benchmarks

# Which exported programs may hold.
CALLS = (
    *("forward", "backward", "linear_scan_forward", "linear_scan_backward"),
    *("matrix_memory_forward", "matrix_memory_backward", "attend_forward", "attend_backward"),
    "loop",
)
_FUNCTIONS = (*CALLS, "evaluate")


def exported(name):
    """What a call is named in an exported program: of this version, which alone can read it."""
    return f"jaxrnn_{name}_{sys.modules['jaxrnn'].__version__}"


def call_name(name):
    """What a call is named in a program that is lowered now."""
    return exported(name) if dispatch.keeping_kernels.value else f"jaxrnn_{name}"


def call(name, args, out, **attributes):
    """One call of the library, by rows: see ``row_partition.call``.

    Args:
      name: one of ``_FUNCTIONS``.
      args, out: an ``Argument`` each, a ``Result`` each.
      attributes: of the call, by the names that the C++ knows them by.
    """
    target, isa = call_name(name), instruction_set()

    def launch(shapes, args, members, rows):
        del members, rows  # the shapes say
        return jax.ffi.ffi_call(target, shapes)(*args, isa=isa, **attributes)

    return row_partition.call(launch, args, out)


class Library(NamedTuple):
    """What was loaded.

    Attributes:
      missing: why nothing was; then the others are empty.
      operations: the names of what a program can be made of, in the order of their numbers.
      instruction_sets: those of this machine, the best first.
      most: what the kernel was made for: how many states, gates, unit weights, registers.
    """

    missing: str | None
    operations: tuple[str, ...] = ()
    instruction_sets: tuple[str, ...] = ()
    most: Mapping[str, int] = {}


# What calls each library, and writes what a call says: built for another, it would misread that.
CALLERS = {
    "cpu.so": (
        *("native.py", "recurrence/cpu.py", "attention/cpu.py", "linear_scan/cpu.py"),
        *("matrix_memory/cpu.py", "step_loop/cpu.py", "step_loop/parts.py"),
    ),
    "gpu.so": ("gpu/launch.py",),
}


def file(name: str = "cpu.so", variable: str = FILE) -> pathlib.Path | None:
    """Where a library is, None if nowhere.

    The environment's ``variable`` may say. Otherwise it is beside the sources; or, as those of a
    clone in which Python was started have none, it is the installed one, if it fits them.
    """
    given = os.environ.get(variable)
    if given:
        return pathlib.Path(given).absolute()
    # An editable installation has the library in another directory than the sources.
    paths = sys.modules[str(__package__)].__path__
    files = [pathlib.Path(path, "lib", name) for path in paths]
    beside = next((f for f in files if f.exists()), None)
    return beside or _installed(name)[0]


@functools.cache
def library() -> Library:
    """Loads the library once and tells XLA of its functions; if there is none, logs why."""
    found = file()
    if found is None:
        return _without(why_none())
    try:
        lib = ctypes.CDLL(str(found))
    except OSError as error:
        return _without(f"its library cannot be loaded: {error}")
    lacks = [name for name in _FUNCTIONS if not hasattr(lib, f"jaxrnn_{name}")]
    if lacks:
        return _without(f"{found} was built for another jaxrnn: it has no jaxrnn_{lacks[0]}")
    for name in _FUNCTIONS:
        handler = jax.ffi.pycapsule(getattr(lib, f"jaxrnn_{name}"))
        for target in (f"jaxrnn_{name}", exported(name)):
            jax.ffi.register_ffi_target(target, handler, platform="cpu")

    def names(function):
        function.restype = ctypes.c_char_p
        return tuple(filter(None, function().decode().split(",")))

    most = {
        name: ctypes.c_int32.in_dll(lib, f"jaxrnn_most_{name.replace(' ', '_')}").value
        for name in ("states", "gates", "unit weights", "registers")
    }
    return Library(None, names(lib.jaxrnn_operations), names(lib.jaxrnn_instruction_sets), most)


def why_none(name: str = "cpu.so") -> str:
    """Why there is no library for the sources that were imported."""
    return str(_installed(name)[1])


def _installed(name: str) -> tuple[pathlib.Path | None, str | None]:
    """The installed distribution's library, None if there is none that fits; and then why."""
    here = pathlib.Path(sys.modules[str(__package__)].__path__[0])
    root, package = here.parents[2], sys.modules["jaxrnn"]
    try:
        installed = importlib.metadata.distribution("jaxrnn")
    except importlib.metadata.PackageNotFoundError:
        return None, f"jaxrnn is not installed, only imported from {root}: pip install it"
    files = {str(file): file.locate() for file in installed.files or ()}
    built = next((path for file, path in files.items() if file.endswith(f"/lib/{name}")), None)
    if built is None:
        return None, "it was not built when jaxrnn was installed, which takes a C++17 compiler"
    again = f"the installed library is {built}, built for"
    if installed.version != package.__version__:
        version = f"jaxrnn {installed.version}, not for {package.__version__}"
        return None, f"{again} {version} as imported from {root}: pip install that one"
    for caller in CALLERS[name]:
        # An editable installation has no file of it: its sources are those that were imported.
        theirs = files.get(f"jaxrnn/_src/ops/{caller}") or here / caller
        if pathlib.Path(theirs).read_bytes() != (here / caller).read_bytes():
            other = f"other sources than those in {root}: pip install them again"
            return None, f"{again} {other}"
    return pathlib.Path(built), None


def _without(why):
    logging.getLogger("jaxrnn").warning(
        "the kernel for CPUs is missing, XLA runs instead: %s", why
    )
    return Library(why)


def unsupported(target) -> str | None:
    """Why no kernel of the library can run on a ``Target``, or None."""
    if target.platform != "cpu":
        return f"it is for CPUs, not for {target.platform}"
    if target.mixed:
        return MIXED
    if library().missing:
        return library().missing
    asked = instruction_set()
    if asked and asked not in library().instruction_sets:
        return f"{ISA} is {asked!r}; this machine has {library().instruction_sets}"
    return None


def instruction_set() -> str:
    """The one asked for in the environment; "" is the best of whichever machine runs a program."""
    return os.environ.get(ISA, "")
