"""Checks of what a caller gives: each error names the argument, what came and what is wanted."""

import operator

import jax
import jax.numpy as jnp

from jaxrnn.choice import NAMES, REFERENCE


def check_sequence(xs, mask, starts, reverse, key, implementation):
    """Checks the arguments of ``unroll`` that are alike for all cells."""
    if not hasattr(xs, "dtype") or not hasattr(xs, "ndim"):
        raise TypeError(f"xs: got {type(xs).__name__}, want an array [T, ...batch, I]")
    if xs.ndim < 2:
        raise ValueError(f"xs: got shape {xs.shape}, want [T, ...batch, I], two axes at least")
    check_floating("xs", xs)
    for name, flags in (("mask", mask), ("starts", starts)):
        if flags is not None:
            _check_flags(name, flags, xs.shape[:-1])
    if not isinstance(reverse, bool):
        raise TypeError(f"reverse: got {reverse!r}, want True or False")
    if key is not None:
        check_key(key)
    if implementation is not None and implementation not in NAMES:
        raise ValueError(f"implementation: got {implementation!r}, want None or one of {NAMES}")


def check_floating(name, array):
    """A real floating type."""
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise TypeError(f"{name}: got {array.dtype}, want a floating type")


def _check_flags(name, flags, shape):
    if not hasattr(flags, "dtype"):
        raise TypeError(f"{name}: got {type(flags).__name__}, want a bool array {shape}")
    if flags.dtype != jnp.bool_:
        raise TypeError(f"{name}: got {flags.dtype}, want bool")
    if flags.shape != shape:
        raise ValueError(f"{name}: got shape {flags.shape}, want [T, ...batch] = {shape}")


def check_key(key):
    """One ``jax.random`` key, typed or of the old kind."""
    dtype = getattr(key, "dtype", None)
    typed = dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key)
    if not (typed and key.ndim == 0) and not (dtype == jnp.uint32 and key.ndim == 1):
        came = f"{dtype}{list(key.shape)}" if dtype is not None else repr(key)
        raise TypeError(f"key: got {came}, want one key, as jax.random.key(0)")


def combined_mask(xs, lengths, mask):
    """``mask`` and ``lengths`` in one: bool [T, ...batch], or None if neither is given."""
    if lengths is None:
        return mask
    steps, *batch = xs.shape[:-1]
    lengths = jnp.asarray(lengths)
    if not jnp.issubdtype(lengths.dtype, jnp.integer):
        raise TypeError(f"lengths: got {lengths.dtype}, want an integer type")
    if lengths.shape != tuple(batch):
        raise ValueError(f"lengths: got shape {lengths.shape}, want [...batch] = {tuple(batch)}")
    if not isinstance(lengths, jax.core.Tracer) and lengths.size:
        low, high = int(lengths.min()), int(lengths.max())
        if low < 0 or high > steps:
            came = f"values from {low} to {high}"
            raise ValueError(f"lengths: got {came}, want them between 0 and T = {steps}")
    time = jax.lax.broadcasted_iota(lengths.dtype, xs.shape[:-1], 0)
    real = time < jnp.broadcast_to(lengths[None], time.shape)
    return real if mask is None else real & mask


def check_state(cell, params, state, batch):
    """The state has the structure and the shapes of the cell's initial state."""
    want = jax.eval_shape(lambda p: cell.initial_state(p, batch), params)
    if jax.tree.structure(state) != jax.tree.structure(want):
        raise ValueError(f"state: got {_shapes(state)}, want {_shapes(want)}")
    for came, wanted in zip(jax.tree.leaves(state), jax.tree.leaves(want)):
        if jnp.shape(came) != wanted.shape:
            raise ValueError(f"state: got {_shapes(state)}, want {_shapes(want)}")


def _shapes(tree):
    return jax.tree.map(lambda a: f"{jnp.result_type(a)}{list(jnp.shape(a))}", tree)


def check_features(x, size):
    """x [..., I] has the features that the parameters were made for."""
    if x.shape[-1] != size:
        raise ValueError(f"xs: got I = {x.shape[-1]} features, want {size}: params are made for it")


def check_params(params, want, input_weight, x):
    """The parameters have the names and shapes of ``want``, and x the features they are for."""
    if not isinstance(params, dict) or sorted(params) != sorted(want):
        came = sorted(params) if isinstance(params, dict) else type(params).__name__
        raise ValueError(f"params: got {came}, want a dict of {sorted(want)}")
    if params[input_weight].ndim == len(want[input_weight]):
        check_features(x, params[input_weight].shape[0])
    for name, shape in want.items():
        if params[name].shape != shape:
            raise ValueError(f"params[{name!r}]: got shape {params[name].shape}, want {shape}")


def check_layers(params, state, count):
    """The parameters, and the states if there are, of ``count`` layers."""
    want = sorted(map(str, range(count)))
    came = sorted(params) if isinstance(params, dict) else type(params).__name__
    if came != want:
        raise ValueError(f"params: got {came}, want a dict of {want}, one for each layer")
    if state is not None and (not isinstance(state, tuple) or len(state) != count):
        raise ValueError(f"state: got {_shapes(state)}, want a tuple of {count}, one a layer")


def activation(value):
    """A function, given as itself or by its name in ``jax.nn``."""
    function = getattr(jax.nn, value, None) if isinstance(value, str) else value
    if not callable(function):
        wanted = "a function or the name of one in jax.nn ('tanh', 'relu', 'gelu', ...)"
        raise ValueError(f"activation: got {value!r}, want {wanted}")
    return function


def check_lifted(implementation):
    """A cell lifted from its step has one implementation."""
    if implementation not in (None, REFERENCE):
        raise ValueError(
            f"implementation: got {implementation!r}, but a cell lifted from its step has only"
            f" {REFERENCE!r}: write it with jaxrnn.gated to have others"
        )


def size(name, value, least=1):
    """``value`` as an int of at least ``least``."""
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name}: got {value!r}, want an int") from None
    if number < least:
        raise ValueError(f"{name}: got {number}, want {least} or more")
    return number
