"""Which GPUs the kernel runs on, and where its machine code is kept."""

import concurrent.futures
import hashlib
import os
import re
import threading
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from instead import instead

import jaxrnn
from jaxrnn._src.core.lowering_target import Target
from jaxrnn._src.ops.gpu import chips, compiler, cubins, library
from jaxrnn._src.ops.gpu.chips import CHIPS, KIB, Chip
from jaxrnn._src.ops.gpu.library import Facts

HOPPER = Facts(cuda=13000, capability=90, multiprocessors=132, shared=227 * KIB, cooperative=1)
ALL = 80, 89, 90, 100, 120


def found(*facts, name="a name", capabilities=ALL, version=(13, 0)):
    """What is found out of GPUs, each with its facts."""
    devices = [
        types.SimpleNamespace(device_kind="a name", local_hardware_id=i) for i in range(len(facts))
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chips, "_devices", lambda: devices)
        patch.setattr(library, "facts", lambda ordinal: facts[ordinal])
        patch.setattr(compiler, "version", lambda: version)
        patch.setattr(compiler, "capabilities", lambda: capabilities)
        return chips.find(Target("cuda", name))


def test_a_chip_is_what_the_driver_says():
    """Whatever its name is; of several, what all have; of a part of one, that part."""
    assert found(HOPPER) == Chip(132, 227 * KIB, 90)
    part = HOPPER._replace(multiprocessors=16)
    assert found(HOPPER, part) == Chip(16, 227 * KIB, 90)
    ada = Facts(12040, 89, 58, 99 * KIB, 1)
    assert found(ada, version=(12, 9)) == Chip(58, 99 * KIB, 89)
    assert found(ada, version=(12, 9)).architecture == "sm_89"


def test_clusters_on_request(monkeypatch):
    """As many as the driver says, of the GPU that has the fewest; else none."""
    said = {0: 32, 1: 31}
    monkeypatch.setattr(library, "clusters", lambda ordinal, size: said[ordinal])
    assert found(HOPPER).clusters == 0
    monkeypatch.setenv(chips.CLUSTERS, "1")
    assert found(HOPPER).clusters == 32 and found(HOPPER, HOPPER).clusters == 31
    assert found(HOPPER._replace(multiprocessors=16)).clusters == 4
    assert found(HOPPER._replace(capability=80)).clusters == 0
    said[0] = "a reason"
    assert found(HOPPER).endswith("clusters, which JAXRNN_GPU_CLUSTERS asks for: a reason")
    monkeypatch.setenv(chips.CLUSTERS, "0")
    assert found(HOPPER).clusters == 0


@pytest.mark.parametrize(
    ("facts", "given", "why"),
    [
        (HOPPER._replace(cooperative=0), {}, "no cooperative kernels"),
        (HOPPER._replace(capability=75), {}, "needs 8.0 as compute capability; this is compute"),
        (HOPPER._replace(cuda=12090), {}, "NVRTC is of CUDA 13.0, and the driver knows CUDA 12.9"),
        (HOPPER._replace(capability=100), {"capabilities": (80, 90)}, "nothing for compute"),
        ("no device", {}, "CUDA's driver says nothing of it: no device"),
        (HOPPER, {"name": "another"}, "no another is here to be asked"),
    ],
)
def test_what_cannot_be_launched_is_known_before(facts, given, why):
    assert why in found(facts, **given)


def test_a_driver_may_be_newer_and_a_minor_version_older():
    assert isinstance(found(HOPPER, version=(12, 9)), Chip)
    assert isinstance(found(HOPPER, version=(13, 2)), Chip)


def test_a_table_has_what_is_not_here():
    """Every GPU of it holds a common layer; those of other architectures run it on request."""
    device = lambda name: types.SimpleNamespace(platform="gpu", device_kind=name)
    cell = jaxrnn.lstm(256)
    params, xs = cell.init(jax.random.key(0), 8), jnp.ones((3, 4, 8))
    nothing_missing = (library, "missing", lambda: None)
    with instead(nothing_missing, (compiler, "capabilities", lambda: ALL)):
        for name, chip in CHIPS.items():
            asked = jaxrnn.explain(cell, params, xs, platform=device(name), implementation="gpu")
            assert asked.choices[0].runs == "gpu"
            (choice,) = jaxrnn.explain(cell, params, xs, platform=device(name)).choices
            assert choice.runs == ("gpu" if chip.capability == 90 else "xla")
            assert choice.runs == "gpu" or "has run it yet" in choice.others["gpu"]
        (choice,) = jaxrnn.explain(cell, params, xs, platform=device("NVIDIA T4")).choices
        assert "no NVIDIA T4 is here to be asked" in choice.others["gpu"]


@pytest.fixture
def compiling(tmp_path, monkeypatch):
    """What is compiled, with machine code that tells one source from another."""
    made = []

    def compiled(source, architecture):
        made.append((source, architecture))
        return np.frombuffer(
            hashlib.sha512(f"{source}{architecture}".encode()).digest(), np.int32
        ), ""

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(compiler, "compiled", compiled)
    monkeypatch.setattr(compiler, "version", lambda: (13, 0))
    yield made
    cubins.machine_code.cache_clear()


def code(*given):
    """As a new process gets it."""
    cubins.machine_code.cache_clear()
    return cubins.machine_code(*given).tobytes()


def test_a_kernel_is_compiled_once(compiling, tmp_path, monkeypatch):
    first = code("a", "sm_90")
    assert code("a", "sm_90") == first and compiling == [("a", "sm_90")]
    others = ("b", "sm_90"), ("a", "sm_80")
    assert len({first, *(code(*other) for other in others)}) == 3
    assert compiling == [("a", "sm_90"), *others]
    monkeypatch.setattr(compiler, "version", lambda: (13, 1))
    code("a", "sm_90")
    assert len(compiling) == 4
    assert len(list(tmp_path.rglob("*"))) == 2 + 4  # folders and kernels, no temporary file


def test_threads_that_want_the_same_kernel_at_once(compiling, tmp_path):
    """All get the same, and one whole file is left of it."""
    want = code("a", "sm_90")
    (path,) = tmp_path.rglob("*.cubin")
    whole = path.read_bytes()
    path.unlink()
    cubins.machine_code.cache_clear()
    together = threading.Barrier(8)

    def get(_):
        together.wait()
        return cubins.machine_code("a", "sm_90").tobytes()

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert set(pool.map(get, range(8))) == {want}
    assert [file.read_bytes() for file in path.parent.iterdir()] == [whole]


def test_a_call_hands_over_machine_code_and_its_hash(compiling):
    """Each kernel is compiled once, when it is lowered; shapes alone compile nothing."""
    cell = jaxrnn.lstm(32)
    params = jax.eval_shape(lambda: cell.init(jax.random.key(0), 8))
    loss = lambda params, xs: jaxrnn.unroll(cell, params, xs, implementation="gpu")[1].sum()
    run, xs = jax.jit(jax.grad(loss)), jax.ShapeDtypeStruct((3, 4, 8), jnp.float32)
    found = (chips, "find", lambda target: CHIPS["NVIDIA H200"])
    with instead((library, "missing", lambda: None), found):
        jax.eval_shape(run, params, xs)
        traced = run.trace(params, xs)
        assert not compiling
        text = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert len(compiling) == 2
    codes = [compiler.compiled(*kernel)[0].tobytes() for kernel in compiling[:2]]
    numbers = re.findall(r"numbers = dense<\[(.*?)\]> : tensor<12xi64>", text)
    numbers = [list(map(int, some.split(", "))) for some in numbers]
    hashes = {np.array(some[-2:]).tobytes() for some in numbers}
    assert hashes == {hashlib.sha256(code).digest()[:16] for code in codes}


@pytest.mark.parametrize("left", [0, 20, 40])
def test_a_file_that_was_cut_off_is_made_anew(compiling, tmp_path, left):
    whole = code("a", "sm_90")
    (path,) = tmp_path.rglob("*.cubin")
    os.truncate(path, left)
    for _ in range(2):
        assert code("a", "sm_90") == whole and len(compiling) == 2


def test_the_oldest_files_go(compiling, tmp_path, monkeypatch):
    monkeypatch.setattr(cubins, "_MOST", 3)
    for source in "abcde":
        code(source, "sm_90")
        for path in tmp_path.rglob("*.cubin"):
            os.utime(path, (0, path.stat().st_mtime - 9))
    assert len(list(tmp_path.rglob("*.cubin"))) == 3 and len(compiling) == 5
    for source in "edc":
        code(source, "sm_90")
    assert len(compiling) == 5, "those that are left are the last three"


def test_a_folder_that_is_none_costs_time_alone(compiling, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert code("a", "sm_90") == code("a", "sm_90") and len(compiling) == 2


def test_a_user_without_a_home_waits_for_the_compiler(compiling, monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", {}.__getitem__)  # as in a container with any user's number
    assert code("a", "sm_90") == code("a", "sm_90") and len(compiling) == 2
