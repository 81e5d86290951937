"""Checks of what a caller gives: each error names the argument, what came and what is wanted."""

import math
import numbers
import operator
from collections.abc import Callable, Mapping
from typing import cast

import jax
import jax.core
import jax.numpy as jnp

from jaxrnn._src.core.dispatch import NAMES, REFERENCE
from jaxrnn._src.core.dtypes import promoted
from jaxrnn._src.core.lowering_target import PLATFORMS, Target, of_device
from jaxrnn._src.core.typing import Activation, Array

# What a caller may name: as JAX, "gpu" for whichever is there.
PLATFORM_NAMES = ("gpu", *PLATFORMS)


def check_sequence(xs, mask, starts, reverse, key, implementation):
    """Checks the arguments of ``unroll`` that are alike for all cells."""
    check_inputs(xs, "[T, ...batch, I]")
    for name, flags in (("mask", mask), ("starts", starts)):
        if flags is not None:
            check_flags(name, flags, xs.shape[:-1], "[T, ...batch]")
    if not isinstance(reverse, bool):
        raise TypeError(f"reverse: got {reverse!r}, want True or False")
    if key is not None:
        check_key(key)
    if implementation is not None and implementation not in NAMES:
        raise ValueError(f"implementation: got {implementation!r}, want None or one of {NAMES}")


def check_inputs(xs, layout, name="xs"):
    """An array of inputs, with time and features at least; ``name`` is the argument's."""
    if not hasattr(xs, "dtype") or not hasattr(xs, "ndim"):
        raise TypeError(f"{name}: got {type(xs).__name__}, want an array {layout}")
    if xs.ndim < 2:
        raise ValueError(f"{name}: got shape {xs.shape}, want {layout}, two axes at least")
    check_floating(name, xs)


def check_floating(name, array):
    """An array of a real floating type."""
    if not hasattr(array, "dtype"):
        raise TypeError(f"{name}: got {type(array).__name__}, want an array")
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise TypeError(f"{name}: got {array.dtype}, want a floating type")


def check_flags(name, flags, shape, layout):
    """A bool array of a shape."""
    if not hasattr(flags, "dtype"):
        raise TypeError(f"{name}: got {type(flags).__name__}, want a bool array {shape}")
    if flags.dtype != jnp.bool_:
        raise TypeError(f"{name}: got {flags.dtype}, want bool")
    if flags.shape != shape:
        raise ValueError(f"{name}: got shape {flags.shape}, want {layout} = {shape}")


def check_key(key):
    """One ``jax.random`` key, typed or of the old kind."""
    dtype = getattr(key, "dtype", None)
    typed = dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key)
    if not (typed and key.ndim == 0) and not (dtype == jnp.uint32 and key.ndim == 1):
        came = f"{dtype}{list(key.shape)}" if dtype is not None else repr(key)
        raise TypeError(f"key: got {came}, want one key, as jax.random.key(0)")


def combined_mask(xs, lengths, mask, name="lengths"):
    """``mask`` and ``lengths`` in one: bool [T, ...batch], or None if neither is given.

    Lengths are checked here: ints [...batch], between 0 and T if they are known. ``name`` is what
    the caller calls them.
    """
    if lengths is None:
        return mask
    try:
        with jax.ensure_compile_time_eval():  # inside a jit, known lengths stay known
            lengths = jnp.asarray(lengths)
    except (TypeError, ValueError):
        raise TypeError(f"{name}: got {lengths!r}, want an array of ints [...batch]") from None
    if not jnp.issubdtype(lengths.dtype, jnp.integer):
        raise TypeError(f"{name}: got {lengths.dtype}, want an integer type")
    steps, *batch, _ = xs.shape
    if lengths.shape != tuple(batch):
        raise ValueError(f"{name}: got shape {lengths.shape}, want [...batch] = {tuple(batch)}")
    if not isinstance(lengths, jax.core.Tracer) and lengths.size:
        with jax.ensure_compile_time_eval():
            low, high = int(lengths.min()), int(lengths.max())
        if low < 0 or high > steps:
            came = f"values from {low} to {high}"
            raise ValueError(f"{name}: got {came}, want them between 0 and T = {steps}")
    time = jax.lax.broadcasted_iota(jnp.int32, xs.shape[:-1], 0)
    real = time < jnp.broadcast_to(lengths[None].astype(jnp.int32), time.shape)
    return real if mask is None else real & mask


def completed_state(initial_state, params, state, batch):
    """``state`` in the types of the cell's initial state; it has its structure and shapes."""
    want = jax.eval_shape(lambda p: initial_state(p, batch), params)
    leaves, structure = jax.tree.flatten(state)
    wanted = jax.tree.leaves(want)
    shapes = [jnp.shape(leaf) for leaf in leaves]
    if structure != jax.tree.structure(want) or shapes != [leaf.shape for leaf in wanted]:
        raise ValueError(f"state: got {_shapes(state)}, want {_shapes(want)}")
    if not all(map(_fits, leaves, wanted)):
        raise TypeError(f"state: got {_shapes(state)}, want {_shapes(want)}, or narrower floats")
    leaves = [jnp.asarray(leaf, like.dtype) for leaf, like in zip(leaves, wanted)]
    return structure.unflatten(leaves)


def _fits(leaf, like):
    came = jnp.result_type(leaf)
    narrower = any(
        jnp.issubdtype(came, kind) and jnp.issubdtype(like.dtype, kind)
        for kind in (jnp.floating, jnp.complexfloating)
    )
    return came == like.dtype or (narrower and promoted(came, like.dtype) == like.dtype)


def _shapes(tree):
    return jax.tree.map(lambda a: f"{jnp.result_type(a)}{list(jnp.shape(a))}", tree)


def check_features(x, size, name="xs"):
    """x [..., I] has the features that the parameters were made for."""
    if x.shape[-1] != size:
        came = f"I = {x.shape[-1]} features"
        raise ValueError(f"{name}: got {came}, want {size}: params are made for it")


def check_same_size(in_size, hidden):
    """A cell that adds its input to its output, or multiplies it, has as many outputs."""
    if in_size != hidden:
        want = f"hidden={hidden}: put jaxrnn.project({hidden}) before the cell"
        raise ValueError(f"in_size: got {in_size}, want {want}")


def check_names(params, want):
    """The parameters are a mapping with the names of ``want``."""
    known = isinstance(params, Mapping)
    if not known or sorted(params) != sorted(want):
        came = sorted(params) if known else type(params).__name__
        raise ValueError(f"params: got {came}, want a dict of {sorted(want)}")


def check_params(params, want, input_weight, x, axis=0, places=1):
    """The parameters have the names and shapes of ``want``, and x the features they are for.

    An axis of ``params[input_weight]`` says how many these are at each of its places.
    """
    check_names(params, want)
    for name in want:
        check_floating(f"params[{name!r}]", params[name])
    if params[input_weight].ndim == len(want[input_weight]):
        check_features(x, places * params[input_weight].shape[axis])
    for name, shape in want.items():
        if params[name].shape != shape:
            raise ValueError(f"params[{name!r}]: got shape {params[name].shape}, want {shape}")


def check_states(state, count):
    """The states, if there are, of ``count`` layers."""
    if state is not None and (not isinstance(state, tuple) or len(state) != count):
        raise ValueError(f"state: got {_shapes(state)}, want a tuple of {count}, one a layer")


def target(platform):
    """The ``Target`` that a platform's name, a device, or None for JAX's default stands for."""
    if platform is None:
        return of_device(jax.devices()[0])
    if hasattr(platform, "device_kind"):
        return of_device(platform)
    if platform not in PLATFORM_NAMES:
        want = f"one of {PLATFORM_NAMES} or a jax.Device"
        raise ValueError(f"platform: got {platform!r}, want {want}")
    return Target(platform)


def activation(value: Activation, name: str = "activation") -> Callable[[Array], Array]:
    """A function, given as itself or by its name in ``jax.nn``."""
    function = getattr(jax.nn, value, None) if isinstance(value, str) else value
    if not callable(function):
        wanted = "a function or the name of one in jax.nn ('tanh', 'relu', 'gelu', ...)"
        raise ValueError(f"{name}: got {value!r}, want {wanted}")
    return cast(Callable[[Array], Array], function)


def check_lifted(implementation):
    """A cell lifted from its step by ``jaxrnn.cell`` has one implementation."""
    if implementation not in (None, REFERENCE):
        raise ValueError(
            f"implementation: got {implementation!r}, but a cell lifted from its step has only"
            f" {REFERENCE!r}: write it with jaxrnn.gated to have others"
        )


def size(name, value):
    """``value`` as an int of at least 1."""
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name}: got {value!r}, want an int") from None
    if number < 1:
        raise ValueError(f"{name}: got {number}, want 1 or more")
    return number


def heads(hidden, number):
    """``hidden`` units in so many heads of the same width: both as ints."""
    hidden, number = size("hidden", hidden), size("heads", number)
    if hidden % number:
        raise ValueError(f"heads: got {number}, want a divisor of hidden={hidden}")
    return hidden, number


def probability(name, value):
    """``value``, which is from 0 to 1."""
    if not 0 <= value <= 1:
        raise ValueError(f"{name}: got {value}, want a probability from 0 to 1")
    return value


def number(name, value, *, above=-math.inf, most=math.inf):
    """``value`` as a float greater than ``above`` and no greater than ``most``."""
    if not isinstance(value, numbers.Real):
        raise TypeError(f"{name}: got {value!r}, want a number")
    if not above < float(value) <= most:
        limit = "" if most == math.inf else f" and up to {most}"
        raise ValueError(f"{name}: got {value}, want a number above {above}{limit}")
    return float(value)


def check_per(per):
    """How often a mask is drawn."""
    if per not in ("step", "sequence"):
        raise ValueError(f"per: got {per!r}, want 'step' or 'sequence'")
