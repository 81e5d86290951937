"""What holds for every test: eight CPU devices, strict types and ranks."""

import importlib.metadata
import os
import pathlib

# Thousands of tiny programs are compiled: LLVM's optimisations would take most of the time. XLA's
# own passes, which rewrite programs and could get one wrong, all run.
FLAGS = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
# The CPU's older code generator takes a third of the time. Newer versions, of which CI runs the
# newest, no longer have it.
if importlib.metadata.version("jaxlib").startswith("0.10."):
    FLAGS += " --xla_cpu_use_fusion_emitters=false"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {FLAGS}"
os.environ.setdefault("KERAS_BACKEND", "jax")

import jax
import pytest

from jaxrnn.recurrence import native

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


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


_MAPS = pathlib.Path("/proc/self/maps")


def pytest_runtest_teardown():
    """Lets go of compiled programs: each holds memory maps, and a process may have 65,530."""
    if _MAPS.exists() and _MAPS.read_bytes().count(b"\n") > 40_000:
        jax.clear_caches()


def pytest_report_header():
    missing = native.library().missing
    return f"jaxrnn: implementation cpu NOT tested: {missing}" if missing else None
