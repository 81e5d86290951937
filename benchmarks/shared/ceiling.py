"""What the machine can do at most: that a row's rate can be held against it.

Measured beside each row, since a shared machine is not always as fast.
"""

import concurrent.futures
import ctypes

import jax
import jax.numpy as jnp

from benchmarks.shared import machine, timing
from jaxrnn._src.ops import native

PRODUCT = 2048  # of the matrices whose product shows what a library can do
NOTES = {
    "ceiling": "operations a second: `multiply_adds`, in registers, by all cores, for each"
    " instruction set that may be used, the best first; and one product of two matrices of"
    f" {PRODUCT} x {PRODUCT}, by XLA and by PyTorch, of the row's type (multiply-adds of float32"
    " for narrower ones); all in the row's minute",
}


class Ceiling:
    """The calls that measure it, made once for a row of type ``dtype`` and its peers."""

    def __init__(self, dtype, peers):
        self.bytes = max(4, jnp.dtype(dtype).itemsize)
        self.products = {"xla": _xla(dtype)} | (_torch(dtype) if "torch" in peers else {})
        self.samples = {name: [] for name in self.products}
        self.rates = {name: [] for name in _instruction_sets()}

    def sample(self, times=3):
        """Measures all once more."""
        for name, rates in self.rates.items():
            rates.append(multiply_adds(name, self.bytes))
        for name, call in self.products.items():
            timing.once(call)  # warm-up
            self.samples[name] += [timing.once(call) for _ in range(times)]

    def found(self):
        """For the row: see ``NOTES``."""
        rates = {name: timing.summary(rates).median for name, rates in self.rates.items()}
        products = {
            name: 2 * PRODUCT**3 / timing.summary(samples).median
            for name, samples in self.samples.items()
        }
        return {"multiply_adds": rates, **products}


def multiply_adds(instruction_set, size, seconds=0.02):
    """Operations a second of all cores in registers, on numbers of ``size`` bytes."""
    function = ctypes.CDLL(str(native.file())).jaxrnn_multiply_adds
    function.restype, function.argtypes = (
        ctypes.c_double,
        (ctypes.c_char_p, ctypes.c_int32, ctypes.c_double),
    )
    one = lambda _: function(instruction_set.encode(), size, seconds)
    cores = machine.cores()
    with concurrent.futures.ThreadPoolExecutor(cores) as pool:  # a foreign call holds no lock
        return sum(pool.map(one, range(cores)))


def part(row, operations, name):
    """What part of the ceiling a contender's ``operations`` reach, as text; "-" if unknown."""
    rates, seconds = row["ceiling"]["multiply_adds"], row["seconds"].get(name)
    return f"{operations / seconds / max(rates.values()):.2f}" if rates and seconds else "-"


def _instruction_sets():
    """Those that may be used here: see ``held.hold_to``."""
    found = machine.instruction_sets() or []
    asked = native.instruction_set()
    return found[found.index(asked) :] if asked else found


def _xla(dtype):
    square = jnp.ones((PRODUCT, PRODUCT), dtype) / PRODUCT
    program, _ = timing.compiled(jnp.matmul, square, square)
    return lambda: program(square, square)


def _torch(dtype):
    """PyTorch's, if it is installed and on the same kind of machine."""
    if jax.default_backend() != "cpu":
        return {}
    try:
        import torch
    except ImportError:
        return {}
    torch.set_num_threads(machine.cores())
    square = torch.ones((PRODUCT, PRODUCT), dtype=getattr(torch, jnp.dtype(dtype).name)) / PRODUCT
    return {"torch": lambda: square @ square}
