"""What hands kernels to CUDA's driver (``native/gpu/gpu.cc``), with a stub for a driver."""

import os
import pathlib
import subprocess

import jax
import pytest

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
