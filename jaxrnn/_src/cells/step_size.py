"""Mamba's decay, and where its parameters begin, which other memories took over."""

import math

import jax
import jax.numpy as jnp
from jax.nn import softplus

from jaxrnn._src.builders.memory import spread


def inverse_softplus(key, shape, dtype):
    """An initializer: softplus of it lies between 0.001 and 0.1, evenly in the logarithm."""
    step = jnp.exp(jax.random.uniform(key, shape, dtype, math.log(0.001), math.log(0.1)))
    return step + jnp.log(-jnp.expm1(-step))


def log_rates(key, shape, dtype):
    """An initializer: its exponential lies evenly between 1 and 16."""
    return jnp.log(jax.random.uniform(key, shape, dtype, 1, 16))


def decay(params, rate):
    """The logarithm of a decay: ``-exp(l) softplus(rate + c)``."""
    return -jnp.exp(spread(params["l"], rate)) * softplus(rate + spread(params["c"], rate))
