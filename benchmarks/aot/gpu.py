"""XLA's loop compiled for an H200 that is not there, and the kernels that a step of it launches.

XLA compiles for the GPU described in ``h200.txtpb``, and the launches of what it made are counted
(``aot.launches``). Where a step is small, launches are what its time goes into. On a GPU
XLA would time its libraries and tilings against each other and choose; here it chooses by its
model of the GPU, which can make a difference of a kernel a step.
"""

import contextlib
import functools
import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from benchmarks.aot import launches
from benchmarks.shared import machine
from benchmarks.shared.contenders import linen, ours, timed
from benchmarks.shared.shapes import Shape
from benchmarks.shared.timing import compiled

TARGET = Path(__file__).with_name("h200.txtpb")
# ``jax.lax.scan`` of jaxrnn's step, with JAX's own derivative.
scan = functools.partial(ours, implementation="reference")
loop = functools.partial(ours, implementation="xla")
CONTENDERS = {"jaxrnn": loop, "scan": scan, "linen": linen}
# With these XLA repeats what ptxas says of each kernel.
LOGGING = {"TF_CPP_MIN_LOG_LEVEL": "0", "TF_CPP_VMODULE": "subprocess_compilation=5"}
_REGISTERS = re.compile(r"Used (\d+) registers")
_SPILLS = re.compile(r"(\d+) bytes spill stores, (\d+) bytes spill loads")


class Case(NamedTuple):
    """A layer in a type, in one of two directions."""

    cell: str
    dtype: str
    shape: Shape
    direction: str

    def __str__(self):
        return f"h200  {self.cell:<5} {self.dtype:<9} {self.shape.name:<6} {self.direction}"


def prepare():
    """Sets what XLA's compiler reads when it is loaded."""
    os.environ.update(LOGGING)


def missing():
    """The requirements of compiling for an NVIDIA GPU that are not met."""
    version = machine.version("jaxlib")  # the plugin has to be of the same one
    needed = []
    if machine.version("jax-cuda13-plugin") != version:
        needed.append(f"jax-cuda13-plugin=={version}")
    if machine.version("nvidia-cuda-nvcc") is None and shutil.which("ptxas") is None:
        needed.append("nvidia-cuda-nvcc")
    return needed


def measure(case, contender):
    """A row: the launches of one program."""
    with heard() as said:
        text, seconds = layer(CONTENDERS[contender], case)
    found = launches.count(text)
    return {
        **case._asdict(),
        "shape": str(case.shape),
        "contender": contender,
        "a_step": found.a_step(case.shape.T),
        "outside": found.outside,
        "loops": found.loops,
        **used(said),
        "compile_seconds": seconds,
    }


@contextlib.contextmanager
def heard():
    """A list, to which comes what is written to standard error inside, by C++ too."""
    said, sys_error = [], os.dup(2)
    with tempfile.TemporaryFile("w+", errors="replace") as file:
        os.dup2(file.fileno(), 2)
        try:
            yield said
        finally:
            os.dup2(sys_error, 2)
            os.close(sys_error)
            file.seek(0)
            said.append(file.read())


def used(said):
    """The registers that ptxas gave, and what it spilled, by what was heard."""
    registers = [int(n) for n in _REGISTERS.findall(said[0])]
    spilled = sum(int(a) + int(b) for a, b in _SPILLS.findall(said[0]))
    return {"registers": max(registers, default=None), "spilled_bytes": spilled}


def layer(build, case, mesh=None):
    """The optimised HLO of a contender, and the seconds it took; a batch over a ``mesh``."""
    mesh = mesh or devices(1)
    shape, whole = case.shape, NamedSharding(mesh, PartitionSpec())
    apply, params = build(case.cell, shape, case.dtype)

    def array(sizes, sharding):
        return jax.ShapeDtypeStruct(sizes, case.dtype, sharding=sharding)

    params = jax.tree.map(lambda p: array(p.shape, whole), params)
    rows = NamedSharding(mesh, PartitionSpec(None, "batch"))
    data = [array((shape.T, shape.B, n), rows) for n in (shape.I, shape.H)]
    program, seconds = compiled(timed(apply, case.direction), params, *data)
    return program.as_text(), seconds


@functools.cache
def devices(count):
    """A mesh of H200s that need not be there; what is lowered for it is compiled for them."""
    topology = topologies.get_topology_desc(
        platform="cuda", target_config=TARGET.read_text(), topology=f"1x1x{count}"
    )
    return Mesh(np.array(topology.devices), ("batch",))
