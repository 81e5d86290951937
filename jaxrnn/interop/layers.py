"""A cell taken apart into what other libraries have: layers, directions, biases, options."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrnn._src.core import params_tree
from jaxrnn._src.core.cell import Cell, call_of, unroll
from jaxrnn._src.core.typing import Merge, Params
from jaxrnn._src.wrappers.initialized import initialized
from jaxrnn._src.wrappers.stack import bidirectional, stack
from jaxrnn.interop.biases import double_bias, without_bias


def is_a(cell: Cell, constructor: Callable[..., Cell]) -> bool:
    """Whether a cell was made by a constructor."""
    return cell.made is not None and cell.made.constructor == constructor


def options(cell: Cell) -> dict[str, Any]:
    """What a cell was made with, by name."""
    return dict(call_of(cell).kwargs)


def plain(cell: Cell) -> Cell:
    """A cell without what says only how its parameters begin."""
    while is_a(cell, initialized):
        cell = options(cell)["cell"]
    return cell


def layers(cell: Cell, params: Params) -> list[tuple[Cell, Params]]:
    """Pairs of a cell and its parameters, from the first layer to the last."""
    cell = plain(cell)
    if not is_a(cell, stack):
        return [(cell, params)]
    inits = {str(i): one.init for i, one in enumerate(call_of(cell).args)}
    params = params_tree.parts(params, inits)
    pairs = zip(call_of(cell).args, map(params.get, inits))
    return [layer for pair in pairs for layer in layers(*pair)]


def stacked(pairs: Sequence[tuple[Cell, Params]]) -> tuple[Cell, Params]:
    """The cell of such pairs, and its parameters: one by itself, or a stack."""
    if len(pairs) == 1:
        return pairs[0]
    cells, params = zip(*pairs)
    return stack(*cells), {str(i): p for i, p in enumerate(params)}


def ends(cell: Cell, params: Params) -> list[tuple[Cell, Params]]:
    """Pairs of a cell and its parameters, one for each direction."""
    if not is_a(cell, bidirectional):
        return [(cell, params)]
    given = options(cell)
    forward, backward = given["forward"], given["backward"]
    backward = forward if backward is None else backward
    params = params_tree.parts(params, {"forward": forward.init, "backward": backward.init})
    return [(plain(forward), params["forward"]), (plain(backward), params["backward"])]


def both(
    forward: tuple[Cell, Params], backward: tuple[Cell, Params], merge: Merge = "concat"
) -> tuple[Cell, Params]:
    """The bidirectional cell of two pairs, and its parameters."""
    (first, ahead), (second, back) = forward, backward
    cell = bidirectional(first, None if first == second else second, merge=merge)
    return cell, {"forward": ahead, "backward": back}


def one_bias(cell: Cell) -> tuple[Cell, int]:
    """The cell with one bias, and how many this one has beside its two products: 0 to 2."""
    for constructor, count in ((double_bias, 2), (without_bias, 0)):
        if is_a(cell, constructor):
            return options(cell)["cell"], count
    return cell, 1


def name_of(activation: str | Callable[..., Any]) -> str | Callable[..., Any]:
    """The name by which a cell takes an activation; the function itself if it has none."""
    if isinstance(activation, str):
        return activation
    name = getattr(activation, "__name__", "")
    known = getattr(jax.nn, name, getattr(jnp, name, None))
    return name if activation is known else activation


def only(library: str, cell: Cell, **wanted: Any) -> None:
    """Raises a ValueError if a cell has options for which a library has no counterpart."""
    for name, value in wanted.items():
        came = options(cell)[name]
        if (name_of(came) if callable(came) else came) != value:
            raise ValueError(f"cell: got {cell}, want {name}={value!r}: {library} has no other")


def check(cell: Cell, params: Params) -> str:
    """Raises what ``unroll`` would of parameters that are not the cell's; gives their type."""
    named = [(jax.tree_util.keystr(path), a) for path, a in jax.tree.leaves_with_path(params)]
    inputs = [np.shape(a)[0] for name, a in named if name.endswith("['w']") and np.ndim(a)]
    xs = jax.ShapeDtypeStruct((1, inputs[0] if inputs else 1), jnp.bfloat16)
    jax.eval_shape(lambda params, xs: unroll(cell, params, xs), params, xs)
    types = {str(a.dtype) for _, a in named}
    if len(types) != 1:
        came = f"the types {sorted(types)}" if types else "no arrays"
        raise ValueError(f"params: got {came}, want one type")
    return types.pop()
