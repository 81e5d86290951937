"""The same layer in jaxrnn and in other libraries, each as its own documentation would run it.

A contender compiles, for a cell of ``CELLS``, a shape and a type, one of two directions:

  forward          xs -> ys
  value_and_grad   of sum(ys * weights): the gradients of all parameters and of xs

It gives a function ``place``, which puts parameters and inputs into memory anew and returns the
call to time, the seconds that compiling took, and the bytes that a call takes. Every library gets
xs in the layout it is best at. A call does not wait for its result: see ``timing.wait``.
"""

import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np

import jaxrnn
from benchmarks.shared import by_hand
from benchmarks.shared.machine import cores
from benchmarks.shared.memory import planned
from benchmarks.shared.timing import compiled

# By name, ``H -> Cell`` with outputs of size H.
CELLS = {
    "lstm": jaxrnn.lstm,
    "gru": jaxrnn.gru,
    "gru_reset_before": functools.partial(jaxrnn.gru, reset_after=False),
    "lstm_projection": lambda hidden: jaxrnn.lstm(2 * hidden, projection=hidden),
    "layer_norm_lstm": jaxrnn.layer_norm_lstm,
    "multiplicative_lstm": jaxrnn.multiplicative_lstm,
}
# What a row of one step multiplies: so many matrices [I, H], and so many [H, H].
MATMULS = {"lstm": (4, 4), "gru": (3, 3)} | {
    cell: (layer.inputs, sum(rows * columns for rows, columns in layer.matmuls.values()))
    for cell, layer in by_hand.LAYERS.items()
}
USUAL = ("lstm", "gru")  # what every library has
DIRECTIONS = ("forward", "value_and_grad")
TITLES = {
    "forward": "forward: ys",
    "value_and_grad": "value and grad: the gradients of parameters and inputs",
}


def ours(cell, shape, dtype, implementation=None):
    layer = (CELLS.get(cell) or getattr(jaxrnn, cell))(shape.H)
    params = jax.eval_shape(lambda: layer.init(jax.random.key(0), shape.I))

    def apply(params, xs):
        return jaxrnn.unroll(layer, params, xs, implementation=implementation)[1]

    return apply, params


def linen(cell, shape, dtype):
    from flax import linen as nn

    kind = _known(cell, {"lstm": nn.OptimizedLSTMCell, "gru": nn.GRUCell})
    rnn = nn.RNN(kind(shape.H, dtype=dtype), time_major=True)
    size = 1, shape.B, shape.I
    return rnn.apply, jax.eval_shape(lambda: rnn.init(jax.random.key(0), jnp.zeros(size)))


def nnx(cell, shape, dtype):
    from flax import nnx

    rngs = nnx.Rngs(0)
    kind = _known(cell, {"lstm": nnx.OptimizedLSTMCell, "gru": nnx.GRUCell})
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
    before = functools.partial(keras.layers.GRU, reset_after=False)
    known = {"lstm": keras.layers.LSTM, "gru": keras.layers.GRU, "gru_reset_before": before}
    kind = _known(cell, known)
    layer = kind(shape.H, return_sequences=True, dtype=jnp.dtype(dtype).name)
    layer.build((shape.B, shape.T, shape.I))
    fixed = [v.value for v in layer.non_trainable_variables]

    def apply(params, xs):
        return layer.stateless_call(params, fixed, xs)[0]

    return apply, [v.value for v in layer.trainable_variables]


def equinox(cell, shape, dtype):
    import equinox as eqx

    kind = _known(cell, {"lstm": eqx.nn.LSTMCell, "gru": eqx.nn.GRUCell})
    params, static = eqx.partition(kind(shape.I, shape.H, key=jax.random.key(0)), eqx.is_array)
    zeros = jnp.zeros((shape.B, shape.H), dtype)

    def apply(params, xs):
        step = jax.vmap(eqx.combine(params, static))

        def body(state, x):
            state = step(x, state)
            return state, state[0] if cell == "lstm" else state

        return jax.lax.scan(body, (zeros, zeros) if cell == "lstm" else zeros, xs)[1]

    return apply, params


def cudnn(cell, shape, dtype):
    """cuDNN's LSTM through JAX. Each call waits for the device: it reads the lengths back."""
    from jax.experimental import rnn

    if (cell, jnp.dtype(dtype).name) != ("lstm", "float32"):
        raise ImportError("jax.experimental.rnn has an LSTM in float32 alone")
    if jax.default_backend() != "gpu":
        raise ImportError("jax.experimental.rnn needs a GPU")
    state = jnp.zeros((1, shape.B, shape.H))
    lengths = jnp.full(shape.B, shape.T, jnp.int32)
    sizes = shape.I, shape.H, 1  # layers
    weights = jax.ShapeDtypeStruct((rnn.get_num_params_in_lstm(*sizes, False),), jnp.float32)

    def apply(weights, xs):  # neither dropout nor a second direction
        return rnn.lstm(xs, state, state, weights, lengths, *sizes, 0.0, False)[0]

    return apply, weights


BATCH_FIRST = keras, cudnn  # xs and ys are [B, T, ...]; all others have time first


def with_jax(build, cell, shape, direction, dtype):
    """A contender that is a function of JAX arrays. Of its parameters the shapes are enough."""
    apply, params = build(cell, shape, dtype)
    params = jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape, dtype), params)
    data = _data(shape, dtype, batch_first=build in BATCH_FIRST)
    program, seconds = compiled(timed(apply, direction), params, *data)

    def place():
        args = _weights(params, shape), *map(_random, data)
        return functools.partial(program, *jax.tree.map(jnp.asarray, args))

    return place, seconds, planned(program)


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
    import torch

    backend = jax.default_backend()
    if backend not in ("cpu", "gpu"):
        raise ImportError(f"torch is not run on a {backend}")
    on_gpu = backend == "gpu"
    if on_gpu and not torch.cuda.is_available():
        raise ImportError("torch sees no GPU")
    if on_gpu:
        # PyTorch's list of what cuDNN takes lacks bfloat16, which cuDNN and all else of PyTorch
        # take. Without it `.to` would not lay the weights out as cuDNN wants them, and every call
        # would copy them.
        torch.backends.cudnn.CUDNN_TENSOR_DTYPES.add(torch.bfloat16)
    torch.set_num_threads(cores())
    device = "cuda" if on_gpu else "cpu"
    dtype = getattr(torch, jnp.dtype(dtype).name)
    data = _data(shape, np.float32)

    def built():
        if cell == "lstm_projection":
            warnings.filterwarnings("ignore", "LSTM with projections is not supported with oneDNN")
            return torch.nn.LSTM(shape.I, 2 * shape.H, proj_size=shape.H)
        if cell not in USUAL:
            return by_hand.in_torch(cell, shape, device, dtype)
        return {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU}[cell](shape.I, shape.H)

    def place():
        layer = built()
        if isinstance(layer, torch.nn.Module):
            layer = layer.to(device, dtype).train(direction != "forward")
        xs, weights = (torch.tensor(_random(a)).to(device, dtype) for a in data)

        def forward():
            with torch.no_grad():
                return layer(xs)[0]

        def value_and_grad():
            moving = (*layer.parameters(), xs.requires_grad_())
            return torch.autograd.grad((layer(xs)[0] * weights).sum(), moving)

        return forward if direction == "forward" else value_and_grad

    return place, 0.0, None


def _known(cell, kinds):
    if cell not in kinds:
        raise ImportError(f"it has no {cell}")
    return kinds[cell]


def _data(shape, dtype, batch_first=False):
    """What xs and what ys is multiplied with look like, [T, B, ...]."""
    sizes = (shape.B, shape.T) if batch_first else (shape.T, shape.B)
    return [jax.ShapeDtypeStruct((*sizes, n), dtype) for n in (shape.I, shape.H)]


# Numbers are NumPy's: for arrays of new sizes JAX would compile, on a GPU for a second or so.


def _random(like):
    """Random numbers for data."""
    numbers = np.random.default_rng(1).standard_normal(like.shape, np.float32)
    return numbers.astype(like.dtype)


def _weights(params, shape):
    """Random numbers in place of all parameters, within the bounds that PyTorch begins with."""
    rng, bound = np.random.default_rng(0), shape.H**-0.5

    def random(like):
        numbers = rng.random(like.shape, np.float32)
        return (bound * (2 * numbers - 1)).astype(like.dtype)

    return jax.tree.map(random, params)


OURS = "jaxrnn"
CONTENDERS = {
    OURS: functools.partial(with_jax, ours),
    "linen": functools.partial(with_jax, linen),
    "nnx": functools.partial(with_jax, nnx),
    "keras": functools.partial(with_jax, keras),
    "equinox": functools.partial(with_jax, equinox),
    "scan": functools.partial(with_jax, by_hand.scan),
    "torch": torch,
}
"""Each ``(cell, shape, direction, dtype) -> (place, seconds to compile, bytes or None)``."""
