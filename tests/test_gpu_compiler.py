"""The kernels for NVIDIA GPUs, compiled for one, in layers that people use: what they spill."""

import ctypes
import re

import jax
import jax.numpy as jnp
import pytest
from cases import GATED
from emulated import made

import jaxrnn
from jaxrnn._src.ops.recurrence.gpu import compiler

pytestmark = pytest.mark.skipif(compiler.library() is None, reason="NVRTC is not installed")
EXACT = "float32 in full"  # products of float32 whose factors are not rounded
NONE = (0, 0), (0, 0)
SAID = r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads"

# Layers, and the bytes that a thread spills in the forward kernel and in the backward one, stored
# and loaded, by NVRTC 13.5. What a change spills beyond that is a cost that nobody chose.
LAYERS = {
    ("gru", 128, 32, "bfloat16"): NONE,
    ("elman", 256, 16, "bfloat16"): NONE,
    ("lstm", 512, 16, "bfloat16"): NONE,
    ("lstm", 1024, 64, "bfloat16"): ((8, 8), (172, 172)),
    ("gru", 1024, 64, "bfloat16"): ((12, 12), (64, 64)),
    ("gru", 2048, 16, "bfloat16"): ((0, 0), (44, 44)),
    ("lstm", 128, 16, "float16"): NONE,
    ("gru", 256, 64, "float16"): NONE,
    ("elman", 512, 32, "float16"): NONE,
    ("lstm", 1024, 16, "float16"): NONE,
    ("elman", 128, 64, "float32"): NONE,
    ("lstm", 256, 32, "float32"): NONE,
    ("gru", 512, 16, "float32"): NONE,
    ("gru", 1024, 16, "float32"): ((0, 0), (96, 96)),
    ("gru", 128, 16, EXACT): NONE,
    ("elman", 256, 64, EXACT): NONE,
    ("lstm", 512, 32, EXACT): ((0, 0), (216, 216)),
    ("elman", 1024, 16, EXACT): NONE,
    ("peephole", 100, 5, "float32", "flags"): NONE,
}
# By another version a kernel may spill more that spills anyway: by 13.0, 72 bytes at most.
OTHERS = 72


def version():
    """NVRTC's."""
    numbers = ctypes.c_int(), ctypes.c_int()
    compiler.library().nvrtcVersion(*map(ctypes.byref, numbers))
    return tuple(n.value for n in numbers)


def texts(name, hidden, rows, dtype, flags=None):
    """The source of the forward kernel, and of the backward one."""
    cell, steps = GATED[name].make(hidden), 9
    precision = "highest" if dtype == EXACT else "default"
    dtype = "float32" if dtype == EXACT else dtype
    params = jax.eval_shape(lambda: cell.init(jax.random.key(0), 8))
    params = jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape, dtype), params)
    xs = jax.ShapeDtypeStruct((steps, rows, 8), dtype)
    real = jnp.ones((steps, rows), bool)
    given = {"mask": real, "starts": real} if flags else {}

    def loss(params, xs):
        ys = jaxrnn.unroll(cell, params, xs, **given, implementation="gpu")[1]
        return ys.astype(jnp.float32).sum()

    with made() as found, jax.default_matmul_precision(precision):
        jax.jit(jax.grad(loss)).lower(params, xs)
    forward, backward = dict.fromkeys(found.texts)
    return forward, backward


@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: "-".join(map(str, layer)))
def test_what_a_layer_spills(layer):
    """For a Hopper GPU, in the registers there are: a block is alone on its multiprocessor."""
    for text, most in zip(texts(*layer), LAYERS[layer], strict=True):
        code, log = compiler.compiled(text)
        assert code[0] == int.from_bytes(b"\x7fELF", "little")
        stack, *spilled = map(int, re.search(SAID, log).groups())
        more = OTHERS if any(most) and version() != (13, 5) else 0
        for found, known in zip(spilled, most, strict=True):
            assert found <= known + more, log
        assert stack <= -(-most[0] // 8) * 8 + more, f"an array is not in registers: {log}"


def test_every_layer_is_another():
    """Each cell, each type, each width and each batch that people use meets in some row."""
    cells, widths, batches, types = map(set, zip(*(layer[:4] for layer in LAYERS)))
    assert {"lstm", "gru", "elman"} < cells and {128, 256, 512, 1024, 2048} < widths
    assert {16, 32, 64} < batches and types == {"bfloat16", "float16", "float32", EXACT}
