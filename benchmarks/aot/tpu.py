"""A layer compiled for a TPU that is not there, and the least that a step of it can take."""

import atexit
import functools
import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

import jaxrnn
from benchmarks.aot import schedule
from benchmarks.shared.timing import compiled

STEPS = 384  # T: a number that no other size is, so that it can be told in a shape


class Chip(NamedTuple):
    """A kind of TPU.

    Attributes:
      topology: to compile for.
      bandwidth: bytes of HBM a second.
      clock: cycles a second, None if unknown.
    """

    topology: str
    bandwidth: float
    clock: float | None


CHIPS = {
    "v4": Chip("v4:2x2x1", 1.23e12, 1.05e9),
    "v5e": Chip("v5e:2x2", 0.82e12, 1.5e9),
    "v5p": Chip("v5p:2x2x1", 2.46e12, 1.75e9),
    "v6e": Chip("v6e:2x2", 1.64e12, 1.75e9),
    "tpu7x": Chip("tpu7x:2x2x1", 3.7e12, None),
}
# Ours; XLA's loop as this library arranges it; XLA's loop of the step, with JAX's own derivative.
CONTENDERS = {"tpu": "tpu", "xla": "xla", "scan": "reference"}


def mgu_update(state, x, r):
    """The cell of the README."""
    (h,), (xf, xn), (rf, rn) = state, x, r
    f = jax.nn.sigmoid(xf + rf)
    n = jnp.tanh(xn + f * rn)
    return (h + f * (n - h),)


CELLS = {
    "lstm": jaxrnn.lstm,
    "gru": jaxrnn.gru,
    "elman": jaxrnn.elman,
    "mgu": jaxrnn.gated(mgu_update, gates=2),
}


class Case(NamedTuple):
    """A layer of as many inputs as units, in bfloat16."""

    chip: str
    cell: str
    H: int
    B: int
    heads: int = 1

    def __str__(self):
        heads = f" heads={self.heads}" if self.heads > 1 else ""
        return f"{self.chip:<5} {self.cell:<5} H={self.H:<4} B={self.B:<3}{heads}"


def prepare():
    """Sets what libtpu reads when it is loaded; the folder it will write to until the end."""
    folder = Path(tempfile.mkdtemp(prefix="jaxrnn-aot-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    os.environ |= {
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # no TPU is taken
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_ACCELERATOR_TYPE": "v5litepod-4",
        "LIBTPU_INIT_ARGS": schedule.DUMP.format(folder),
    }
    return folder


def measure(case, contender, folder):
    """A row: value and grad of one layer, and of each of its two loops what a step takes.

    Of ours the gradient of the state is enough: both kernels are whole, and compiling them is
    timed without XLA's products after them.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    device = topology(CHIPS[case.chip].topology).devices[0]
    wanted = 2 if contender == "tpu" else (0, 1)
    place = SingleDeviceSharding(device)
    program, seconds = _layer(case, CONTENDERS[contender], place, wanted=wanted)
    text, kernels = program.as_text(), schedule.programs(folder)
    if contender == "tpu":
        steps = [_ours(text, kernels, way, case.B) for way in ("forward", "backward")]
    else:
        steps = schedule.loops(text, kernels, STEPS)
    forward, backward = (_row(case.chip, step) for step in steps)
    return {
        **case._asdict(),
        "contender": contender,
        "forward": forward,
        "backward": backward,
        "compile_seconds": seconds,
        "vmem": _vmem(text) if contender == "tpu" else None,
        "temporary_bytes": program.memory_analysis().temp_size_in_bytes,
    }


def sharded(chip="v5e"):
    """Rows: a batch over eight devices, under plain ``jit`` and in a ``shard_map``."""
    devices = np.array(topology(f"{chip}:2x4").devices)
    mesh = Mesh(devices, ("batch",))
    rows, whole = PartitionSpec(None, "batch"), PartitionSpec()
    case = Case(chip, "lstm", 512, 128)
    place = NamedSharding(mesh, whole), NamedSharding(mesh, rows)

    def mapped(function):
        def each(*args):
            value, (d_params, d_xs) = function(*args)
            value, d_params = jax.lax.psum((value, d_params), "batch")
            return value, (d_params, d_xs)

        out = whole, (whole, rows)
        first = PartitionSpec("batch")
        specs = dict(in_specs=(whole, rows, first, rows), out_specs=out, check_vma=False)
        return jax.shard_map(each, mesh=mesh, **specs)

    found = []
    for how, wrap in (("jit", lambda function: function), ("shard_map", mapped)):
        program, seconds = _layer(case, None, *place, wrap)
        text = program.as_text()
        found.append(
            {
                **case._asdict(),
                "devices": devices.size,
                "how": how,
                "kernel": "recur_forward" in text,
                "gathers": text.count(" all-gather"),
                "compile_seconds": seconds,
            }
        )
    return found


def _layer(case, implementation, place, rows=None, wrap=lambda function: function, wanted=(0, 1)):
    """The compiled program and the seconds it took.

    ``wanted`` are the arguments of which gradients are: parameters, xs, state.
    """
    cell = CELLS[case.cell](case.H, heads=case.heads)

    def on_device(tree, sharding, dtype=jnp.bfloat16):
        array = lambda a: jax.ShapeDtypeStruct(a.shape, dtype, sharding=sharding)  # noqa: E731
        return jax.tree.map(array, tree)

    params = jax.eval_shape(lambda: cell.init(jax.random.key(0), case.H))
    state = jax.eval_shape(lambda p: cell.initial_state(p, (case.B,)), params)
    xs = jax.ShapeDtypeStruct((STEPS, case.B, case.H), jnp.bfloat16)

    def loss(params, xs, state, weights):
        ys = jaxrnn.unroll(cell, params, xs, state, implementation=implementation)[1]
        return (ys.astype(jnp.float32) * weights.astype(jnp.float32)).sum()

    function = wrap(jax.value_and_grad(loss, wanted))
    params, xs = on_device(params, place), on_device(xs, rows or place)
    batch = place if rows is None else NamedSharding(rows.mesh, PartitionSpec(*rows.spec[1:]))
    return compiled(function, params, xs, on_device(state, batch, jnp.float32), xs)


def _ours(text, kernels, way, batch):
    """The ``Step`` of one of our kernels.

    Its name says the rows and steps of a tile and, if it takes the input's product, the steps of
    which it takes it at a time. Its first loop is then that, the next one is the steps, with one
    of blocks inside if the name says how many. Loops after it copy what was made, where a chunk
    does not fill registers, about a step at a time.
    """
    name = f"recur_{way}"
    sizes = rf"%{name}_(\d+)x(\d+)(?:x(\d+))?(?:_by_(\d+))?[.\s]"
    rows, steps, group, blocks = re.search(sizes, text).groups()

    def cycles(program):
        (grid,) = program.inner
        loops = list(grid.inner)
        chunk = grid.bundles
        if group and group != steps:  # else it is no loop, and counts as the chunk's
            chunk += loops.pop(0).cycles() * (int(steps) // int(group))
        step = chunk / int(steps) + sum(n.cycles(int(blocks or 1)) for n in loops)
        return step * -(-batch // int(rows))

    return schedule.kernel(text, kernels, name, STEPS, cycles)


def _row(chip, step):
    """A ``Step`` for JSON: with the cycles that its bytes take, where the clock is known."""
    _, bandwidth, clock = CHIPS[chip]
    waiting = step.bytes / bandwidth * clock if clock else None
    return {
        "cycles": step.cycles,
        "bytes": step.bytes,
        "cycles_of_bytes": waiting,
        "microseconds": max(step.cycles, waiting) / clock * 1e6 if clock else None,
    }


def _vmem(text):
    found = re.search(r'tpu_custom_call".*?"scoped_memory_configs":\[\{.*?"size":"(\d+)"', text)
    return int(found[1]) if found else None


@functools.cache
def topology(name):
    return topologies.get_topology_desc(platform="tpu", topology_name=name)
