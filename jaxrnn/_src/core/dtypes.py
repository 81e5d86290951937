"""Types of the arithmetic."""

import functools

import jax
import jax.numpy as jnp


def promoted(*dtypes):
    """The common type of explicit casts to come; also under strict promotion."""
    with jax.numpy_dtype_promotion("standard"):
        return functools.reduce(jnp.promote_types, dtypes)


def arithmetic(params):
    """The type of states and gates: that of the parameters, float32 at least."""
    return promoted(jnp.dtype("float32"), *(jnp.result_type(p) for p in jax.tree.leaves(params)))
