"""What is timed of a model: the forward pass, a training step, one token of a stream."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from benchmarks.shared import machine, text, timing
from benchmarks.shared.memory import planned
from benchmarks.shared.model import OPTIMIZER

STREAM = 256  # tokens decoded in a call


class Prepared(NamedTuple):
    """Something ready to be timed.

    Attributes:
      call: does it once; what it returns is what to wait for.
      tokens: how many tokens that is.
      compile_seconds: what compiling it took.
      memory_bytes: what it needs on the device: arguments, outputs and temporaries.
    """

    call: Any
    tokens: int
    compile_seconds: float
    memory_bytes: int


def forward(model, length, batch):
    """The logits of a batch."""
    params = jax.eval_shape(model.weights)
    inputs, _ = text.windows(length, batch)
    program, seconds, memory = _program(model.forward, params, inputs)
    params, inputs = model.weights(), jnp.asarray(inputs)
    return Prepared(lambda: program(params, inputs), length * batch, seconds, memory)


def train(model, length, batch):
    """Loss, gradient and update of the weights."""
    params = jax.eval_shape(model.init)
    moments = jax.eval_shape(OPTIMIZER.init, params)
    windows = text.windows(length, batch)
    program, seconds, memory = _program(
        model.train, params, moments, *windows, donate_argnums=(0, 1)
    )
    params = model.init()
    carry = params, OPTIMIZER.init(params)
    windows = jax.tree.map(jnp.asarray, windows)

    def call():
        nonlocal carry
        *carry, loss = program(*carry, *windows)
        return carry, loss

    return Prepared(call, length * batch, seconds, memory)


def decode(model, length, batch):
    """Token after token of one stream, each waited for, after ``length`` of context."""
    del batch  # one stream
    params = jax.eval_shape(model.weights)
    inputs, targets = text.windows(length, 1)
    prefill = lambda params, tokens: model.prefill(params, None, tokens)[0]  # noqa: E731
    state = jax.eval_shape(prefill, params, inputs)
    program, seconds, memory = _program(model.decode, params, state, targets[-1], donate_argnums=1)
    prefill, _, _ = _program(prefill, params, inputs)
    params = model.weights()
    carry = prefill(params, jnp.asarray(inputs)), jnp.asarray(targets[-1])

    def call():
        nonlocal carry
        for _ in range(STREAM):
            carry = jax.block_until_ready(program(params, *carry))
        return carry

    return Prepared(call, STREAM, seconds, memory)


MODES = {"forward": forward, "train": train, "decode": decode}


def _program(function, *args, **options):
    """A compiled function, the seconds that took, and the bytes it needs.

    Raises:
      MemoryError: the device has less. Without this check, a system that lends more memory than
        it has would end the whole run.
    """
    program, seconds = timing.compiled(function, *args, **options)
    need = planned(program)
    free = machine.free_memory(_device())
    if free is not None and need > free:
        raise MemoryError(f"needs {need / 1e9:,.1f} GB, {free / 1e9:,.1f} GB are free")
    return program, seconds, need


def _device():
    return jax.config.jax_default_device or jax.devices()[0]
