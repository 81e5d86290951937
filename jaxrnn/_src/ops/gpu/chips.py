"""The GPUs that the kernel runs on: what CUDA's driver says of one that is here, else a table."""

import os
from collections.abc import Sequence
from typing import NamedTuple

import jax

from jaxrnn._src.core.lowering_target import Target
from jaxrnn._src.ops.gpu import compiler, library

KIB = 1 << 10
LEAST = 80  # of compute capabilities: the first with the kernel's matrix instructions
CLUSTER = 4  # blocks of a cluster
WITH_CLUSTERS = 90  # of compute capabilities: the first
# Environment: not 0 for plans with clusters, too, which no GPU has run yet.
CLUSTERS = "JAXRNN_GPU_CLUSTERS"


class Chip(NamedTuple):
    """What a kernel may take.

    Attributes:
      blocks: at a time: multiprocessors, each of which one block fills.
      shared: bytes of shared memory of a block.
      capability: compute capability, 10 * major + minor.
      clusters: of blocks, at a time; 0 where plans are not to have any.
    """

    blocks: int
    shared: int
    capability: int = 90
    clusters: int = 0

    @property
    def architecture(self) -> str:
        """What the machine code is for, as NVIDIA's compilers have it."""
        return f"sm_{self.capability}"


_A100, _ADA, _HOPPER, _BLACKWELL = (163, 80), (99, 89), (227, 90), (227, 100)
# Multiprocessors of GPUs by name, for programs that are compiled where there is none; a program
# for one that is here does not need it.
_TABLE = {
    "NVIDIA A100-SXM4-40GB": (108, _A100),
    "NVIDIA A100-SXM4-80GB": (108, _A100),
    "NVIDIA A100-PCIE-40GB": (108, _A100),
    "NVIDIA A100 80GB PCIe": (108, _A100),
    "NVIDIA L4": (58, _ADA),
    "NVIDIA L40S": (142, _ADA),
    "NVIDIA GeForce RTX 4090": (128, _ADA),
    "NVIDIA H100 80GB HBM3": (132, _HOPPER),
    "NVIDIA H100 NVL": (132, _HOPPER),
    "NVIDIA H100 PCIe": (114, _HOPPER),
    "NVIDIA H800": (132, _HOPPER),
    "NVIDIA H20": (78, _HOPPER),
    "NVIDIA H200": (132, _HOPPER),
    "NVIDIA H200 NVL": (132, _HOPPER),
    "NVIDIA GH200 120GB": (132, _HOPPER),
    "NVIDIA GH200 144G HBM3e": (132, _HOPPER),
    "NVIDIA GH200 480GB": (132, _HOPPER),
    "NVIDIA B200": (148, _BLACKWELL),
    "NVIDIA GeForce RTX 5090": (170, (99, 120)),
}
CHIPS = {
    name: Chip(blocks, shared * KIB, capability)
    for name, (blocks, (shared, capability)) in _TABLE.items()
}
GENERAL = CHIPS["NVIDIA H100 PCIe"]  # stands for a GPU in general


def find(target: Target) -> Chip | str:
    """What a kernel may take on a target, or why none can be launched there."""
    if target.chip is None:
        return GENERAL if target.platform == "gpu" else "nothing says for which chip it is"
    here = [d for d in _devices() if d.device_kind == target.chip]
    chip = asked([d.local_hardware_id for d in here]) if here else CHIPS.get(target.chip)
    if chip is None:
        return f"no {target.chip} is here to be asked, and the table of GPUs has none"
    if isinstance(chip, str):
        return chip
    if chip.capability < LEAST:
        return f"it needs {_version(LEAST)} as compute capability; this is {_named(chip)}"
    if chip.capability not in compiler.capabilities():
        return (
            f"NVRTC {'.'.join(map(str, compiler.version()))} compiles nothing for {_named(chip)}"
        )
    return chip


def unconfirmed(chip: Chip, confirmed: tuple[int, ...]) -> str | None:
    """Why a kernel runs on a chip on request only: its compute capability is not ``confirmed``."""
    if chip.capability in confirmed:
        return None
    return f"no GPU of {_named(chip)} has run it yet; implementation='gpu' tries"


def asked(ordinals: Sequence[int]) -> Chip | str:
    """What all of several GPUs have, by CUDA's numbers, or why nothing can run on them."""
    found = [library.facts(ordinal) for ordinal in ordinals]
    unknown = next((f for f in found if isinstance(f, str)), None)
    if unknown:
        return f"CUDA's driver says nothing of it: {unknown}"
    cuda, capability, blocks, shared, cooperative = map(min, zip(*found))
    if not cooperative:
        return "the driver launches no cooperative kernels on it"
    # Machine code of one version of CUDA runs with any driver of the same major version.
    major, minor = compiler.version()
    if major > cuda // 1000:
        knows = f"{cuda // 1000}.{cuda % 1000 // 10}"
        return f"NVRTC is of CUDA {major}.{minor}, and the driver knows CUDA {knows} at most"
    if os.environ.get(CLUSTERS, "0") == "0" or capability < WITH_CLUSTERS:
        return Chip(blocks, shared, capability)
    # Multiprocessors of a cluster lie together, so some are left over, on each GPU others.
    clusters = [library.clusters(ordinal, CLUSTER) for ordinal in ordinals]
    unknown = next((c for c in clusters if isinstance(c, str)), None)
    if unknown:
        return f"CUDA's driver says nothing of clusters, which {CLUSTERS} asks for: {unknown}"
    return Chip(blocks, shared, capability, min(*clusters, blocks // CLUSTER))


def _devices():
    try:
        return jax.local_devices(backend="gpu")
    except RuntimeError:  # there is no such backend
        return []


def _version(capability):
    return f"{capability // 10}.{capability % 10}"


def _named(chip):
    return f"compute capability {_version(chip.capability)}"
