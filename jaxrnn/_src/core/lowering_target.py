"""What a program is lowered for: whatever implementations choose by."""

import math
from typing import NamedTuple

from jax.sharding import AbstractMesh

from jaxrnn._src.core.typing import Device

PLATFORMS = ("cpu", "tpu", "cuda", "rocm")  # those that a program is lowered for


class Target(NamedTuple):
    """Where a program will run, as far as it is known.

    Attributes:
      platform: "cpu", "tpu", "cuda", "rocm"; "gpu" if nobody says of which kind; None for plain
        JAX of which only shapes are asked.
      chip: ``jax.Device.device_kind``; None if unknown.
      devices: over how many XLA divides the arrays; 1 inside of ``jax.shard_map``.
      exported: the program is kept, to run elsewhere.
      members: of an ensemble, those that run at once, by ``jax.vmap`` over weights.
      mesh: what these devices are, where arrays or ``jax.set_mesh`` say.
      mixed: inside of a ``jax.shard_map`` over some mesh axes, while XLA divides the arrays over
        others. JAX partitions no custom call there.
    """

    platform: str | None
    chip: str | None = None
    devices: int = 1
    exported: bool = False
    members: int = 1
    mesh: AbstractMesh | None = None
    mixed: bool = False


def of_lowering(platform, context):
    """The ``Target`` of what a lowering rule for ``platform`` is given."""
    module = context.module_context
    exported = module.lowering_parameters.for_export
    place = module.axis_context
    mesh = getattr(place, "mesh", None)
    if mesh is not None:  # inside of shard_map
        found = getattr(mesh, "abstract_mesh", mesh).abstract_device
        chip = found.device_kind if found is not None and _is_of(found, platform) else None
        count = divided_over(place)
        return Target(platform, chip, count, exported, mixed=count > 1)
    devices = getattr(place, "device_assignment", None) or ()
    chip = devices[0].device_kind if devices and _is_of(devices[0], platform) else None
    count, over = getattr(place, "num_devices", 1), getattr(place, "abstract_mesh", None)
    return Target(platform, chip, count, exported, mesh=over)


def divided_over(place):
    """Over how many devices XLA divides arrays inside of the ``jax.shard_map`` of a context."""
    automatic = set(place.mesh.axis_names) - set(place.manual_axes)
    return math.prod(place.mesh.shape[name] for name in automatic)


MIXED = "XLA divides the arrays over other mesh axes than those of the jax.shard_map around it"


def _is_of(device, platform):
    """Whether a device is of the platform that is lowered for: its own name may be "gpu"."""
    return device.platform == platform or (
        device.platform == "gpu" and platform in ("cuda", "rocm")
    )


def of_device(device: Device) -> Target:
    """The ``Target`` of a program for one device."""
    return Target(device.platform, device.device_kind)
