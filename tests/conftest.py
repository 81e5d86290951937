"""What holds for every test: eight CPU devices, strict types and ranks."""

import gc
import importlib.metadata
import os
import pathlib

# Thousands of tiny programs are compiled: LLVM's optimisations would take most of the time. XLA's
# own passes, which rewrite programs and could get one wrong, all run.
FLAGS = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
MAPS = 40_000  # at most so many memory maps, of which a process may have 65,530
# The CPU's older code generator takes a third of the time, and a program in one piece less than
# one cut up for many threads. Newer versions, of which CI runs the newest, no longer have either.
if importlib.metadata.version("jaxlib").startswith("0.10."):
    FLAGS += " --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
    MAPS = 12_000  # as many programs, and as much memory, have fewer
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {FLAGS}"
os.environ.setdefault("KERAS_BACKEND", "jax")

import jax
import pytest

from jaxrnn._src.ops import native

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


def pytest_addoption(parser):
    parser.addoption(
        "--cells",
        choices=("few", "usual", "all"),
        default="usual",
        help="few: one or more cells of each builder; usual: all, some of them held to all laws;"
        " all: the full cross product",
    )


def pytest_configure(config):
    import cases  # not before the environment is set

    cases.CHOSEN = config.getoption("--cells")


@pytest.fixture
def x64():
    """Float64 is the default type inside the test."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def plain_jax():
    """JAX's defaults, as a user has them: types and ranks are promoted."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def pytest_collection_modifyitems(items):
    """A file's tests of one cell follow each other: what one compiled, the next need not."""
    name = lambda item: getattr(item, "callspec", None) and item.callspec.params.get("name")
    items.sort(key=lambda item: (item.path, str(name(item) or "")))


def pytest_collection_finish():
    """What was imported stays, and is not looked at again by each collection of garbage."""
    gc.freeze()


_MAPS = pathlib.Path("/proc/self/maps")


def pytest_runtest_teardown():
    """Lets go of compiled programs: each holds memory, and memory maps."""
    if _MAPS.exists() and _MAPS.read_bytes().count(b"\n") > MAPS:
        jax.clear_caches()


def pytest_report_header():
    lines = []
    if native.library().missing:
        lines.append(f"jaxrnn: implementation cpu NOT tested: {native.library().missing}")
    return lines
