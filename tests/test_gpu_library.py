"""What hands kernels to CUDA's driver (``native/gpu/gpu.cc``), with a stub for a driver."""

import os
import pathlib
import subprocess
import sys

import jax
import pytest

from jaxrnn._src.ops.gpu import launch
from jaxrnn._src.ops.recurrence.gpu import exchange

HERE = pathlib.Path(__file__).parent


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    """The folder with the stub; who is to find it there, has it in LD_LIBRARY_PATH."""
    folder = tmp_path_factory.mktemp("driver")
    build("-fPIC", "-shared", HERE / "stub_cuda.cc", "-o", folder / "libcuda.so.1")
    return folder


def build(*arguments):
    subprocess.run(["g++", "-std=c++17", "-w", *map(str, arguments)], check=True)


def with_stub(driver, command, **environment):
    """What a command writes; it finds the stub, which ``environment`` describes."""
    given = os.environ | {"LD_LIBRARY_PATH": str(driver), **environment}
    done = subprocess.run(command, env=given, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_calls(driver):
    """Loaded once, launched as often as needed; who gave up is told at the next call."""
    program = driver / "driven"
    include = "-isystem", jax.ffi.include_dir()
    build(HERE / "driven.cc", "-o", program, "-ldl", *include)
    with_stub(driver, [program])


def test_both_sides_of_a_call_have_the_same_sizes():
    """Python's, the library's and the kernels': the driver compares nothing."""
    beside = lambda module, name: pathlib.Path(module.__file__).with_name(name).read_text()
    library = (HERE.parent / "native/gpu/gpu.cc").read_text()
    assert f"constexpr int kMostArrays = {launch.MOST_ARRAYS};" in library
    assert f"constexpr int FLAG = {exchange.FLAG};" in beside(exchange, "exchange.cu")
    fields = "  int steps, rows, tiles, groups;\n  int first;"
    assert fields in library and fields in beside(launch, "device.cu")


ASK = """
from jaxrnn._src.ops.gpu import compiler, library

compiler.library = lambda: "some NVRTC"
assert library.missing() is None, library.missing()
print(*library.facts(0), sep=",")
print(library.facts(1))
print(library.clusters(0, 4))
"""


def test_facts(driver):
    """As Python gets them; of a process that MPS confines, the multiprocessors it may use."""
    gpu = driver / "gpu.so"
    build(
        "-fPIC",
        "-shared",
        "-fvisibility=hidden",
        HERE.parent / "native/gpu/gpu.cc",
        "-o",
        gpu,
        "-ldl",
        "-isystem",
        jax.ffi.include_dir(),
    )
    said = with_stub(
        driver,
        [sys.executable, "-c", ASK],
        JAXRNN_GPU_LIBRARY=str(gpu),
        STUB_DRIVER="12080",
        STUB_CAPABILITY="89",
        STUB_MULTIPROCESSORS="142",
        STUB_SHARED="101376",
        STUB_AFFINITY="71",
        STUB_COOPERATIVE="0",
        STUB_CLUSTERS="17",
    )
    assert said.splitlines() == ["12080,89,71,101376,0", "as the stub wants", "17"]
