"""The machine and the versions that a result belongs to."""

import importlib.metadata
import os
import platform
from pathlib import Path

import jax

from jaxrnn._src.ops import native

PACKAGES = ("jaxrnn", "jax", "jaxlib", "flax", "optax")


def describe(packages=PACKAGES, device=None):
    """What to write beside a result, a dict for JSON.

    Args:
      packages: names of packages whose versions matter; None stands for one not installed.
      device: the ``jax.Device`` that ran; None for JAX's default.
    """
    device = device or jax.devices()[0]
    return {
        "cpu": _cpu(),
        "cores": cores(),
        "instruction_sets": instruction_sets(),
        "held_to": native.instruction_set() or None,
        "memory_bytes": _memory(),
        "system": f"{platform.system()} {platform.machine()}",
        "platform": device.platform,
        "device": device.device_kind,
        "python": platform.python_version(),
        "versions": {name: version(name) for name in packages},
        "load": list(os.getloadavg()) if hasattr(os, "getloadavg") else None,
    }


def same(one, other):
    """Whether two results of ``describe`` are of one machine, with the same versions."""
    names = ("cpu", "cores", "instruction_sets", "held_to", "device", "python", "versions")
    return all(one.get(name) == other.get(name) for name in names)


def load():
    """How many processes wanted a core, over the last minute; None where nobody says."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def line(about):
    """``describe``'s result in one line, for titles."""
    where = about["cpu"] if about["platform"] == "cpu" else about["device"]
    known = {name: about["versions"][name] for name in ("jaxrnn", "jax")}
    versions = ", ".join(f"{name} {version}" for name, version in known.items() if version)
    return f"{where}, {about['cores']} cores, {versions}, Python {about['python']}"


def version(name):
    """Of an installed package; None if it is not installed."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def cores():
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def free_memory(device):
    """The bytes a program may still take on ``device``, or None where nobody says."""
    stats = device.memory_stats()
    if stats is not None and "bytes_limit" in stats:
        return stats["bytes_limit"] - stats["bytes_in_use"]
    if device.platform != "cpu":
        return None
    free = [_meminfo("MemAvailable"), _group_memory()]
    return min((f for f in free if f is not None), default=None)


def _cpu():
    for text in _lines("/proc/cpuinfo"):
        if text.startswith("model name"):
            return text.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def instruction_sets():
    """This CPU's that jaxrnn's kernel is made for, the best first; None without a kernel."""
    library = native.library()
    return None if library.missing else list(library.instruction_sets)


def _memory():
    total = _meminfo("MemTotal")
    if total is None and "SC_PHYS_PAGES" in os.sysconf_names:
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return total


def _meminfo(name):
    for text in _lines("/proc/meminfo"):
        if text.startswith(f"{name}:"):
            return int(text.split()[1]) * 1024
    return None


def _group_memory():
    """What is left of the limit of this process's control group, as in a container."""
    limit, used = ("".join(_lines(f"/sys/fs/cgroup/memory.{f}")) for f in ("max", "current"))
    if not limit.isdigit() or not used:
        return None
    stat = dict(text.split() for text in _lines("/sys/fs/cgroup/memory.stat"))
    return int(limit) - int(used) + int(stat.get("inactive_file", 0))  # files it can let go of


def _lines(path):
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []
