"""Cells whose step is not elementwise but for one product, or has no product at all."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxrnn._src.core import checks, param_spec
from jaxrnn._src.core.cell import Cell
from jaxrnn._src.core.dtypes import arithmetic, promoted
from jaxrnn._src.core.sequence import select
from jaxrnn._src.core.streaming import streamed
from jaxrnn._src.core.typing import Array, Params
from jaxrnn._src.ops import step_loop


def lifted(
    spec, states, inputs, step, *, products=(), bilinear=None, others=(), outputs=None
):  # fmt: skip
    """A cell from its step, which takes its matrix products by name.

    What an input alone decides is made for all steps at once, before the loop, or for a piece of a
    long sequence at a time; the gradients of the weights are taken after it.

    Args:
      spec: the parameters: see ``param_spec.made``.
      states: a dict from the name of each state to its width: [..., width], zero at first.
      inputs: ``(params, x) -> x``, a tree of [..., K] in float32 at least, of [..., I] with any
        leading axes.
      step: ``(others, state, x, dot) -> (state, y)``, elementwise but for its products
        ``dot(name, a)`` (``step_loop.problem.product``) and sums over features.
      products: names of the parameters that ``dot`` takes; or ``params -> dict``.
      bilinear: what ``dot`` is in place of a matrix product, ``(a, w, total) -> [..., M]``.
      others: names of the parameters that the step is given, each as [...batch, ...]; or
        ``params -> dict``.
      outputs: ``(params, ys, x) -> ys``, for all steps at once; None if y is the output.

    Returns:
      A ``Cell``. Outputs are in the type of the inputs.
    """
    initial_state = zero_state(states.values())
    finish = outputs or (lambda params, ys, x: ys)

    def given(params, x):
        """What the loop is given, but for the state."""
        param_spec.check(spec, params, x)
        weights, total = _named(products, params), arithmetic(params)
        product = promoted(x.dtype, *(w.dtype for w in weights.values()))
        inner, rest = jax.tree.map(
            lambda a: a.astype(total), (inputs(params, x), _named(others, params))
        )
        return inner, weights, rest, product

    def one(params, state, x, key=None):
        del key
        state = checks.completed_state(initial_state, params, state, x.shape[:-1])
        inner, weights, rest, product = given(params, x)
        state, y = step_loop.one(
            step, inner, weights, rest, state, product=product, bilinear=bilinear
        )
        return state, finish(params, y, x).astype(x.dtype)

    def unroll(params, state, xs, mask, starts, reverse, key, implementation, initial=None):
        del key
        inner, weights, rest, product = given(params, xs)
        initial = initial_state(params, xs.shape[1:-1]) if initial is None else initial
        state, ys = step_loop.loop(
            step, inner, weights, rest, initial if state is None else state, product=product,
            bilinear=bilinear, initial=None if starts is None else initial, mask=mask,
            starts=starts, reverse=reverse, implementation=implementation,
        )  # fmt: skip
        if outputs is not None:
            ys = select(mask, outputs(params, ys, xs), 0)
        return state, ys.astype(xs.dtype)

    init = lambda key, n: param_spec.made(spec, key, n)
    made = lambda params, xs: given(params, xs)[0]
    whole = streamed(unroll, initial_state, made)
    return Cell(init, initial_state, one, whole, states=tuple(states))


def state_dtype(params, complex_=False):
    """The arithmetic's type, or the complex one of its precision."""
    dtype = arithmetic(params)
    return promoted(dtype, jnp.dtype("complex64")) if complex_ else dtype


def zero_state(widths, complex_=False):
    """``initial_state`` of arrays of zeros, [..., width] each, in the arithmetic's type."""
    widths = tuple(widths)

    def initial_state(params, batch_shape):
        dtype = state_dtype(params, complex_)
        return tuple(jnp.zeros((*batch_shape, width), dtype) for width in widths)

    return initial_state


def _named(
    names: tuple[str, ...] | Callable[[Params], dict[str, Array]], params: Params
) -> dict[str, Array]:
    return names(params) if callable(names) else {name: params[name] for name in names}
