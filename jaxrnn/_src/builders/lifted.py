"""Cells whose step is not elementwise but for one product, or has no product at all."""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxrnn._src.builders import step_inputs
from jaxrnn._src.core import checks, param_spec
from jaxrnn._src.core.cell import Cell
from jaxrnn._src.core.dtypes import arithmetic, promoted
from jaxrnn._src.core.gathered import gathered
from jaxrnn._src.core.inputs import leading
from jaxrnn._src.core.sequence import select
from jaxrnn._src.core.streaming import streamed
from jaxrnn._src.core.typing import Array, InitialState, Inputs, Params, Spec, State
from jaxrnn._src.ops import step_loop


def lifted(
    spec: Spec,
    states: Mapping[str, int | param_spec.Inputs],
    inputs: Callable[[Params, Inputs], Any],
    step: Callable[[dict[str, Array], State, Any, Callable[..., Array]], tuple[State, Array]],
    *,
    products: "Named" = (),
    bilinear: Callable[..., Array] | None = None,
    others: "Named" = (),
    outputs: Callable[[Params, Array, Array], Array] | None = None,
    beside: Sequence[str] = (),
) -> Cell:
    """Makes a cell from a step that takes its matmuls by name.

    For cells that are not ``jaxrnn.gated``: a second matmul in the step, a sum over the units. It
    is faster than ``jaxrnn.cell``: what depends on the input alone is computed for all steps at
    once, before the loop, and the weights' gradients are one matmul each, after it. Long sequences
    are run in pieces, so that memory does not grow with what the input's part takes.

    Args:
      spec: a dict from the name of each parameter to ``(shape, initializer)``. The shape has
        ``jaxrnn.INPUTS`` where the size of the input stands; an initializer is
        ``(key, shape, dtype) -> array``, as in ``jax.nn.initializers``. Of a shape [K, G, H] it
        makes each of the G gates by itself.
      states: a dict from the name of each state to its width, or to ``jaxrnn.INPUTS`` for that of
        the input: [..., width], zero at first.
      inputs: ``(params, x) -> x``: from [..., I], with any leading axes, to a tree of arrays
        [..., K], which the step is given in float32 at least.
      step: ``(others, state, x, dot) -> (state, y)`` of one step: ``state`` is a tuple of arrays
        [..., width], ``dot(name, a)`` the product of a [..., K] with a weight: [K, M] gives
        [..., M]; [K, G, H] gives [..., G * H]; [N, D, G, E], of N heads, takes [..., N * D] and
        gives [..., G * N * E]. All else is elementwise, or over the last axis.
      products: names of the parameters that ``dot`` takes; or ``params -> dict`` of weights.
      bilinear: what ``dot`` is in place of a matmul, ``(a, w, total) -> [..., M]``: bilinear in
        [..., K] and a weight of any shape; ``total`` is the type to sum in.
      others: names of the parameters that the step is given, each as [...batch, ...]; or
        ``params -> dict``.
      outputs: ``(params, ys, x) -> ys``, for all steps at once; None if y is the output.
      beside: names of what each step is given beside its features. The cell's input is then a
        dict, of ``x`` [..., I] and each of them, and so is the x of ``inputs`` and ``outputs``.

    Returns:
      A ``Cell``. Outputs are in the type of the inputs. Call it in a ``jaxrnn.constructor``, so
      that the cell compares and pickles by that call.

    Raises:
      TypeError, ValueError: an argument is not as above; at the call, the step's result is not.

    >>> @jaxrnn.constructor
    ... def reset_before(hidden):  # h = h + f * (n - h), n = tanh(x_n + R_n (f * h))
    ...     init = jax.nn.initializers
    ...     spec = {"w": ((jaxrnn.INPUTS, 2, hidden), init.glorot_uniform())}
    ...     spec |= {name: ((hidden, hidden), init.orthogonal()) for name in ("rf", "rn")}
    ...
    ...     def inputs(params, x):
    ...         y = jnp.tensordot(x, params["w"], 1)
    ...         return y[..., 0, :], y[..., 1, :]
    ...
    ...     def step(others, state, x, dot):
    ...         (h,), (xf, xn) = state, x
    ...         f = jax.nn.sigmoid(xf + dot("rf", h))
    ...         h = h + f * (jnp.tanh(xn + dot("rn", f * h)) - h)
    ...         return (h,), h
    ...
    ...     return jaxrnn.lifted(spec, {"h": hidden}, inputs, step, products=("rf", "rn"))
    >>> cell = reset_before(4)
    >>> params = cell.init(jax.random.key(0), 3)
    >>> jaxrnn.unroll(cell, params, jnp.ones((5, 2, 3)))[1].shape
    (5, 2, 4)
    """
    param_spec.check_spec(spec)
    beside = step_inputs.names(beside, argument="beside")
    checks.widths("states", states, param_spec.INPUTS)
    for name, named in (("products", products), ("others", others)):
        if not callable(named) and not set(named) <= set(spec):
            raise ValueError(f"{name}: got {tuple(named)}, want names of {tuple(spec)}")
    step = _checked(step)
    finish = outputs or (lambda params, ys, x: ys)
    features = functools.partial(step_inputs.features, beside)

    def initial_state(params, batch_shape):
        widths = (param_spec.width(spec, params, n) for n in states.values())
        return zero_state(widths)(params, batch_shape)

    def given(params, x):
        """What the loop is given, but for the state."""
        param_spec.check(spec, params, features(x, "xs"))
        weights, total = _named(products, params), arithmetic(params)
        dtypes = [features(x, "xs").dtype, *(w.dtype for w in weights.values())]
        product = promoted(*dtypes)
        inner, rest = jax.tree.map(
            lambda a: a.astype(total), (inputs(params, x), _named(others, params))
        )
        return inner, weights, rest, product

    def one(params, state, x, key=None):
        del key
        inner, weights, rest, product = given(params, x)
        state = checks.completed_state(initial_state, params, state, leading(x))
        state, y = step_loop.one(
            step, inner, weights, rest, state, product=product, bilinear=bilinear
        )
        return state, finish(params, y, x).astype(features(x, "xs").dtype)

    def unroll(params, state, xs, options, initial=None):
        params = gathered(params)
        inner, weights, rest, product = given(params, xs)
        initial = initial_state(params, leading(xs)[1:]) if initial is None else initial
        state, ys = step_loop.loop(
            step,
            inner,
            weights,
            rest,
            initial if state is None else state,
            product=product,
            bilinear=bilinear,
            initial=None if options.starts is None else initial,
            mask=options.mask,
            starts=options.starts,
            reverse=options.reverse,
            implementation=options.implementation,
        )
        if outputs is not None:
            ys = select(options.mask, outputs(params, ys, xs), 0)
        return state, ys.astype(features(xs, "xs").dtype)

    init = lambda key, n: param_spec.made(spec, key, features(n, "in_size"))
    made = lambda params, xs: given(params, xs)[0]
    whole = streamed(unroll, initial_state, made)
    return Cell(init, initial_state, one, whole, states=tuple(states))


def state_dtype(params, complex_=False):
    """The arithmetic's type, or the complex one of its precision."""
    dtype = arithmetic(params)
    return promoted(dtype, jnp.dtype("complex64")) if complex_ else dtype


def zero_state(widths: Iterable[int], complex_: bool = False) -> InitialState:
    """``initial_state`` of arrays of zeros, [..., width] each, in the arithmetic's type."""
    widths = tuple(widths)

    def initial_state(params, batch_shape):
        dtype = state_dtype(params, complex_)
        return tuple(jnp.zeros((*batch_shape, width), dtype) for width in widths)

    return initial_state


# Names of parameters, or a dict that is made of them.
Named = Sequence[str] | Callable[[Params], dict[str, Array]]


def _checked(step):
    @functools.wraps(step)
    def run(others, state, x, dot):
        result = step(others, state, x, dot)
        checks.check_result(result, state)
        return result

    return run


def _named(names: Named, params: Params) -> dict[str, Array]:
    return names(params) if callable(names) else {name: params[name] for name in names}
