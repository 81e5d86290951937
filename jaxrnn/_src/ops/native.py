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

# Environment variables.
ISA = "JAXRNN_CPU_ISA"  # chooses an instruction set
FILE = "JAXRNN_CPU_LIBRARY"  # another library than the installed one: for tests and benchmarks


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


def file(name: str = "cpu.so", variable: str = FILE) -> pathlib.Path | None:
    """Where a library is, None if nowhere; the environment's ``variable`` may say."""
    given = os.environ.get(variable)
    if given:
        return pathlib.Path(given).absolute()
    # An editable installation has the library in another directory than the sources.
    paths = sys.modules[str(__package__)].__path__
    files = [pathlib.Path(path, "lib", name) for path in paths]
    return next((f for f in files if f.exists()), None)


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
    for name in ("forward", "backward", "evaluate"):
        handler = jax.ffi.pycapsule(getattr(lib, f"jaxrnn_{name}"))
        jax.ffi.register_ffi_target(f"jaxrnn_{name}", handler, platform="cpu")

    def names(function):
        function.restype = ctypes.c_char_p
        return tuple(filter(None, function().decode().split(",")))

    most = {
        name: ctypes.c_int32.in_dll(lib, f"jaxrnn_most_{name.replace(' ', '_')}").value
        for name in ("states", "gates", "unit weights", "registers")
    }
    return Library(None, names(lib.jaxrnn_operations), names(lib.jaxrnn_instruction_sets), most)


def why_none(name: str = "cpu.so") -> str:
    """Why a library is not beside the sources that were imported."""
    here = pathlib.Path(sys.modules[str(__package__)].__path__[0]).parents[1]
    try:
        installed = importlib.metadata.distribution("jaxrnn").files or ()
    except importlib.metadata.PackageNotFoundError:
        return f"jaxrnn is not installed, only imported from {here}: pip install it"
    built = next((f.locate() for f in installed if f.name == name), None)
    if built is None:
        return "it was not built when jaxrnn was installed, which takes a C++17 compiler"
    return (
        f"jaxrnn was imported from {here}, which has no compiled library; the installed one is"
        f" {built}: start Python in another directory, or install with pip install --editable"
    )


def _without(why):
    logging.getLogger("jaxrnn").warning(
        "the kernel for CPUs is missing, XLA runs instead: %s", why
    )
    return Library(why)


def instruction_set() -> str:
    """The one asked for in the environment; "" is the best of whichever machine runs a program."""
    return os.environ.get(ISA, "")
