"""The same layer in jaxrnn and in other libraries, each as its own documentation would run it.

A contender compiles, for a cell ("lstm", "gru"), a shape and a type, one of two directions:

  forward          xs -> ys
  value_and_grad   of sum(ys * weights): the gradients of all parameters and of xs

It gives a function ``place``, which puts parameters and inputs into memory anew and returns the
call to time, and the seconds that compiling took. Every library gets xs in the layout it is best
at.
"""

import functools

import jax
import jax.numpy as jnp

import jaxrnn
from benchmarks.machine import cores
from benchmarks.timing import compiled

CELLS = ("lstm", "gru")
DIRECTIONS = ("forward", "value_and_grad")


def ours(cell, shape, dtype, implementation=None):
    layer = getattr(jaxrnn, cell)(shape.H)
    params = layer.init(jax.random.key(0), shape.I)

    def apply(params, xs):
        return jaxrnn.unroll(layer, params, xs, implementation=implementation)[1]

    return apply, params


def linen(cell, shape, dtype):
    from flax import linen as nn

    kind = {"lstm": nn.OptimizedLSTMCell, "gru": nn.GRUCell}[cell]
    rnn = nn.RNN(kind(shape.H, dtype=dtype), time_major=True)
    params = rnn.init(jax.random.key(0), jnp.zeros((1, shape.B, shape.I)))
    return rnn.apply, params


def nnx(cell, shape, dtype):
    from flax import nnx

    rngs = nnx.Rngs(0)
    kind = {"lstm": nnx.OptimizedLSTMCell, "gru": nnx.GRUCell}[cell]
    rnn = nnx.RNN(kind(shape.I, shape.H, dtype=dtype, rngs=rngs), time_major=True)
    graph, params, rest = nnx.split(rnn, nnx.Param, ...)
    carry = (jnp.zeros((shape.B, shape.H), dtype),) * 2
    carry = carry if cell == "lstm" else carry[0]

    def apply(params, xs):  # copied: merged modules share what nnx writes to while it traces
        return nnx.merge(graph, params, rest, copy=True)(xs, initial_carry=carry)

    return apply, params


def keras(cell, shape, dtype):
    import keras

    if keras.backend.backend() != "jax":
        raise ImportError(f"keras runs on {keras.backend.backend()}: set KERAS_BACKEND=jax")
    kind = {"lstm": keras.layers.LSTM, "gru": keras.layers.GRU}[cell]
    layer = kind(shape.H, return_sequences=True, dtype=jnp.dtype(dtype).name)
    layer.build((shape.B, shape.T, shape.I))
    fixed = [v.value for v in layer.non_trainable_variables]

    def apply(params, xs):
        return layer.stateless_call(params, fixed, xs)[0]

    return apply, [v.value for v in layer.trainable_variables]


def equinox(cell, shape, dtype):
    import equinox as eqx

    kind = {"lstm": eqx.nn.LSTMCell, "gru": eqx.nn.GRUCell}[cell]
    params, static = eqx.partition(kind(shape.I, shape.H, key=jax.random.key(0)), eqx.is_array)
    zeros = jnp.zeros((shape.B, shape.H), dtype)

    def apply(params, xs):
        step = jax.vmap(eqx.combine(params, static))

        def body(state, x):
            state = step(x, state)
            return state, state[0] if cell == "lstm" else state

        return jax.lax.scan(body, (zeros, zeros) if cell == "lstm" else zeros, xs)[1]

    return apply, params


def with_jax(build, cell, shape, direction, dtype):
    """A contender that is a function of JAX arrays."""
    apply, params = build(cell, shape, dtype)
    params = jax.tree.map(lambda p: p.astype(dtype), params)
    data = _data(shape, dtype, batch_first=build is keras)
    args = params, *data
    program, seconds = compiled(timed(apply, direction), *args)
    return (lambda: functools.partial(program, *jax.tree.map(jnp.copy, args))), seconds


def timed(apply, direction):
    """What is timed of ``apply(params, xs)``: a function of (params, xs, weights)."""

    def forward(params, xs, weights):
        return apply(params, xs)

    def loss(params, xs, weights):
        ys = apply(params, xs)
        return (ys.astype(jnp.float32) * weights.astype(jnp.float32)).sum()

    return forward if direction == "forward" else jax.value_and_grad(loss, (0, 1))


def torch(cell, shape, direction, dtype):
    """PyTorch, with oneDNN on a CPU and cuDNN on a GPU; nothing is compiled."""
    import numpy as np
    import torch

    on_gpu = jax.default_backend() == "gpu"
    if on_gpu and not torch.cuda.is_available():
        raise ImportError("torch is built without CUDA")
    torch.set_num_threads(cores())
    device = "cuda" if on_gpu else "cpu"
    kind = {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU}[cell]
    dtype = getattr(torch, jnp.dtype(dtype).name)
    data = [np.asarray(a, np.float32) for a in _data(shape, jnp.float32)]
    wait = torch.cuda.synchronize if on_gpu else lambda: None

    def place():
        layer = kind(shape.I, shape.H).to(device, dtype)
        xs, weights = (torch.tensor(a).to(device, dtype) for a in data)

        def forward():
            with torch.no_grad():
                ys = layer(xs)[0]
            wait()
            return ys

        def value_and_grad():
            moving = (*layer.parameters(), xs.requires_grad_())
            gradients = torch.autograd.grad((layer(xs)[0] * weights).sum(), moving)
            wait()
            return gradients

        return forward if direction == "forward" else value_and_grad

    return place, 0.0


def _data(shape, dtype, batch_first=False):
    """xs and what ys is multiplied with, [T, B, ...]."""
    sizes = (shape.B, shape.T) if batch_first else (shape.T, shape.B)
    keys = jax.random.split(jax.random.key(1))
    features = shape.I, shape.H
    pairs = zip(keys, features, strict=True)
    return [jax.random.normal(k, (*sizes, n)).astype(dtype) for k, n in pairs]


OURS = "jaxrnn"
CONTENDERS = {
    OURS: functools.partial(with_jax, ours),
    "linen": functools.partial(with_jax, linen),
    "nnx": functools.partial(with_jax, nnx),
    "keras": functools.partial(with_jax, keras),
    "equinox": functools.partial(with_jax, equinox),
    "torch": torch,
}
"""Each ``(cell, shape, direction, dtype) -> (place, seconds it took to compile)``."""
