"""The kernels for NVIDIA GPUs, compiled, in layers that people use: what they spill."""

import functools
import re

import jax
import jax.numpy as jnp
import pytest
from cases import GATED
from emulated import made

import jaxrnn
from jaxrnn._src.ops.gpu import chips, compiler
from jaxrnn._src.ops.recurrence.gpu import tiling

pytestmark = pytest.mark.skipif(compiler.library() is None, reason="NVRTC is not installed")
EXACT = "float32 in full"  # products of float32 whose factors are not rounded
SAID = r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads"

# Layers, and the bytes that a thread may spill in the forward kernel and in the backward one.
# 16 cost nothing to speak of; nor does what is spilled before the loop over steps, and that is all
# of (1). (2) spills in 16 of the 3,067 instructions of a step: `python -m benchmarks registers`.
FEW = 16, 16
LAYERS = {
    ("NVIDIA H200", "gru", 128, 32, "bfloat16"): FEW,
    ("NVIDIA H200", "lstm", 512, 16, "bfloat16"): FEW,
    ("NVIDIA H200", "lstm", 1024, 64, "bfloat16"): (16, 64),  # (1)
    ("NVIDIA H200", "gru", 2048, 16, "bfloat16"): FEW,
    ("NVIDIA H200", "lstm", 1024, 16, "float16"): FEW,
    ("NVIDIA H200", "gru", 1024, 16, "float32"): FEW,
    ("NVIDIA H200", "lstm", 512, 32, EXACT): (16, 128),  # (2)
    ("NVIDIA H200", "peephole", 100, 5, "float32", "flags"): FEW,
    ("NVIDIA H200", "lstm", 1024, 16, "bfloat16", "clusters"): FEW,
    ("NVIDIA A100-SXM4-80GB", "lstm", 128, 16, "bfloat16"): FEW,
    ("NVIDIA L40S", "gru", 512, 64, "float16"): FEW,
    ("NVIDIA B200", "elman", 768, 16, EXACT): FEW,
    ("NVIDIA GeForce RTX 5090", "lstm", 256, 1, "float32"): FEW,
}
# By another version of NVRTC than 13.5 a kernel may spill more that spills anyway.
OTHERS = 72


def texts(chip, name, hidden, rows, dtype, *more):
    """The source of the forward kernel, and of the backward one."""
    chip = chips.CHIPS[chip]._replace(clusters=32 if "clusters" in more else 0)
    cell, steps = GATED[name].make(hidden), 9
    precision = "highest" if dtype == EXACT else "default"
    dtype = "float32" if dtype == EXACT else dtype
    params = jax.eval_shape(lambda: cell.init(jax.random.key(0), 8))
    params = jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape, dtype), params)
    xs = jax.ShapeDtypeStruct((steps, rows, 8), dtype)
    real = jnp.ones((steps, rows), bool)
    given = {"mask": real, "starts": real} if "flags" in more else {}

    def loss(params, xs):
        ys = jaxrnn.unroll(cell, params, xs, **given, implementation="gpu")[1]
        return ys.astype(jnp.float32).sum()

    with made(chip) as found, jax.default_matmul_precision(precision):
        jax.jit(jax.grad(loss)).lower(params, xs)
    forward, backward = dict.fromkeys(found.texts)
    return forward, backward


@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: "-".join(map(str, layer)))
def test_what_a_layer_spills(layer):
    """In the registers there are: a block is alone on its multiprocessor."""
    for text, most in zip(texts(*layer), LAYERS[layer], strict=True):
        assert ("st.async" in text) == ("clusters" in layer)
        code, log = compiler.compiled(text, chips.CHIPS[layer[0]].architecture)
        assert code[0] == int.from_bytes(b"\x7fELF", "little")
        stack, *spilled = map(int, re.search(SAID, log).groups())
        more = OTHERS if most > 16 and compiler.version() != (13, 5) else 0
        assert max(spilled) <= most + more, log
        assert stack <= -(-most // 8) * 8 + more, f"an array is not in registers: {log}"


def test_every_layer_is_another():
    """Each cell, type, width, batch and architecture that people use meets in some row."""
    gpus, cells, widths, batches, types = map(set, zip(*(layer[:5] for layer in LAYERS)))
    assert {"lstm", "gru", "elman"} < cells and {128, 256, 512, 768, 1024, 2048} < widths
    assert {1, 16, 64} < batches and types == {"bfloat16", "float16", "float32", EXACT}
    assert {chips.CHIPS[gpu].capability for gpu in gpus} == {80, 89, 90, 100, 120}


# Of the linear recurrence: type, rows, channels; constant factors or those of each step; flags.
LINEAR = {
    "NVIDIA A100-SXM4-80GB": ("bfloat16", 16, 1024, "flags"),
    "NVIDIA L40S": ("float64", 1, 300, "constant"),
    "NVIDIA H200": ("float32", 8, 1024),
    "NVIDIA B200": ("complex128", 8, 512),
    "NVIDIA GeForce RTX 5090": ("complex64", 8, 512, "constant", "flags"),
}


@pytest.mark.parametrize("gpu", LINEAR)
def test_the_linear_recurrence_stays_in_registers(gpu):
    """Two blocks of 256 threads on a multiprocessor, and nothing spilled."""
    dtype, rows, size, *more = LINEAR[gpu]
    b, real = jax.ShapeDtypeStruct((64, rows, size), dtype), jnp.ones((64, rows), bool)
    flags = {"mask": real, "starts": real} if "flags" in more else {}

    def both(a, b):
        scan = functools.partial(jaxrnn.linear_scan, **flags, implementation="gpu")
        out, pull = jax.vjp(scan, a, b)
        return pull(out)

    with made(chips.CHIPS[gpu]) as found, jax.enable_x64(True):
        a = jax.ShapeDtypeStruct((size,), dtype) if "constant" in more else b
        jax.jit(both).lower(a, b)
    texts = dict.fromkeys(found.texts)
    assert len(texts) == 2
    for text in texts:
        _, log = compiler.compiled(text, chips.CHIPS[gpu].architecture)
        assert re.search(SAID, log).groups() == ("0", "0", "0"), log
        assert int(re.search(r"Used (\d+) registers", log)[1]) <= 128


def test_a_matrix_memory_stays_in_registers():
    """The forward kernel and the gates': `python -m benchmarks mlstm` compiles all of them."""
    chip = chips.CHIPS["NVIDIA A100-SXM4-80GB"]
    cell = jaxrnn.mlstm(32, heads=2)
    params = jax.eval_shape(lambda: cell.init(jax.random.key(0), 8))
    params = jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape, "bfloat16"), params)

    def loss(params):
        xs = jnp.ones((9, 2, 8), "bfloat16")
        return jaxrnn.unroll(cell, params, xs, implementation="gpu")[1].sum()

    with made(chip) as found:
        jax.jit(jax.grad(loss)).lower(params)
    forward, *_, gates = dict.fromkeys(found.texts)
    for text in (forward, gates):
        _, log = compiler.compiled(text, chip.architecture)
        assert max(map(int, re.search(SAID, log).groups())) <= 16, log


def test_what_a_chip_cannot_hold_is_declined():
    """2048 units of an LSTM: on an H200, and not in the shared memory of an RTX 5090."""
    layer = tiling.Layer(2, 4, 2048, 1, 16)
    for gpu, there in {"NVIDIA H200": True, "NVIDIA GeForce RTX 5090": False}.items():
        for backward in (False, True):
            plan = tiling.plan(layer, chips.CHIPS[gpu], backward=backward)
            assert (plan is not None) == there
    with pytest.raises(ValueError, match="does not fit into 170 blocks of 99 KiB"):
        texts("NVIDIA GeForce RTX 5090", "lstm", 2048, 16, "bfloat16")
