"""Checks of what a caller gives: each error names the argument, what came and what is wanted."""

import contextlib
import math
import numbers
import operator
import re
from collections.abc import Callable, Mapping
from typing import Any, cast

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from jaxrnn._src.core import inputs
from jaxrnn._src.core.dispatch import NAMES, NEWTON, REFERENCE
from jaxrnn._src.core.dtypes import promoted
from jaxrnn._src.core.lowering_target import PLATFORMS, Target, of_device
from jaxrnn._src.core.options import Options
from jaxrnn._src.core.typing import Activation, Array

_SWAPPED = "are time and batch swapped here, or in xs?"
# What a caller may name: as JAX, "gpu" for whichever is there.
PLATFORM_NAMES = ("gpu", *PLATFORMS)


def check_sequence(params, xs, mask, starts, segment_ids, reverse, key, implementation):
    """Checks the arguments of ``unroll`` that are alike for all cells."""
    try:
        check_all_inputs(xs, "[T, ...batch, I]")
    except (TypeError, ValueError) as error:
        if isinstance(xs, Mapping) and _is_array(params):
            error.add_note("are params and xs swapped?")
        raise
    for name, flags in (("mask", mask), ("starts", starts)):
        if flags is not None:
            check_flags(name, flags, inputs.leading(xs), "[T, ...batch]")
    if segment_ids is not None:
        check_segment_ids(segment_ids, inputs.leading(xs), "[T, ...batch]")
    check_bool("reverse", reverse)
    if key is not None:
        check_key(key)
    known = (*NAMES, NEWTON)
    if implementation is not None and implementation not in known:
        raise ValueError(f"implementation: got {implementation!r}, want None or one of {known}")


def described(value):
    """What came, in a line: an array by its type and shape, anything else by its repr if short."""
    if _is_array(value):
        return f"{value.dtype}{list(value.shape)}"
    text = repr(value)
    return text if len(text) <= 40 and "\n" not in text else _kind(value)


def _kind(value):
    """The name of a value's type, with the package that it is from."""
    kind = type(value)
    package = kind.__module__.partition(".")[0]
    return kind.__name__ if package == "builtins" else f"{package}'s {kind.__name__}"


def _is_array(value):
    """Whether JAX and NumPy know the type of a value's elements: PyTorch's are its own."""
    dtype = getattr(value, "dtype", None)
    known = isinstance(dtype, np.dtype) or type(dtype).__module__.startswith("jax.")
    return known and hasattr(value, "ndim")


def _has_numbers(value):
    """Whether it is an array that JAX can take: not one of NumPy's of objects or of text."""
    return _is_array(value) and getattr(value.dtype, "kind", "") not in "OSU"


def check_array(name, array, want="an array"):
    """An array of JAX's or NumPy's."""
    if not _is_array(array):
        way = f" of JAX or NumPy: jnp.asarray({name})" if hasattr(array, "dtype") else ""
        raise TypeError(f"{name}: got {_kind(array)}, want {want}{way}")


def check_bool(name, value):
    """True or False of Python's or NumPy's: it decides what is traced."""
    if not isinstance(value, bool | np.bool_):
        traced = isinstance(value, jax.core.Tracer)
        hint = f": make it static, by jax.jit(..., static_argnames={name!r})" if traced else ""
        raise TypeError(f"{name}: got {described(value)}, want True or False{hint}")


def check_inputs(xs, layout, name="xs"):
    """An array of inputs, with time and features at least; ``name`` is the argument's."""
    check_array(name, xs, f"an array {layout}")
    if xs.ndim < 2:
        raise ValueError(f"{name}: got shape {xs.shape}, want {layout}, two axes at least")
    check_floating(name, xs)


def check_all_inputs(xs, layout):
    """Inputs of a cell: features, tokens, or a dict of such with the same time and batch."""
    if not isinstance(xs, Mapping):
        return _check_one(xs, layout, "xs")
    if not xs:
        raise ValueError("xs: got an empty dict, want one or more arrays")
    for name, one in xs.items():
        _check_one(one, layout, f"xs[{name!r}]")
    want = inputs.leading(xs)
    for name, one in xs.items():
        if (came := inputs.leading(one)) != want:
            raise ValueError(f"xs[{name!r}]: got time and batch {came}, want {want} as others")


def _check_one(xs, layout, name):
    if _is_array(xs) and jnp.issubdtype(xs.dtype, jnp.integer):
        if not xs.ndim:
            raise ValueError(f"{name}: got shape (), want [T, ...batch], of integers")
    else:
        check_inputs(xs, layout, name)


def check_floating(name, array):
    """An array of a real floating type."""
    check_array(name, array)
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise TypeError(f"{name}: got {array.dtype}, want a floating type")


def check_flags(name, flags, shape, layout):
    """A bool array of a shape."""
    check_array(name, flags, f"a bool array {shape}")
    if flags.dtype != jnp.bool_:
        raise TypeError(f"{name}: got {flags.dtype}, want bool: {name}.astype(bool)")
    _check_shape(name, flags, shape, layout)


def check_segment_ids(ids, shape, layout):
    """An int array of a shape."""
    check_array("segment_ids", ids, f"an int array {shape}")
    if not jnp.issubdtype(ids.dtype, jnp.integer):
        raise TypeError(f"segment_ids: got {ids.dtype}, want an integer type")
    _check_shape("segment_ids", ids, shape, layout)


def check_segments(segment_ids, state, starts):
    """Nothing else says where an episode begins, or with what."""
    for name, value, why in (
        ("state", state, "each segment begins with the initial state"),
        ("starts", starts, "an episode begins where a segment does"),
    ):
        if segment_ids is not None and value is not None:
            raise ValueError(f"{name}: got it and segment_ids, want one: {why}")


def _check_shape(name, array, shape, layout):
    if array.shape != shape:
        swapped = array.ndim > 1 and sorted(array.shape) == sorted(shape)
        hint = f"; {_SWAPPED}" if swapped else ""
        raise ValueError(f"{name}: got shape {array.shape}, want {layout} = {shape}{hint}")


@contextlib.contextmanager
def used(name, x):
    """Says so if a cell that reads one array is given a dict of them; ``name`` is what of it."""
    try:
        yield
    except AttributeError as error:
        if isinstance(x, Mapping) and isinstance(error.obj, Mapping):
            want = "an array: the cell reads one input"
            raise TypeError(f"{name}: got a dict of {sorted(x)}, want {want}") from error
        raise


def check_batch_shape(shape):
    """Sizes of batch axes, which may be symbolic (``jax.export``)."""
    if not isinstance(shape, tuple | list) or not all(map(_may_be_size, shape)):
        want = "a tuple of sizes, as xs.shape[1:-1]: initial_state(params, batch_shape)"
        raise TypeError(f"batch_shape: got {described(shape)}, want {want}")


def _may_be_size(value):
    whole = isinstance(value, numbers.Integral) or not isinstance(value, numbers.Number | str)
    return whole and not getattr(value, "ndim", 0)


def check_options(options):
    """What a cell's own ``unroll`` is told."""
    if not isinstance(options, Options):
        want = "a jaxrnn.Options, which jaxrnn.unroll(cell, params, xs, ...) makes of its keywords"
        raise TypeError(f"options: got {described(options)}, want {want}")


def check_key(key):
    """One ``jax.random`` key, typed or of the old kind."""
    dtype = getattr(key, "dtype", None)
    typed = dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key)
    if not (typed and key.ndim == 0) and not (dtype == jnp.uint32 and key.ndim == 1):
        raise TypeError(f"key: got {described(key)}, want one key, as jax.random.key(0)")


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
        want = "an array of ints [...batch]"
        raise TypeError(f"{name}: got {described(lengths)}, want {want}") from None
    if not jnp.issubdtype(lengths.dtype, jnp.integer):
        raise TypeError(f"{name}: got {lengths.dtype}, want an integer type")
    steps, *batch = inputs.leading(xs)
    if lengths.shape != tuple(batch):
        hint = f"; {_SWAPPED}" if lengths.shape == inputs.swapped(xs) else ""
        want = f"[...batch] = {tuple(batch)}"
        raise ValueError(f"{name}: got shape {lengths.shape}, want {want}{hint}")
    if not isinstance(lengths, jax.core.Tracer) and lengths.size:
        with jax.ensure_compile_time_eval():
            low, high = int(lengths.min()), int(lengths.max())
        if low < 0 or high > steps:
            came = f"values from {low} to {high}"
            raise ValueError(f"{name}: got {came}, want them between 0 and T = {steps}")
    time = jax.lax.broadcasted_iota(jnp.int32, inputs.leading(xs), 0)
    real = time < jnp.broadcast_to(lengths[None].astype(jnp.int32), time.shape)
    return real if mask is None else real & mask


def completed_state(initial_state, params, state, batch, swapped=None):
    """``state`` in the types of the cell's initial state; it has its structure and shapes.

    A state with the batch ``swapped`` shows that the caller took time for the batch.
    """
    want = jax.eval_shape(lambda p: initial_state(p, batch), params)
    leaves, structure = jax.tree.flatten(state)
    wanted = jax.tree.leaves(want)
    for leaf in leaves:
        if not isinstance(leaf, numbers.Number) and not _has_numbers(leaf):
            raise TypeError(f"state: got {described(leaf)}, want {_shapes(want)}")
    shapes = [jnp.shape(leaf) for leaf in leaves]
    if structure != jax.tree.structure(want) or shapes != [leaf.shape for leaf in wanted]:
        hint = ""
        if swapped is not None:
            other = jax.eval_shape(lambda p: initial_state(p, swapped), params)
            fits = shapes == [leaf.shape for leaf in jax.tree.leaves(other)]
            hint = f"; {_SWAPPED}" if fits else ""
        raise ValueError(f"state: got {_shapes(state)}, want {_shapes(want)}{hint}")
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


def check_result(result, state):
    """What a step gave: ``(state, y)``, with the structure, shapes and types of the state before.

    A state that Python's numbers are in has no types of its own.
    """
    if not isinstance(result, tuple | list) or len(result) != 2:
        many = f" of {len(result)}" if isinstance(result, tuple | list) else ""
        came = described(result) if _is_array(result) else f"{_kind(result)}{many}"
        raise TypeError(f"step: gave {came}, want (state, y)")
    after, wanted = jax.tree.flatten(result[0]), jax.tree.flatten(state)
    shapes = [list(map(jnp.shape, leaves)) for leaves, _ in (after, wanted)]
    types = [(jnp.result_type(a), b) for a, b in zip(after[0], wanted[0])]
    if after[1] != wanted[1] or shapes[0] != shapes[1]:
        error = ValueError
    elif any(a != jnp.result_type(b) and not jax.typeof(b).weak_type for a, b in types):
        error = TypeError
    else:
        return
    came = f"(state, y) with the state {_shapes(result[0])}"
    raise error(f"step: gave {came}, want {_shapes(state)}, as initial_state makes it")


def check_one_output(cell, y):
    """What a cell gives is an array, which another cell takes."""
    if not _is_array(y):
        came = f"{len(jax.tree.leaves(y))} outputs"
        raise ValueError(f"{cell}: gives {came}, want one array for the next cell")


def check_step_input(x):
    """A step's input, which is never a tuple or a list, as states are."""
    if not isinstance(x, Mapping):
        check_array("x", x, "an array [...batch, I]: step(params, state, x)")


def check_features(x, size, name="xs"):
    """x [..., I] has the features that the parameters were made for."""
    if x.shape[-1] != size:
        came = f"I = {x.shape[-1]} features"
        raise ValueError(f"{name}: got {came}, want {size}: params are made for it")


def check_same_size(in_size, hidden):
    """A cell that adds its input to its output, or multiplies it, has as many outputs."""
    if size("in_size", in_size) != hidden:
        want = f"hidden={hidden}: put jaxrnn.project({hidden}) before the cell"
        raise ValueError(f"in_size: got {in_size}, want {want}")


def check_mapping(name, params):
    """A dict of parameters."""
    if not isinstance(params, Mapping):
        raise TypeError(f"{name}: got {described(params)}, want a dict of arrays")


def check_names(params, want):
    """The parameters are a mapping with the names of ``want``."""
    known = isinstance(params, Mapping)
    if not known or sorted(params) != sorted(want):
        came = sorted(params) if known else _kind(params)
        place = _place(params, want, "params")
        hint = f": they are {place}" if place else ""
        raise ValueError(f"params: got {came}, want a dict of {sorted(want)}{hint}")


def _place(params, want, at):
    """Where in ``params`` those of a cell are, as a module around it has them in its variables."""
    if hasattr(params, "cell_and_params"):
        return "in module.cell_and_params()"
    if not isinstance(params, Mapping):
        return None
    if sorted(map(str, params)) == sorted(want):
        return at
    return next(filter(None, (_place(v, want, f"{at}[{k!r}]") for k, v in params.items())), None)


def check_params(params, want, input_weight, x, axis=0, places=1):
    """The parameters have the names and shapes of ``want``, and x the features they are for.

    An axis of ``params[input_weight]`` says how many these are at each of its places; with None
    for its name, no parameter says it.
    """
    check_names(params, want)
    check_floating("xs", x)
    for name in want:
        check_floating(f"params[{name!r}]", params[name])
    if input_weight is not None and params[input_weight].ndim == len(want[input_weight]):
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
    """A function, given as itself or by its name in ``jax.nn`` or ``jax.numpy``."""
    function: Any = value
    if isinstance(value, str):
        function = getattr(jax.nn, value, getattr(jnp, value, None))
    if not callable(function):
        wanted = "a function or the name of one in jax.nn or jax.numpy ('tanh', 'relu', ...)"
        raise ValueError(f"{name}: got {value!r}, want {wanted}")
    return cast(Callable[[Array], Array], function)


def check_lifted(implementation):
    """A cell lifted from its step by ``jaxrnn.cell`` has one implementation."""
    if implementation not in (None, REFERENCE):
        raise ValueError(
            f"implementation: got {implementation!r}, but a cell lifted from its step has only"
            f" {REFERENCE!r}: write it with jaxrnn.gated to have others"
        )


def integer(name, value):
    """``value`` as an int."""
    try:
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{name}: got {described(value)}, want an int") from None


def size(name, value, least=1):
    """``value`` as an int, no less than ``least``."""
    try:
        number = operator.index(value)
    except TypeError:
        hint = ", the inputs' features: xs.shape[-1]" if name == "in_size" else ""
        raise TypeError(f"{name}: got {described(value)}, want an int{hint}") from None
    if number < least:
        raise ValueError(f"{name}: got {number}, want {least} or more")
    return number


def names(name, value, default):
    """Different names, from a tuple of them or from how many there are: ``default(k)`` each."""
    if not isinstance(value, tuple | list):
        return tuple(map(default, range(size(name, value))))
    fits = all(isinstance(one, str) and re.fullmatch(r"\w+", one) for one in value)
    if not value or not fits or len(set(value)) < len(value):
        raise ValueError(f"{name}: got {value}, want different names, or how many there are")
    return tuple(value)


def widths(name, value, other=None):
    """A dict from names to sizes, or to ``other``, which stands for one."""
    if not isinstance(value, Mapping) or not value:
        raise TypeError(f"{name}: got {described(value)}, want a dict from names to widths")
    for key, width in value.items():
        if other is None or width != other:
            size(f"{name}[{key!r}]", width)


def heads(hidden, number, name="hidden"):
    """``hidden`` units, called ``name``, in so many heads of the same width: both as ints."""
    hidden, number = size(name, hidden), size("heads", number)
    if hidden % number:
        raise ValueError(f"heads: got {number}, want a divisor of {name}={hidden}")
    return hidden, number


def probability(name: str, value: float) -> float:
    """``value``, which is from 0 to 1."""
    return fraction(name, value, "a probability")


def fraction(name: str, value: float, what: str = "a number") -> float:
    """``value``, which is from 0 to 1, as a float; ``what`` is what it is there for."""
    if not isinstance(value, numbers.Real):
        raise TypeError(f"{name}: got {described(value)}, want {what} from 0 to 1")
    if not 0 <= float(value) <= 1:
        raise ValueError(f"{name}: got {value}, want {what} from 0 to 1")
    return float(value)


def number(name, value, *, above=-math.inf, most=math.inf):
    """``value`` as a float greater than ``above`` and no greater than ``most``."""
    if not isinstance(value, numbers.Real):
        raise TypeError(f"{name}: got {value!r}, want a number")
    if not above < float(value) <= most:
        limit = "" if most == math.inf else f" and up to {most}"
        raise ValueError(f"{name}: got {value}, want a number above {above}{limit}")
    return float(value)


def cap(value):
    """``value``, which a tanh is multiplied by: above 0, and no infinity in float32."""
    return number("cap", value, above=0, most=float(np.finfo(np.float32).max))


def check_per(per):
    """How often a mask is drawn."""
    if per not in ("step", "sequence"):
        raise ValueError(f"per: got {per!r}, want 'step' or 'sequence'")
