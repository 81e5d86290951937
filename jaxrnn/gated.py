"""From an elementwise update to a cell."""

import inspect

import jax
import jax.numpy as jnp

from jaxrnn import arguments
from jaxrnn.cell import Cell, constructor
from jaxrnn.dtypes import arithmetic, promoted
from jaxrnn.recurrence import RESIDUALS, recur, reference
from jaxrnn.recurrence.problem import Operands, Problem

_input_init = jax.nn.initializers.glorot_uniform()
_recurrent_init = jax.nn.initializers.orthogonal()


def gated(update, *, gates, states=1, bias=None, unit=None):
    """Makes the constructor of a cell from its elementwise update.

        x[k] = xs @ w[:, k] + b[k]      r[k] = h @ r[:, k]      for each gate k
        state = update(state, x, r)

    The cell gets scan, masks, episode resets, every JAX transform, Flax modules, a benchmark row
    and every fused implementation.

    Args:
      update: ``update(state, x, r, **unit) -> state``. ``state`` is a tuple of ``states`` arrays
        [..., H], the first of which is the output and what recurs; ``x`` and ``r`` are tuples of
        ``gates`` arrays [..., H]. Elementwise over H, and its name ends in ``_update``.
      gates: how many gates it takes.
      states: how many arrays its state has; they begin at zero.
      bias: what the bias of each gate begins at, ``gates`` numbers; zeros if None.
      unit: further weights, one number for each hidden unit: a dict from the argument's name in
        ``update`` to an initializer ``(key, shape, dtype) -> array`` of shape [H].

    Returns:
      A constructor ``(hidden, *, heads=1, residuals="gates") -> Cell``. With ``heads`` = N the
      recurrence is block-diagonal: unit i sees only the H / N units of its own head.
      ``residuals`` is what a forward keeps for its backward: "gates", all that enters them;
      "states", [T, ...batch, H] each, from which the gates are made again; or "chunks", a state
      every sqrt(T) steps or so, and the steps between are run again: long sequences in small
      memory.

      The cell's parameters are ``{"w": [I, G, H], "r": [H, G, H], "b": [G, H]}`` and one [H] for
      each name in ``unit``; with N heads of width D, ``r`` is [N, D, G, D].

    Raises:
      TypeError: ``update`` is not elementwise, or does not take or give what it should.

    >>> def mgu_update(state, x, r):
    ...     (h,), (xf, xn), (rf, rn) = state, x, r
    ...     f = jax.nn.sigmoid(xf + rf)
    ...     return (h + f * (jnp.tanh(xn + f * rn) - h),)
    >>> mgu = jaxrnn.gated(mgu_update, gates=2)
    >>> mgu(hidden=16)
    mgu(hidden=16)
    """
    gates, states = arguments.size("gates", gates), arguments.size("states", states)
    bias = (0.0,) * gates if bias is None else tuple(float(b) for b in bias)
    if len(bias) != gates:
        raise ValueError(f"bias: got {len(bias)} numbers, want one for each of {gates} gates")
    unit = tuple(sorted(dict(unit or {}).items()))
    _check_update(update, gates, states, tuple(name for name, _ in unit))

    def build(hidden, *, heads=1, residuals="gates"):
        return _build(update, gates, states, bias, unit, hidden, heads, residuals)

    name = update.__name__.removesuffix("_update")
    origin = (_gated, (update, gates, states, bias, unit))
    made = constructor(build, name, origin)
    made.__doc__ = update.__doc__
    return made


def _gated(update, gates, states, bias, unit):
    return gated(update, gates=gates, states=states, bias=bias, unit=dict(unit))


def _build(update, gates, states, bias, unit, hidden, heads, residuals):
    hidden, heads = arguments.size("hidden", hidden), arguments.size("heads", heads)
    if hidden % heads:
        raise ValueError(f"heads: got {heads}, want a divisor of hidden={hidden}")
    if residuals not in RESIDUALS:
        raise ValueError(f"residuals: got {residuals!r}, want one of {RESIDUALS}")
    names = tuple(name for name, _ in unit)

    def init(key, in_size):
        arguments.check_key(key)
        in_size = arguments.size("in_size", in_size)
        dtype, width = jnp.result_type(float), hidden // heads
        key_w, key_r, *keys = jax.random.split(key, 2 + len(unit))
        w = jax.vmap(lambda k: _input_init(k, (in_size, hidden), dtype))
        r = jax.vmap(lambda k: _recurrent_init(k, (width, width), dtype))
        blocks = r(jax.random.split(key_r, heads * gates)).reshape(heads, gates, width, width)
        blocks = jnp.moveaxis(blocks, 1, 2)
        return {
            "w": jnp.moveaxis(w(jax.random.split(key_w, gates)), 0, 1),
            "r": blocks[0] if heads == 1 else blocks,
            "b": jnp.broadcast_to(jnp.array(bias, dtype)[:, None], (gates, hidden)),
            **{name: make(k, (hidden,), dtype) for k, (name, make) in zip(keys, unit)},
        }

    def initial_state(params, batch_shape):
        zeros = jnp.zeros((*batch_shape, hidden), arithmetic(params))
        return (zeros,) * states

    def step(params, state, x, key=None):
        del key
        state = arguments.completed_state(initial_state, params, state, x.shape[:-1])
        given = operands(params, state, x, hidden, gates, heads, names)
        problem = Problem(update, gates, states, False, residuals, None)
        return reference.step(problem, given, given.state, x)

    def unroll(params, state, xs, mask, starts, reverse, key, implementation):
        del key
        initial = initial_state(params, xs.shape[1:-1])
        state = initial if state is None else state
        given = operands(params, state, xs, hidden, gates, heads, names)
        return recur(
            update, xs, given.w, given.b, given.r, given.unit, given.state,
            initial=None if starts is None else initial, mask=mask, starts=starts,
            reverse=reverse, residuals=residuals, implementation=implementation,
        )  # fmt: skip

    return Cell(init, initial_state, step, unroll)


def operands(params, state, xs, hidden, gates, heads=1, unit=()):
    """The checked arrays of a gated cell; ``state`` is a completed one.

    Raises:
      ValueError, TypeError: naming the array that does not fit the cell or the others.
    """
    width, inputs = hidden // heads, xs.shape[-1]
    want = {
        "w": (inputs, gates, hidden),
        "r": (hidden, gates, hidden) if heads == 1 else (heads, width, gates, width),
        "b": (gates, hidden),
        **{name: (hidden,) for name in unit},
    }
    arguments.check_params(params, want, "w", xs)
    dtype = arithmetic(params)
    arguments.check_floating("xs", xs)
    if promoted(xs.dtype, dtype) != dtype:
        want = f"{dtype} or less, the arithmetic's type, which the parameters give"
        raise TypeError(f"xs: got {xs.dtype}, want {want}")
    named = {name: params[name] for name in unit}
    return Operands(xs, params["w"], params["b"], params["r"], named, state, None, None, None)


_MIXING = {"cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp", "rev", "sort", "dot_general"}


def _check_update(update, gates, states, unit):
    """Traces ``update`` on rows of an odd size and looks for anything that is not elementwise."""
    row = jax.ShapeDtypeStruct((3,), jnp.float32)
    name = f"update {update.__name__}"
    try:
        inspect.signature(update).bind(None, None, None, **dict.fromkeys(unit))
    except TypeError as error:
        raise TypeError(f"{name}: {error}; it is called with (state, x, r) and {unit}") from None
    rows = lambda count: (row,) * count
    named = dict.fromkeys(unit, row)
    try:
        jaxpr, out = jax.make_jaxpr(update, return_shape=True)(
            rows(states), rows(gates), rows(gates), **named
        )
    except Exception as error:
        error.add_note(f"in {name}, called with states={states} and gates={gates}")
        raise
    shapes = [o.shape for o in out] if isinstance(out, tuple) else type(out).__name__
    if shapes != [(3,)] * states:
        raise TypeError(f"{name}: gave {shapes}, want a tuple of {states} arrays like its inputs")
    for eqn in _equations(jaxpr.jaxpr):
        # What is made of rows are rows: a smaller array is a sum over them, or a part of them.
        made_of_rows = any(v.aval.shape == (3,) for v in eqn.invars)
        sizes = {v.aval.shape for v in eqn.outvars}
        mixes = not sizes <= ({(3,)} if made_of_rows else {(), (1,), (3,)})
        if mixes or eqn.primitive.name in _MIXING:
            raise TypeError(
                f"{name}: {eqn.primitive.name} is not elementwise over the hidden axis;"
                f" lift the cell from its step with jaxrnn.cell instead"
            )


def _equations(jaxpr):
    for eqn in jaxpr.eqns:
        inner = [v for v in eqn.params.values() if hasattr(v, "jaxpr") or hasattr(v, "eqns")]
        if not inner:
            yield eqn
        for sub in inner:
            yield from _equations(getattr(sub, "jaxpr", sub))
