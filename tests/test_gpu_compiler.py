"""The kernel for NVIDIA GPUs, compiled for one: in layers that people use, without spilling."""

import re

import jax
import jax.numpy as jnp
import pytest
from emulated import made

import jaxrnn
from jaxrnn.recurrence.gpu import compiler

pytestmark = pytest.mark.skipif(compiler.library() is None, reason="NVRTC is not installed")
CELLS = {"lstm": jaxrnn.lstm, "gru": jaxrnn.gru, "elman": jaxrnn.elman}
EXACT = "float32 in full"  # products of float32 whose factors are not rounded

# Layers, and the bytes that a thread of the forward and of the backward kernel spills. Each cell,
# type, width and batch meets each other in one of them.
LAYERS = {
}


def texts(name, hidden, rows, dtype, flags=True):
    """The kernels of a layer and its gradient: the forward's source, and the backward's."""
    cell, steps = CELLS[name](hidden), 9
    precision = "highest" if dtype == EXACT else "default"
    dtype = "float32" if dtype == EXACT else dtype
    params = jax.eval_shape(lambda: cell.init(jax.random.key(0), 8))
    params = jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape, dtype), params)
    xs = jax.ShapeDtypeStruct((steps, rows, 8), dtype)

    def loss(params, xs):
        ys = jaxrnn.unroll(cell, params, xs, implementation="gpu")[1]
        return ys.astype(jnp.float32).sum()

    with made() as found, jax.default_matmul_precision(precision):
        jax.jit(jax.grad(loss)).lower(params, xs)
    forward, backward = dict.fromkeys(found.texts)
    return forward, backward


@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: " ".join(map(str, layer)))
def test_what_a_layer_spills(layer):
    """For a Hopper GPU, by its own compiler, in the registers there are."""
    for text, most in zip(texts(*layer), LAYERS[layer], strict=True):
        code, log = compiler.compiled(text)
        assert code[0] == int.from_bytes(b"\x7fELF", "little")
        stores, loads = map(int, re.search(r"(\d+) bytes spill stores, (\d+) bytes", log).groups())
        assert stores + loads <= most, log
