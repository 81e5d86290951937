"""What hands kernels to CUDA's driver (``native/gpu/gpu.cc``), with a stub for a driver."""

import os
import pathlib
import re
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import pytest
from instead import instead

import jaxrnn
from jaxrnn._src.ops import native
from jaxrnn._src.ops.gpu import compiler, launch, library
from jaxrnn._src.ops.recurrence.gpu import exchange

HERE = pathlib.Path(__file__).parent
H100 = "NVIDIA H100 80GB HBM3"


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
    source = (HERE.parent / "native/gpu/gpu.cc").read_text()
    assert f"constexpr int kMostArrays = {launch.MOST_ARRAYS};" in source
    assert f"constexpr int FLAG = {exchange.FLAG};" in beside(exchange, "exchange.cu")
    fields = "  int steps, rows, tiles, groups;\n  int first;"
    assert fields in source and fields in beside(launch, "device.cu")


@pytest.mark.parametrize(
    ("nvrtc", "file", "why"),
    [
        (None, "libc.so.6", "there is no NVRTC (nvidia-cuda-nvrtc), which comes with jax[cuda12]"),
        ("some NVRTC", "of_no_name.so", "its library cannot be loaded: of_no_name.so"),
        ("some NVRTC", "libc.so.6", "another jaxrnn: it has no jaxrnn_gpu_facts"),
        ("some NVRTC", None, "why there is none"),
    ],
)
def test_what_is_missing_is_known_before(nvrtc, file, why):
    """XLA runs and says why; who asks for the kernel by name gets the reason."""
    nothing = lambda name: "why there is none"
    found = (native, "file", lambda *_: file and pathlib.Path(file)), (native, "why_none", nothing)
    with instead((compiler, "library", lambda: nvrtc), *found):
        missing = library._loaded.__wrapped__()
    assert why in missing
    cell, device = jaxrnn.lstm(8), types.SimpleNamespace(platform="gpu", device_kind=H100)
    layer = cell, cell.init(jax.random.key(0), 3), jnp.ones((2, 3, 3))
    with instead((library, "_loaded", lambda: missing)):
        (choice,) = jaxrnn.explain(*layer, platform=device).choices
        assert choice.runs == "xla" and choice.others["gpu"] == missing
        with pytest.raises(ValueError, match=re.escape(missing)):
            jaxrnn.explain(*layer, platform=device, implementation="gpu")


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
