"""How long one layer takes on this device, in jaxrnn and in other libraries, in turn.

The time is the device's: see ``timing.batched``. On a CPU, which is here to try this file, it is
that of single calls.
"""

import concurrent.futures
import functools
from typing import NamedTuple

import jax

import jaxrnn
from benchmarks.accelerator import linear
from benchmarks.accelerator.cases import packed, unpacked
from benchmarks.accelerator.checks import implementations, usual
from benchmarks.shared import contenders, machine, scans, timing
from benchmarks.shared.contenders import OURS, with_jax
from benchmarks.shared.shapes import SHAPES, WIDE, Shape
from jaxrnn._src.core.dispatch import REFERENCE

DTYPES = ("bfloat16", "float32", "float16")
DIRECTIONS = ("value_and_grad", "forward")
IMPORTANT = (
    "h1024-b16",
    "h512-b16",
    "small",
    "h768-b16",
    "h2048-b16",
    "large",
    "h1024-b64",
    "stream",
    "medium",
    "wide-batch",
    "h512-b64",
    "long",
    "h2048-b64",
    "h768-b64",
    "long-stream",
    "tiny-long",
)
LAYERS = {name: (SHAPES | WIDE)[name] for name in IMPORTANT}
TINY = Shape("tiny", 2, 3, 4, 64)

BATCH = 0.02  # seconds that calls waited for together take at least
SECONDS = 1.0  # to time a row, about; 3 rounds at least
LATE = 1 / 4  # of the layers come before linear_scan; at the end, its rows would never be run
HEAD = 64  # units of attention's heads; a narrower layer is no layer of attention


def attention(cell, shape, dtype):
    """Causal attention of the same width, in place of any cell."""
    del cell
    if shape.H % HEAD:
        raise ImportError(f"H={shape.H} is not made of heads of {HEAD} units")
    layer = jaxrnn.attention(shape.H, heads=shape.H // HEAD, context=shape.T)
    params = jax.eval_shape(lambda: layer.init(jax.random.key(0), shape.I))
    return (lambda params, xs: jaxrnn.unroll(layer, params, xs)[1]), params


PEERS = {
    "linen": functools.partial(with_jax, contenders.linen),
    "cudnn": functools.partial(with_jax, contenders.cudnn),
    "torch": contenders.torch,
    "attention": functools.partial(with_jax, attention),
}
# Compiling and timing what is far behind, or another kind of layer, takes long: four rows say how
# far it is.
SELDOM = ("xla", "linen", "attention")
SELDOM_AT = ("h1024-b16", "bfloat16")
# What others have published of an H100, first: cuDNN's and FlashRNN's times of a step.
PUBLISHED = Shape("h768-b16-t1024", 16, 1024, 768, 768)
FIRST = [
    (PUBLISHED, "float16"),
    (PUBLISHED, "bfloat16"),
    (WIDE["h1024-b16"], "float16"),
]


class Case(NamedTuple):
    """One row: a layer in one direction."""

    direction: str
    dtype: str
    shape: Shape
    cell: str

    def __str__(self):
        return f"{self.cell} {self.shape.name} {self.dtype} {self.direction.replace('_', ' ')}"


def cases(chosen, order):
    """All rows, ``order`` being how to take several axes: see ``accelerator.broadly``."""
    shapes = [TINY] if chosen.tiny else [LAYERS[name] for name in chosen.shapes]
    cells = [name for name in chosen.cells if name in contenders.CELLS]
    layers = order(chosen.directions, chosen.dtypes, shapes, cells)
    shapes = [TINY._replace(I=TINY.H)] if chosen.tiny else linear.SHAPES
    cells = [name for name in chosen.cells if name == linear.NAME]
    dtypes = [dtype for dtype in chosen.dtypes if dtype != "float16"]
    late = order(chosen.directions, dtypes, shapes, cells)
    place = int(LATE * len(layers))
    found = [Case(*case) for case in (*layers[:place], *late, *layers[place:])]
    return list(dict.fromkeys([*_first(chosen), *found]))


def _first(chosen):
    """The rows that others have published, of those that are asked for."""
    if chosen.tiny or "lstm" not in chosen.cells:
        return []
    return [
        Case(direction, dtype, shape, "lstm")
        for shape, dtype in FIRST
        if dtype in chosen.dtypes
        for direction in DIRECTIONS
        if direction in chosen.directions
    ]


def failed(case, problem):
    """The row of a case whose process died."""
    empty = ("samples", "calls", "seconds", "host_seconds", "compile_seconds", "ratio")
    return (
        case
        | dict.fromkeys(empty, {})
        | {
            "name": str(unpacked(Case, case)),
            "runs": None,
            "missing": {OURS: problem},
            "load": None,
        }
    )


def prepared(pool, case, peers):
    """Compiles all contenders of a row, several at a time, as nothing is being timed.

    Returns:
      Contenders by name: what ``shared.contenders`` gives, or the exception.
    """
    started = {
        name: pool.submit(build, case.cell, case.shape, case.direction, case.dtype)
        for name, build in _contenders(case, peers).items()
    }
    concurrent.futures.wait(started.values())
    return {name: f.exception() or f.result() for name, f in started.items()}


def _contenders(case, peers):
    """Ours as a user gets it; what else of ours can run; the others."""
    if case.cell == linear.NAME:
        return _scans(case)
    _, *others = _ours(case)
    seldom = case.shape == TINY or (case.shape.name, case.dtype) == SELDOM_AT
    others = [name for name in others if seldom or name not in SELDOM]
    ours = {name: functools.partial(contenders.ours, implementation=name) for name in others}
    ours = {OURS: contenders.ours, **ours}
    built = {name: functools.partial(with_jax, build) for name, build in ours.items()}
    peers = [name for name in peers if seldom or name not in SELDOM]
    return built | {name: PEERS[name] for name in peers}


def _scans(case):
    """The same of the linear recurrence, whose peers are JAX's own scans."""
    _, *others = _ours(case)
    ours = {name: functools.partial(scans.ours, implementation=name) for name in others}
    functions = {OURS: scans.ours, **ours, **scans.PEERS}
    build = lambda function: functools.partial(with_jax, functools.partial(linear.build, function))
    return {name: build(function) for name, function in functions.items()}


def _ours(case):
    """Our implementations that can run here, the one that a user gets first.

    A kernel that no such chip has confirmed is better, perhaps, and runs on request.
    """
    layer = case.cell, case.dtype, case.shape
    found = [name for name in implementations(*layer) if name != REFERENCE]
    first = usual(*layer)
    return sorted(found, key=lambda name: name != first)


def measure(case, programs):
    """One row, as it is kept: all contenders on one layer."""
    calls, compile_seconds, missing = {}, {}, {}
    for name, program in programs.items():
        try:
            if isinstance(program, BaseException):
                raise program
            place, compile_seconds[name], _ = program
            call = place()
            timing.once(call)  # what cannot run, fails here
            calls[name] = call
        except Exception as error:  # an import, a type it has not, memory: the others go on
            missing[name] = f"{type(error).__name__}: {error}"
    least = 0 if jax.default_backend() == "cpu" else BATCH
    batches = {name: timing.batched(call, least) for name, call in calls.items()}
    several = {name: call for name, (call, _) in batches.items()}
    samples = timing.interleaved(several, seconds=SECONDS) if several else {}
    samples = {name: [s / batches[name][1] for s in taken] for name, taken in samples.items()}
    handed = {name: [timing.handed_over(call) for _ in range(5)] for name, call in calls.items()}
    seconds = {name: timing.summary(taken).median for name, taken in samples.items()}
    others = [name for name in samples if name != OURS and OURS in samples]
    return packed(case) | {
        "name": str(case),
        "runs": next(iter(_ours(case)), None),
        "samples": samples,
        "calls": {name: count for name, (_, count) in batches.items()},
        "seconds": seconds,
        "host_seconds": {name: timing.summary(taken).median for name, taken in handed.items()},
        "compile_seconds": compile_seconds,
        "missing": missing,
        "ratio": {name: list(timing.ratio(samples[name], samples[OURS])) for name in others},
        "load": machine.load(),
    }


def brief(row):
    """A row in a few words."""
    if OURS not in row["seconds"]:
        return "[red]failed[/]"
    ratios = (f"{name} {ratio[0]:.2f}" for name, ratio in row["ratio"].items())
    return f"{row['seconds'][OURS] * 1e3:9.3f} ms  {', '.join(ratios)}"
